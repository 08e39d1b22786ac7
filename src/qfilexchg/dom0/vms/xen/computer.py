"""The computer as Xen tells of it: how VMs run on it, by what a savefile knows it again, and what memory it has left for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from qfilexchg.dom0.vms import savefile
from qfilexchg.dom0.vms.savefile import Stamp
from qfilexchg.dom0.vms.template import Template
from qfilexchg.dom0.vms.toolstack import Memory
from qfilexchg.dom0.vms.xen import config, xl
from qfilexchg.dom0.vms.xen.config import GuestType

OVERHEAD_MIB = 16
"""What Xen itself takes for a VM: page tables, grant tables, a shadow."""
MEMORY_FRESH_S = 10.0
"""How long a look at Xen's free memory holds. Xen refuses what does not fit, so this only spares a DisposableVM the wait for xl."""


class Computer:
    """What is asked of Xen is asked anew only where it can have changed: ``kills`` says how many VMs have been ended by us."""

    def __init__(self, kills: Callable[[], int]) -> None:
        self._kills = kills
        self._info: xl.Info | None = None
        self._available_mib = 0
        self._looked = (float("-inf"), 0)
        """When Xen was last asked, and how many VMs had been killed then."""
        self._making_mib = 0

    async def info(self) -> xl.Info:
        """What does not change until the computer is booted again."""
        return self._info or await self._look()

    async def _look(self) -> xl.Info:
        self._info = info = await xl.info()
        self._available_mib = info.free_memory_mib
        if "dom0_mem=" not in info.xen_commandline:
            self._available_mib += _dom0_can_give_mib()
        self._looked = (asyncio.get_running_loop().time(), self._kills())
        return info

    async def memory(self) -> Memory:
        """Xen gives a VM all of its memory when it is made: what is promised is only that of those that are being made."""
        looked_at, kills = self._looked
        if kills != self._kills() or asyncio.get_running_loop().time() > looked_at + MEMORY_FRESH_S:
            await self._look()
        return Memory(self._available_mib, self._making_mib, OVERHEAD_MIB)

    @contextlib.contextmanager
    def promised(self, memory_mib: int) -> Iterator[None]:
        """A VM of this size is being made."""
        needed_mib, looked = memory_mib + OVERHEAD_MIB, self._looked
        self._making_mib += needed_mib
        try:
            yield
            if self._looked == looked:  # else what Xen has left is without it
                self._available_mib -= needed_mib
        finally:
            self._making_mib -= needed_mib


def stamp(booted: Template, info: xl.Info, memory_mib: int) -> Stamp:
    """By what a savefile that is made now on this computer is made."""
    return {
        "format": savefile.FORMAT,
        "template": f"{booted.folder.name} {savefile.identity(booted.root)}",
        "kernel": savefile.identity(booted.kernel),
        "Xen": info.xen_version,
        "machine": config.fingerprint(booted, guest_type(info), memory_mib, processors(info)),
        "processor": f"{savefile.processor(Path('/proc/cpuinfo').read_text(encoding='utf-8'))} {info.processor_flags}",
        "number of processors": processors(info),
        "memory size": memory_mib,
    }


def guest_type(info: xl.Info) -> GuestType:
    return GuestType.PVH if "hvm" in info.virt_caps else GuestType.PV


def processors(info: xl.Info) -> int:
    """A VM's processors: two where the computer has them, as starting a system is two things at a time."""
    return min(2, info.processors)


def _dom0_can_give_mib() -> int:
    """Where dom0's memory is not fixed, xl takes from it what a VM needs. Half of what dom0 has free it may take."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) >> 11
    return 0
