from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import savefile
from qfilexchg.dom0.vms.savefile import NoSavefile, Savefile

STAMP: savefile.Stamp = {"QEMU": "7.2", "memory size": 256}


@pytest.fixture
def saved(tmp_path: Path) -> Savefile:
    """A savefile that is whole."""
    folder = tmp_path / "savefiles" / "0123"
    folder.mkdir(parents=True)
    found = Savefile(folder)
    for file in (found.memory, found.state, found.disk):
        file.write_bytes(file.name.encode())
    found.record(STAMP)
    return found


def test_one_that_was_made_by_the_same_can_be_used(saved: Savefile) -> None:
    saved.check(dict(STAMP))


@pytest.mark.parametrize(
    ("wanted", "changed"),
    [({**STAMP, "QEMU": "8.0"}, "QEMU"), ({"QEMU": "7.2", "memory size": 1, "processor": "x"}, "memory size and processor"), ({}, "QEMU")],
)
def test_one_that_was_made_by_another_is_stale_and_says_by_what(saved: Savefile, wanted: dict[str, str | int], changed: str) -> None:
    with pytest.raises(NoSavefile, match=f"stale, as it was made with another {changed}"):
        saved.check(wanted)


@pytest.mark.parametrize("name", ["memory", "state", "disk"])
def test_one_with_a_truncated_file_is_damaged(saved: Savefile, name: str) -> None:
    os.truncate(saved.folder / name, 1)
    with pytest.raises(NoSavefile, match="damaged"):
        saved.check(STAMP)


def test_one_with_another_state_of_the_same_size_is_damaged(saved: Savefile) -> None:
    saved.state.write_bytes(b"other")
    with pytest.raises(NoSavefile, match="damaged"):
        saved.check(STAMP)


@pytest.mark.parametrize("name", ["memory", "state", "disk", "made.json"])
def test_one_without_a_file_is_none(saved: Savefile, name: str) -> None:
    (saved.folder / name).unlink()
    with pytest.raises(NoSavefile, match="there is no savefile"):
        saved.check(STAMP)


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"stamp": 1, "files": 2}', json.dumps({"stamp": STAMP, "files": 1})])
def test_a_record_that_is_none_is_said(saved: Savefile, record: str) -> None:
    saved.made.write_text(record)
    with pytest.raises(NoSavefile, match=r"cannot be read.*qvm-create-default-dvm"):
        saved.check(STAMP)


def test_the_current_one_is_where_the_link_leads(saved: Savefile, tmp_path: Path) -> None:
    home = Home(tmp_path, tmp_path / "run", tmp_path / "cache")
    home.current_savefile.symlink_to(saved.folder.name)
    assert savefile.current(home) == saved
    saved.remove()
    with pytest.raises(NoSavefile):
        savefile.current(home).check(STAMP)


def test_a_processor_is_known_by_what_it_can_and_not_by_how_fast_it_is_now() -> None:
    text = "processor\t: 0\nmodel name\t: X\ncpu MHz\t\t: {}\nflags\t\t: fpu {}\n\nprocessor\t: 1\nmodel name\t: Y\n"
    assert savefile.processor(text.format(1, "sse")) == savefile.processor(text.format(2, "sse"))
    assert savefile.processor(text.format(1, "sse")) != savefile.processor(text.format(1, "avx"))
