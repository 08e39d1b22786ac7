"""A VM that holds on to its pendrive, and one that makes dom0 attach and detach on and on."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from tests.xen.dom0 import SPOOL, UNIT, Dom0
from tests.xen.steps import INCOMING, OUTGOING, PENCTL, given, holders, paused, sending
from tests.xen.vm import XenVm

_HOLDERS_UNTIL = """
while true; do
    seen=$(xenstore-ls -f /local/domain/0/backend/vbd | grep "/params = .$1/")
    echo "$seen" | grep -c .
    case $seen in */"$2"/*) exit ;; esac
done
"""
"""Prints how many disks of domains have a pendrive of the spool ``$1``, again and again until the disk ``$2`` has it."""
_PACE = "/usr/lib/qfilexchg/python/qfilexchg/dom0/exchange/pace.py"


class TestHoldingOn:
    """A VM whose kernel does not answer. One that does lets go whatever has the disk mounted in it (Linux 5.16 and later)."""

    def test_a_sender_keeps_it_until_it_is_forced_and_the_pendrive_is_never_in_two(self, dom0: Dom0, work: XenVm, personal: XenVm) -> None:
        given(work)
        with dom0.person() as person:
            copying = work.popen(PENCTL, "send", "personal")
            question = person.question()
            with paused(work):
                person.say(question, True)
                dom0.logged("leaving → clean")
                assert holders(dom0) == [f"{work.domain}/{OUTGOING}"]
            assert copying.wait().returncode == 1 and "could not be detached" in copying.said, copying.said
            copying = work.popen(PENCTL, "send", "personal")
            question = person.question()
            with paused(work):
                seen = dom0.popen("timeout", "200", "sh", "-c", _HOLDERS_UNTIL, "sh", SPOOL, f"{personal.domain}/{INCOMING}")
                person.say(question, True)
                assert seen.wait().returncode == 0, seen.said
            assert set(seen.said.splitlines()) <= {"0", "1"}, seen.said
            assert copying.wait().returncode == 0, copying.said
        assert holders(dom0) == [f"{personal.domain}/{INCOMING}"]

    def test_a_receiver_that_has_it_mounted_keeps_it_until_it_is_forced(self, dom0: Dom0, work: XenVm, personal: XenVm) -> None:
        dom0.rule("work personal allow")
        assert sending(work, "personal").wait().returncode == 0
        personal.sh("for i in $(seq 60); do mountpoint -q /mnt/incoming && break; sleep 1; done; mountpoint /mnt/incoming")
        with dom0.deaf_daemon():
            personal.sh("xenstore-write device/qpen umount")
            dom0.output("xl", "pause", personal.domain)
        dom0.logged("detaching → loaded")
        assert holders(dom0) == [f"{personal.domain}/{INCOMING}"]
        dom0.output("xl", "unpause", personal.domain)
        personal.sh("xenstore-write device/qpen umount")
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
