"""The reader between a dom0 that is none, and programs that are real."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from qfilexchg.guest import document, reading
from qfilexchg.guest.applications import Databases, Program
from qfilexchg.guest.reading import DONE, NOT_DONE, REHEARSED, Broken, Reader, Usher
from qfilexchg.guest.request import Exchange
from qfilexchg.guest.scope import Scope
from qfilexchg.protocol import dvm_header
from qfilexchg.protocol.keys import BLOCK_SOURCE, TRANSACTION_SEQ, VIEW_ONLY
from qfilexchg.xenstore.errors import StoreLost
from tests.unit.guest.dom0 import Destroyed, Dom0


class Ordered(Usher):
    """An usher that has its orders beforehand."""

    def __init__(self, orders: Sequence[tuple[str, Path]], outgoing: Path) -> None:
        self.orders = list(orders)
        self.answers: list[str] = []
        self.disk = outgoing

    def hear(self) -> tuple[str, str]:
        if not self.orders:
            return "", ""
        word, disk = self.orders.pop(0)
        return word, str(disk)

    def answer(self, text: str) -> None:
        self.answers.append(text)

    def outgoing(self) -> str:
        return str(self.disk)


class Text(Databases):
    """Databases that know one program."""

    def __init__(self, argv: Sequence[str] | None) -> None:
        self.argv = argv

    def type_of(self, path: str) -> str:
        return "text/plain"

    def program_for(self, mime_type: str, path: str) -> Program | None:
        return Program((*self.argv, path), None, "test.desktop") if self.argv else None

    def programs(self, types: object) -> set[str]:
        return {"/bin/true", "/nonexistent"}


class Vm:
    """A DisposableVM with a document."""

    def __init__(self, folder: Path) -> None:
        self.tmp = folder / "tmp"
        self.group = folder / "group"
        for path in (self.tmp, self.group):
            path.mkdir()
        (self.group / "cgroup.procs").touch()
        (self.group / "cgroup.events").write_text("populated 0\n")
        self.incoming, self.outgoing = folder / "xvdh", folder / "xvdg"
        self.outgoing.write_bytes(bytes(1 << 20))
        self.dom0 = Dom0()
        self.dom0.incoming = "loaded"
        self.dom0.disposable = True
        self.dom0.nodes |= {BLOCK_SOURCE: b"work", TRANSACTION_SEQ: b"7", VIEW_ONLY: b"0"}
        self.log: list[str] = []
        self.store_failures = 0  # attempts to open the store that are to fail, once the document has been taken in
        self.looks = 0  # times that the program is found running still
        self.put(b"Dear Bank\n")

    def put(self, body: bytes, name: str = "letter.txt") -> None:
        self.incoming.write_bytes((dvm_header.encode(name, len(body)) + body).ljust(8192, b"\0"))

    def run(self, *argv: str, orders: Sequence[str] = ("document",)) -> tuple[int | None, list[str]]:
        """Let the reader do ``orders`` with a program ``argv``; its status, None if dom0 destroys the VM, and what it asked dom0 for."""
        self.usher = Ordered([(order, self.incoming) for order in orders], self.outgoing)
        reader = Reader(
            self.usher,
            Waiting(self.group, self),
            self.dom0,  # type: ignore[arg-type]
            self.log.append,
            self.open_store,  # type: ignore[arg-type]
            lambda: Text(argv or None),
            str(self.tmp),
        )
        status: int | None = None
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Destroyed):
            patch.setattr(reading, "Exchange", partial(Exchange, clock=self.dom0.clock))
            status = reader.run()
        return status, [request.verb for request in self.dom0.taken]

    def edit(self) -> tuple[int | None, list[str]]:
        """Have the document opened with a program that changes it."""
        return self.run("/bin/sh", "-c", 'echo more >> "$0"')

    def open_store(self) -> Dom0:
        if self.store_failures and self.dom0.taken:
            self.store_failures -= 1
            raise StoreLost("it is away")
        return self.dom0

    def returned(self) -> tuple[str, bytes]:
        descriptor, size_bytes = document.open_to_read(str(self.outgoing))
        header = document.read_header(descriptor, size_bytes)
        os.close(descriptor)
        return header.name, self.outgoing.read_bytes()[1024 : 1024 + header.size_bytes]


class Waiting(Scope):
    """A group that is empty when the program that was started has ended."""

    def __init__(self, folder: Path, vm: Vm) -> None:
        super().__init__(str(folder))
        self._vm = vm

    def start(self, argv: Sequence[str], folder: str | None = None) -> int:
        self.pid = super().start(argv, folder)
        return self.pid

    def wait_until_empty(self, waiter: object, timeout_s: float | None = None) -> bool:
        if timeout_s is not None and self._vm.looks:
            self._vm.looks -= 1
            self._vm.dom0.wait((), timeout_s)
            return False
        os.waitpid(self.pid, 0)
        self._vm.dom0.check()
        return True


@pytest.fixture
def vm(tmp_path: Path) -> Vm:
    return Vm(tmp_path)


class TestDocument:
    def test_one_that_is_closed_as_it_came_ends_the_vm(self, vm: Vm) -> None:
        assert vm.run("/bin/true") == (None, ["umount", "killme"])
        assert vm.dom0.taken[-1].why == "unchanged"
        assert (vm.tmp / "letter.txt").read_bytes() == b"Dear Bank\n"
        assert stat.S_IMODE((vm.tmp / "letter.txt").stat().st_mode) == 0o600

    def test_one_that_was_changed_goes_back_to_its_asker_with_its_number(self, vm: Vm) -> None:
        assert vm.edit() == (None, ["umount", "new", "send"])
        assert vm.dom0.delivered == ["work 7"]
        assert vm.dom0.taken[1].size_bytes == 1 << 20
        assert vm.returned() == ("letter.txt", b"Dear Bank\nmore\n")

    @pytest.mark.parametrize(
        ("script", "changed"),
        [
            pytest.param(': > "$0"', True, id="emptied"),
            pytest.param('cp "$0" "$0.new"; mv "$0.new" "$0"', False, id="the same in another inode"),
            pytest.param('sed -i s/D/d/ "$0"', True, id="the same size"),
        ],
    )
    def test_changed_is_what_has_another_content(self, vm: Vm, script: str, changed: bool) -> None:
        vm.run("/bin/sh", "-c", script)
        assert ("send" in [request.verb for request in vm.dom0.taken]) == changed
        assert changed or vm.dom0.taken[-1].why == "unchanged"

    def test_one_that_may_only_be_viewed_never_goes_back(self, vm: Vm) -> None:
        vm.dom0.nodes[VIEW_ONLY] = b"1"
        vm.run("/bin/sh", "-c", 'stat -c %a "$0" > "$0.mode"; chmod 600 "$0"; echo more >> "$0"')
        assert [request.verb for request in vm.dom0.taken] == ["umount", "killme"]
        assert (vm.tmp / "letter.txt.mode").read_text() == "400\n"

    def test_a_name_that_is_taken_gets_a_folder_of_its_own(self, vm: Vm) -> None:
        (vm.tmp / "letter.txt").mkdir()
        assert vm.run("/bin/true")[0] is None
        assert [path.read_bytes() for path in vm.tmp.glob("*/letter.txt")] == [b"Dear Bank\n"]

    @pytest.mark.parametrize("name", ["-rf", "two words", "写真.txt", "a\nb", "$(id)"])
    def test_any_name_reaches_the_program_as_one_word(self, vm: Vm, name: str) -> None:
        vm.put(b"x", name)
        vm.run("/bin/sh", "-c", 'test $# = 0 && echo "$0" >> "$0"')
        assert vm.returned() == (name, b"x" + f"{vm.tmp}/{name}\n".encode())


class TestBroken:
    def test_no_program_for_the_type_is_said(self, vm: Vm) -> None:
        vm.run()
        assert [(request.verb, request.why) for request in vm.dom0.taken] == [("killme", "no-program")]

    def test_a_program_that_cannot_be_run_is_none(self, vm: Vm) -> None:
        vm.run("/nonexistent")
        assert [(request.verb, request.why) for request in vm.dom0.taken] == [("killme", "no-program")]

    def test_a_pendrive_without_a_header_has_no_document(self, vm: Vm) -> None:
        vm.incoming.write_bytes(b"\xff" * 4096)
        vm.run("/bin/true")
        assert [(request.verb, request.why) for request in vm.dom0.taken] == [("killme", "bad-document")]
        assert not list(vm.tmp.iterdir())

    @pytest.mark.parametrize(
        "script", ['rm "$0"', 'rm "$0"; mkdir "$0"', 'rm "$0"; ln -s /etc/passwd "$0"', 'rm "$0"; ln -s "$0" "$0"', 'rm "$0"; mkfifo "$0"']
    )
    def test_a_document_that_is_gone_or_became_something_else_is_not_returned_and_that_is_said(self, vm: Vm, script: str) -> None:
        vm.run("/bin/sh", "-c", script)
        assert [(request.verb, request.why) for request in vm.dom0.taken] == [("umount", ""), ("killme", "failed")]
        assert vm.log[-1].startswith("failed: the document ")

    def test_an_order_that_dom0_has_not_given_is_a_failure(self, vm: Vm) -> None:
        del vm.dom0.nodes[TRANSACTION_SEQ]
        vm.run("/bin/true")
        assert vm.dom0.taken[-1].why == "failed"

    def test_a_killme_that_dom0_denies_or_does_not_hear_is_told_by_the_status(self, vm: Vm) -> None:
        vm.dom0.disposable = False
        assert vm.run()[0] == DONE
        vm.dom0.serves = False
        assert vm.run()[0] == NOT_DONE

    def test_an_usher_that_has_ended_leaves_nothing_to_do(self, vm: Vm) -> None:
        assert vm.run("/bin/true", orders=()) == (NOT_DONE, [])


class TestTheIncomingPendrive:
    def test_it_is_asked_away_again_and_again_while_the_document_is_open(self, vm: Vm) -> None:
        vm.dom0.detach_failures, vm.looks = 5, 5
        began = vm.dom0.now
        assert vm.run("/bin/true") == (None, ["umount"] * 6 + ["killme"])
        assert vm.dom0.incoming == "none"
        assert vm.dom0.now - began == pytest.approx(0.1 + 0.2 + 0.5 + 1 + 2, abs=1.5)

    def test_while_nothing_is_to_be_done_about_it_nothing_wakes_us(self, vm: Vm) -> None:
        vm.looks = 1
        assert vm.run("/bin/true") == (None, ["umount", "killme"])
        assert vm.looks == 1

    @pytest.mark.parametrize("edited", [False, True])
    def test_nothing_is_said_of_the_document_before_dom0_knows_that_it_is_here(self, vm: Vm, edited: bool) -> None:
        vm.dom0.arriving = 5
        _, verbs = vm.edit() if edited else vm.run("/bin/true")
        assert verbs == ["umount"] * 6 + (["new", "send"] if edited else ["killme"])

    def test_one_that_cannot_be_taken_away_does_not_hold_up_the_end(self, vm: Vm) -> None:
        vm.dom0.detach_failures = 1000
        assert vm.edit() == (None, ["umount", "new", "send"])

    def test_a_dom0_that_is_away_meanwhile_does_not_end_the_document(self, vm: Vm) -> None:
        vm.dom0.serves, vm.looks = False, 1
        vm.dom0.later(vm.dom0.restart, 100)
        assert vm.edit() == (None, ["umount", "new", "send"])


class TestReturn:
    """What was changed is nowhere else."""

    def test_one_that_fails_is_tried_again_with_growing_pauses_and_the_pendrive_given_back(self, vm: Vm) -> None:
        vm.dom0.return_failures = ["given-back", "interrupted", "kept-in-dom0", "not-detached", "receiver-ended", "clean", "interrupted"]
        times: list[float] = []
        write = document.write

        def note_time(*arguments: object) -> bytes:
            times.append(vm.dom0.now)
            return write(*arguments)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(document, "write", note_time)
            assert vm.edit() == (None, ["umount", *["new", "send", "cancel"] * 7, "new", "send"])
        pauses = [after - before for before, after in itertools.pairwise(times)]
        assert pauses == pytest.approx([1, 2, 5, 15, 60, 60, 60], abs=1)
        assert vm.returned() == ("letter.txt", b"Dear Bank\nmore\n")
        assert "this VM has no such pendrive" not in "".join(vm.log)

    def small(self, vm: Vm) -> None:
        """dom0 makes no pendrives of that size, for a while."""
        vm.dom0.maximum_bytes = 1
        vm.dom0.later(lambda: setattr(vm.dom0, "maximum_bytes", 1 << 30), 3600)

    def occupied(self, vm: Vm) -> None:
        """Somebody in the VM has asked for a pendrive, and done nothing with it."""
        vm.dom0.pendrive = "clean"

    def no_disk(self, vm: Vm) -> None:
        """The disk cannot be written, for a while."""
        vm.outgoing.unlink()
        vm.dom0.later(lambda: vm.outgoing.touch(), 100)

    def store_away(self, vm: Vm) -> None:
        vm.store_failures = 5

    def dom0_away(self, vm: Vm) -> None:
        """qfilexchgd ends when it has made the pendrive, and is started again."""
        vm.dom0.later(lambda: setattr(vm.dom0, "serves", False), 0.25)
        vm.dom0.later(vm.dom0.restart, 300)

    @pytest.mark.parametrize("trouble", [small, occupied, no_disk, store_away, dom0_away], ids=lambda trouble: trouble.__name__)
    def test_whatever_fails_on_the_way_the_edit_is_returned_in_the_end(self, vm: Vm, trouble: Callable[[object, Vm], None]) -> None:
        trouble(self, vm)
        status, verbs = vm.edit()
        assert (status, "killme" in verbs) == (None, False)
        assert vm.dom0.delivered == ["work 7"]
        assert vm.returned() == ("letter.txt", b"Dear Bank\nmore\n")
        assert "tried again" in "".join(vm.log)

    def test_one_that_is_saved_while_it_is_read_is_read_again(self, vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
        write = document.write
        saved = iter([b"!", b"!", b""])

        def write_disturbed(*arguments: object) -> bytes:
            with (vm.tmp / "letter.txt").open("ab") as file:
                file.write(next(saved))
            return write(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(document, "write", write_disturbed)
        vm.edit()
        assert vm.returned() == ("letter.txt", b"Dear Bank\nmore\n!!")

    def test_one_that_cannot_be_read_for_a_while_is_not_taken_for_unchanged(self, vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
        digest_of = document.digest_of
        failures = iter([True, True])

        def fail_twice(*arguments: object) -> bytes:
            if next(failures, False):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return digest_of(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(document, "digest_of", fail_twice)
        vm.edit()
        assert vm.dom0.delivered == ["work 7"]

    @pytest.mark.parametrize(("length", "arriving"), [(0, 0), (3 << 20, 0), (0, 3)])
    def test_a_signal_at_any_point_after_the_document_was_opened_loses_no_edit(self, tmp_path: Path, length: int, arriving: int) -> None:
        for checkpoint in range(1, 100):
            folder = tmp_path / str(checkpoint)
            folder.mkdir()
            vm = Vm(folder)
            vm.put(bytes(length))
            vm.outgoing.write_bytes(bytes(8 << 20))
            vm.dom0.cancel_at, vm.dom0.arriving = checkpoint, arriving
            # The program is through before anything else is done, so there is an edit at every checkpoint.
            start = Waiting.start

            def start_and_wait(scope: Waiting, argv: Sequence[str], folder: str | None = None) -> int:
                pid = start(scope, argv, folder)  # noqa: B023
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                return pid

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Waiting, "start", start_and_wait)
                vm.edit()
            assert vm.dom0.delivered == ["work 7"]
            assert vm.returned()[1] == bytes(length) + b"more\n"
            assert "tried again" not in "".join(vm.log)
            if vm.dom0.checkpoints < checkpoint:
                break
        assert checkpoint > 5

    def test_one_that_dom0_denies_ends_the_vm(self, vm: Vm) -> None:
        vm.dom0.verdict = "deny"
        assert vm.edit() == (None, ["umount", "new", "send", "killme"])
        assert vm.dom0.taken[-1].why == "failed"

    def test_one_that_is_what_it_was_again_need_not_go(self, vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
        def undo(*_: object) -> bytes:
            (vm.tmp / "letter.txt").write_bytes(b"Dear Bank\n")
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(document, "write", undo)
        vm.edit()
        assert vm.dom0.taken[-1].why == "unchanged"

    def test_without_the_usher_nothing_can_leave(self, vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.close()
        monkeypatch.setattr(Ordered, "outgoing", lambda _: Usher(theirs).outgoing())
        with theirs:
            assert vm.edit()[1] == ["umount", "new", "killme"]
        assert vm.dom0.taken[-1].why == "failed"


class TestUsher:
    @pytest.fixture
    def sockets(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            yield ours, theirs

    def test_its_orders_are_heard_and_answered(self, sockets: tuple[socket.socket, socket.socket]) -> None:
        ours, theirs = sockets
        ours.send(b"document /dev/vdc")
        assert Usher(theirs).hear() == ("document", "/dev/vdc")
        ours.send(b"/dev/vdd")
        assert Usher(theirs).outgoing() == "/dev/vdd"
        assert ours.recv(256) == b"outgoing"

    def test_one_that_ends_while_it_is_waited_for_is_no_disk(self, sockets: tuple[socket.socket, socket.socket]) -> None:
        ours, theirs = sockets
        ours.shutdown(socket.SHUT_WR)
        assert Usher(theirs).hear() == ("", "")
        with pytest.raises(Broken, match="has ended"):
            Usher(theirs).outgoing()


class TestRehearsal:
    def test_it_asks_for_nothing_that_changes_anything_and_leaves_no_document(self, vm: Vm) -> None:
        status, _ = vm.run("/bin/true", orders=("rehearse", "document"))
        assert (status, vm.usher.answers) == (None, [REHEARSED])
        assert [request.verb for request in vm.dom0.taken] == ["status", "umount", "killme"]
        assert [path.name for path in vm.tmp.iterdir()] == ["letter.txt"], "the rehearsal's own is gone"

    def test_what_goes_wrong_is_said_in_words(self, vm: Vm) -> None:
        vm.incoming.write_bytes(b"\xff" * 4096)
        vm.run("/bin/true", orders=("rehearse",))
        (answer,) = vm.usher.answers
        assert "there is no document" in answer
