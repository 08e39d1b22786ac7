"""The Xen platform as the exchange sees it: any domU that runs, be it one of ours or not.

xl makes the changes, and the store tells when they have come true: a disk is attached when its backend in dom0 is connected, and
detached when that backend's node is gone and no loop device has the image any more. Both are waited for by watches. A domain id
is used again, so it is compared with the VM's UUID before something is done, and after an attachment once more.

The store forgets a VM before Xen does. Only of one that Xen does not list any more nothing is left.

A pendrive's image lies below the home's data. A disk in a slot that lies elsewhere is somebody else's: it is in the way of an
attachment, and never taken away. One that the block script has put in a pendrive's place (:mod:`~qfilexchg.dom0.vms.xen.orders`)
counts as none.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping, Set
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from weakref import WeakValueDictionary

from qfilexchg.dom0.home import VOLATILE, Home
from qfilexchg.dom0.vms.hypervisor import HypervisorError, RunningVm, Slot, VmGone, VmId
from qfilexchg.dom0.vms.xen import config, nodes, orders, records, xl
from qfilexchg.dom0.vms.xen.loops import LoopDevices
from qfilexchg.dom0.vms.xen.nodes import Disk
from qfilexchg.dom0.vms.xen.operations import operation, until
from qfilexchg.dom0.vms.xen.records import Record
from qfilexchg.dom0.vms.xen.xl import Listed
from qfilexchg.protocol import keys
from qfilexchg.protocol.names import DomainId
from qfilexchg.xenstore.client import Store

ATTACH_DEADLINE_S = 30.0
DETACH_DEADLINE_S = 30.0
"""xl waits 10 s for the VM's kernel to let go of the disk, and as long again when it forces it."""
KILL_DEADLINE_S = 60.0
QUERY_DEADLINE_S = 30.0
LOGS = Path("/var/log/xen")
_LOGS_KEPT = 10
"""xl renames the log of an earlier VM of the same name so often, and then drops it."""

log = logging.getLogger(__name__)


