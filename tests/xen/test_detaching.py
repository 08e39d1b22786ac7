"""A VM that holds on to its pendrive, and one that makes dom0 attach and detach on and on."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

import pytest

from tests.xen.dom0 import UNIT, Dom0
from tests.xen.steps import INCOMING, OUTGOING, PENCTL, given, holders, sending
from tests.xen.vm import XenVm

pytestmark = pytest.mark.trial

_HOLD = "for i in $(seq 100); do [ -b /dev/xvdg ] && break; sleep 0.1; done; mkdir /srv/held && mount /dev/xvdg /srv/held"
_SEND = 'setsid sh -c "$1 send personal > said 2>&1" < /dev/null > /dev/null 2>&1 &'
_SAID = 'for i in $(seq 600); do grep -q "$1" said && break; sleep 0.1; done; cat said'
_PACE = "/usr/lib/qfilexchg/python/qfilexchg/dom0/exchange/pace.py"


class TestHoldingOn:
    def test_a_sender_that_has_it_mounted_keeps_it_until_it_is_forced_and_it_is_never_in_two(
        self, dom0: Dom0, work: XenVm, personal: XenVm
    ) -> None:
        given(work)
        with dom0.person() as person:
            work.sh(_SEND, PENCTL)
            question = person.question()
            work.sh(_HOLD, user="root")
            person.say(question, True)
            assert work.sh(_SAID, "not-detached")
            assert holders(dom0) == [f"{work.domain}/{OUTGOING}"]
            work.sh(_SEND, PENCTL)
            person.answer(True)
        assert "delivered" in work.sh(_SAID, "delivered")
        assert holders(dom0) == [f"{personal.domain}/{INCOMING}"]

    def test_a_receiver_that_has_it_mounted_is_made_to_let_go(self, dom0: Dom0, work: XenVm, personal: XenVm) -> None:
        dom0.rule("work personal allow")
        assert sending(work, "personal").wait().returncode == 0
        personal.sh("for i in $(seq 600); do mountpoint -q /mnt/incoming && break; sleep 0.1; done; xenstore-write device/qpen umount")
        dom0.logged("loaded → detaching", "cannot detach xvdh")
        assert holders(dom0) in ([], [f"{personal.domain}/{INCOMING}"])
        dom0.nothing_left()
        dom0.logged("detaching → deleting")


def test_a_vm_that_asks_on_and_on_is_slowed_down(dom0: Dom0, work: XenVm) -> None:
    """Here forty attachments take longer than the time in which they would be too many, so the limit is made two."""
    dom0.sh('sed -i "s/^BURST: Final = .*/BURST: Final = 2/" "$1" && systemctl restart "$2"', _PACE, UNIT)
    work.sh('for i in 1 2 3; do "$1" new && "$1" cancel || exit; done', PENCTL)
    first, _, third = (
        datetime.fromisoformat(f"{at.replace(',', '.')}") for at in re.findall(r"^(\S+ \S+) .* giving → clean$", dom0.log(), re.MULTILINE)
    )
    assert third - first > timedelta(seconds=18)
    dom0.nothing_left()
