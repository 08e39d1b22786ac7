"""qvm-copy-to-vm from its command line to its exit status."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from qfilexchg.errors import QfilexchgError
from qfilexchg.guest import copy_to_vm, fat
from qfilexchg.guest.copy_to_vm import HELP, Cargo, Order, deliver, main, parse, plan
from qfilexchg.guest.interruption import Cancelled
from qfilexchg.guest.outcome import NoRoom, Occupied, Refused, Usage
from qfilexchg.guest.outgoing import Outgoing
from qfilexchg.guest.programs import ProgramFailed
from qfilexchg.guest.progress import Progress
from qfilexchg.guest.request import Exchange
from qfilexchg.protocol.names import BadName, VmName
from qfilexchg.xenstore.blocking import Store
from tests.unit.guest.dom0 import Dom0, OutgoingFolder

WORK = VmName.parse("work")


@pytest.fixture
def dom0() -> Dom0:
    return Dom0()


@pytest.fixture
def slot(dom0: Dom0, tmp_path: Path) -> OutgoingFolder:
    (tmp_path / "mnt").mkdir()
    return OutgoingFolder(dom0, tmp_path / "mnt")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree/deep").mkdir(parents=True)
    (tmp_path / "tree/empty").touch()
    (tmp_path / "tree/deep/file").write_bytes(b"content")
    return tmp_path / "tree"


class TestCommandLine:
    def test_options_may_stand_anywhere(self) -> None:
        for words in (["--skip", "work", "a", "b"], ["work", "a", "--skip", "b"], ["work", "a", "b", "--skip"]):
            order = parse(words)
            assert order
            assert (order.target, list(order.sources), order.skip, order.archive) == (WORK, ["a", "b"], True, False)

    def test_after_two_dashes_all_are_files(self) -> None:
        order = parse(["work", "--archive", "--", "--skip", "-"])
        assert order
        assert (list(order.sources), order.skip, order.archive) == (["--skip", "-"], False, True)

    @pytest.mark.parametrize("words", [["--help"], ["work", "a", "-h"]])
    def test_help_is_given_before_all_else(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(words) == 0
        assert capsys.readouterr().out == HELP

    @pytest.mark.parametrize("words", [[], ["work"], ["--skip", "work"], ["work", "a", "--all"], ["disposable", "a"], ["wo/rk", "a"]])
    def test_what_is_not_understood_is_an_error_of_its_own(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises((Usage, BadName)):
            parse(words)
        assert main(words) == 2
        assert capsys.readouterr().err.startswith("qvm-copy-to-vm: ")


def cargo_of(tree: Path, slot: OutgoingFolder, *, archive: bool = False) -> Cargo:
    return plan(Order(WORK, [str(tree)], skip=False, archive=archive), slot.folder, lambda: None)


def deliver_with(dom0: Dom0, slot: OutgoingFolder, cargo: Cargo) -> str:
    """Deliver ``cargo``; what the person is told."""
    told = io.StringIO()
    outgoing = Outgoing(Exchange(dom0, dom0, dom0.clock))
    deliver(cargo, WORK, outgoing, slot, Progress(told), dom0)  # type: ignore[arg-type]
    return told.getvalue()


class TestDelivery:
    @pytest.mark.parametrize("archive", [False, True])
    def test_everything_is_copied_synced_unmounted_and_sent(self, dom0: Dom0, slot: OutgoingFolder, tree: Path, archive: bool) -> None:
        deliver_with(dom0, slot, cargo_of(tree, slot, archive=archive))
        assert slot.calls == ["mount", "sync", "unmount"]
        assert dom0.delivered == ["work"]
        arrived = Path(slot.folder) / ("tree.tar" if archive else "tree/deep/file")
        assert arrived.stat().st_size == (10240 if archive else 7)

    def test_the_pendrive_is_asked_for_in_the_size_that_is_needed(self, dom0: Dom0, slot: OutgoingFolder, tmp_path: Path) -> None:
        with (tmp_path / "large").open("wb") as file:
            file.truncate(3 << 30)
        cargo = cargo_of(tmp_path / "large", slot)
        dom0.maximum_bytes = 2 << 30
        with pytest.raises(NoRoom):
            deliver_with(dom0, slot, cargo)
        assert 3 << 30 < (dom0.taken[0].size_bytes or 0) == cargo.pendrive_bytes

    @pytest.mark.parametrize("phase", ["clean", "asking"])
    def test_a_pendrive_that_is_here_is_left_alone(self, dom0: Dom0, slot: OutgoingFolder, tree: Path, phase: str) -> None:
        dom0.pendrive = phase
        with pytest.raises(Occupied) as caught:
            deliver_with(dom0, slot, cargo_of(tree, slot))
        assert "qubes_penctl cancel" in str(caught.value)
        assert (dom0.pendrive, dom0.taken) == (phase, [])

    def test_one_that_is_just_leaving_is_waited_for(self, dom0: Dom0, slot: OutgoingFolder, tree: Path) -> None:
        dom0.pendrive = "clean"

        def leave() -> None:
            dom0.pendrive = "none"

        dom0.later(leave, 1)
        deliver_with(dom0, slot, cargo_of(tree, slot))
        assert dom0.delivered == ["work"]

    def test_something_else_on_the_folder_is_left_alone(self, dom0: Dom0, slot: OutgoingFolder, tree: Path) -> None:
        slot.is_mounted = True
        with pytest.raises(Occupied):
            deliver_with(dom0, slot, cargo_of(tree, slot))
        assert slot.calls == []

    def test_a_denial_gives_it_back(self, dom0: Dom0, slot: OutgoingFolder, tree: Path) -> None:
        dom0.verdict = "deny"
        with pytest.raises(Refused):
            deliver_with(dom0, slot, cargo_of(tree, slot))
        assert dom0.pendrive == "none"

    @pytest.mark.parametrize("step", ["mount", "sync", "unmount"])
    def test_a_step_that_fails_gives_it_back(
        self, dom0: Dom0, slot: OutgoingFolder, tree: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        def fail() -> None:
            raise ProgramFailed([step], "failed with exit status 1")

        monkeypatch.setattr(slot, step, fail)
        with pytest.raises(ProgramFailed):
            deliver_with(dom0, slot, cargo_of(tree, slot))
        assert (dom0.pendrive, dom0.delivered) == ("none", [])

    def test_too_little_room_is_seen_before_anything_is_written(
        self, dom0: Dom0, slot: OutgoingFolder, tree: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Full:
            f_bavail = 1
            f_frsize = 1

        monkeypatch.setattr(os, "statvfs", lambda _: Full)
        with pytest.raises(NoRoom):
            deliver_with(dom0, slot, cargo_of(tree, slot))
        assert not any(Path(slot.folder).iterdir())
        assert dom0.pendrive == "none"

    @pytest.mark.parametrize("verdict", ["allow", "deny", "queue", "bounce"])
    def test_a_signal_at_any_point_leaves_nothing_behind(self, tmp_path: Path, tree: Path, verdict: str) -> None:
        ends: set[object] = set()
        for checkpoint in range(1, 1000):
            dom0 = Dom0()
            dom0.verdict, dom0.cancel_at = verdict, checkpoint
            slot = OutgoingFolder(dom0, tmp_path / f"mnt{checkpoint}")
            Path(slot.folder).mkdir()
            try:
                told = deliver_with(dom0, slot, cargo_of(tree, slot))
            except QfilexchgError as error:
                ends.add(type(error))
                assert dom0.delivered == []
            else:
                ends.add("too late" if "too late" in told else "delivered")
                assert dom0.delivered == ["work"]
            assert dom0.pendrive == "none"
            assert not slot.is_mounted
            if dom0.checkpoints < checkpoint:
                break
        else:
            pytest.fail("the copy never came to its end")
        assert Cancelled in ends
        if verdict == "allow":
            assert {"too late", "delivered"} <= ends


class TestMain:
    @pytest.fixture(autouse=True)
    def in_this_vm(self, dom0: Dom0, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Store, "open", lambda: dom0)
        monkeypatch.setattr(copy_to_vm, "Interruption", lambda _listener: dom0)

    def run(self, slot: OutgoingFolder, *words: str | Path) -> int:
        return main([str(word) for word in words], slot)  # type: ignore[arg-type]

    def test_elsewhere_than_on_a_terminal_one_line_tells_the_end(
        self, slot: OutgoingFolder, tree: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(slot, "work", tree) == 0
        assert capsys.readouterr() == ("", "Delivered to work: 2 files, 7 B.\n")

    def test_what_cannot_be_held_is_listed_and_nothing_asked_for(
        self, dom0: Dom0, slot: OutgoingFolder, tree: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tree / "what?").touch()
        (tree / "link").symlink_to("x")
        assert self.run(slot, "work", tree) == 4
        assert capsys.readouterr().err == (
            "These cannot be sent:\n"
            f"  {tree}/link: it is a link\n"
            f"  {tree}/what?: its name has ?\n"
            "qvm-copy-to-vm: leave them out with --skip, or pack everything into one tar file with --archive\n"
        )
        assert dom0.taken == []

    def test_skip_leaves_out_what_cannot_be_held(self, slot: OutgoingFolder, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tree / "what?").touch()
        assert self.run(slot, "--skip", "work", tree) == 0
        assert capsys.readouterr().err == f"Left out:\n  {tree}/what?: its name has ?\nDelivered to work: 2 files, 7 B.\n"
        assert not (Path(slot.folder) / "tree/what?").exists()

    def test_skip_of_everything_sends_nothing(self, dom0: Dom0, slot: OutgoingFolder, tmp_path: Path) -> None:
        assert self.run(slot, "work", tmp_path / "missing", "--skip") == 4
        assert dom0.taken == []

    def test_archive_holds_what_a_pendrive_cannot(self, slot: OutgoingFolder, tree: Path) -> None:
        (tree / "what?").touch()
        assert self.run(slot, "--archive", "work", tree) == 0
        assert (Path(slot.folder) / "tree.tar").exists()

    def test_an_archive_of_four_gigabytes_is_too_large(
        self, dom0: Dom0, slot: OutgoingFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with (tmp_path / "large").open("wb") as file:
            file.truncate(fat.FILE_BYTES_MAX)
        assert self.run(slot, "--archive", "work", tmp_path / "large") == 4
        assert "the archive would have 4.0 GiB" in capsys.readouterr().err
        assert dom0.taken == []

    def test_times_that_are_moved_are_told(self, slot: OutgoingFolder, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
        os.utime(tree / "empty", (0, 0))
        assert self.run(slot, "work", tree) == 0
        assert capsys.readouterr().err.startswith("1 of the times are outside of 1980 to 2107;")

    def test_a_name_in_a_list_cannot_write_to_the_terminal(
        self, slot: OutgoingFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "bad\x1b[2J").touch()
        assert self.run(slot, "work", tmp_path / "bad\x1b[2J") == 4
        assert "\x1b" not in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("setting", "value", "status"),
        [("verdict", "deny", 3), ("maximum_bytes", 1, 5), ("pendrive", "clean", 6), ("verdict", "bounce", 1), ("cancel_at", 1, 130)],
    )
    def test_each_end_has_its_exit_status(
        self, dom0: Dom0, slot: OutgoingFolder, tree: Path, setting: str, value: object, status: int
    ) -> None:
        setattr(dom0, setting, value)
        assert self.run(slot, "work", tree) == status
