"""Copying onto a mounted pendrive."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qfilexchg.guest import copying
from qfilexchg.guest.archive import Archive
from qfilexchg.guest.copying import CHUNK_BYTES, Copy, PendriveBroken, SourceChanged, SourceUnreadable
from qfilexchg.guest.interruption import Cancelled
from qfilexchg.guest.outcome import NoRoom
from qfilexchg.guest.progress import Progress
from qfilexchg.guest.survey import FatJudge, Item, survey
from tests.unit.guest.dom0 import Dom0

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree of a few files, with times of its own."""
    tree = tmp_path / "tree"
    (tree / "deep/er").mkdir(parents=True)
    (tree / "empty").touch()
    (tree / "deep/写真.jpg").write_bytes(CONTENT)
    (tree / "deep/er/large").write_bytes(CONTENT * 250)
    for number, path in enumerate(sorted(tree.rglob("*"), reverse=True)):
        os.utime(path, (1.5e9, 1.5e9 + number))
    os.utime(tree, (1.5e9, 1.4e9))
    return tree


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "mnt"
    folder.mkdir()
    return folder


def items(*sources: Path) -> list[Item]:
    return survey([str(source) for source in sources], FatJudge("/mnt"), lambda: None).items


def copy(folder: Path, found: list[Item], dom0: Dom0 | None = None, kind: type[Copy | Archive] = Copy) -> None:
    kind(str(folder), Progress(io.StringIO()), dom0 or Dom0(), 1 << 30).run(found)  # type: ignore[arg-type]


def state(tree: Path) -> dict[str, tuple[bytes | None, float]]:
    return {
        str(path.relative_to(tree)): (path.read_bytes() if path.is_file() else None, path.stat().st_mtime)
        for path in (tree, *tree.rglob("*"))
    }


def test_contents_and_times_arrive_and_the_source_stays(tree: Path, folder: Path) -> None:
    before = state(tree)
    copy(folder, items(tree))
    assert state(folder / "tree") == before
    assert state(tree) == before


def test_a_time_that_fat_cannot_hold_becomes_the_nearest(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "old").touch()
    os.utime(tmp_path / "old", (0, 0))
    copy(folder, items(tmp_path / "old"))
    assert (folder / "old").stat().st_mtime == 315532800


def change_content(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"more")


def replace_by_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def replace_by_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("/etc/passwd")


def touch(file: Path) -> None:
    os.utime(file, (1, 1))


class TestChanges:
    @pytest.mark.parametrize("kind", [Copy, Archive])
    @pytest.mark.parametrize("change", [change_content, replace_by_pipe, replace_by_link, touch, Path.unlink])
    def test_a_file_changed_since_the_survey_is_not_sent(
        self, tree: Path, folder: Path, kind: type[Copy | Archive], change: Callable[[Path], None]
    ) -> None:
        found = items(tree)
        change(tree / "deep/写真.jpg")
        with pytest.raises(SourceChanged) as caught:
            copy(folder, found, kind=kind)
        assert "changed while it was being copied; nothing was sent" in str(caught.value)

    @pytest.mark.parametrize("kind", [Copy, Archive])
    @pytest.mark.parametrize("change", [change_content, lambda file: os.truncate(file, CHUNK_BYTES)])
    def test_a_file_changed_under_the_copy_is_not_sent(
        self, tree: Path, folder: Path, kind: type[Copy | Archive], change: Callable[[Path], None]
    ) -> None:
        large = tree / "deep/er/large"

        class Disturbed(Dom0):
            def check(self) -> None:
                if any(path.stat().st_size for path in folder.rglob("*large*")) or kind is Archive:
                    change(large)

        with pytest.raises(SourceChanged):
            copy(folder, items(large), Disturbed(), kind)

    def test_a_folder_that_got_another_file_is_not_sent_as_if_it_had_not(self, tree: Path, folder: Path) -> None:
        found = items(tree)
        (tree / "deep/late").touch()
        with pytest.raises(SourceChanged):
            copy(folder, found)

    def test_a_file_that_is_closed_to_us_meanwhile_is_said_to_be(self, tree: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = items(tree / "empty")
        monkeypatch.setattr(os, "open", raising(PermissionError(errno.EACCES, "Permission denied")))
        with pytest.raises(SourceUnreadable):
            copy(folder, found)

    def test_a_source_that_cannot_be_read_any_more_is_told_from_a_broken_pendrive(
        self, tree: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "readv", raising(OSError(errno.EIO, "Input/output error")))
        with pytest.raises(SourceUnreadable):
            copy(folder, items(tree))


def raising(error: OSError) -> Callable[..., int]:
    def fail(*_: object) -> int:
        raise error

    return fail


class TestThePendrive:
    @pytest.mark.parametrize("call", ["write", "mkdir", "utime"])
    @pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, NoRoom), (errno.EIO, PendriveBroken), (errno.EROFS, PendriveBroken)])
    def test_a_full_one_and_a_broken_one_are_told_apart(
        self, tree: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, kind: type[Exception]
    ) -> None:
        found = items(tree)
        monkeypatch.setattr(copying.os, call, raising(OSError(code, os.strerror(code))))  # type: ignore[attr-defined]
        with pytest.raises(kind):
            copy(folder, found)

    def test_what_is_on_it_already_is_not_overwritten(self, tree: Path, folder: Path) -> None:
        (folder / "empty").write_text("there first")
        with pytest.raises(PendriveBroken):
            copy(folder, items(tree / "empty"))
        assert (folder / "empty").read_text() == "there first"

    def test_an_archive_on_a_full_one_finds_no_room(self, tree: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = items(tree)
        with open("/dev/full", "wb", buffering=0) as full:
            monkeypatch.setattr("builtins.open", lambda *_, **__: full)
            with pytest.raises(NoRoom):
                copy(folder, found, kind=Archive)


@pytest.mark.parametrize("kind", [Copy, Archive])
def test_a_signal_stops_it_within_one_piece(tmp_path: Path, folder: Path, kind: type[Copy | Archive]) -> None:
    (tmp_path / "large").write_bytes(bytes(5 * CHUNK_BYTES))
    dom0 = Dom0()
    dom0.cancel_at = 4
    with pytest.raises(Cancelled):
        copy(folder, items(tmp_path / "large"), dom0, kind)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5 * CHUNK_BYTES
