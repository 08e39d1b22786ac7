"""The rules that the answer *Always* makes."""

from __future__ import annotations

import os
import stat
from datetime import date
from pathlib import Path

import pytest

from qfilexchg.dom0.exchange import policy
from qfilexchg.dom0.exchange.policy import Action, BadPolicy, Policy, Word
from qfilexchg.dom0.exchange.remembered import FILE, NotRemembered, NotWritten, forget, remember, would_hold
from qfilexchg.protocol.names import VmName

WORK, PERSONAL, VAULT = (VmName.parse(name) for name in ("work", "personal", "vault"))
DAY = date(2026, 5, 17)


def rules(folder: Path) -> Policy:
    found = policy.load([folder])
    assert found.fault is None
    return found


def test_what_is_remembered_is_allowed_from_then_on_and_nothing_else(tmp_path: Path) -> None:
    assert rules(tmp_path).decide(WORK, PERSONAL).action is Action.ASK
    remember(tmp_path, WORK, PERSONAL, DAY)
    assert rules(tmp_path).decide(WORK, PERSONAL).action is Action.ALLOW
    assert rules(tmp_path).decide(PERSONAL, WORK).action is Action.ASK
    assert rules(tmp_path).decide(VAULT, PERSONAL).action is Action.ASK
    assert (tmp_path / FILE).read_text().splitlines()[1:] == ["work  personal  allow  # 2026-05-17"]


def test_a_new_disposable_vm_can_be_remembered(tmp_path: Path) -> None:
    (tmp_path / "90-own.policy").write_text("* disposable ask\n")
    remember(tmp_path, WORK, None, DAY)
    assert rules(tmp_path).decide(WORK, None).action is Action.ALLOW
    assert rules(tmp_path).decide(VAULT, None).action is Action.ASK
    forget(tmp_path, WORK, Word.DISPOSABLE)
    assert rules(tmp_path).decide(WORK, None).action is Action.ASK


def test_it_is_remembered_once(tmp_path: Path) -> None:
    for _ in range(3):
        remember(tmp_path, WORK, PERSONAL, DAY)
    assert (tmp_path / FILE).read_text().count("work") == 1


def test_it_can_be_forgotten_and_the_rest_of_the_file_stays(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("# mine\nvault * deny\nwork\tpersonal allow # by hand")
    (tmp_path / FILE).chmod(0o640)
    remember(tmp_path, VAULT, WORK, DAY)
    forget(tmp_path, WORK, PERSONAL)
    assert (tmp_path / FILE).read_text() == "# mine\nvault * deny\nvault  work  allow  # 2026-05-17\n"
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o640
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_what_is_not_remembered_cannot_be_forgotten(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("work personal deny\nwork * allow\n")
    with pytest.raises(NotRemembered, match="work personal: 'qfilexchg policy' lists"):
        forget(tmp_path, WORK, PERSONAL)
    with pytest.raises(NotRemembered):
        forget(tmp_path, VAULT, Word.DISPOSABLE)


def test_a_file_that_is_no_policy_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("work personal perhaps\n")
    with pytest.raises(BadPolicy, match=f"{FILE}:1"):
        remember(tmp_path, WORK, PERSONAL, DAY)
    with pytest.raises(BadPolicy, match=f"{FILE}:1"):
        forget(tmp_path, WORK, PERSONAL)
    assert (tmp_path / FILE).read_text() == "work personal perhaps\n"


def test_a_file_does_not_grow_without_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "FILE_MAX", 300)
    with pytest.raises(BadPolicy, match="would be longer"):
        for number in range(20):
            remember(tmp_path, VmName.parse(f"vm{number}"), PERSONAL, DAY)
    assert rules(tmp_path).decide(VmName.parse("vm0"), PERSONAL).action is Action.ALLOW


def test_a_folder_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(NotWritten, match="No such file"):
        remember(tmp_path / "gone", WORK, PERSONAL, DAY)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(tmp_path, WORK, PERSONAL, DAY)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotWritten, match="No space left"):
        remember(tmp_path, VAULT, PERSONAL, DAY)
    assert "vault" not in (tmp_path / FILE).read_text()
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    ("file", "offered"), [(None, True), ("10-own.policy", False), (FILE, False), ("30-own.policy", True), ("other/30-own.policy", False)]
)
def test_always_holds_only_where_no_rule_before_it_asks(tmp_path: Path, file: str | None, offered: bool) -> None:
    folders = [tmp_path / "other", tmp_path]
    if file:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("work personal ask\n")
    verdict = policy.load(folders).decide(WORK, PERSONAL)
    assert verdict.action is Action.ASK
    assert would_hold(tmp_path, verdict.rule) is offered
    if offered:
        remember(tmp_path, WORK, PERSONAL, DAY)
        assert policy.load(folders).decide(WORK, PERSONAL).action is Action.ALLOW


def test_where_no_rule_spoke_there_is_nothing_to_come_before(tmp_path: Path) -> None:
    assert not would_hold(tmp_path, None)
