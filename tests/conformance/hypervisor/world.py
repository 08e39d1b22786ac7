"""What the suite needs of a platform beside the port: two VMs that run, and eyes in them and on the host.

The suite runs in the test machine's dom0 too, where there is no more than Debian's own pytest and the installed package. So this module,
the suite and :mod:`real` use the standard library, pytest and qfilexchg alone; what a platform needs besides is in its own module.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from qfilexchg.dom0.vms.hypervisor import Hypervisor, RunningVm, Slot

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk as a VM, or an image as the host sees it: all its bytes."""

    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, image: Path) -> Disk:
        return cls(image.stat().st_size, hashlib.sha256(image.read_bytes()).hexdigest())


class World(Protocol):
    """A platform with two VMs."""

    runner: asyncio.Runner
    """All of the world's coroutines run in it, as a hypervisor may be tied to an event loop."""
    folder: Path
    """Where the images lie: on a filesystem like the spool's, private."""

    @property
    def hypervisor(self) -> Hypervisor:
        """What is tested."""
        ...

    def open(self) -> None:
        """Make what the VMs need. qfilexchgd does not run from now on: it would do some of what is asked of the port by itself."""
        ...

    def close(self) -> None:
        """End all that the world has started."""
        ...

    def hypervisor_anew(self) -> Hypervisor:
        """The port as a daemon has it that has just started."""
        ...

    async def vm(self, number: int) -> RunningVm:
        """VM 0 or 1, which runs: one that was ended is started again. Nothing in it acts when a pendrive comes."""
        ...

    async def vanish(self, vm: RunningVm) -> None:
        """End a VM behind the hypervisor's back, as when it crashes."""
        ...

    async def freeze(self, vm: RunningVm) -> None:
        """Let a VM do nothing any more, not even what the hypervisor asks of it."""
        ...

    async def disk(self, vm: RunningVm, slot: Slot) -> Disk:
        """What the VM reads from the slot's disk, once its kernel has found it."""
        ...

    async def write(self, vm: RunningVm, slot: Slot, start: int, data: bytes) -> None:
        """Let the VM write to the slot's disk, and flush it."""
        ...

    async def no_disk(self, vm: RunningVm, slot: Slot) -> None:
        """Return when the VM has no such disk; fail when it keeps it."""
        ...

    def holders(self, image: Path) -> list[str]:
        """Everybody on the host who has the image open now, in words."""
        ...

    async def leftovers(self, vm: RunningVm) -> list[str]:
        """What is left of a VM's domain on the host, in words."""
        ...

    def save_evidence(self, test: str) -> None:
        """Keep what helps to understand why a test failed."""
        ...


def run(world: World, coroutine: Coroutine[Any, Any, T], deadline_s: float) -> T:
    """Run a coroutine of the world's."""

    async def bounded() -> T:
        async with asyncio.timeout(deadline_s):
            return await coroutine

    return world.runner.run(bounded())
