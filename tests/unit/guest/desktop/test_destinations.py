"""The VMs that this person has sent something to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qfilexchg.guest.desktop.destinations import NAMES_MAX, Destinations, chosen, matching
from qfilexchg.protocol.names import VmName

WORK, PERSONAL, VAULT = map(VmName.parse, ("work", "personal", "vault"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "qfilexchg/destinations"


@pytest.fixture
def known(tmp_path: Path, file: Path) -> Destinations:
    return Destinations.of({"XDG_DATA_HOME": str(tmp_path)})


def test_at_first_there_is_none(known: Destinations) -> None:
    assert known.names() == []


def test_the_latest_comes_first_and_each_once(known: Destinations, file: Path) -> None:
    for name in (WORK, PERSONAL, WORK):
        known.remember(name)
    assert known.names() == [WORK, PERSONAL]
    assert [path.name for path in file.parent.iterdir()] == ["destinations"]


def test_one_can_be_forgotten(known: Destinations) -> None:
    known.remember(WORK)
    known.remember(PERSONAL)
    known.forget(WORK)
    known.forget(VAULT)
    assert known.names() == [PERSONAL]


def test_no_more_are_kept_than_anybody_looks_through(known: Destinations) -> None:
    for number in range(NAMES_MAX + 1):
        known.remember(VmName.parse(f"vm{number}"))
    assert len(known.names()) == NAMES_MAX
    assert known.names()[0] == f"vm{NAMES_MAX}"


def test_what_is_no_name_is_passed_over(known: Destinations, file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(b"work\n-rf\n\xff\n<b>\n\npersonal\nwork\n")
    assert known.names() == [WORK, PERSONAL]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_a_file_that_is_none_neither_hangs_nor_breaks_it(known: Destinations, file: Path, make: object) -> None:
    file.parent.mkdir()
    make(file)  # type: ignore[operator]
    assert known.names() == []


def test_where_nothing_can_be_written_nothing_is(file: Path, known: Destinations) -> None:
    file.parent.write_text("a file is where the folder should be")
    known.remember(WORK)
    assert known.names() == []


@pytest.mark.parametrize("data", ["", "relative"])
def test_without_a_folder_for_data_it_is_in_the_home(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Destinations.of({"XDG_DATA_HOME": data}).remember(WORK)
    assert (tmp_path / ".local/share/qfilexchg/destinations").read_text() == "work\n"


def test_names_that_begin_with_what_is_typed_come_before_those_that_have_it_elsewhere() -> None:
    names = [VmName.parse(name) for name in ("my-work", "vault", "Work", "workshop")]
    assert matching(names, "work") == ["Work", "workshop", "my-work"]
    assert matching(names, "") == names


def test_what_is_typed_is_a_vm_only_if_its_name_could_be() -> None:
    assert chosen("work") == (WORK, "")
    assert chosen("") == (None, "")
    assert chosen("disposable")[0] is None
    for typed in ("my work", "-rf", "a" * 65, "wörk"):
        vm, hint = chosen(typed)
        assert vm is None and hint.startswith("A VM's name")
