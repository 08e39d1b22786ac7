"""What the tests of a VM's windows share, whichever of the two programs has them."""

from __future__ import annotations

import subprocess

from qfilexchg.protocol.qpen import Request
from tests.desktop.desk import DEADLINE_S, Desk
from tests.desktop.vm import Vm

ASKING = "Waiting for an answer in dom0…"
DRAWN_S = 0.25


def until_asked(desk: Desk, vm: Vm, says: str = ASKING) -> Request:
    """The VM has got its pendrive, filled it, and asked for it to be handed over; its request, for which dom0 asks the person."""
    vm.attaches()
    request = vm.takes("send")
    vm.replies(request, "asking")
    desk.sees(says)
    return request


def cancel(desk: Desk, way: str = "Cancel") -> None:
    """By the button or a key."""
    if way == "Cancel":
        desk.clicks("Cancel", "push button", "SENSITIVE")
    else:
        desk.sees("Cancel", "push button", "FOCUSED")
        desk.press(way)


def close(desk: Desk) -> None:
    """The person has read how it ended."""
    desk.sees("Close", "push button", "FOCUSED")
    desk.press("Return")


def ended(window: subprocess.Popen[str]) -> int:
    """Its exit status; it has complained of nothing."""
    _, said = window.communicate(timeout=DEADLINE_S)
    assert said == ""
    return window.returncode
