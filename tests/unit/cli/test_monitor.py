from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qfilexchg.dom0.cli import __main__ as dispatcher
from qfilexchg.dom0.cli.monitor import ALONE, changes
from qfilexchg.dom0.exchange.messages import Fate
from qfilexchg.dom0.exchange.phases import Phase
from qfilexchg.dom0.exchange.status import encode
from tests.python import PYTHON
from tests.unit.cli.telling import DOCUMENT, NOTHING, OUTCOME, PENDRIVE, QUESTION, STATUS, VMS, Telling

TIMEOUT_S = 20
LATER = replace(STATUS, time_s=1020.0, pendrives=(replace(PENDRIVE, phase=Phase.LOADED),), questions=())


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the daemon would tell its status."""
    monkeypatch.setenv("QFILEXCHG_HOME", str(tmp_path))
    return tmp_path / "run" / "status.socket"


def then(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], object]) -> None:
    """What happens each time when there is no daemon, and at last Ctrl-C."""
    left = list(steps)

    def sleep(seconds: float) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop(0)()

    monkeypatch.setattr("qfilexchg.dom0.cli.monitor.time.sleep", sleep)


class TestChanges:
    def test_at_first_it_is_what_is_under_way_and_not_what_is_past(self) -> None:
        assert list(changes(None, STATUS)) == [
            "work runs",
            "personal runs",
            "disp3 runs",
            "work → personal: the pendrive is at its sender; may it go?",
            "work → personal: hand over 4.11 MiB? You are asked.",
            "work → disp3: the document is open",
        ]

    def test_then_it_is_what_is_different(self) -> None:
        delivered = replace(OUTCOME, time_s=1019.0, outcome="delivered")
        after = replace(LATER, vms=VMS[:2], documents=(replace(DOCUMENT, fate=Fate.UNCHANGED),), history=(delivered, OUTCOME))
        assert list(changes(STATUS, after)) == [
            "disp3 has ended",
            "work → personal: the pendrive is at its receiver",
            "work → disp3: the document is closed as it came",
            "work → personal, 4.00 KiB: delivered",
        ]

    def test_what_goes_on_is_no_change(self) -> None:
        assert not list(changes(STATUS, replace(STATUS, time_s=1013.0)))
        assert not list(changes(NOTHING, NOTHING))

    def test_outcomes_come_in_their_order(self) -> None:
        history = tuple(replace(OUTCOME, outcome=text) for text in ("third", "second", "first"))
        assert [line.rpartition(": ")[2] for line in changes(NOTHING, replace(NOTHING, history=history))] == ["first", "second", "third"]

    def test_the_next_question_of_the_same_pendrive_is_another(self) -> None:
        again = replace(STATUS, questions=(replace(QUESTION, question=8, kind="wait"),))
        assert list(changes(STATUS, again)) == ["work → personal: wait to hand over 4.11 MiB? You are asked."]


class TestLines:
    def test_where_there_is_no_terminal_each_change_is_a_line(
        self, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        then(monkeypatch)
        Telling(path, encode(NOTHING) + encode(STATUS) + encode(LATER))
        assert dispatcher.main(["qfilexchg", "monitor"]) == 0
        lines = [line[10:] for line in capsys.readouterr().out.splitlines()]
        assert lines[0] == "work runs" and lines[-2:] == ["work → personal: the pendrive is at its receiver", ALONE]

    def test_it_goes_on_when_there_is_a_daemon_again(
        self, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        then(monkeypatch, lambda: None, lambda: Telling(path, encode(STATUS)))
        Telling(path, encode(NOTHING))
        assert dispatcher.main(["qfilexchg", "monitor"]) == 0
        lines = [line[10:] for line in capsys.readouterr().out.splitlines()]
        assert (lines[0], lines[1], lines[-1]) == (ALONE, "work runs", ALONE)

    def test_for_programs_it_is_the_daemons_own_lines(
        self, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        then(monkeypatch, lambda: Telling(path, encode(LATER)))
        Telling(path, encode(NOTHING) + encode(STATUS))
        assert dispatcher.main(["qfilexchg", "monitor", "--json"]) == 0
        assert [json.loads(line)["time_s"] for line in capsys.readouterr().out.splitlines()] == [1000.0, 1012.0, 1020.0]

    def test_a_daemon_of_another_version_ends_it(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Telling(path, encode(NOTHING).replace(b'"status": 1', b'"status": 2'))
        assert dispatcher.main(["qfilexchg", "monitor", "--json"]) == 1
        assert "same version" in capsys.readouterr().err

    def test_it_ends_with_who_reads_it(self, path: Path) -> None:
        telling = Telling(path, encode(STATUS) * 10_000, stay=True)
        monitor = subprocess.Popen(command("--json"), env=environment(path), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert monitor.stdout is not None and monitor.stderr is not None
        monitor.stdout.readline()
        monitor.stdout.close()
        assert monitor.wait(TIMEOUT_S) == 0 and monitor.stderr.read() == b""
        monitor.stderr.close()
        telling.end()


class TestTerminal:
    def test_it_is_a_page_that_is_drawn_again_until_ctrl_c(self, path: Path) -> None:
        telling = Telling(path, encode(NOTHING) + encode(STATUS), stay=True)
        ours, theirs = pty.openpty()
        with os.fdopen(ours, "r+b", buffering=0) as terminal, os.fdopen(theirs) as screen:
            monitor = subprocess.Popen(
                command(), env=environment(path) | {"COLUMNS": "60", "LINES": "9"}, stdin=screen, stdout=screen, start_new_session=True,
                preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
            )  # fmt: skip
            seen, until_s = "", time.monotonic() + TIMEOUT_S
            while "hand over 4.11 MiB" not in seen or not seen.endswith("\x1b[J"):
                assert select.select([terminal], [], [], until_s - time.monotonic())[0], seen
                seen += terminal.read(65536).decode().replace("\r\n", "\n")
            terminal.write(b"\x03")
            assert monitor.wait(TIMEOUT_S) == 0
        telling.end()
        pages = seen.split("\x1b[H")
        assert "No VM runs." in "".join(pages)
        lines = pages[-1].removesuffix("\x1b[J").splitlines()
        assert len(lines) == 8 and all(line.endswith("\x1b[K") and len(line) <= 60 + 3 for line in lines), "it never scrolls"
        assert "Ctrl-C ends this" in lines[0]


def command(*arguments: str) -> list[str]:
    return [*PYTHON, "-m", "qfilexchg.dom0.cli", "qfilexchg", "monitor", *arguments]


def environment(path: Path) -> dict[str, str]:
    python_path = os.pathsep.join(sys.path)
    return {"PYTHONPATH": python_path, "QFILEXCHG_HOME": str(path.parents[1]), "PYTHONIOENCODING": "utf-8", "PATH": "/usr/bin:/bin"}
