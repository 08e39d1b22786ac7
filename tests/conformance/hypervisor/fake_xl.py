"""The Xen platform with the unit tests' xl, store and loop devices. In its VMs a disk is the image itself."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from qfilexchg.dom0.vms.hypervisor import Hypervisor, RunningVm, Slot
from qfilexchg.dom0.vms.xen import loops, nodes
from qfilexchg.dom0.vms.xen.hypervisor import Xen
from qfilexchg.protocol import keys
from tests.conformance.hypervisor.world import Disk
from tests.unit.vms.xen.xen import Domain, xen

LAG_S = 0.05
"""For how long a loop device keeps its image when the disk's backend has gone."""


class FakeXlWorld:
    """:class:`~tests.conformance.hypervisor.world.World` of the real adapter and no machines."""

    hypervisor: Hypervisor

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self._data = Path(tempfile.mkdtemp(prefix="qxx"))
        self._patch = pytest.MonkeyPatch()
        self._stack = AsyncExitStack()

    def open(self) -> None:
        self.runner.run(self._open())

    async def _open(self) -> None:
        self._xen, self._home, self._store = await self._stack.enter_async_context(xen(self._data, self._patch))
        self._xen.loops_lag = True
        self._patch.setattr(loops, "CLEAR_AFTER_S", LAG_S)
        self.folder = self._home.spool
        self.hypervisor = self.hypervisor_anew()

    def close(self) -> None:
        self.runner.run(self._stack.aclose())
        self.runner.close()
        self._patch.undo()
        shutil.rmtree(self._data)

    def hypervisor_anew(self) -> Hypervisor:
        return Xen(self._home, self._xen.loops())

    async def vm(self, number: int) -> RunningVm:
        name = f"vm{number}"
        for domain in self._xen.domains.values():
            if domain.name == name:
                return domain.vm
        return (await self._xen.start(name)).vm

    def _domain(self, vm: RunningVm) -> Domain:
        domain = self._xen.domains[vm.id.domain]
        assert domain.vm == vm
        return domain

    async def vanish(self, vm: RunningVm) -> None:
        await self._xen.end(self._domain(vm))

    async def freeze(self, vm: RunningVm) -> None:
        domain = self._domain(vm)
        domain.connects = domain.lets_go = False

    async def _image(self, vm: RunningVm, slot: Slot) -> Path:
        disk = await nodes.disk(self._store, vm.id.domain, slot.value)
        assert disk and disk.image and disk.state == nodes.CONNECTED
        return disk.image

    async def disk(self, vm: RunningVm, slot: Slot) -> Disk:
        return Disk.of(await self._image(vm, slot))

    async def write(self, vm: RunningVm, slot: Slot, start: int, data: bytes) -> None:
        with (await self._image(vm, slot)).open("r+b") as image:
            image.seek(start)
            image.write(data)

    async def no_disk(self, vm: RunningVm, slot: Slot) -> None:
        assert await nodes.disk(self._store, vm.id.domain, slot.value) is None

    def holders(self, image: Path) -> list[str]:
        return self._xen.loops().holding(image)

    async def leftovers(self, vm: RunningVm) -> list[str]:
        return [
            *await nodes.children(self._store, keys.home(vm.id.domain)),
            *await nodes.children(self._store, nodes.backends(vm.id.domain)),
        ]

    def save_evidence(self, test: str) -> None:
        """There are no machines that log."""
