"""What is on a pendrive that another VM has written, looked through and copied out."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from qfilexchg.guest import unloading
from qfilexchg.guest.interruption import Cancelled
from qfilexchg.guest.progress import Progress
from qfilexchg.guest.unloading import DEPTH_MAX, CannotWrite, Found, Unloading, walk

HOSTILE = ["-rf", "$(touch x)", "two words", "a'b\"c", os.fsdecode(b"\xff"), "line\nbreak", "写"]


@pytest.fixture
def top(tmp_path: Path) -> Path:
    top = tmp_path / "incoming"
    (top / "folder/deep").mkdir(parents=True)
    (top / "folder/deep/file").write_bytes(b"content")
    (top / "empty").touch()
    return top


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def nothing() -> None:
    pass


def copy(top: Path, target: Path, limit_bytes: int = 1 << 30) -> tuple[Unloading, list[tuple[str, str]]]:
    """Copy it all; what could not be had."""
    work = Unloading(str(top), str(target), "work", limit_bytes, Progress(io.StringIO()), nothing)
    return work, [(found.path, found.why) for found in work.run()]


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


class TestWalk:
    def test_a_folder_comes_before_what_is_in_it(self, top: Path) -> None:
        paths = [found.path for found in walk(str(top), nothing)]
        assert sorted(paths) == ["empty", "folder", "folder/deep", "folder/deep/file"]
        assert paths.index("folder") < paths.index("folder/deep") < paths.index("folder/deep/file")

    def test_links_and_pipes_are_not_followed_but_told(self, top: Path) -> None:
        (top / "link").symlink_to("/etc")
        os.mkfifo(top / "pipe")
        told = {found.path: found.why for found in walk(str(top), nothing) if found.why}
        assert told == dict.fromkeys(("link", "pipe"), "it is neither a file nor a folder")

    def test_folders_in_folders_without_end_come_to_one(self, tmp_path: Path) -> None:
        folder = tmp_path / "top"
        folder.mkdir()
        here = os.open(folder, os.O_RDONLY)
        for _ in range(DEPTH_MAX + 5):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)
        found = list(walk(str(folder), nothing))
        assert len(found) == DEPTH_MAX
        assert [thing.why for thing in found if thing.why] == [f"it is {DEPTH_MAX} folders deep"]

    def test_more_things_than_any_pendrive_has_are_left_out(self, top: Path) -> None:
        for number in range(20):
            (top / f"{number}").touch()
        found = list(walk(str(top), nothing, things_max=10))
        assert len(found) == 11
        assert found[-1].why == "there are more than 10 things; the rest is left out"

    def test_a_folder_that_breaks_half_way_gives_what_it_had(self, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        break_folder(monkeypatch, ["empty"])
        found = [(thing.path, thing.why) for thing in walk(str(top), nothing)]
        assert found == [("empty", ""), ("", "it cannot be read (Input/output error)")]

    @pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "", ".", ".."])
    def test_a_name_that_leads_elsewhere_is_none(self, top: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        break_folder(monkeypatch, [name])
        first = next(iter(walk(str(top), nothing)))
        assert first.status is None and first.why == f"it has a thing without a possible name: {name!a}"

    def test_a_thing_that_vanishes_is_told(self, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        break_folder(monkeypatch, ["gone"])
        assert next(iter(walk(str(top), nothing))).why == "it cannot be read (No such file or directory)"

    def test_it_can_be_stopped_at_each_thing(self, top: Path) -> None:
        def stop() -> None:
            raise Cancelled

        with pytest.raises(Cancelled):
            list(walk(str(top), stop))


def break_folder(monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    """Every folder has these names, and then an error: what a filesystem may do that is broken."""

    class Broken:
        def __enter__(self) -> Iterator[SimpleNamespace]:
            yield_names = (SimpleNamespace(name=name) for name in names)
            return self._then_break(yield_names)

        def _then_break(self, entries: Iterator[SimpleNamespace]) -> Iterator[SimpleNamespace]:
            yield from entries
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(unloading, "os", SimpleNamespace(**vars(os) | {"scandir": lambda _: Broken()}))


def refuse(monkeypatch: pytest.MonkeyPatch, where: str, error: int) -> None:
    """No folder can be made whose path ends with this."""
    make = os.mkdir

    def fail(path: str, mode: int = 0o777) -> None:
        if path.endswith(where):
            raise OSError(error, os.strerror(error))
        make(path, mode)

    monkeypatch.setattr(os, "mkdir", fail)


class TestCopy:
    def test_everything_is_there_with_its_time(self, top: Path, target: Path) -> None:
        os.utime(top / "folder/deep/file", (1e9, 1e9))
        work, problems = copy(top, target)
        assert problems == []
        assert content(target) == {"folder": None, "folder/deep": None, "folder/deep/file": b"content", "empty": b""}
        assert (target / "folder/deep/file").stat().st_mtime == 1e9
        assert (work.files, work.bytes, work.renamed) == (2, 7, [])

    def test_hostile_names_are_names(self, top: Path, target: Path) -> None:
        for name in HOSTILE:
            (top / name).write_bytes(b"1")
        assert copy(top, target)[1] == []
        assert set(os.listdir(target)) == {*HOSTILE, "folder", "empty"}

    def test_what_is_there_already_keeps_its_name_and_content(self, top: Path, target: Path) -> None:
        (target / "empty").write_bytes(b"mine")
        (target / "empty (from work)").symlink_to("/dev/null")
        (target / "folder").mkdir()
        (target / "folder/deep").write_bytes(b"mine too")
        work, problems = copy(top, target)
        assert problems == []
        assert sorted(work.renamed) == [("empty", "empty (from work) 2"), ("folder", "folder (from work)")]
        assert (target / "empty").read_bytes() == b"mine"
        assert (target / "folder/deep").read_bytes() == b"mine too"
        assert (target / "empty (from work) 2").read_bytes() == b""
        assert (target / "folder (from work)/deep/file").read_bytes() == b"content"

    def test_files_are_the_persons_as_any_new_file_and_never_run(self, top: Path, target: Path) -> None:
        (top / "empty").chmod(0o6777)
        copy(top, target)
        assert stat.S_IMODE((target / "empty").stat().st_mode) & 0o7111 == 0

    def test_files_that_claim_more_than_there_is_are_broken_off_and_do_not_stay(self, top: Path, target: Path) -> None:
        for name in ("a", "b", "c"):
            (top / name).write_bytes(bytes(5000))
        work, problems = copy(top, target, limit_bytes=11000)
        assert len(problems) == 1 and problems[0][1] == "it claims more than there is on the pendrive"
        assert not (target / problems[0][0]).exists()
        assert work.bytes <= 11000

    def test_a_file_that_cannot_be_read_does_not_stop_the_others(self, top: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        readv = os.readv

        def broken(descriptor: int, buffers: list[memoryview]) -> int:
            if os.readlink(f"/proc/self/fd/{descriptor}").endswith("/empty"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return readv(descriptor, buffers)

        monkeypatch.setattr(os, "readv", broken)
        assert copy(top, target)[1] == [("empty", "it cannot be read (Input/output error)")]
        assert set(content(target)) == {"folder", "folder/deep", "folder/deep/file"}

    @pytest.mark.parametrize("error", [errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ])
    def test_a_name_that_the_target_cannot_have_does_not_stop_the_others(
        self, top: Path, target: Path, monkeypatch: pytest.MonkeyPatch, error: int
    ) -> None:
        (top / "folder/other").write_bytes(b"2")
        refuse(monkeypatch, "/target/folder/deep", error)
        assert copy(top, target)[1] == [("folder/deep", f"the target cannot have its name ({os.strerror(error)})")]
        assert content(target) == {"folder": None, "folder/other": b"2", "empty": b""}

    @pytest.mark.parametrize("error", [errno.EINVAL, errno.EILSEQ])
    def test_a_name_at_the_top_that_the_target_cannot_have_is_told(
        self, top: Path, target: Path, monkeypatch: pytest.MonkeyPatch, error: int
    ) -> None:
        refuse(monkeypatch, "/target/folder", error)
        assert copy(top, target)[1] == [("folder", f"the target cannot have its name ({os.strerror(error)})")]
        assert content(target) == {"empty": b""}

    @pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES])
    def test_a_target_that_takes_nothing_more_ends_it(self, top: Path, target: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
        refuse(monkeypatch, "/target/folder/deep", error)
        with pytest.raises(CannotWrite):
            copy(top, target)

    def test_a_name_at_the_top_that_is_too_long_is_cut(self, top: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(unloading, "named", lambda name, suffix: f"{name[:3]}{suffix}")
        refuse(monkeypatch, "/target/folder", errno.ENAMETOOLONG)
        work, problems = copy(top, target)
        assert (problems, work.renamed) == ([], [("folder", "fol")])
        assert (target / "fol/deep/file").read_bytes() == b"content"

    def test_what_is_twice_in_one_folder_is_copied_once(self, top: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (top / "folder/other").write_bytes(b"2")
        entries = unloading._entries

        def twice(where: str, folder: str) -> Iterator[str | Found]:
            for entry in sorted(map(str, entries(where, folder))):
                yield entry
                if folder:
                    yield entry

        monkeypatch.setattr(unloading, "_entries", twice)
        assert copy(top, target)[1] == [
            ("folder/deep/file", "it is there twice"),
            ("folder/deep", "it is there twice"),
            ("folder/other", "it is there twice"),
        ]
        assert content(target) == {"folder": None, "folder/deep": None, "folder/deep/file": b"content", "folder/other": b"2", "empty": b""}

    def test_a_full_disk_ends_it_and_leaves_no_half_file(self, top: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(CannotWrite) as caught:
            copy(top, target)
        assert "folder/deep/file cannot be written (No space left on device)" in str(caught.value)
        assert not (target / "folder/deep/file").exists()

    def test_one_that_is_stopped_leaves_no_half_file(self, top: Path, target: Path) -> None:
        (top / "folder/deep/file").write_bytes(bytes(3 << 20))
        ends = set()
        for last in range(100):
            calls = iter(range(last))

            def stop(calls: Iterator[int] = calls) -> None:
                if next(calls, None) is None:
                    raise Cancelled

            folder = target / f"{last}"
            folder.mkdir()
            try:
                list(Unloading(str(top), str(folder), "work", 1 << 30, Progress(io.StringIO()), stop).run())
            except Cancelled:
                ends.add("cancelled")
            else:
                ends.add("complete")
            assert content(folder).get("folder/deep/file", bytes(3 << 20)) == bytes(3 << 20)
            if "complete" in ends:
                break
        assert ends == {"cancelled", "complete"}


def test_a_thing_without_a_status_is_neither_folder_nor_file() -> None:
    assert not Found("a", None, "why").is_folder
    assert Found("a", None, "why").size_bytes == 0
