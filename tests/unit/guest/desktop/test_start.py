"""How the programs of the desktop start, and what they say where they cannot."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qfilexchg.guest.desktop import start

PROGRAMS = [(start.send_to_vm, "send-to-vm-window"), (start.open_in_dvm, "open-in-dvm-window")]
Program = Callable[[list[str]], int]


@pytest.fixture(autouse=True)
def without_gtk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "DEBIANS", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["program"])
    monkeypatch.setattr(start, "MESSENGERS", ())
    monkeypatch.setitem(sys.modules, "gi", None)


@pytest.mark.parametrize(("program", "name"), PROGRAMS)
def test_help_is_given(program: Program, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert program(["--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: {name} ")


@pytest.mark.parametrize(("program", "name"), PROGRAMS)
def test_without_files_there_is_nothing_to_do(program: Program, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert program([]) == 2
    assert capsys.readouterr().err == f"{name}: name at least one file; see {name} --help\n"


@pytest.mark.parametrize(("program", "name"), PROGRAMS)
def test_without_gtk_what_is_missing_is_told(program: Program, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert program(["/a"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"{name}: there is no GTK 3 in this VM") and "install python3-gi and gir1.2-gtk-3.0" in said


def test_a_person_without_a_terminal_is_told_by_the_first_program_that_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs = []
    shows = f'#!/bin/sh\nprintf "%s|" "$@" > {tmp_path}/shown\nexit 1'  # as zenity does when it is closed by Escape
    for name, text in (("broken", "#!/nonexistent"), ("shows", shows), ("later", f"#!/bin/sh\ntouch {tmp_path}/too-much")):
        (tmp_path / name).write_text(f"{text}\n")
        (tmp_path / name).chmod(0o755)
        programs.append((str(tmp_path / name), "--error"))
    monkeypatch.setattr(start, "MESSENGERS", (("/nonexistent",), *programs))
    assert start.send_to_vm(["/a"]) == 1
    shown = (tmp_path / "shown").read_text()
    assert shown.startswith("--error|there is no GTK 3 in this VM") and shown.endswith("in a terminal|")
    assert not (tmp_path / "too-much").exists()


def test_gtk_sees_no_names_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["send-to-vm-window", "--display=x"])
    start.send_to_vm()
    assert sys.argv == ["send-to-vm-window"]
