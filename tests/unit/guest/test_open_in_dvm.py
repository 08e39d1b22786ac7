"""qvm-open-in-dvm from its command line to its exit status."""

from __future__ import annotations

import errno
import os
import pwd
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from qfilexchg.guest import document, open_in_dvm, sequence
from qfilexchg.guest.open_in_dvm import HELP, main, parse
from qfilexchg.guest.outcome import Usage
from qfilexchg.guest.outgoing import Outgoing
from qfilexchg.guest.request import NoAnswer
from qfilexchg.guest.sequence import BESIDE, FAILED, REFUSED, REPLACED, Book, Outcome
from qfilexchg.protocol import dvm_header
from qfilexchg.protocol.dvm_header import HEADER_BYTES
from qfilexchg.protocol.qpen import Request
from qfilexchg.xenstore.blocking import Store
from qfilexchg.xenstore.errors import StoreLost
from tests.unit.guest.dom0 import Dom0, OutgoingDisk

BODY = b"the document"


class Incoming:
    """The slot that documents come back to."""

    folder = "/mnt/incoming"

    def __init__(self) -> None:
        self.disk = False
        self.is_mounted = False

    def present(self) -> bool:
        return self.disk

    def mounted(self) -> bool:
        return self.is_mounted


class Vm:
    """A VM with one document, and its person at the command."""

    def __init__(self, dom0: Dom0, top: Path) -> None:
        self.dom0 = dom0
        self.slot = OutgoingDisk(dom0, top / "xvdg")
        self.incoming = Incoming()
        self.home = top / "home"
        self.home.mkdir()
        self.file = self.home / "report.pdf"
        self.file.write_bytes(BODY)
        self.book = Book(str(self.home / ".dvm"))
        self.store_lost = False
        self.cancel_at: Iterator[int | None] = iter(())
        """The checkpoint at which each Interruption is cancelled, counted from the beginning."""
        self.ignored: list[object] = []

    def open_store(self, _deadline_s: float = 10) -> Dom0:
        if self.store_lost:
            raise StoreLost("it is away")
        return self.dom0

    def interruption(self, _listener: int | None = None) -> Dom0:
        self.dom0._heeding = True
        self.dom0.cancel_at = next(self.cancel_at, None)
        return self.dom0

    def run(self, *words: str | Path) -> int:
        return main([str(word) for word in words or (self.file,)], self.slot, self.incoming)  # type: ignore[arg-type]

    def arrive(self, here: bool) -> Callable[[], None]:
        """The pendrive that the document comes back on is here, or not any more."""
        return lambda: setattr(self.incoming, "disk", here)

    def conclude(self, word: str, path: str = "", why: str = "", seq: int = 1) -> Callable[[], None]:
        """What the pendrive script does when the document is here."""
        return lambda: self.book.conclude(seq, Outcome(word, path, why))

    def sent(self) -> tuple[str, bytes]:
        """What is on the pendrive."""
        data = Path(self.slot.device).read_bytes()
        header = dvm_header.parse(data, len(data))
        return header.name, data[HEADER_BYTES : HEADER_BYTES + header.size_bytes]

    def noted(self) -> set[str]:
        return {file.name for file in (self.home / ".dvm").iterdir()} - {"seq"} if (self.home / ".dvm").exists() else set()


@pytest.fixture
def dom0() -> Dom0:
    return Dom0()


