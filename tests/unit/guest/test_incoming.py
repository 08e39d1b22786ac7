"""qvm-incoming from its command line to its exit status."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from qfilexchg.guest import incoming, unloading
from qfilexchg.guest.incoming import HELP, main
from qfilexchg.guest.programs import ProgramFailed
from qfilexchg.guest.slot import Disk
from qfilexchg.protocol.keys import BLOCK_SOURCE, TRANSACTION_SEQ
from qfilexchg.xenstore.blocking import Store
from qfilexchg.xenstore.errors import StoreLost
from tests.unit.guest.dom0 import Dom0


class IncomingFolder:
    """The incoming slot, with a pendrive from ``work`` that is mounted, or whatever a test makes of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.number: int | None = 1
        self.is_mounted = True
        self.unmount_fails = b""
        self.follows: int | None = None
        self.goes = True
        self.disk_bytes = 1 << 30

    def present(self) -> bool:
        return self.number is not None

    def mounted(self) -> bool:
        return self.is_mounted

    def disk(self) -> Disk | None:
        return None if self.number is None else Disk("202:112", self.number)

    def size_bytes(self) -> int:
        return self.disk_bytes

    def unmount(self) -> None:
        if self.unmount_fails:
            raise ProgramFailed(["umount"], "failed with exit status 32", self.unmount_fails)
        self.is_mounted = False

    def wait(self, waiter: object, *, present: bool, deadline_s: float) -> bool:
        if self.goes:
            self.number = self.follows
        return self.present() is present


@pytest.fixture
def dom0(monkeypatch: pytest.MonkeyPatch) -> Dom0:
    dom0 = Dom0()
    dom0.nodes |= {BLOCK_SOURCE: b"work", TRANSACTION_SEQ: b"0"}
    monkeypatch.setattr(Store, "open", lambda _deadline_s: dom0)
    return dom0


@pytest.fixture
def slot(dom0: Dom0, tmp_path: Path) -> IncomingFolder:
    folder = tmp_path / "incoming"
    (folder / "notes").mkdir(parents=True)
    (folder / "notes/-rf\x1b").write_bytes(b"content")
    os.utime(folder / "notes/-rf\x1b", (1e9, 1e9))
    return IncomingFolder(folder)


def run(slot: IncomingFolder, *words: str | Path) -> int:
    return main([str(word) for word in words], slot)  # type: ignore[arg-type]


