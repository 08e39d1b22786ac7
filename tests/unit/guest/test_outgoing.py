"""The outgoing pendrive, from ``new`` to its end."""

from __future__ import annotations

import pytest

from qfilexchg.guest.interruption import Cancelled
from qfilexchg.guest.outcome import Failed, NoRoom, Occupied, Refused
from qfilexchg.guest.outgoing import Outgoing
from qfilexchg.guest.request import Exchange, NoAnswer
from qfilexchg.protocol.names import VmName
from tests.unit.guest.dom0 import Dom0

WORK = VmName.parse("work")


@pytest.fixture
def dom0() -> Dom0:
    return Dom0()


@pytest.fixture
def outgoing(dom0: Dom0) -> Outgoing:
    return Outgoing(Exchange(dom0, dom0, dom0.clock))


def verbs(dom0: Dom0) -> list[str]:
    return [request.verb for request in dom0.taken]


def test_it_is_got_and_sent(dom0: Dom0, outgoing: Outgoing) -> None:
    outgoing.get(5 << 30)
    outgoing.send(WORK)
    assert dom0.delivered == ["work"]
    assert dom0.taken[0].size_bytes == 5 << 30
    assert outgoing.give_back() is False
    assert verbs(dom0) == ["new", "send"]


class TestNew:
    def test_another_pendrive_is_left_alone(self, dom0: Dom0, outgoing: Outgoing) -> None:
        dom0.pendrive = "clean"
        with pytest.raises(Occupied):
            outgoing.get(None)
        assert outgoing.give_back() is False
        assert dom0.pendrive == "clean"

    def test_one_that_is_too_large_is_told_with_the_limit(self, dom0: Dom0, outgoing: Outgoing) -> None:
        dom0.maximum_bytes = 1 << 30
        with pytest.raises(NoRoom) as caught:
            outgoing.get(2 << 30)
        assert str(caught.value) == "no room: this needs a pendrive of 2.0 GiB and dom0 makes none above 1.0 GiB; send it in parts"

    @pytest.mark.parametrize("checkpoint", [1, 2])
    def test_one_that_was_not_waited_for_is_given_back(self, dom0: Dom0, outgoing: Outgoing, checkpoint: int) -> None:
        dom0.cancel_at = checkpoint
        with pytest.raises(Cancelled):
            outgoing.get(None)
        dom0.shield()
        assert outgoing.give_back() is False
        assert dom0.pendrive == "none"

    def test_one_that_was_never_asked_for_is_not_asked_about(self, dom0: Dom0, outgoing: Outgoing) -> None:
        dom0.serves = False
        with pytest.raises(NoAnswer):
            outgoing.get(None)
        began = dom0.now
        assert outgoing.give_back() is False
        assert dom0.now == began


class TestSend:
    def test_a_denial_leaves_it_here_to_be_given_back(self, dom0: Dom0, outgoing: Outgoing) -> None:
        outgoing.get(None)
        dom0.verdict = "deny"
        with pytest.raises(Refused):
            outgoing.send(WORK)
        assert outgoing.give_back() is False
        assert (dom0.pendrive, dom0.delivered) == ("none", [])

    def test_without_a_pendrive_it_fails(self, dom0: Dom0, outgoing: Outgoing) -> None:
        with pytest.raises(Failed) as caught:
            outgoing.send(WORK)
        assert str(caught.value) == "dom0 could not do it: this VM has no such pendrive"
        assert outgoing.give_back() is False

    def test_one_that_comes_back_is_given_back(self, dom0: Dom0, outgoing: Outgoing) -> None:
        outgoing.get(None)
        dom0.verdict = "bounce"
        with pytest.raises(Failed) as caught:
            outgoing.send(WORK)
        assert "could not take the pendrive" in str(caught.value)
        assert outgoing.give_back() is False
        assert dom0.pendrive == "none"

    @pytest.mark.parametrize("verdict", ["allow", "deny", "queue", "bounce"])
    @pytest.mark.parametrize("checkpoint", range(1, 12))
    def test_wherever_it_is_broken_off_it_is_known_where_the_pendrive_is(
        self, dom0: Dom0, outgoing: Outgoing, verdict: str, checkpoint: int
    ) -> None:
        outgoing.get(None)
        dom0.verdict = verdict
        dom0.checkpoints, dom0.cancel_at = 0, checkpoint
        try:
            outgoing.send(WORK)
        except (Cancelled, Refused, Failed):
            dom0.shield()
            delivered = outgoing.give_back()
        else:
            delivered = True
        assert dom0.pendrive == "none"
        assert dom0.delivered == (["work"] if delivered else [])

    def test_one_that_another_tool_cancelled_is_cancelled(self, dom0: Dom0, outgoing: Outgoing) -> None:
        outgoing.get(None)
        dom0.later(lambda: dom0._cancel(dom0.taken[0]), 1)
        with pytest.raises(Cancelled):
            outgoing.send(WORK)
        assert outgoing.give_back() is False

    def test_one_that_cannot_be_taken_back_is_said_to_be(self, dom0: Dom0, outgoing: Outgoing) -> None:
        outgoing.get(None)
        dom0.pendrive = "leaving"
        with pytest.raises(Failed):
            outgoing.send(WORK)
        with pytest.raises(Failed) as caught:
            outgoing.give_back()
        assert str(caught.value) == "dom0 could not do it: leaving"
