"""A hypervisor without machines: its VMs are domains of a real store, and a disk is a path that is remembered."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from uuid import UUID, uuid4

from qfilexchg.dom0.vms.hypervisor import HypervisorError, NoDisposable, RunningVm, Slot, VmGone, VmId
from qfilexchg.protocol import keys
from qfilexchg.protocol.names import DomainId, VmName
from qfilexchg.xenstore.client import Store
from qfilexchg.xenstore.errors import NoEntry


class Hold:
    """A call that is stopped on its way: ``reached`` once it is made, and on its way again after ``released``."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.released = asyncio.Event()


class FakeHypervisor:
    """``refused`` names what fails, by ``refuses_with`` or else as a hypervisor would; ``held`` names what waits."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ids = itertools.count(1)
        self.vms: dict[VmId, RunningVm] = {}
        self.disks: dict[tuple[VmId, Slot], Path] = {}
        self.refused: set[tuple[str, VmName]] = set()
        self.refuses_with: Exception | None = None
        self.has_refused = asyncio.Event()
        self.held: dict[tuple[str, VmName], Hold] = {}
        self.screens: dict[VmName, Path] = {}

    async def start(self, name: str, uuid: UUID | None = None, *, disposable: bool = False) -> RunningVm:
        domain = DomainId(next(self._ids))
        vm = RunningVm(VmId(domain, uuid or uuid4()), VmName.parse(name))
        await self._store.write(keys.absolute(domain, keys.NAME), name.encode())
        await self._store.write(keys.absolute(domain, keys.VM_TYPE), keys.DISPOSABLE_TYPE if disposable else b"AppVM")
        await self._store.set_perms(keys.home(domain), keys.readable_by(domain))
        self.vms[vm.id] = vm
        await self._store.introduce(domain)
        return vm

    async def end(self, vm: RunningVm) -> None:
        """The VM is gone, as when its process is killed."""
        del self.vms[vm.id]
        self.disks = {key: path for key, path in self.disks.items() if key[0] != vm.id}
        await self._store.release(vm.id.domain)

    def hold(self, call: str, name: str) -> Hold:
        """Let every ``call`` for that VM wait."""
        self.held[call, VmName.parse(name)] = hold = Hold()
        return hold

    async def _begin(self, call: str, vm: VmId) -> None:
        if vm not in self.vms:
            return
        name = self.vms[vm].name
        if hold := self.held.get((call, name)):
            hold.reached.set()
            await hold.released.wait()
        if (call, name) in self.refused:
            self.has_refused.set()
            raise self.refuses_with or HypervisorError(f"{name} does not {call}", "refused by the test")

    # The port

    async def running(self) -> Mapping[DomainId, RunningVm]:
        return {vm.id.domain: vm for vm in self.vms.values()}

    async def attach(self, vm: VmId, slot: Slot, image: Path) -> None:
        await self._begin("attach", vm)
        if vm not in self.vms:
            raise VmGone("the VM does not run any more")
        if self.disks.get((vm, slot), image) != image:
            raise HypervisorError("the slot holds another image")
        if any(path == image for key, path in self.disks.items() if key != (vm, slot)):
            raise HypervisorError("the image is attached elsewhere")
        if (vm, slot) in self.disks:
            return
        self.disks[vm, slot] = image  # before it waits: nobody else is to have the image meanwhile
        try:
            await asyncio.to_thread(_check_opens, image)
            if vm not in self.vms:
                raise VmGone("the VM has ended meanwhile")
        except BaseException:
            self.disks.pop((vm, slot), None)
            raise

    async def detach(self, vm: VmId, slot: Slot) -> None:
        await self._begin("detach", vm)
        self.disks.pop((vm, slot), None)

    async def attached(self, vm: VmId) -> Mapping[Slot, Path]:
        return {slot: path for (holder, slot), path in self.disks.items() if holder == vm}

    async def kill(self, vm: VmId) -> None:
        await self._begin("kill", vm)
        if vm in self.vms:
            await self.end(self.vms[vm])

    async def screen(self, vm: VmId) -> Path | None:
        return self.screens.get(self.vms[vm].name) if vm in self.vms else None

    async def release(self, domain: DomainId) -> None:
        if domain in await self.running():
            raise HypervisorError(f"domain {domain} runs still")
        try:
            await self._store.rm(keys.home(domain))
        except NoEntry:
            return


def _check_opens(image: Path) -> None:
    try:
        image.open("r+b").close()
    except OSError as error:
        raise HypervisorError(f"cannot attach {image.name}", str(error)) from error


class FakeDisposables:
    """Makes DisposableVMs of a FakeHypervisor. ``fails`` is what happens instead; ``stale`` lets the savefile be made again first."""

    def __init__(self, hypervisor: FakeHypervisor) -> None:
        self._hypervisor = hypervisor
        self._numbers = itertools.count(1)
        self.records: set[VmId] = set()
        self.stale = False
        self.fails: Exception | None = None
        self.hold: Hold | None = None

    async def make(self, asker: RunningVm, preparing: Callable[[str], None]) -> RunningVm:
        if self.stale:
            preparing("it is stale")
        if self.hold:
            self.hold.reached.set()
            await self.hold.released.wait()
        if self.fails:
            raise self.fails
        if asker.id not in self._hypervisor.vms:
            raise NoDisposable("the VM that asked does not run any more")
        vm = await self._hypervisor.start(f"disp{next(self._numbers)}", disposable=True)
        self.records.add(vm.id)
        return vm

    async def forget(self, vm: VmId) -> None:
        if vm in self._hypervisor.vms:
            raise HypervisorError("it still runs")
        self.records.discard(vm)

    async def sweep(self, known: Collection[VmId]) -> None:
        for vm in self.records - set(known):
            await self._hypervisor.kill(vm)
            await self.forget(vm)
