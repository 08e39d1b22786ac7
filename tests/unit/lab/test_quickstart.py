"""What the demonstration leaves behind, and where it stops before it begins. The demonstration itself needs real VMs."""

from __future__ import annotations

from pathlib import Path

import pytest

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.savefile import Savefile
from qfilexchg.lab import quickstart
from qfilexchg.lab.quickstart import RULE_FILE, Tour, clean_up


class Noted(Tour):
    """Writes the commands down instead of running them."""

    def __init__(self) -> None:
        super().__init__({})
        self.ran: list[tuple[str, ...]] = []

    def run(self, *command: str) -> None:
        self.ran.append(command)

    def output(self, *command: str, stdin: bytes = b"") -> str:
        self.ran.append(command)
        return "Read and approved in disp1"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home", tmp_path / "home/run", tmp_path / "cache")
    home.make()
    return home


def test_in_a_persons_home_only_what_it_made_is_removed(home: Home) -> None:
    tour = Noted()
    tour.made = ["personal"]
    (home.policy / RULE_FILE).touch()
    (home.policy / "10-own.policy").touch()
    clean_up(tour, None, home, keep_logs=False)
    assert tour.ran == [("qfilexchg", "down"), ("qvm-remove", "personal")]
    assert [path.name for path in home.policy.iterdir()] == ["10-own.policy"]


def test_a_home_made_for_it_goes_as_a_whole_unless_its_logs_are_wanted(home: Home) -> None:
    tour = Noted()
    clean_up(tour, home.data, home, keep_logs=True)
    assert home.log.exists()
    clean_up(tour, home.data, home, keep_logs=False)
    assert not home.data.exists()
    assert tour.ran == [("qfilexchg", "down")] * 2


def test_a_home_that_cannot_be_is_one_plain_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("QFILEXCHG_HOME", "/dev/null/home")
    assert quickstart.main(["--yes"]) == 1
    assert capsys.readouterr().err.startswith("quickstart: the folder ")


def test_without_a_terminal_to_ask_on_yes_is_required(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    assert quickstart.main([]) == 2
    assert "use --yes" in capsys.readouterr().err


class TestSavefile:
    def savefile(self, home: Home, script: bytes | None) -> Savefile:
        saved = Savefile(home.savefiles / "0123")
        saved.folder.mkdir()
        saved.made.touch()
        if script is not None:
            saved.script.write_bytes(script)
        home.current_savefile.symlink_to("0123")
        return saved

    def test_a_persons_own_is_left_alone(self, home: Home) -> None:
        assert not quickstart.has_savefile_of_its_own(home)
        self.savefile(home, None)
        assert quickstart.has_savefile_of_its_own(home)
        tour = Noted()
        quickstart.show_document(tour, home)
        assert not tour.ran and not tour.made_savefile

    def test_that_of_a_demonstration_before_is_not_a_persons(self, home: Home) -> None:
        self.savefile(home, quickstart.EDITOR.read_bytes())
        assert not quickstart.has_savefile_of_its_own(home)

    def test_in_a_persons_vm_it_writes_nothing_but_what_has_a_name_of_its_own(self, home: Home) -> None:
        tour = Noted()
        quickstart.show_document(tour, home)
        files = {command[-1] for command in tour.ran if command[:2] == ("qvm-run", quickstart.SENDER)}
        assert files == {"qx-contract.txt"}

    def test_what_it_made_is_removed(self, home: Home) -> None:
        saved = self.savefile(home, b"#!/bin/sh\n")
        tour = Noted()
        tour.made_savefile = True
        clean_up(tour, None, home, keep_logs=False)
        assert not saved.folder.exists() and not home.current_savefile.is_symlink()
