"""One tar file for all that a pendrive cannot hold."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import IO

import pytest

from qfilexchg.guest.archive import Archive, archive_bytes, archive_name
from qfilexchg.guest.progress import Progress
from qfilexchg.guest.survey import ArchiveJudge, Item, survey
from tests.unit.guest.dom0 import Dom0


def items(*sources: Path) -> list[Item]:
    return survey([str(source) for source in sources], ArchiveJudge(), lambda: None).items


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / ("deep" * 30) / ("deeper" * 20)).mkdir(parents=True)
    (tree / "what?").write_bytes(b"x" * 513)
    (tree / "What?").write_bytes(b"")
    (tree / "run").write_text("#!/bin/sh\n")
    (tree / "run").chmod(0o755)
    os.link(tree / "what?", tree / "hard")
    (tree / "soft").symlink_to("nowhere")
    os.mkfifo(tree / "pipe")
    with open(os.fsencode(tree) + b"/caf\xe9", "wb") as file:
        file.write(bytes(3 << 20))
    for path in tree.iterdir():
        os.utime(path, ns=(10**18 + 7, 10**18 + 123_456_789), follow_symlinks=False)
    return tree


def pack(folder: Path, *sources: Path) -> Path:
    found = items(*sources)
    Archive(str(folder), Progress(io.StringIO()), Dom0(), 0).run(found)  # type: ignore[arg-type]
    return folder / archive_name(found)


def test_its_size_is_known_before(tree: Path, tmp_path: Path) -> None:
    assert pack(tmp_path, tree).stat().st_size == archive_bytes(items(tree))


def test_no_header_is_written_without_the_data_it_announces(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.13 refuses that. Earlier ones wrote the header alone, which counting the size relied on."""
    add = tarfile.TarFile.addfile

    def refuse(tar: tarfile.TarFile, info: tarfile.TarInfo, file: IO[bytes] | None = None) -> None:
        assert file is not None or not info.isreg() or not info.size
        add(tar, info, file)

    monkeypatch.setattr(tarfile.TarFile, "addfile", refuse)
    assert pack(tmp_path, tree).stat().st_size == archive_bytes(items(tree))


def test_tar_unpacks_names_modes_times_and_links(tree: Path, tmp_path: Path) -> None:
    archive = pack(tmp_path, tree)
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-C", tmp_path / "out", "-xpf", archive], check=True)
    copied = tmp_path / "out/tree"
    assert sorted(os.listdir(os.fsencode(copied))) == sorted(os.listdir(os.fsencode(tree)))
    for name in os.listdir(os.fsencode(tree)):
        one, other = os.lstat(os.fsencode(tree) + b"/" + name), os.lstat(os.fsencode(copied) + b"/" + name)
        assert (one.st_mode, one.st_size) == (other.st_mode, other.st_size)
        assert name == b"deep" * 30 or abs(one.st_mtime_ns - other.st_mtime_ns) < 1000
    assert (copied / "soft").readlink() == Path("nowhere")
    assert (copied / "hard").stat().st_ino == (copied / "what?").stat().st_ino
    assert (copied / "hard").read_bytes() == b"x" * 513


def test_progress_ends_with_all_bytes_and_files(tree: Path, tmp_path: Path) -> None:
    class Counter(Progress):
        total = files = 0

        def advance(self, size_bytes: int) -> None:
            self.total += size_bytes

        def file_done(self) -> None:
            self.files += 1

    found = items(tree)
    counter = Counter(io.StringIO())
    Archive(str(tmp_path), counter, Dom0(), 0).run(found)  # type: ignore[arg-type]
    assert (counter.total, counter.files) == (archive_bytes(found), 7)


@pytest.mark.parametrize(
    ("names", "archive"), [(["a"], "a.tar"), (["a", "b"], "files.tar"), (["what?"], "files.tar"), (["x" * 253], "files.tar")]
)
def test_it_is_called_by_what_it_holds_where_fat_can_hold_that(tmp_path: Path, names: list[str], archive: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert archive_name(items(*(tmp_path / name for name in names))) == archive


def test_a_single_file_is_packed_too(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("hello")
    with tarfile.open(pack(tmp_path, tmp_path / "note")) as tar:
        assert tar.getnames() == ["note"]