class Xen:
    """:class:`~qfilexchg.dom0.vms.hypervisor.Hypervisor` for the VMs of this computer."""

    def __init__(self, home: Home, loops: LoopDevices | None = None, logs: Path = LOGS) -> None:
        self._home = home
        self._logs = logs
        self._loops = loops or LoopDevices()
        self._turns: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()
        self.kills = 0
        """How many VMs have been ended by :meth:`kill`."""

    async def running(self) -> Mapping[DomainId, RunningVm]:
        """Xen says what there is, the store what it is called: neither alone can make a VM that runs look as if it did not."""
        async with self._operation("Xen cannot be asked which VMs run", QUERY_DEADLINE_S) as store:
            ordered = orders.left(self._home)
            everything = await xl.list_domains()
            orders.remove_stale(self._home, ordered, {listed.id.domain for listed in everything})
            run = [listed.id for listed in everything if listed.id.domain and listed.runs]
            said = await asyncio.gather(*(nodes.identity(store, vm.domain) for vm in run))
            vms = [RunningVm(vm, name) for vm, (uuid, name) in zip(run, said, strict=True) if vm.uuid == uuid and name is not None]
            await records.complete(self._home, store, {vm.id.uuid: vm.id.domain for vm in vms})
            return {vm.id.domain: vm for vm in vms}

    async def attach(self, vm: VmId, slot: Slot, image: Path) -> None:
        turn = self._turns.setdefault(image, asyncio.Lock())
        async with turn:
            await self._attach(vm, slot, image)

    async def _attach(self, vm: VmId, slot: Slot, image: Path) -> None:
        begun = False
        try:
            async with self._operation(f"domain {vm.domain}: cannot attach {slot.value}", ATTACH_DEADLINE_S) as store:
                await self._require(store, vm)
                disk = await nodes.disk(store, vm.domain, slot.value)
                if disk is not None and self._makes_way(disk):
                    await self._remove(store, vm.domain, slot, force=True)
                    disk = None
                if disk is None:
                    await self._require_image_free(store, image)
                    begun = True
                    spec = config.disk(slot.value, image, writable=True)
                    with orders.given(self._home, image, vm.domain, slot.value):
                        await xl.run("block-attach", str(vm.domain), spec, deadline_s=ATTACH_DEADLINE_S)
                elif disk.image != image:
                    raise HypervisorError(f"domain {vm.domain} has another image as {slot.value}", str(disk.image))
                begun = True
                await self._connected(store, vm.domain, slot, image)
                await self._require(store, vm)
        except BaseException as error:
            if begun:
                await self._take_back(vm.domain, slot, image)
            if isinstance(error, HypervisorError) and await self._has_ended(vm):
                raise VmGone(f"domain {vm.domain} has ended") from error
            raise

    async def _require_image_free(self, store: Store, image: Path) -> None:
        """Raise HypervisorError if a VM has the image; return when no VM that had it is still about to let go of it."""
        if (holder := await _holder(store, image)) is not None:
            raise HypervisorError(f"the image is attached to domain {holder}", str(image))
        await self._loops.released(image)

    async def _connected(self, store: Store, domain: DomainId, slot: Slot, image: Path) -> None:
        """Return when the VM has the disk."""

        async def is_connected() -> bool:
            disk = await nodes.disk(store, domain, slot.value)
            if disk is None:
                raise HypervisorError(f"domain {domain}: {slot.value} has gone again while it was attached")
            if disk.image != image:
                raise HypervisorError(f"domain {domain}: {slot.value} was attached by somebody else meanwhile", str(disk.image))
            if not disk.online or disk.state in {nodes.CLOSING, nodes.CLOSED}:
                raise HypervisorError(f"domain {domain} does not take {slot.value}", f"the backend's state is {disk.state}")
            return disk.state == nodes.CONNECTED

        await until(store, is_connected, nodes.backend(domain, slot.value))

    async def _take_back(self, domain: DomainId, slot: Slot, image: Path) -> None:
        """Leave the image attached nowhere, whatever VM the domain is now. One that does not give it back is killed."""
        try:
            async with self._operation(f"domain {domain}: cannot take back {slot.value}", DETACH_DEADLINE_S) as store:
                disk = await nodes.disk(store, domain, slot.value)
                if disk is not None and disk.image == image:
                    await self._remove(store, domain, slot, force=True)
                if await _holder(store, image) is None:
                    await self._loops.released(image)
        except HypervisorError as error:
            log.error("%s: the VM is killed, as the image must not be in two places", error)
            async with self._operation(f"domain {domain}: cannot be asked who it is", QUERY_DEADLINE_S) as store:
                uuid = await nodes.uuid(store, domain)
            if uuid is not None:
                await self.kill(VmId(domain, uuid))

    async def detach(self, vm: VmId, slot: Slot) -> None:
        """A VM that does not let go is given time, and the failure is raised. It is forced when that is tried again."""
        async with self._operation(f"domain {vm.domain}: cannot detach {slot.value}", DETACH_DEADLINE_S) as store:
            uuid = await nodes.uuid(store, vm.domain)
            disk = await nodes.disk(store, vm.domain, slot.value)
            if disk is None or self._is_nothing(disk) or uuid not in {None, vm.uuid}:
                await self._released(await self._forgotten(store))
                return
            if not self._is_ours(disk):
                return
            if uuid is None:
                await self._gone(store, vm.domain, slot)  # the VM has ended, and what it had is taken away
            else:
                await self._remove(store, vm.domain, slot, force=not disk.online)
            assert disk.image is not None
            await self._loops.released(disk.image)

    async def _forgotten(self, store: Store) -> Set[Path]:
        """The pendrives that a loop device has and no VM: left by a detaching that was broken off, or by a VM's end.

        Of what else lies below the home's data only the disks of DisposableVMs are ours to free: that is done here, and not waited for.
        """
        # The devices first: a backend is there before its device is bound, so none that is being attached looks forgotten.
        spool, vms = _real(self._home.spool), _real(self._home.vms)
        bound = self._loops.bound()
        pendrives = {image for image in bound.values() if image.parent == spool}
        volatile = {device: image for device, image in bound.items() if image.name == VOLATILE and image.parent.parent == vms}
        if not pendrives and not volatile:
            return set()
        held = {self._real_of_ours(image) for _, image in await nodes.images(store)}
        for device, image in volatile.items():
            if image not in held:
                self._loops.clear(device, image)
        return pendrives - held

    async def _released(self, images: Iterable[Path]) -> None:
        await asyncio.gather(*(self._loops.released(image) for image in images))

    def _real_of_ours(self, image: Path) -> Path:
        """What the kernel calls an image of ours. One of somebody else's stays as it is, as to look at it could take for ever."""
        data = self._home.data
        return _real(data) / image.relative_to(data) if image.is_relative_to(data) else image

    async def _remove(self, store: Store, domain: DomainId, slot: Slot, *, force: bool) -> None:
        """Return when the backend is gone."""
        try:
            await xl.run("block-detach", *(("--force",) if force else ()), str(domain), slot.value, deadline_s=DETACH_DEADLINE_S)
        except HypervisorError:
            if await nodes.disk(store, domain, slot.value) is not None and await nodes.uuid(store, domain) is not None:
                raise  # else the VM has ended meanwhile, and everything of it goes
        await self._gone(store, domain, slot)

    async def _gone(self, store: Store, domain: DomainId, slot: Slot) -> None:
        async def is_gone() -> bool:
            return await nodes.disk(store, domain, slot.value) is None

        await until(store, is_gone, nodes.backend(domain, slot.value))

    async def attached(self, vm: VmId) -> Mapping[Slot, Path]:
        async with self._operation(f"domain {vm.domain}: cannot list the disks", QUERY_DEADLINE_S) as store:
            if not await nodes.is_run(store, vm):
                return {}
            disks = {slot: await nodes.disk(store, vm.domain, slot.value) for slot in Slot}
        return {slot: disk.image for slot, disk in disks.items() if disk and disk.image and self._is_ours(disk)}

    def _is_ours(self, disk: Disk) -> bool:
        """What is kept is the person's, to be mounted by hand."""
        image = disk.image
        if image is None or self._is_nothing(disk):
            return False
        return image.is_relative_to(self._home.data) and not image.is_relative_to(self._home.kept)

    def _is_nothing(self, disk: Disk) -> bool:
        return disk.image == orders.nothing(self._home)

    def _makes_way(self, disk: Disk) -> bool:
        """Nothing, whatever the VM does with it, and a pendrive whose image was deleted, which nobody can ask back."""
        image = disk.image
        return self._is_nothing(disk) or (image is not None and image.parent == self._home.spool and not image.exists())

    async def kill(self, vm: VmId) -> None:
        async with self._operation(f"domain {vm.domain} does not end", KILL_DEADLINE_S) as store:
            uuid = await nodes.uuid(store, vm.domain)
            images = await nodes.images(store) if uuid in {None, vm.uuid} else []
            had = {self._real_of_ours(image) for domain, image in images if domain == vm.domain}
            # Where an "xl destroy" was broken off, Xen may still have a VM of which the store knows nothing any more.
            if uuid == vm.uuid or await _listed(vm):
                try:
                    await _destroy(vm.domain)
                except HypervisorError:
                    if (found := await _listed(vm)) and not found.dying:
                        raise  # else xl has been at it already, when it ended by itself
            await self.ended(store, vm)
            await self._released(await self._forgotten(store) & had)
            self.kills += 1

    async def ended(self, store: Store, vm: VmId) -> None:
        """Return when the VM is gone, and dom0's end of all its disks."""

        async def has_ended() -> bool:
            uuid = await nodes.uuid(store, vm.domain)
            if uuid is not None:
                return uuid != vm.uuid
            return not await store.is_introduced(vm.domain) and not await nodes.children(store, nodes.backends(vm.domain))

        await until(store, has_ended, keys.home(vm.domain), nodes.backends(vm.domain), keys.RELEASE_DOMAIN)

    async def screen(self, vm: VmId) -> None:
        """Xen's VMs are paravirtual, and have none."""

    async def release(self, domain: DomainId) -> None:
        """Of Xen's own nothing is left to clean up. We forget that the VM was one of ours, if Xen has no such domain any more."""
        ended = [record for record in records.all_records(self._home) if record.domain == domain]
        if ended:
            there = {listed.id for listed in await xl.list_domains()}
            for record in ended:
                # Read again: by now it may be of the same VM's next run.
                if VmId(domain, record.uuid) not in there and records.get(self._home, record.uuid) == record:
                    self.forget(record)

    def forget(self, record: Record) -> None:
        """The VM has ended. Of a DisposableVM xl's log goes too."""
        records.remove(self._home, record.uuid)
        if record.keys.get(keys.VM_TYPE) == keys.DISPOSABLE_TYPE.decode("ascii"):
            for suffix in ("", *(f".{number}" for number in range(1, _LOGS_KEPT + 1))):
                (self._logs / f"xl-{record.name}.log{suffix}").unlink(missing_ok=True)

    async def _require(self, store: Store, vm: VmId) -> None:
        if not await nodes.is_run(store, vm):
            raise VmGone(f"domain {vm.domain} does not run any more")

    async def _has_ended(self, vm: VmId) -> bool:
        try:
            async with self._operation(f"domain {vm.domain}: cannot be asked who it is", QUERY_DEADLINE_S) as store:
                return not await nodes.is_run(store, vm)
        except HypervisorError:
            return False

    def _operation(self, what: str, deadline_s: float) -> AbstractAsyncContextManager[Store]:
        return operation(self._home, what, deadline_s)


async def _listed(vm: VmId) -> Listed | None:
    """What Xen itself knows of a VM, also of one that is about to go."""
    return next((listed for listed in await xl.list_domains() if listed.id == vm), None)


async def _destroy(domain: DomainId) -> None:
    """Have xl destroy a domain. Whoever does not wait for that any more lets it come to its end, for which it has a thread."""
    await asyncio.to_thread(asyncio.run, xl.run("destroy", str(domain), deadline_s=KILL_DEADLINE_S))


def _real(path: Path) -> Path:
    """What the kernel calls a path of ours."""
    return Path(os.path.realpath(path))


async def _holder(store: Store, image: Path) -> DomainId | None:
    """A VM that has the image."""
    return next((domain for domain, held in await nodes.images(store) if held == image), None)
