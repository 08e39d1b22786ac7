"""How fast disks may be attached to one VM: a burst goes through at once, what goes on and on is slowed down, and nothing is refused.

Attaching and detaching makes the hypervisor, dom0's kernel and the VM's work on each other's structures, and doing so in a fast loop
has been an attack on the host (XSA-350). Each attachment takes one of a VM's :data:`BURST` places, which is free again
:data:`WINDOW_S` seconds later. A detachment never waits, as it is how something is taken away; there are no more of them than
attachments.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from qfilexchg.dom0.vms.hypervisor import VmId

BURST: Final = 40
WINDOW_S: Final = 20.0
"""A person who sends file after file by hand, or opens as many documents as may be open, does not come near."""


class Pace:
    """The places of all VMs. The clock can be another one, for tests."""

    def __init__(self, now: Callable[[], float] = time.monotonic, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._now = now
        self._sleep = sleep
        self._taken: dict[VmId, deque[float]] = {}
        """When each place is taken, the earliest first; a moment to come is somebody's who waits."""

    async def wait(self, vm: VmId) -> None:
        """Return when one more disk may be attached to ``vm``. Who waits longer goes first."""
        now = self._now()
        self._taken = {known: places for known, places in self._taken.items() if places[-1] > now - WINDOW_S}
        places = self._taken.setdefault(vm, deque(maxlen=BURST))
        turn = max(now, places[0] + WINDOW_S) if len(places) == BURST else now
        places.append(turn)
        if turn > now:
            await self._sleep(turn - now)
