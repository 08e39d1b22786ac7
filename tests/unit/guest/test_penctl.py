"""qubes_penctl from its command line to its exit status."""

from __future__ import annotations

import pytest

from qfilexchg.guest import penctl
from qfilexchg.guest.outcome import Usage
from qfilexchg.guest.penctl import HELP, main, parse
from qfilexchg.guest.slot import Slot
from qfilexchg.protocol.names import BadName
from qfilexchg.xenstore.blocking import Store
from tests.unit.guest.dom0 import Dom0


class OutgoingSlot(Slot):
    """A slot that is mounted or not, by a flag."""

    is_mounted = False

    def mounted(self) -> bool:
        return self.is_mounted

    def abandon(self) -> None:
        self.is_mounted = False


@pytest.fixture(autouse=True)
def slot(monkeypatch: pytest.MonkeyPatch) -> OutgoingSlot:
    slot = OutgoingSlot("/dev/xvdg", "/mnt/outgoing")
    monkeypatch.setattr(penctl, "OUTGOING", slot)
    return slot


@pytest.fixture(autouse=True)
def dom0(monkeypatch: pytest.MonkeyPatch) -> Dom0:
    dom0 = Dom0()
    monkeypatch.setattr(Store, "open", lambda: dom0)
    monkeypatch.setattr(penctl, "Interruption", lambda: dom0)
    return dom0


@pytest.mark.parametrize(
    ("words", "request_text"),
    [
        ("new", "new"),
        ("new 5368709120", "new size=5368709120"),
        ("send personal", "send personal"),
        ("send personal 7", "send personal 7"),
        ("send disposable 7", "send disposable 7"),
        ("umount", "umount"),
        ("cancel", "cancel"),
        ("status", "status"),
        ("killme", "killme"),
    ],
)
def test_the_words_of_2010_and_ours_are_understood(words: str, request_text: str) -> None:
    request = parse(words.split())
    parts = request.encode().decode().split(" ")
    assert " ".join(part for part in parts if not part.startswith("id=")) == request_text
    assert f"id={request.request_id}" in parts


@pytest.mark.parametrize(
    "words",
    ["", "what", "new 0", "new -1", "new 1G", "new 1 2", "send", "send a b", "send a 0", "send a 1 2", "send disposable", "umount now"],
)
def test_what_is_not_understood_is_told(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Usage):
        parse(words.split())
    assert main(words.split()) == 2
    assert capsys.readouterr().err.endswith("see qubes_penctl --help\n")


def test_a_name_that_is_none_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadName):
        parse(["send", "a/b"])
    assert main(["send", "a/b"]) == 2


def test_help_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == HELP


def test_each_answer_is_a_line(dom0: Dom0, capsys: pytest.CaptureFixture[str]) -> None:
    assert [main(words.split()) for words in ("new", "status", "send work", "status")] == [0, 0, 0, 0]
    assert capsys.readouterr().out.splitlines() == [
        "accepted", "attached",
        "accepted outgoing=clean incoming=none",
        "asking", "accepted", "delivered",
        "accepted outgoing=none incoming=none",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pendrive", "verdict", "words", "status"),
    [
        ("clean", "allow", "new", 6),
        ("none", "allow", "new 99999", 5),
        ("clean", "deny", "send work", 3),
        ("none", "allow", "send work", 1),
        ("none", "allow", "umount", 1),
        ("none", "allow", "killme", 3),
        ("none", "allow", "cancel", 1),
        ("clean", "allow", "cancel", 0),
    ],
)
def test_each_end_has_its_exit_status(
    dom0: Dom0, capsys: pytest.CaptureFixture[str], pendrive: str, verdict: str, words: str, status: int
) -> None:
    dom0.pendrive, dom0.verdict, dom0.maximum_bytes = pendrive, verdict, 9999
    assert main(words.split()) == status
    assert bool(capsys.readouterr().err) is (status != 0)


@pytest.mark.parametrize("words", [["new"], ["send", "work"]])
def test_ctrl_c_gives_the_pendrive_back(dom0: Dom0, words: list[str]) -> None:
    dom0.pendrive = "none" if words == ["new"] else "clean"
    dom0.cancel_at = 2
    assert main(words) == 130
    assert dom0.pendrive == "none"


def test_ctrl_c_that_comes_too_late_tells_of_the_delivery(dom0: Dom0, capsys: pytest.CaptureFixture[str]) -> None:
    dom0.pendrive = "clean"
    dom0.cancel_at = 4
    assert main(["send", "work"]) == 0
    assert capsys.readouterr().out.endswith("delivered\n")


def test_ctrl_c_during_an_umount_takes_nothing_back(dom0: Dom0) -> None:
    dom0.pendrive = "clean"
    dom0.cancel_at = 1
    assert main(["umount"]) == 130
    assert dom0.pendrive == "clean"


def test_a_mounted_pendrive_is_not_sent(dom0: Dom0, slot: OutgoingSlot, capsys: pytest.CaptureFixture[str]) -> None:
    dom0.pendrive, slot.is_mounted = "clean", True
    assert main(["send", "work"]) == 6
    assert capsys.readouterr().err == "qubes_penctl: the pendrive is still mounted: first umount /mnt/outgoing\n"
    assert dom0.pendrive == "clean"


def test_a_mounted_pendrive_is_unmounted_before_it_is_given_back(dom0: Dom0, slot: OutgoingSlot) -> None:
    dom0.pendrive, slot.is_mounted = "clean", True
    assert main(["cancel"]) == 0
    assert (dom0.pendrive, slot.is_mounted) == ("none", False)


def test_a_folder_that_is_missing_is_told(slot: OutgoingSlot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(penctl, "OUTGOING", Slot("/dev/xvdg", "/nowhere/outgoing"))
    assert main(["send", "work"]) == 1
    assert "/nowhere" in capsys.readouterr().err
