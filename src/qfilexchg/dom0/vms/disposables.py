"""DisposableVMs for those who ask: from a fresh savefile, from a few that wait ready, or not at all, and then with the reason."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from collections.abc import Collection as AbstractCollection
from pathlib import Path

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import qemu, restoring, savefile, saving
from qfilexchg.dom0.vms.collection import Collection, Kind, Label, NoSuchVm
from qfilexchg.dom0.vms.hypervisor import NoDisposable, RunningVm, VmId
from qfilexchg.dom0.vms.processes import Process
from qfilexchg.dom0.vms.restoring import Basis, Restored
from qfilexchg.dom0.vms.savefile import NoSavefile, Savefile
from qfilexchg.errors import HostError, QfilexchgError
from qfilexchg.protocol.names import VmName

_SPARE_MIB = 128
"""What a VM's QEMU takes beside the VM's own memory."""
LOOK_AGAIN_S = 60.0
"""Between two looks at those that wait: a savefile may have become stale, or a VM that could not be made may be possible now."""

log = logging.getLogger(__name__)


class Disposables:
    """:class:`~qfilexchg.dom0.vms.hypervisor.DisposableMaker` for the VMs of one home."""

    def __init__(self, home: Home, collection: Collection, memory_mib: int, preload: int = 0) -> None:
        self._home = home
        self._collection = collection
        self._memory_mib = memory_mib
        self._preload = preload
        self._ready: deque[tuple[Savefile, Restored]] = deque()
        self._refill = asyncio.Event()
        self._saving = asyncio.Lock()
        self._processes: dict[VmId, Process] = {}

    async def make(self, asker: RunningVm, preparing: Callable[[str], None]) -> RunningVm:
        try:
            restored = await self._restored(asker.name, preparing)
            self._processes[restored.vm.id] = restored.process
            try:
                await restoring.wake(self._home, restored)
            except BaseException:
                await self._end(restored)
                raise
        except NoDisposable:
            raise
        except saving.SavingFailed as error:
            raise NoDisposable(str(error), word="no-savefile") from error
        except HostError as error:
            raise NoDisposable("no DisposableVM could be made", str(error)) from error
        finally:
            self._refill.set()
        return restored.vm

    async def _restored(self, asker: VmName, preparing: Callable[[str], None]) -> Restored:
        """One that waits ready, or a new one."""
        label = self._label(asker)
        made_of = await restoring.basis(self._home, self._memory_mib)
        if not self._ready:
            require_memory(self._memory_mib)
        while True:
            saved = await self._fresh(made_of, preparing)
            if restored := await self._claim(saved, label, asker):
                return restored
            require_memory(self._memory_mib)
            try:
                return await restoring.restore(self._home, self._collection, saved, made_of, label, asker=asker)
            except HostError:
                if savefile.current(self._home) == saved:
                    raise  # else another has taken its place just now

    async def forget(self, vm: VmId) -> None:
        if process := self._processes.pop(vm, None):
            process.reap()
        for known in self._collection.list():
            if known.uuid == vm.uuid and known.kind is Kind.DISPOSABLE:
                restoring.forget(self._home, self._collection, known.name)

    async def sweep(self, known: AbstractCollection[VmId]) -> None:
        records = (qemu.record(self._home, domain) for domain in qemu.domains(self._home))
        running = {found.vm.id.uuid: found.vm for found in records if found}
        spared = {vm.uuid for vm in known}
        for vm in self._collection.list():
            if vm.kind is not Kind.DISPOSABLE or vm.uuid in spared:
                continue
            found = running.get(vm.uuid)
            if found is None:
                restoring.forget(self._home, self._collection, vm.name)
            elif vm.asker or vm.preloaded:
                log.info("%s is left over from before, and ends", vm.name)
                await restoring.end(self._home, self._collection, found)

    async def keep_ready(self) -> None:
        """Keep as many VMs ready as are to be preloaded. Runs until it is cancelled; they are left to :meth:`sweep` then."""
        while self._preload:
            self._refill.clear()
            try:
                await self._fill()
            except QfilexchgError as error:
                log.warning("no DisposableVM is preloaded: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN_S):
                    await self._refill.wait()

    async def _fill(self) -> None:
        made_of = await restoring.basis(self._home, self._memory_mib)
        saved = savefile.current(self._home)
        saved.check(made_of.stamp)
        await self._discard_others(saved)
        while len(self._ready) < self._preload:
            require_memory(self._memory_mib)
            restored = await restoring.restore(self._home, self._collection, saved, made_of, Label.RED, preloaded=True)
            self._ready.append((saved, restored))
            log.info("%s is preloaded", restored.vm.name)

    async def _claim(self, saved: Savefile, label: Label, asker: VmName) -> Restored | None:
        """One that waits ready, for ``asker``: used once, and only if it was made from the savefile that is the current one."""
        await self._discard_others(saved)
        while self._ready:
            _, restored = self._ready.popleft()
            try:
                self._collection.claim(restored.vm.name, label, asker)
            except NoSuchVm:
                pass  # it was ended meanwhile
            else:
                if restored.process.running:
                    return restored
            await self._end(restored)
        return None

    async def _discard_others(self, saved: Savefile) -> None:
        stale = [restored for made_from, restored in self._ready if made_from != saved]
        self._ready = deque(entry for entry in self._ready if entry[0] == saved)
        for restored in stale:
            log.info("%s was preloaded from a savefile that is stale, and ends", restored.vm.name)
            await self._end(restored)

    async def _end(self, restored: Restored) -> None:
        self._processes.pop(restored.vm.id, None)
        await restoring.end(self._home, self._collection, restored.vm)
        restored.process.reap()

    async def _fresh(self, made_of: Basis, preparing: Callable[[str], None]) -> Savefile:
        """The current savefile, made anew if it cannot be used; one that fails fails for all who wait for it."""
        stamp = made_of.stamp
        saved = savefile.current(self._home)
        try:
            saved.check(stamp)
            return saved
        except NoSavefile as error:
            why = error.why
        preparing(why)
        async with self._saving:
            saved = savefile.current(self._home)
            try:
                saved.check(stamp)  # somebody else has made it meanwhile
                return saved
            except NoSavefile:
                log.info("%s: making one", why)
            script = saved.script.read_bytes() if saved.script.exists() else None
            return await saving.make(self._home, self._collection, made_of, script, preparing)

    def _label(self, name: VmName) -> Label:
        try:
            return self._collection.get(name).label
        except NoSuchVm:
            return Label.RED


def require_memory(memory_mib: int) -> None:
    """Raise :exc:`NoDisposable` if the host has not enough memory for one more VM of this size."""
    with Path("/proc/meminfo").open(encoding="ascii") as file:
        fields = {line.partition(":")[0]: int(line.split()[1]) for line in file}
    available_mib = fields["MemAvailable"] >> 10
    if available_mib < memory_mib + _SPARE_MIB:
        raise NoDisposable(
            f"a DisposableVM needs {memory_mib + _SPARE_MIB} MiB of memory, and the host has {available_mib} MiB left: end a VM, or "
            "lower disposable_memory_mb",
            word="no-memory",
        )
