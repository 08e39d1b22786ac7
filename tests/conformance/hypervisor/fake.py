"""The hypervisor of the unit tests. In its VMs a disk is the image itself."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from qfilexchg.dom0.vms.hypervisor import Hypervisor, RunningVm, Slot
from qfilexchg.protocol import keys
from qfilexchg.xenstore.client import Store
from qfilexchg.xenstore.errors import NoEntry
from qfilexchg.xenstore.server import Server
from tests.conformance.hypervisor.world import Disk
from tests.fakes.hypervisor import FakeHypervisor


class FakeWorld:
    """:class:`~tests.conformance.hypervisor.world.World` without machines."""

    hypervisor: FakeHypervisor

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="qxf"))
        self._stack = AsyncExitStack()

    def open(self) -> None:
        self.runner.run(self._open())

    async def _open(self) -> None:
        await self._stack.enter_async_context(Server(self.folder / "store"))
        self._store = await self._stack.enter_async_context(await Store.connect(self.folder / "store/socket"))
        self.hypervisor = FakeHypervisor(self._store)

    def close(self) -> None:
        self.runner.run(self._stack.aclose())
        self.runner.close()
        shutil.rmtree(self.folder)

    def hypervisor_anew(self) -> Hypervisor:
        return self.hypervisor

    async def vm(self, number: int) -> RunningVm:
        name = f"vm{number}"
        for vm in self.hypervisor.vms.values():
            if vm.name == name:
                return vm
        return await self.hypervisor.start(name)

    async def vanish(self, vm: RunningVm) -> None:
        await self.hypervisor.end(vm)

    async def freeze(self, vm: RunningVm) -> None:
        assert vm.id in self.hypervisor.vms

    async def disk(self, vm: RunningVm, slot: Slot) -> Disk:
        return Disk.of(self.hypervisor.disks[vm.id, slot])

    async def write(self, vm: RunningVm, slot: Slot, start: int, data: bytes) -> None:
        with self.hypervisor.disks[vm.id, slot].open("r+b") as image:
            image.seek(start)
            image.write(data)

    async def no_disk(self, vm: RunningVm, slot: Slot) -> None:
        assert (vm.id, slot) not in self.hypervisor.disks

    def holders(self, image: Path) -> list[str]:
        return [f"{slot.value} of domain {vm.domain}" for (vm, slot), held in self.hypervisor.disks.items() if held == image]

    async def leftovers(self, vm: RunningVm) -> list[str]:
        try:
            return await self._store.directory(keys.home(vm.id.domain))
        except NoEntry:
            return []

    def save_evidence(self, test: str) -> None:
        """There are no machines that log."""
