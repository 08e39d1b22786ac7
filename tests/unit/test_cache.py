from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from qfilexchg.dom0 import cache

NOW_S = time.time()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def fill(folder: Path) -> None:
    (folder / "file").write_text("made")


def test_what_is_missing_is_made_once(tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder.name)
        fill(folder)

    for _ in range(2):
        assert (cache.made(tmp_path / "things/0a", make, print) / "file").read_text() == "made"
    assert made == [".0a.building"]


@pytest.mark.parametrize("later", ["0a", "0b"])
def test_what_fails_half_made_is_not_taken_for_made_and_is_removed_by_a_later_build(tmp_path: Path, later: str) -> None:
    def fail(folder: Path) -> None:
        fill(folder)
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        cache.made(tmp_path / "0a", fail, print)
    assert not (tmp_path / "0a").exists()
    cache.made(tmp_path / later, fill, print)
    assert names(tmp_path) == [later]


def test_only_what_nobody_has_asked_for_in_a_long_time_is_deleted(tmp_path: Path) -> None:
    for name in ("00aa", "11bb", ".22cc.building"):
        (tmp_path / name).mkdir()
        fill(tmp_path / name)
    for name in ("00aa", ".22cc.building"):
        os.utime(tmp_path / name, (0, 0))
    cache.prune(tmp_path)
    assert names(tmp_path) == [".22cc.building", "11bb"]


def test_of_large_things_only_the_last_used_are_kept(tmp_path: Path) -> None:
    for name in ("0a", "0b", "0c"):
        cache.made(tmp_path / name, fill, print, keep=2)
        os.utime(tmp_path / name, (NOW_S - 20 + int(name, 16), NOW_S - 20 + int(name, 16)))
    cache.prune(tmp_path, keep=2)
    assert names(tmp_path) == ["0b", "0c"]


def test_content_and_names_both_count(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("ab")
    (tmp_path / "y").write_text("c")
    files = cache.tree(tmp_path)
    assert [name for name, _ in files] == ["x", "y"]
    hashes = {cache.content_hash(files), cache.content_hash([("z", files[0][1]), files[1]])}
    (tmp_path / "x").write_text("a")
    (tmp_path / "y").write_text("bc")
    hashes.add(cache.content_hash(files))
    assert len(hashes) == 3


def test_what_is_made_anew_is_another_folder_and_the_one_that_is_found_from_then_on(tmp_path: Path) -> None:
    first = cache.made(tmp_path / "0a", fill, print)
    again = cache.made(tmp_path / "0a", fill, print, anew=True)
    third = cache.made(tmp_path / "0a", fill, print, anew=True)
    assert [path.name for path in (first, again, third)] == ["0a", "0a.2", "0a.3"]
    assert cache.made(tmp_path / "0a", fill, print) == third


def test_the_tenth_of_a_name_comes_after_the_ninth(tmp_path: Path) -> None:
    for number in (2, 9, 10):
        (tmp_path / f"0a.{number}").mkdir()
    assert cache.made(tmp_path / "0a", fill, print).name == "0a.10"


def test_what_was_never_made_is_made_under_its_name_even_when_it_is_to_be_made_anew(tmp_path: Path) -> None:
    assert cache.made(tmp_path / "0a", fill, print, anew=True).name == "0a"


def test_what_is_still_needed_is_kept_however_long_nobody_has_asked_for_it(tmp_path: Path) -> None:
    for name in ("0a", "0b"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))
    cache.prune(tmp_path, keep=0, kept={tmp_path / "0a"})
    assert names(tmp_path) == ["0a"]
