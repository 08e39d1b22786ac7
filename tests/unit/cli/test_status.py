from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qfilexchg.dom0 import platform
from qfilexchg.dom0.cli import __main__ as dispatcher
from qfilexchg.dom0.cli import status as module
from qfilexchg.dom0.cli.status import FATES, PHASES, render
from qfilexchg.dom0.exchange.messages import Fate
from qfilexchg.dom0.exchange.phases import Course, Phase
from qfilexchg.dom0.exchange.status import LINE_MAX, Question, encode
from qfilexchg.dom0.platform import Platform
from tests.unit.cli.telling import DOCUMENT, NOTHING, OUTCOME, PENDRIVE, QUESTION, STATUS, Telling


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the daemon would tell its status."""
    monkeypatch.setenv("QFILEXCHG_HOME", str(tmp_path))
    return tmp_path / "run" / "status.socket"


def test_it_says_what_is_where(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, time_zone: Callable[[str], None]
) -> None:
    time_zone("UTC")
    monkeypatch.setattr("qfilexchg.dom0.cli.status.time.time", lambda: 1012.0)
    Telling(path, encode(STATUS))
    assert dispatcher.main(["qfilexchg", "status"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "VM        DOMAIN  OUTGOING  INCOMING",
        "work      1       asking    -",
        "personal  2       -         -",
        "disp3     4       -         -",
        "",
        "You are asked: work → personal: hand over 4.11 MiB? 48 s are left for an answer.",
        "",
        "FROM  TO        SIZE      SINCE  THE PENDRIVE",
        "work  personal  4.11 MiB  12 s   is at its sender; may it go?",
        "",
        "DISPOSABLEVM  FOR   SINCE       THE DOCUMENT",
        "disp3         work  1 min 52 s  open, only to be looked at",
        "",
        "Before:",
        "00:13:20  work → personal, 4.00 KiB: denied, the person said no",
    ]


def test_where_nothing_is_it_says_so() -> None:
    assert list(render(NOTHING, 1000.0)) == ["No VM runs.", "", "There is no pendrive."]


def test_for_programs_it_is_the_daemons_own_line(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Telling(path, encode(STATUS) + encode(NOTHING))
    assert dispatcher.main(["qfilexchg", "status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(encode(STATUS))


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (replace(QUESTION, target=None), "work → a new DisposableVM: open a document of 4.11 MiB?"),
        (replace(QUESTION, kind="wait"), "work → personal: wait to hand over 4.11 MiB?"),
    ],
)
def test_a_question_is_told_as_it_is_put(question: Question, words: str) -> None:
    assert any(words in line for line in render(replace(STATUS, questions=(question,)), 1012.0))


def test_what_is_not_known_is_a_dash() -> None:
    unknown = replace(PENDRIVE, receiver=None, used_bytes=None, since_s=None)
    status = replace(NOTHING, pendrives=(unknown, replace(unknown, course=Course.OUT)), documents=(replace(DOCUMENT, since_s=None),))
    lines = [line.split() for line in render(status, 1012.0)]
    assert ["work", "-", "-", "-", "is"] in [words[:5] for words in lines]
    assert ["work", "DisposableVM", "-", "-", "is"] in [words[:5] for words in lines]
    assert ["disp3", "work", "-", "open,"] in [words[:4] for words in lines]


def test_what_an_error_quotes_moves_no_cursor() -> None:
    lines = render(replace(STATUS, history=(replace(OUTCOME, outcome="failed, \x1b[2J\u202e\n"),)), 1012.0)
    assert all(line.isprintable() for line in lines)


def test_there_are_words_for_every_phase_and_every_fate() -> None:
    assert set(PHASES) == set(Phase) and set(FATES) == set(Fate)


class TestTrouble:
    @pytest.mark.parametrize("command", ["status", "monitor"])
    def test_without_a_daemon_it_says_how_to_start_it(self, path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
        assert dispatcher.main(["qfilexchg", command]) == 1
        assert "start it by 'qfilexchg up'" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            (b"", "qfilexchgd has ended"),
            (encode(STATUS)[:-1], "qfilexchgd has ended"),
            (b"nonsense\n", "not understood"),
            (b" " * (LINE_MAX + (1 << 16)), "not understood (too long)"),
        ],
    )
    def test_a_daemon_that_makes_no_sense_is_one_plain_line(
        self, path: Path, capsys: pytest.CaptureFixture[str], data: bytes, said: str
    ) -> None:
        telling = Telling(path, data)
        assert dispatcher.main(["qfilexchg", "status"]) == 1
        streams = capsys.readouterr()
        assert said in streams.err and streams.err.count("\n") == 1 and not streams.out
        telling.end()

    def test_a_daemon_that_says_nothing_is_not_waited_for_for_ever(
        self, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "ANSWERS_WITHIN_S", 0.01)
        telling = Telling(path, b"", stay=True)
        assert dispatcher.main(["qfilexchg", "status"]) == 1
        assert "does not answer within 0.01 s" in capsys.readouterr().err
        telling.end()

    @pytest.mark.parametrize("command", ["status", "monitor"])
    def test_on_xen_it_is_not_for_root_alone(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
    ) -> None:
        monkeypatch.setattr(platform, "here", lambda: Platform.XEN)
        monkeypatch.setattr("os.geteuid", lambda: 1000)
        assert dispatcher.main(["qfilexchg", command]) == 1
        assert "cannot be reached at /run/qfilexchg/status.socket" in capsys.readouterr().err

    def test_who_may_not_is_told_how_to_be_let_in(
        self, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(connection: object, address: str) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("qfilexchg.dom0.consent.connection.socket.socket.connect", refuse)
        assert dispatcher.main(["qfilexchg", "status"]) == 1
        assert "'adduser USER qfilexchg'" in capsys.readouterr().err
