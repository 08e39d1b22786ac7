"""Looking through what is to be sent."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qfilexchg.guest import fat
from qfilexchg.guest.survey import ArchiveJudge, FatJudge, Survey, survey

ROOT = "/mnt/outgoing"


def look(*sources: Path | str, judge: FatJudge | ArchiveJudge | None = None) -> Survey:
    return survey([str(source) for source in sources], judge or FatJudge(ROOT), lambda: None)


def problems(found: Survey) -> list[tuple[str, str]]:
    return [(os.path.basename(problem.source), problem.why) for problem in found.problems]


def targets(found: Survey) -> list[str]:
    return [item.target for item in found.items]


def write(path: Path, size: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_a_folder_comes_before_what_is_in_it(tmp_path: Path) -> None:
    write(tmp_path / "tree/b/deep/file", 7)
    write(tmp_path / "tree/a", 5)
    found = look(tmp_path / "tree")
    assert targets(found) == ["tree", "tree/a", "tree/b", "tree/b/deep", "tree/b/deep/file"]
    assert (found.files, found.size_bytes, found.problems) == (2, 12, [])


def test_a_thing_goes_by_its_own_name_however_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "here/file")
    monkeypatch.chdir(tmp_path / "here")
    assert targets(look(".")) == ["here", "here/file"]
    assert targets(look("../here/")) == ["here", "here/file"]
    assert targets(look("./file")) == ["file"]


def test_the_root_folder_cannot_be_sent() -> None:
    assert look("/").problems[0].why == "the root folder has no name to be sent under"


def test_what_is_not_there_or_not_readable_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = write(tmp_path / "secret")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != secret)
    assert problems(look(tmp_path / "missing", secret)) == [
        ("missing", "it cannot be read (No such file or directory)"),
        ("secret", "it cannot be read (Permission denied)"),
    ]


def test_a_folder_that_cannot_be_listed_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: str) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", deny)
    found = look(tmp_path)
    assert problems(found) == [(tmp_path.name, "it cannot be read (Permission denied)")]
    assert not found.items


def test_links_pipes_sockets_and_devices_are_named_for_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("elsewhere")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        found = look(tmp_path / "link", tmp_path / "pipe", tmp_path / "socket", "/dev/null")
    assert problems(found) == [
        ("link", "it is a link"), ("null", "it is a device"), ("pipe", "it is a pipe"), ("socket", "it is a socket"),
    ]  # fmt: skip


def test_a_link_that_ends_with_a_slash_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "folder/file")
    (tmp_path / "link").symlink_to("folder")
    assert targets(look(f"{tmp_path}/link/")) == ["link", "link/file"]


def test_a_folder_with_a_bad_name_is_not_entered(tmp_path: Path) -> None:
    write(tmp_path / "tree/what?/file")
    found = look(tmp_path / "tree")
    assert problems(found) == [("what?", "its name has ?")]
    assert targets(found) == ["tree"]


def test_four_gigabytes_are_one_byte_too_many(tmp_path: Path) -> None:
    write(tmp_path / "fits", fat.FILE_BYTES_MAX)
    write(tmp_path / "large", fat.FILE_BYTES_MAX + 1)
    found = look(tmp_path / "fits", tmp_path / "large")
    assert targets(found) == ["fits"]
    assert problems(found) == [("large", "it is a file of 4 GiB or more")]


def test_of_names_that_differ_only_in_case_the_first_is_kept(tmp_path: Path) -> None:
    for name in ("README", "Readme", "readme", "Ärger", "ärger"):
        write(tmp_path / "tree" / name)
    write(tmp_path / "tree/other/README")
    found = look(tmp_path / "tree")
    assert sorted(targets(found)) == ["tree", "tree/README", "tree/other", "tree/other/README", "tree/Ärger"]
    assert [name for name, _ in problems(found)] == ["Readme", "readme", "ärger"]


def test_two_arguments_of_one_name_cannot_both_stand_at_the_top(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a/report.pdf"), write(tmp_path / "b/REPORT.pdf")
    assert len(look(one, other).problems) == 1
    assert len(look(one, other, judge=ArchiveJudge()).problems) == 0
    assert len(look(one, one, judge=ArchiveJudge()).problems) == 1


def test_names_that_fat_might_make_up_are_written_before_it_does(tmp_path: Path) -> None:
    for name in ("Alphabetical order", "PROGRA~1", "Program Files"):
        write(tmp_path / "tree" / name)
    assert targets(look(tmp_path / "tree")) == ["tree", "tree/PROGRA~1", "tree/Alphabetical order", "tree/Program Files"]


def test_a_path_longer_than_the_kernel_takes_is_a_problem(tmp_path: Path) -> None:
    judge = FatJudge("/mnt")
    status = tmp_path.stat()
    assert judge.problem("x" * 4000, "y" * 89, status) is None
    assert judge.problem("x" * 4000, "z" * 90, status) == "its path is too long"


def test_a_folder_has_room_for_so_many_names(tmp_path: Path) -> None:
    judge = FatJudge(ROOT)
    status = write(tmp_path / "file").stat()
    verdicts = [judge.problem("", f"{number:0250}", status) for number in range(3121)]
    assert verdicts == [None] * 3120 + ["its folder has too many names"]


def test_an_archive_takes_links_pipes_and_any_name(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("CON", "what?", "a", "A"):
        write(tree / name)
    (tree / "link").symlink_to("a")
    os.mkfifo(tree / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tree / "socket"))
        found = look(tree, judge=ArchiveJudge())
    assert problems(found) == [("socket", "it is a socket")]
    assert found.files == 6


def test_times_that_fat_cannot_hold_are_counted(tmp_path: Path) -> None:
    for name, time in (("old", 0), ("new", 5e9), ("now", 1.7e9)):
        os.utime(write(tmp_path / name), (time, time))
    assert look(tmp_path / "old", tmp_path / "new", tmp_path / "now").beyond_calendar == 2


def test_what_the_checkpoint_raises_ends_the_survey(tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        survey([str(tmp_path)], FatJudge(ROOT), stop)


def test_a_tree_deeper_than_the_stack_is_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depth = 1200
    monkeypatch.chdir(tmp_path)
    for _ in range(depth):
        os.mkdir("d")
        os.chdir("d")
    assert len(look(tmp_path / "d").items) == depth
    for _ in range(depth):  # shutil.rmtree, which tidies up after tests, needs the stack
        os.chdir("..")
        os.rmdir("d")


def test_the_pendrive_grows_with_what_is_found(tmp_path: Path) -> None:
    write(tmp_path / "small", 10)
    write(tmp_path / "large", 3 << 30)
    assert look(tmp_path / "small").pendrive_bytes() == fat.PENDRIVE_BYTES
    assert 3 << 30 < look(tmp_path / "small", tmp_path / "large").pendrive_bytes() < 3.1 * 2**30


@settings(max_examples=25)
@given(names=st.sets(st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=20), max_size=8))
def test_every_name_is_either_sent_or_a_problem(names: set[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("names")
    for name in names - {".", ".."}:
        write(folder / name)
    found = look(folder)
    sent = [os.path.basename(target) for target in targets(found)[1:]]
    assert sorted(sent + [name for name, _ in problems(found)]) == sorted(names - {".", ".."})
    assert len({fat.folded(name) for name in sent}) == len(sent)
