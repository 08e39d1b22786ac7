"""Which way ``qfilexchg-agent`` asks. The ways themselves are in ``tests/unit/consent`` and ``tests/desktop``."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import qfilexchg
from qfilexchg.dom0.cli import __main__ as dispatcher
from qfilexchg.dom0.cli.agent import NOTHING_TO_ASK_WITH
from tests.python import PYTHON


@pytest.fixture(autouse=True)
def empty_desktop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QFILEXCHG_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("words", [[], ["--by", "gtk"], ["--by", "zenity"]])
def test_without_a_display_there_is_nothing_to_ask_with(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatcher.main(["qfilexchg-agent", *words]) == NOTHING_TO_ASK_WITH
    assert "there is no display, or nothing to ask with on it" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--by", "gtk"], ["--by", "kdialog"]])
def test_with_a_display_that_is_gone_or_nothing_installed_it_ends(tmp_path: Path, words: list[str]) -> None:
    # A process of its own: it imports GTK where there is one, whose bindings are loaded in an old way. That is not ours to mend.
    done = subprocess.run(
        [*PYTHON, "-Wignore::ImportWarning", "-m", "qfilexchg.dom0.cli", "qfilexchg-agent", *words],
        env={"PATH": str(tmp_path), "DISPLAY": ":99999", "PYTHONPATH": str(Path(qfilexchg.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == NOTHING_TO_ASK_WITH
    assert "there is no display, or nothing to ask with on it: install" in done.stderr


@pytest.mark.parametrize("words", [["--tty", "--by", "gtk"], ["--by", "xmessage"]])
def test_what_is_not_understood_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        dispatcher.main(["qfilexchg-agent", *words])
    assert ended.value.code == dispatcher.MISUSED