class TestCommandLine:
    @pytest.mark.parametrize("words", [["--help"], ["copy", "-h"]])
    def test_help_is_given_before_all_else(self, slot: IncomingFolder, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert run(slot, *words) == 0
        assert capsys.readouterr().out == HELP

    @pytest.mark.parametrize("words", [["copy"], ["copy", ""], ["copy", "a", "b"], ["list", "x"], ["eject", "x"], ["all"], ["--all"]])
    def test_what_is_not_understood_is_an_error_of_its_own(
        self, slot: IncomingFolder, words: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(slot, *words) == 2
        assert capsys.readouterr().err.startswith("qvm-incoming: ")

    @pytest.mark.parametrize("words", [[], ["list"], ["copy", "x"], ["eject"]])
    def test_where_nothing_is_here_that_is_said(self, slot: IncomingFolder, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        slot.number = None
        assert run(slot, *words) == 1
        assert capsys.readouterr().err == "qvm-incoming: no pendrive is here\n"

    def test_a_document_that_comes_back_is_left_alone(self, dom0: Dom0, slot: IncomingFolder, capsys: pytest.CaptureFixture[str]) -> None:
        dom0.nodes[TRANSACTION_SEQ] = b"7"
        assert run(slot, "eject") == 1
        assert "a document is on its way back from work" in capsys.readouterr().err


class TestList:
    def test_it_tells_the_sender_and_what_there_is_printably(self, slot: IncomingFolder, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(slot) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"From work, in {slot.folder}:"
        assert lines[1].endswith("  notes/")
        assert lines[2].startswith("       7 B  2001-09-09 ") and lines[2].endswith("  notes/-rf\\x1b")
        assert lines[3] == "1 files, 7 B"

    def test_what_cannot_be_read_is_listed(self, slot: IncomingFolder, capsys: pytest.CaptureFixture[str]) -> None:
        (Path(slot.folder) / "link").symlink_to("x")
        assert run(slot, "list") == 4
        assert capsys.readouterr().err == (
            "link: it is neither a file nor a folder\nqvm-incoming: what is listed above cannot be read (1 in all); the rest can\n"
        )

    def test_a_reader_who_has_seen_enough_is_no_failure(
        self, slot: IncomingFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "w", encoding="utf-8") as pipe:
            monkeypatch.setattr(sys, "stdout", pipe)
            assert run(slot, "list") == 0
            pipe.flush()  # as Python does at its end
        assert capsys.readouterr().err == ""

    def test_without_a_store_all_is_told_but_the_sender(
        self, slot: IncomingFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def lost(_deadline_s: float) -> Dom0:
            raise StoreLost("it is away")

        monkeypatch.setattr(Store, "open", lost)
        assert run(slot) == 0
        assert capsys.readouterr().out.startswith("From another VM, ")

    def test_one_that_is_not_mounted_yet_is_told(self, slot: IncomingFolder, capsys: pytest.CaptureFixture[str]) -> None:
        slot.is_mounted = False
        assert run(slot) == 1
        assert "it is just coming or going" in capsys.readouterr().err


class TestCopy:
    def test_it_goes_into_a_folder_that_is_made(self, slot: IncomingFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(slot, "copy", tmp_path / "new/folder") == 0
        assert (tmp_path / "new/folder/notes/-rf\x1b").read_bytes() == b"content"
        assert capsys.readouterr().err == "Copied from work: 1 files, 7 B.\n"

    def test_a_second_time_it_has_another_name(self, slot: IncomingFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(slot, "copy", tmp_path / "target") == 0
        assert run(slot, "copy", tmp_path / "target") == 0
        assert "There was a notes already: it is notes (from work) now.\n" in capsys.readouterr().err
        assert sorted(os.listdir(tmp_path / "target")) == ["notes", "notes (from work)"]

    def test_where_there_is_no_room_nothing_is_begun(
        self, slot: IncomingFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        statvfs = os.statvfs

        class Full:
            f_bavail = 1
            f_frsize = 1

        monkeypatch.setattr(os, "statvfs", lambda path: Full if path == str(tmp_path / "target") else statvfs(path))
        assert run(slot, "copy", tmp_path / "target") == 1
        assert "7 B are needed, and 1 B free" in capsys.readouterr().err
        assert os.listdir(tmp_path / "target") == []

    def test_a_name_that_is_too_long_at_the_top_is_cut_and_told(
        self, slot: IncomingFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        makedir = os.mkdir

        def narrow(path: str, mode: int = 0o777) -> None:
            if path.endswith("target/notes"):
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            makedir(path, mode)

        monkeypatch.setattr(os, "mkdir", narrow)
        monkeypatch.setattr(unloading, "named", lambda name, suffix: f"{name[:3]}{suffix}")
        assert run(slot, "copy", tmp_path / "target") == 0
        assert "notes is too long a name: it is not now.\n" in capsys.readouterr().err
        assert (tmp_path / "target/not/-rf").read_bytes() == b"content"

    def test_no_more_is_copied_than_the_disk_can_hold(
        self, slot: IncomingFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        slot.disk_bytes = 6
        assert run(slot, "copy", tmp_path / "target") == 4
        said = capsys.readouterr().err
        assert "notes/-rf\\x1b: it claims more than there is on the pendrive\n" in said
        assert said.endswith("qvm-incoming: what is listed above was not copied (1 in all); the rest was\n")

    def test_a_file_in_the_folders_place_is_an_error(
        self, slot: IncomingFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "target").touch()
        assert run(slot, "copy", tmp_path / "target") == 1
        assert "File exists" in capsys.readouterr().err


class TestEject:
    def test_it_is_unmounted_and_gone(self, slot: IncomingFolder, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(slot, "eject") == 0
        assert (slot.is_mounted, slot.present()) == (False, False)
        assert capsys.readouterr().err == "It is gone.\n"

    def test_the_next_one_may_come_at_once(self, slot: IncomingFolder, capsys: pytest.CaptureFixture[str]) -> None:
        slot.follows = 2
        assert run(slot, "eject") == 0
        assert capsys.readouterr().err == "It is gone.\n"

    def test_one_that_is_in_use_stays_and_a_sentence_says_so(self, slot: IncomingFolder, capsys: pytest.CaptureFixture[str]) -> None:
        slot.unmount_fails = b"umount: /mnt/incoming: target is busy."
        assert run(slot, "eject") == 6
        assert capsys.readouterr().err.startswith("qvm-incoming: something still uses the pendrive: close what is open there")

    def test_one_that_is_not_mounted_is_not_said_to_be_unmounted(self, slot: IncomingFolder, capsys: pytest.CaptureFixture[str]) -> None:
        slot.is_mounted = slot.goes = False
        assert run(slot, "eject") == 1
        assert capsys.readouterr().err == "qvm-incoming: a pendrive is here, and not mounted: it is just coming or going; try again\n"

    def test_another_failure_is_told_as_it_is(self, slot: IncomingFolder, capsys: pytest.CaptureFixture[str]) -> None:
        slot.unmount_fails = b"umount: /mnt/incoming: must be superuser to unmount."
        assert run(slot, "eject") == 1
        assert "must be superuser" in capsys.readouterr().err

    def test_one_that_dom0_is_slow_to_take_is_told(
        self, slot: IncomingFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        slot.goes = False
        monkeypatch.setattr(incoming, "DEVICE_S", 0.01)
        assert run(slot, "eject") == 0
        assert capsys.readouterr().err == "It is unmounted, and dom0 has not taken it away yet; that is tried again and again.\n"
