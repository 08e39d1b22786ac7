"""DisposableVMs for those who ask: from a fresh savefile, from a few that wait ready, or not at all, and then with the reason."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from collections.abc import Collection as AbstractCollection

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import restoring, savefile, saving
from qfilexchg.dom0.vms.collection import SAVED_VM, Collection, Kind, Label, NoSuchVm, Vm
from qfilexchg.dom0.vms.hypervisor import NoDisposable, RunningVm, VmId
from qfilexchg.dom0.vms.savefile import NoSavefile, Savefile
from qfilexchg.dom0.vms.toolstack import Basis, Toolstack
from qfilexchg.errors import HostError, QfilexchgError
from qfilexchg.protocol.names import VmName

QUIET_S = 3.0
"""After one was taken: its document is to be opened first, and the processor is its own."""
LOOK_AGAIN_S = 60.0
"""Between two looks at those that wait: a savefile may have become stale, or a VM that could not be made may be possible now."""

log = logging.getLogger(__name__)


class Disposables:
    """:class:`~qfilexchg.dom0.vms.hypervisor.DisposableMaker` for the VMs of one home."""

    def __init__(self, home: Home, collection: Collection, toolstack: Toolstack, memory_mib: int, preload: int = 0) -> None:
        self._home = home
        self._collection = collection
        self._toolstack = toolstack
        self._memory_mib = memory_mib
        self._preload = preload
        self._ready: deque[tuple[Savefile, RunningVm]] = deque()
        self._refill = asyncio.Event()
        self._saving = asyncio.Lock()
        self._failure: Exception | None = None
        """Of the last savefile that was to be made."""

    async def make(self, asker: RunningVm, preparing: Callable[[str], None]) -> RunningVm:
        try:
            restored = await self._restored(asker.name, preparing)
            try:
                await self._toolstack.wake(restored)
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
        return restored

    async def _restored(self, asker: VmName, preparing: Callable[[str], None]) -> RunningVm:
        """One that waits ready, or a new one."""
        label = self._label(asker)
        made_of = await self._toolstack.basis(self._memory_mib)
        if not self._ready:
            await require_memory(self._toolstack, made_of.memory_mib)
        while True:
            saved = await self._fresh(made_of, preparing)
            if restored := await self._claim(saved, label, asker):
                return restored
            await require_memory(self._toolstack, made_of.memory_mib)
            try:
                return await restoring.restore(self._home, self._collection, self._toolstack, saved, made_of, label, asker=asker)
            except HostError:
                if savefile.current(self._home) == saved:
                    raise  # else another has taken its place just now

    async def forget(self, vm: VmId) -> None:
        for known in self._collection.list():
            if known.uuid == vm.uuid and known.kind is Kind.DISPOSABLE:
                # To the exchange it has ended; whether it has to the hypervisor, only that knows.
                await restoring.end(self._home, self._collection, self._toolstack, RunningVm(vm, known.name))

    async def sweep(self, known: AbstractCollection[VmId]) -> None:
        try:
            await saving.clean_up(self._home, self._collection, self._toolstack)
        except (QfilexchgError, OSError) as error:
            log.error("of a savefile that was half made something is left: %s", error)
        running = {vm.id.uuid: vm for vm in (await self._toolstack.running()).values()}
        spared = {vm.uuid for vm in known}
        for vm in self._collection.list():
            # Others are the person's, or tried out with a new savefile, and may only just begin.
            ours = vm.preloaded or vm.asker not in {None, SAVED_VM}
            if vm.kind is Kind.DISPOSABLE and ours and vm.uuid not in spared:
                try:
                    await self._end_left_over(vm, running.get(vm.uuid))
                except (QfilexchgError, OSError) as error:
                    log.error("%s is left over from before, and may still run: %s", vm.name, error)

    async def _end_left_over(self, vm: Vm, found: RunningVm | None) -> None:
        if found is None:
            restoring.forget(self._home, self._collection, vm.name)
        else:
            log.info("%s is left over from before, and ends", vm.name)
            await restoring.end(self._home, self._collection, self._toolstack, found)

    async def keep_ready(self) -> None:
        """Keep as many VMs ready as are to be preloaded. Runs until it is cancelled; they are left to :meth:`sweep` then."""
        said = ""
        while self._preload:
            self._refill.clear()
            try:
                await self._fill()
                said = ""
            except QfilexchgError as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("no DisposableVM is preloaded: %s", said)
            except Exception:  # no room on the disk, say: what is preloaded is a convenience, and must end nothing
                log.exception("no DisposableVM is preloaded")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN_S):
                    await self._refill.wait()
                    await asyncio.sleep(QUIET_S)

    async def _fill(self) -> None:
        made_of = await self._toolstack.basis(self._memory_mib)
        saved = savefile.current(self._home)
        saved.check(made_of.stamp)
        await self._discard_others(saved)
        while len(self._ready) < self._preload:
            await require_memory(self._toolstack, made_of.memory_mib)
            restored = await restoring.restore(self._home, self._collection, self._toolstack, saved, made_of, Label.RED, preloaded=True)
            self._ready.append((saved, restored))
            log.info("%s is preloaded", restored.name)

    async def _claim(self, saved: Savefile, label: Label, asker: VmName) -> RunningVm | None:
        """One that waits ready, for ``asker``: used once, and only if it was made from the savefile that is the current one."""
        await self._discard_others(saved)
        while entry := next((entry for entry in self._ready if entry[0] == saved), None):
            self._ready.remove(entry)
            _, restored = entry
            try:
                self._collection.claim(restored.name, label, asker)
                if not await self._has_ended(restored):
                    return restored
            except NoSuchVm:
                pass  # it was ended meanwhile
            except BaseException:
                await self._end(restored)  # nobody knows of it any more
                raise
            await self._end(restored)
        return None

    async def _discard_others(self, saved: Savefile) -> None:
        """End those that were made from another savefile, and remove what is left of those that have ended."""
        found = [entry for entry in list(self._ready) if entry[0] != saved or await self._has_ended(entry[1])]
        others = [entry for entry in found if entry in self._ready]  # the rest were taken while we looked
        self._ready = deque(entry for entry in self._ready if entry not in others)
        try:
            for entry in list(others):
                name = entry[1].name
                log.info("%s was preloaded, and has ended or its savefile is stale", name)
                try:
                    await self._end(entry[1])
                except HostError as error:
                    log.error("%s is not ended, trying again later: %s", name, error)
                else:
                    others.remove(entry)
        finally:
            self._ready.extend(others)  # who comes next ends them, also if this one is told to stop

    async def _has_ended(self, restored: RunningVm) -> bool:
        return await self._toolstack.wait_for_end(restored.id, 0)

    async def _end(self, restored: RunningVm) -> None:
        await restoring.end(self._home, self._collection, self._toolstack, restored)

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
        failure_before = self._failure
        async with self._saving:
            saved = savefile.current(self._home)
            try:
                saved.check(stamp)  # somebody else has made it meanwhile
                return saved
            except NoSavefile:
                log.info("%s: making one", why)
            if self._failure and self._failure is not failure_before:
                raise self._failure
            script = saved.script.read_bytes() if saved.script.exists() else None
            try:
                return await saving.make(self._home, self._collection, self._toolstack, made_of, script, preparing)
            except Exception as error:
                self._failure = error
                raise

    def _label(self, name: VmName) -> Label:
        try:
            return self._collection.get(name).label
        except NoSuchVm:
            return Label.RED


async def require_memory(toolstack: Toolstack, memory_mib: int) -> None:
    """Raise :exc:`NoDisposable` if the host has not enough memory for one more VM of this size."""
    memory = await toolstack.memory()
    needed_mib = memory_mib + memory.overhead_mib
    if memory.available_mib - memory.promised_mib < needed_mib:
        raise NoDisposable(
            f"a DisposableVM needs {needed_mib} MiB of memory, and the host has {memory.available_mib} MiB left, of which those that "
            f"run may take {memory.promised_mib}: end a VM, or lower disposable_memory_mb",
            word="no-memory",
        )
