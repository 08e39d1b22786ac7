from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qfilexchg.dom0 import platform
from qfilexchg.dom0.cli import __main__ as dispatcher
from qfilexchg.dom0.cli import run as running
from qfilexchg.dom0.cli.commands import COMMANDS
from qfilexchg.dom0.cli.run import harmless
from qfilexchg.dom0.platform import NotDom0, Platform
from tests.calls import CALLS, NOT_ON_XEN
from tests.python import PYTHON, WARNINGS

BIN = Path(__file__).parents[3] / "bin"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_in_bin(name: str) -> None:
    module, _, function = COMMANDS[name].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert (BIN / name).readlink() == Path(".run")


def test_no_command_needs_what_only_the_qemu_platform_has() -> None:
    modules = sorted({target.partition(":")[0] for target in COMMANDS.values()} | {"qfilexchg.dom0.cli.doctor_xen"})
    script = f"import sys, {', '.join(modules)}; sys.exit('qemu' in sys.modules)"
    subprocess.run([*PYTHON, "-c", script], env={"PYTHONPATH": os.pathsep.join(sys.path)}, check=True)


@pytest.fixture
def on_xen_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "here", lambda: Platform.XEN)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


@pytest.mark.usefixtures("on_xen_without_root")
class TestOnXenWithoutRoot:
    @pytest.mark.parametrize(
        "arguments",
        [
            *(["qvm-ls"], ["qvm-create", "work"], ["qvm-remove", "work"]),
            *(["qvm-start", "work"], ["qvm-shutdown", "work"], ["qvm-kill", "work"]),
            *(["qvm-run", "work", "true"], ["qvm-copy-out", "work", "x"], ["qvm-template", "show"], ["qubes_restore", "x"], ["qfilexchgd"]),
            *(["qfilexchg", "doctor"], ["qfilexchg", "up"], ["qfilexchg", "down"], ["qvm-create-default-dvm", "--default-template"]),
        ],
    )
    def test_a_command_says_that_it_needs_root(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert dispatcher.main(arguments) in (1, 125)
        assert capsys.readouterr().err == f"{arguments[0]}: on Xen this needs root, as xl does: put sudo before it\n"

    @pytest.mark.parametrize("name", COMMANDS)
    def test_the_help_is_everybodys(self, name: str) -> None:
        with pytest.raises(SystemExit) as ended:
            dispatcher.main([name, "--help"])
        assert ended.value.code == 0


@pytest.fixture
def before_xen(monkeypatch: pytest.MonkeyPatch) -> str:
    """A computer with Debian's package, which is for Xen, and without Xen. What is said of it."""
    error = NotDom0(under_xen=False)

    def here() -> Platform:
        raise error

    monkeypatch.setattr(platform, "here", here)
    monkeypatch.setattr(os, "isatty", lambda _descriptor: True)
    monkeypatch.setattr(running, "_terminal_size", lambda: (24, 80))
    monkeypatch.setenv("DISPLAY", ":no-such-display")
    return str(error)


class TestBeforeTheComputerRunsXen:
    @pytest.mark.parametrize("call", CALLS, ids=" ".join)
    def test_a_command_says_so_and_what_to_do(self, call: tuple[str, ...], before_xen: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert dispatcher.main(call) in (1, 125)
        said = capsys.readouterr()
        assert (said.out, said.err) == ("", f"{call[0]}: {before_xen}\n")

    def test_no_command_has_been_left_out(self) -> None:
        assert {name for name, *_ in CALLS} == set(COMMANDS) - NOT_ON_XEN


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_the_exit_statuses_mean(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        dispatcher.main([name, "--help"])
    assert ended.value.code == 0
    assert "Exit status: " in " ".join(capsys.readouterr().out.split())


def test_bin_runs_from_anywhere(tmp_path: Path) -> None:
    environment = WARNINGS | {"PATH": "/usr/bin:/bin", "QFILEXCHG_HOME": str(tmp_path / "h"), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([BIN / "qvm-ls"], env=environment, cwd="/", capture_output=True, check=True)
    assert done.stdout.split() == b"NAME STATE DOMAIN LABEL MEMORY TYPE FOR".split()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QFILEXCHG_HOME", str(tmp_path / "h"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "h"


@pytest.mark.parametrize("name", ["qvm-start", "qvm-shutdown", "qvm-kill", "qvm-remove"])
def test_a_vm_that_is_not_there_is_one_plain_line(name: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatcher.main([name, "work"]) == 1
    said = capsys.readouterr().err
    assert said == f"{name}: there is no VM work: 'qvm-ls' lists them, 'qvm-create work' makes one\n"


def test_running_a_command_has_a_failure_status_that_commands_rarely_have(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatcher.main(["qvm-run", "work", "true"]) == 125
    assert "there is no VM work" in capsys.readouterr().err


def test_no_vm_is_created_without_a_template(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatcher.main(["qvm-create", "work"]) == 1
    assert "qvm-template build" in capsys.readouterr().err
    assert dispatcher.main(["qvm-ls"]) == 0
    assert "work" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["qvm-create", "-x"],
        ["qvm-create", "dom 0"],
        ["qvm-create", "work", "--memory", "1"],
        ["qvm-create", "work", "--label", "pink"],
        ["qvm-run", "work"],
    ],
)
def test_what_is_not_understood_is_status_2(arguments: list[str], home: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        dispatcher.main(arguments)
    assert ended.value.code == 2


def test_an_unknown_command_is_told_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatcher.main(["qvm-fly"]) == 2
    assert "qvm-start" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["/", ".", "..", "x/.."])
def test_what_has_no_name_is_not_copied_out(name: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatcher.main(["qvm-copy-out", "work", name]) == 1
    assert "no name of its own" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\tline\r\n", "plain\tline\r\n"),
        ("\x1b]0;title\x07", "\ufffd]0;title\ufffd"),
        ("\x9b31m", "\ufffd31m"),
        ("naïve 例", "naïve 例"),
        ("\u202e", "\ufffd"),
    ],
)
def test_a_terminal_is_shown_no_control_characters(text: str, shown: str) -> None:
    assert harmless(text) == shown
