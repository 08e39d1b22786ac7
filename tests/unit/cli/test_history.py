from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from qfilexchg.dom0 import platform
from qfilexchg.dom0.cli import __main__ as dispatcher
from qfilexchg.dom0.cli.history import LAST, NoMoment, NoNumber, parse_number, parse_since
from qfilexchg.dom0.exchange.journal import HISTORY_MAX, Journal
from qfilexchg.dom0.exchange.messages import Entry, PendriveId
from qfilexchg.dom0.exchange.phases import Phase
from qfilexchg.dom0.platform import Platform
from qfilexchg.dom0.vms.hypervisor import RunningVm, VmId
from qfilexchg.protocol.names import DomainId, VmName

WORK, PERSONAL = (RunningVm(VmId(DomainId(n), UUID(int=n)), VmName.parse(name)) for n, name in ((1, "work"), (2, "personal")))
ENTRY = Entry(PendriveId("0a"), Phase.CLEAN, WORK, PERSONAL, 0, "", 1 << 30, 4096)


@pytest.fixture(autouse=True)
def utc(time_zone: Callable[[str], None]) -> None:
    time_zone("UTC")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One with a journal of two outcomes, one of them of a day after the other."""
    monkeypatch.setenv("QFILEXCHG_HOME", str(tmp_path))
    with Journal(tmp_path / "journal.sqlite", iter((86400.0, 172800.25)).__next__) as journal:
        journal.note_outcome(ENTRY, 4312064, "delivered")
        journal.note_outcome(replace(ENTRY, receiver=None), 0, "denied, \x1b[2J")
    return tmp_path


def test_it_says_when_who_to_whom_how_much_and_what_became_of_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatcher.main(["qfilexchg", "history"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "WHEN                 FROM  TO        SIZE      OUTCOME",
        "1970-01-03 00:00:00  work  -         0 bytes   denied, \\x1b[2J",
        "1970-01-02 00:00:00  work  personal  4.11 MiB  delivered",
    ]


def test_it_is_read_while_a_daemon_writes_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(home / "journal.sqlite") as journal:
        journal.note_outcome(ENTRY, 7, "failed, not-attached")
        assert dispatcher.main(["qfilexchg", "history", "-n", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("work  personal  7 bytes  failed, not-attached")


def test_for_programs_it_is_an_array(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatcher.main(["qfilexchg", "history", "--json", "--since", "1970-01-02 12:00"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"time_s": 172800.25, "sender": "work", "receiver": None, "used_bytes": 0, "outcome": "denied, \x1b[2J"}
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "Nothing was sent.\n"), (["--json"], "[]\n"), (["--since", "1h"], "Nothing was sent since then.\n")],
)
def test_where_nothing_was_sent_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    monkeypatch.setenv("QFILEXCHG_HOME", str(tmp_path / "none"))
    assert dispatcher.main(["qfilexchg", "history", *arguments]) == 0
    assert capsys.readouterr().out == said and not (tmp_path / "none").exists()


def test_of_a_long_one_the_last_are_shown_or_all_since_a_time(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(home / "journal.sqlite") as journal:
        for _ in range(LAST + 5):
            journal.note_outcome(ENTRY, 7, "delivered")
    for arguments, expected in (([], LAST), (["--since", "1h"], LAST + 5), (["-n", "3"], 3), (["-n", "999"], LAST + 7)):
        dispatcher.main(["qfilexchg", "history", *arguments])
        assert len(capsys.readouterr().out.splitlines()) == expected + 1


def test_on_xen_it_is_roots(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "here", lambda: Platform.XEN)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert dispatcher.main(["qfilexchg", "history"]) == 1
    assert "needs root" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30min", 1800), ("2h", 7200), ("7d", 604800)])
def test_a_time_may_be_so_long_ago(text: str, seconds: int) -> None:
    assert abs(time.time() - seconds - parse_since(text)) < 10


def test_a_time_may_be_one_of_the_calendar_here(time_zone: Callable[[str], None]) -> None:
    time_zone("CET-1")
    assert parse_since("1970-01-02") == 82800
    assert parse_since("1970-01-02 03:00") == parse_since("1970-01-02T02:00+00:00") == 93600


@pytest.mark.parametrize("text", ["", "soon", "-1h", "1.5h", "2 h", "1w", "9" * 9 + "d", "1970-13-01", "\x1b[2J" * 99])
def test_what_is_no_time_is_told_how_to_say_one(text: str) -> None:
    with pytest.raises(NoMoment, match="30min") as raised:
        parse_since(text)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "x", "²", "٣", str(HISTORY_MAX + 1), "1" * 99])
def test_a_number_is_one_from_1_to_the_most_that_there_can_be(text: str) -> None:
    with pytest.raises(NoNumber):
        parse_number(text)
    assert parse_number(str(HISTORY_MAX)) == HISTORY_MAX
