"""``qfilexchg policy``."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from qfilexchg.dom0.cli import __main__ as dispatcher
from qfilexchg.dom0.exchange import policy, remembered
from qfilexchg.protocol.names import VmName


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QFILEXCHG_HOME", str(tmp_path))
    monkeypatch.setattr(policy, "SYSTEM_FOLDER", tmp_path / "etc")
    (tmp_path / "policy.d").mkdir()
    return tmp_path / "policy.d"


@pytest.mark.parametrize("words", [[], ["list"]])
def test_all_rules_are_listed_in_their_order_with_their_places(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    remembered.remember(folder, VmName.parse("work"), VmName.parse("personal"), date(2026, 5, 17))
    assert dispatcher.main(["qfilexchg", "policy", *words]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "SOURCE  TARGET      ACTION  WHERE",
        f"work    personal    allow   {folder}/20-remembered.policy:2",
        "*       disposable  allow   default.policy:7",
        "*       *           ask     default.policy:8",
    ]


def test_an_answer_is_forgotten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remembered.remember(folder, VmName.parse("work"), VmName.parse("personal"), date(2026, 5, 17))
    remembered.remember(folder, VmName.parse("work"), None, date(2026, 5, 17))
    assert dispatcher.main(["qfilexchg", "policy", "forget", "work", "personal"]) == 0
    assert dispatcher.main(["qfilexchg", "policy", "forget", "work", "disposable"]) == 0
    assert "work" not in (folder / remembered.FILE).read_text()
    assert dispatcher.main(["qfilexchg", "policy", "forget", "work", "personal"]) == dispatcher.FAILED
    assert "no answer is remembered for work personal" in capsys.readouterr().err


def test_a_broken_policy_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine.policy").write_text("work personal perhaps\n")
    assert dispatcher.main(["qfilexchg", "policy"]) == dispatcher.FAILED
    assert capsys.readouterr().err.startswith(f"qfilexchg: {folder}/mine.policy:1: a rule ends in allow, ask or deny")


@pytest.mark.parametrize("words", [["forget", "work"], ["forget", "-rf", "x"], ["forget", "work", "a b"], ["nothing"]])
def test_what_is_not_understood_is_refused(folder: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        dispatcher.main(["qfilexchg", "policy", *words])
    assert ended.value.code == dispatcher.MISUSED