@pytest.fixture
def vm(dom0: Dom0, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vm:
    return vm_in(dom0, tmp_path, monkeypatch)


def vm_in(dom0: Dom0, top: Path, monkeypatch: pytest.MonkeyPatch) -> Vm:
    """A VM whose programs are this process's."""
    vm = Vm(dom0, top)
    monkeypatch.setattr(Store, "open", vm.open_store)
    monkeypatch.setattr(open_in_dvm, "Interruption", vm.interruption)
    monkeypatch.setattr(open_in_dvm, "time", SimpleNamespace(monotonic=dom0.clock, time=time.time))
    ignore = SimpleNamespace(SIGHUP=signal.SIGHUP, SIG_IGN=signal.SIG_IGN, signal=lambda *which: vm.ignored.append(which))
    monkeypatch.setattr(open_in_dvm, "signal", ignore)
    monkeypatch.setattr(sequence, "home", lambda: str(vm.home))
    monkeypatch.setattr(pwd, "getpwnam", lambda _: SimpleNamespace(pw_uid=os.getuid()))
    return vm


class TestCommandLine:
    def test_options_may_stand_anywhere(self) -> None:
        for words in (["--view-only", "a"], ["a", "--view-only"]):
            order = parse(words)
            assert order
            assert (order.file, order.view_only, order.wait) == ("a", True, True)
        order = parse(["--no-wait", "--", "--view-only"])
        assert order
        assert (order.file, order.view_only, order.wait) == ("--view-only", False, False)

    @pytest.mark.parametrize("words", [["--help"], ["a", "-h"]])
    def test_help_is_given_before_all_else(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(words) == 0
        assert capsys.readouterr().out == HELP

    @pytest.mark.parametrize("words", [[], ["a", "b"], ["a", "--edit"], ["--"]])
    def test_what_is_not_understood_is_an_error_of_its_own(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(Usage):
            parse(words)
        assert main(words) == 2
        assert capsys.readouterr().err.startswith("qvm-open-in-dvm: ")


class TestTheFile:
    def test_a_name_of_any_letters_is_sent(self, vm: Vm) -> None:
        file = vm.home / "写 真.jpg"
        file.write_bytes(BODY)
        assert vm.run("--no-wait", file) == 0
        assert vm.sent() == ("写 真.jpg", BODY)

    def test_a_link_gives_the_name_and_its_target_is_what_may_be_replaced(self, vm: Vm) -> None:
        link = vm.home / "link.pdf"
        link.symlink_to("report.pdf")
        assert vm.run("--no-wait", link) == 0
        assert vm.sent() == ("link.pdf", BODY)
        noted = vm.book.original(1)
        assert noted
        assert (noted.path, noted.name) == (str(vm.file), "link.pdf")

    @pytest.mark.parametrize(
        ("make", "why"),
        [
            (lambda path: path.mkdir(), "is a folder; name one file"),
            (lambda path: os.mkfifo(path), "is no file; name one file"),
            (lambda path: path.symlink_to(path), "cannot be read (Too many levels of symbolic links)"),
            (lambda path: None, "cannot be read (No such file or directory)"),
        ],
    )
    def test_what_is_no_file_is_not_sent(self, vm: Vm, make: Callable[[Path], None], why: str, capsys: pytest.CaptureFixture[str]) -> None:
        make(vm.home / "thing")
        assert vm.run(vm.home / "thing") == 4
        assert why in capsys.readouterr().err
        assert (vm.dom0.taken, vm.noted()) == ([], set())

    def test_one_that_cannot_be_read_is_not_sent(self, vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> int:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(os, "open", refuse)
        assert vm.run() == 4
        assert vm.dom0.taken == []

    def test_one_whose_name_is_not_utf8_is_not_sent(self, vm: Vm, capsys: pytest.CaptureFixture[str]) -> None:
        file = vm.home / os.fsdecode(b"\xff.pdf")
        file.write_bytes(BODY)
        assert vm.run(file) == 4
        assert "the document's name cannot be sent: it is not UTF-8" in capsys.readouterr().err

    def test_one_that_changes_once_is_read_again(self, vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
        disturb(vm, monkeypatch, times=1)
        assert vm.run("--no-wait", vm.file) == 0
        assert vm.sent() == ("report.pdf", BODY + b"!")

    def test_one_that_does_not_keep_still_is_not_sent(self, vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
        disturb(vm, monkeypatch, times=2)
        assert vm.run("--no-wait", vm.file) == 4
        assert (vm.dom0.pendrive, vm.dom0.delivered, vm.noted()) == ("none", [], set())

    @pytest.mark.parametrize("account", [SimpleNamespace(pw_uid=4711), None], ids=["another's", "of a VM without the account"])
    def test_one_that_could_not_come_back_is_not_sent(
        self, vm: Vm, monkeypatch: pytest.MonkeyPatch, account: SimpleNamespace | None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(pwd, "getpwnam", lambda name: {"user": account}[name] if account else {}[name])
        assert vm.run() == 4
        assert "only documents of the account user can come back: run this as user, or use --view-only" in capsys.readouterr().err
        assert vm.dom0.taken == []
        assert vm.run("--view-only", "--no-wait", vm.file) == 0


def disturb(vm: Vm, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let the document grow while it is read, so often."""
    write = document.write
    left = [times]

    def write_disturbed(*arguments: object) -> bytes:
        if left[0]:
            left[0] -= 1
            with vm.file.open("ab") as file:
                file.write(b"!")
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(document, "write", write_disturbed)


class TestDelivery:
    def test_the_document_is_on_the_pendrive_and_known(self, vm: Vm) -> None:
        vm.file.chmod(0o640)
        assert vm.run("--no-wait", vm.file) == 0
        assert vm.dom0.delivered == ["disposable"]
        assert vm.sent() == ("report.pdf", BODY)
        assert (vm.dom0.taken[0].size_bytes, vm.dom0.taken[1].seq, vm.dom0.taken[1].view_only) == (1 << 20, 1, False)
        assert vm.slot.calls == []
        noted = vm.book.original(1)
        assert noted
        assert (noted.path, noted.name, noted.size_bytes, noted.mode) == (str(vm.file), "report.pdf", 12, 0o640)
        assert noted.boot == sequence.this_boot()
        assert vm.noted() == {"1", "1.original"}

    def test_one_that_is_only_looked_at_cannot_come_back(self, vm: Vm) -> None:
        assert vm.run("--view-only", "--no-wait", vm.file) == 0
        assert vm.dom0.taken[1].view_only is True
        assert vm.noted() == set()

    def test_the_hand_over_is_told_with_the_time(self, vm: Vm, capsys: pytest.CaptureFixture[str]) -> None:
        vm.run("--no-wait", vm.file)
        assert capsys.readouterr().err == "   3.3 s  handed to dom0\n"

    @pytest.mark.parametrize(
        ("setting", "value", "status", "message"),
        [
            ("verdict", "deny", 3, "refused by dom0"),
            ("maximum_bytes", 1, 5, "no room: the document needs a pendrive of 1.0 MiB; dom0 makes none above 1 B"),
            ("pendrive", "clean", 6, "already has an outgoing pendrive"),
            ("verdict", "bounce", 1, "the receiver could not take the pendrive"),
            ("verdict", "no-disposable", 1, "it could not make a DisposableVM"),
            ("verdict", "no-memory", 1, "no memory left for a DisposableVM"),
            ("verdict", "no-savefile", 1, "the savefile"),
            ("verdict", "too-many-disposables maximum=8", 1, "as many DisposableVMs run as it allows"),
        ],
    )
    def test_each_end_before_it_has_its_exit_status(
        self, vm: Vm, setting: str, value: object, status: int, message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        setattr(vm.dom0, setting, value)
        assert vm.run() == status
        assert message in capsys.readouterr().err
        assert (vm.dom0.delivered, vm.noted()) == ([], set())

    def test_a_disk_that_udev_has_not_given_us_yet_is_waited_for(self, vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
        answers = iter([False, False, True])
        monkeypatch.setattr(os, "access", lambda *_: next(answers))
        assert vm.run("--no-wait", vm.file) == 0

    def test_one_that_it_never_gives_us_is_given_back(self, vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
        os.unlink(vm.slot.device)
        assert vm.run() == 1
        assert (vm.dom0.pendrive, vm.noted()) == ("none", set())

    @pytest.mark.parametrize("lost", ["the answer", "the store"])
    def test_one_that_was_delivered_after_all_is_watched(self, vm: Vm, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
        send = Outgoing.send

        def send_and_fail(outgoing: Outgoing, *arguments: object, **options: object) -> None:
            outgoing._unsure = Request("send", seq=1, request_id="x1")
            outgoing._exchange.carry_out(outgoing._unsure)
            raise NoAnswer(60) if lost == "the answer" else StoreLost("it is away")

        monkeypatch.setattr(Outgoing, "send", send_and_fail)
        vm.dom0.story = [(1, "open disp3"), (60, "unchanged disp3")]
        assert vm.run() == 0
        assert [request.verb for request in vm.dom0.taken] == ["new", "send", "cancel"]
        monkeypatch.setattr(Outgoing, "send", send)

    def test_one_that_was_delivered_after_all_can_still_be_stopped(self, vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
        def send_and_fail(outgoing: Outgoing, *_: object, **__: object) -> None:
            outgoing._unsure = Request("send", seq=1, request_id="x1")
            outgoing._exchange.carry_out(outgoing._unsure)
            raise NoAnswer(60)

        monkeypatch.setattr(Outgoing, "send", send_and_fail)
        vm.dom0.story = [(1, "open disp3"), (10, lambda: setattr(vm.dom0, "cancel_at", vm.dom0.checkpoints + 1))]
        assert vm.run() == 130
        assert vm.dom0.taken[-1].verb == "forget"

    def test_a_store_that_is_away_is_an_error(self, vm: Vm) -> None:
        vm.store_lost = True
        assert vm.run() == 1
        assert vm.noted() == set()

    def test_a_folder_of_ours_that_is_none_is_an_error(self, vm: Vm, capsys: pytest.CaptureFixture[str]) -> None:
        (vm.home / ".dvm").touch()
        assert vm.run() == 1
        assert ".dvm" in capsys.readouterr().err

    @pytest.mark.parametrize("verdict", ["allow", "deny", "bounce", "no-memory"])
    @pytest.mark.parametrize("view_only", [False, True])
    def test_a_signal_at_any_point_leaves_nothing_behind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, view_only: bool
    ) -> None:
        statuses: set[int] = set()
        for checkpoint in range(1, 200):
            dom0 = Dom0()
            top = tmp_path / str(checkpoint)
            top.mkdir()
            with monkeypatch.context() as patch:
                vm = vm_in(dom0, top, patch)
                dom0.verdict = verdict
                vm.cancel_at = iter([checkpoint])
                statuses.add(status := vm.run(vm.file, "--no-wait", *(["--view-only"] if view_only else [])))
            assert dom0.pendrive == "none"
            assert status == 0 or vm.noted() == set()
            assert bool(dom0.documents) == (status == 0), "whoever is cancelled has no DisposableVM left"
            if dom0.checkpoints < checkpoint:
                break
        else:
            pytest.fail("the command never came to its end")
        assert 130 in statuses


class TestWatching:
    def test_a_document_that_is_closed_unchanged_is_forgotten(self, vm: Vm, capsys: pytest.CaptureFixture[str]) -> None:
        vm.dom0.story = [(0, "starting"), (0.5, "open disp3"), (4000, "unchanged disp3")]
        assert vm.run() == 0
        assert capsys.readouterr().err == (
            "   3.3 s  handed to dom0\n   4.0 s  open in disp3\n4003.8 s  closed: report.pdf was not changed\n"
        )
        assert vm.noted() == set()
        assert vm.ignored == [(signal.SIGHUP, signal.SIG_IGN)]

    def test_one_that_is_changed_is_told_when_it_is_in_its_place(self, vm: Vm, capsys: pytest.CaptureFixture[str]) -> None:
        vm.dom0.story = [
            (0.1, "preparing"),
            (1, "open disp3"),
            (6, "returning disp3"),
            (8, "returned disp3"),
            (9, vm.conclude(REPLACED, str(vm.file))),
        ]
        assert vm.run() == 0
        assert [line.partition(" s  ")[2] for line in capsys.readouterr().err.splitlines()] == [
            "handed to dom0",
            "the savefile of the DisposableVMs is being made first",
            "open in disp3",
            "changed; on its way back",
            "returned: report.pdf now has the changes of disp3",
        ]
        assert vm.noted() == set()

    def test_word_of_the_place_is_enough(self, vm: Vm) -> None:
        vm.dom0.story = [(1, vm.conclude(REPLACED, str(vm.file)))]
        assert vm.run() == 0

    def test_changes_beside_the_original_are_told_with_their_place(self, vm: Vm, capsys: pytest.CaptureFixture[str]) -> None:
        path = f"{vm.file} (edited in disp3)"
        vm.dom0.story = [(1, "returned disp3"), (2, vm.conclude(BESIDE, path, "it was changed here meanwhile"))]
        assert vm.run() == 7
        assert capsys.readouterr().err.endswith(
            f"qvm-open-in-dvm: the changes did not go into report.pdf, as it was changed here meanwhile; they are in {path}\n"
        )
        assert vm.noted() == set()

    def test_what_came_back_and_is_no_document_is_told(self, vm: Vm, capsys: pytest.CaptureFixture[str]) -> None:
        vm.dom0.story = [(1, "returned disp3"), (2, vm.conclude(REFUSED, "", "there is no document on the pendrive: it is short"))]
        assert vm.run() == 1
        assert "report.pdf is as it was; what came back cannot be used" in capsys.readouterr().err

    def test_one_that_has_no_place_is_waited_for_as_long_as_it_takes(self, vm: Vm, capsys: pytest.CaptureFixture[str]) -> None:
        vm.dom0.story = [
            (1, "returned disp3"),
            (2, vm.conclude(FAILED, "", "the disk is full")),
            (60, vm.conclude(FAILED, "", "the disk is full")),
            (5000, vm.conclude(REPLACED, str(vm.file))),
        ]
        assert vm.run() == 0
        assert capsys.readouterr().err.count("the disk is full") == 1

    def test_while_its_pendrive_is_here_one_has_all_the_time_that_it_needs(self, vm: Vm) -> None:
        vm.dom0.story = [
            (1, "returned disp3"),
            (30, vm.arrive(True)),
            (7200, vm.conclude(REPLACED, str(vm.file))),
            (7201, vm.arrive(False)),
        ]
        assert vm.run() == 0

    @pytest.mark.parametrize("came", [False, True])
    def test_one_whose_pendrive_is_gone_and_of_which_nothing_is_heard_is_told(
        self, vm: Vm, came: bool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        vm.dom0.story = [(1, "returned disp3")]
        if came:
            vm.dom0.story += [(2, vm.arrive(True)), (1000, vm.arrive(False))]
        assert vm.run() == 1
        told = capsys.readouterr().err
        assert "report.pdf came back changed, and where it was put was not heard: look at it, beside it and in your home" in told
        assert vm.dom0.now == pytest.approx(1000 + 3.3 + 60 + (1000 if came else 1), abs=3)
        assert vm.noted() == {"1", "1.original"}

    def test_one_that_waits_for_the_place_of_another_pendrive_is_told(self, vm: Vm, capsys: pytest.CaptureFixture[str]) -> None:
        vm.incoming.disk = vm.incoming.is_mounted = True
        vm.dom0.story = [(1, "returning disp3"), (60, "returned disp3"), (61, vm.conclude(REPLACED, str(vm.file)))]
        assert vm.run() == 0
        assert "unmount /mnt/incoming: the document waits for that" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("why", "status", "message"),
        [
            ("killed", 9, "its DisposableVM was ended before the document was closed, and what was changed is lost\n"),
            ("failed", 9, "something failed in its DisposableVM, and what may have been changed there is lost\n"),
            ("bad-document", 9, "did not understand what it was sent, and has not opened it\n"),
            ("no-program", 8, "no program in the DisposableVM opens report.pdf"),
            ("kept-in-dom0", 7, "they are in dom0, on a pendrive"),
        ],
    )
    def test_each_end_without_a_return_has_its_exit_status(
        self, vm: Vm, why: str, status: int, message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        vm.dom0.story = [(0.2, "open disp3"), (30, f"ended disp3 {why}")]
        assert vm.run() == status
        assert message in capsys.readouterr().err
        assert vm.noted() == set()

    def test_one_that_is_only_looked_at_is_watched_as_well(self, vm: Vm) -> None:
        vm.dom0.story = [(1, "open disp3"), (60, "unchanged disp3")]
        assert vm.run("--view-only", vm.file) == 0

    @pytest.mark.parametrize("stage", [None, "nonsense", "ended disp3 \x1b[2J"])
    def test_a_dom0_that_says_nothing_is_absent(self, vm: Vm, stage: str | None, capsys: pytest.CaptureFixture[str]) -> None:
        vm.dom0.story = [(0, stage)] if stage else []
        assert vm.run() == 1
        told = capsys.readouterr().err
        assert "dom0 has said nothing of the document for 60 s" in told
        assert "\x1b" not in told
        assert vm.noted() == {"1", "1.original"}, "it may still come back"

    def test_a_store_that_is_away_for_a_while_is_waited_for(self, vm: Vm) -> None:
        vm.dom0.story = [
            (1, "open disp3"),
            (10, lambda: setattr(vm, "store_lost", True)),
            (60, lambda: setattr(vm, "store_lost", False)),
            (61, "unchanged disp3"),
        ]
        assert vm.run() == 0

    def test_one_that_stays_away_is_an_error(self, vm: Vm, capsys: pytest.CaptureFixture[str]) -> None:
        vm.dom0.story = [(1, "open disp3"), (10, lambda: setattr(vm, "store_lost", True))]
        assert vm.run() == 1
        assert "it is away" in capsys.readouterr().err

    def test_between_two_looks_no_way_to_the_store_is_held(self, vm: Vm) -> None:
        held: list[int] = []

        class Counting(Dom0):
            def __enter__(self) -> Counting:
                held.append(1)
                return self

            def __exit__(self, *_: object) -> None:
                held.pop()

            def wait(self, descriptors: object, timeout_s: float, events: int = 0) -> bool:
                if not descriptors and self.delivered:
                    most.append(len(held))
                return super().wait(descriptors, timeout_s, events)  # type: ignore[arg-type]

        most: list[int] = []
        vm.dom0.__class__ = Counting
        vm.dom0.story = [(20, "unchanged disp3")]
        assert vm.run() == 0
        assert set(most) == {1}, "the signals' alone"


class TestStopping:
    def stop_after(self, vm: Vm, *seconds: float) -> None:
        """Let the person press Ctrl-C so many seconds after the delivery, and again."""
        for after_s in seconds:
            vm.dom0.story.append((after_s, lambda: setattr(vm.dom0, "cancel_at", vm.dom0.checkpoints + 1)))

    def test_the_disposable_vm_is_destroyed_and_the_document_forgotten(self, vm: Vm, capsys: pytest.CaptureFixture[str]) -> None:
        vm.dom0.story = [(1, "open disp3")]
        self.stop_after(vm, 10)
        assert vm.run() == 130
        assert [request.verb for request in vm.dom0.taken] == ["new", "send", "forget"]
        assert (vm.dom0.documents, vm.noted()) == (set(), set())
        assert capsys.readouterr().err.endswith("qvm-open-in-dvm: cancelled\n")

    def test_one_that_is_on_its_way_back_is_waited_for(self, vm: Vm, capsys: pytest.CaptureFixture[str]) -> None:
        vm.dom0.story = [
            (1, "open disp3"),
            (5, "returning disp3"),
            (30, "returned disp3"),
            (31, vm.conclude(REPLACED, str(vm.file))),
        ]
        self.stop_after(vm, 10)
        assert vm.run() == 0
        assert "It is too late to stop" in capsys.readouterr().err

    def test_a_second_time_ends_the_waiting_alone(self, vm: Vm) -> None:
        vm.dom0.story = [(1, "open disp3"), (5, "returning disp3")]
        self.stop_after(vm, 10, 20)
        assert vm.run() == 130
        assert vm.noted() == {"1", "1.original"}

    def test_a_dom0_that_does_not_answer_to_it_is_an_error(self, vm: Vm) -> None:
        vm.dom0.story = [(1, "open disp3"), (5, lambda: setattr(vm, "store_lost", True))]
        self.stop_after(vm, 10)
        assert vm.run() == 1
        assert vm.noted() == {"1", "1.original"}
