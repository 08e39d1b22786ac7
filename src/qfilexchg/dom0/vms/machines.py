"""What ``qvm-create``, ``qvm-start``, ``qvm-shutdown`` and their like do.

A VM is started whole or not at all, and one command at a time starts or removes something. A domain that has ended by itself is
cleaned up by qfilexchgd or by the next command here, whichever comes first.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from qfilexchg.dom0 import programs
from qfilexchg.dom0.debian import Release
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.platform import Platform
from qfilexchg.dom0.vms import choice, restoring, run, services, template
from qfilexchg.dom0.vms.collection import Collection, Kind, Label, NoSuchVm, Vm
from qfilexchg.dom0.vms.hypervisor import HypervisorError, RunningVm, VmId
from qfilexchg.dom0.vms.processes import wait_until
from qfilexchg.dom0.vms.toolstack import Toolstack, or_end
from qfilexchg.errors import CallerError, QfilexchgError
from qfilexchg.protocol.names import VmName

PRIVATE_DISK_BYTES = 10 << 30
"""Of a new VM's /home. It takes room on the host as it fills."""
SHUTDOWN_DEADLINE_S = 60.0
TAKEN_DEADLINE_S = 60.0
_FORMAT_DEADLINE_S = 60.0


class AlreadyRunning(CallerError):
    """The VM runs."""

    def __init__(self, name: VmName) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"{self.name} runs already: 'qvm-shutdown {self.name}' ends it"


class NotRunning(CallerError):
    """The VM does not run."""

    def __init__(self, name: VmName) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"{self.name} does not run: 'qvm-start {self.name}' starts it"


class NotStarted(CallerError):
    """A DisposableVM is made running, and ends for good."""

    def __init__(self, name: VmName) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"{self.name} is a DisposableVM, which is not started: 'qvm-open-in-dvm' in a VM makes one for a document"


class NoScreen(CallerError):
    """The VM has no screen; ``why`` not."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"there is no screen: {self.why}"


class StillRunning(HypervisorError):
    """A VM that was asked to shut down and goes on."""


class Machines:
    """The VMs of one home, made by ``toolstack``, or by the home's own."""

    def __init__(self, home: Home, toolstack: Toolstack | None = None) -> None:
        home.make()
        self._home = home
        self.collection = Collection(home.collection)
        self.toolstack = toolstack or choice.toolstack(home)

    async def create(self, name: VmName, label: Label, memory_mib: int, release: Release | None = None) -> Vm:
        """Record a new VM and make its private disk. With a ``release`` of Debian it boots from the template of that.

        Raises :exc:`~qfilexchg.dom0.vms.collection.NameTaken` or :exc:`~qfilexchg.dom0.vms.template.TemplateMissing`.
        """
        template.current(self._home, release)
        vm = self.collection.add(name, label, memory_mib, release)
        try:
            folder = self._home.vm(name)
            folder.mkdir(mode=0o700, parents=True)
            disk = self._private_disk(name)
            with disk.open("xb") as image:
                image.truncate(PRIVATE_DISK_BYTES)
            disk.chmod(0o600)
            options = ("-m", "0", "-J", "size=32", "-E", "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0")
            await programs.run("mke2fs", "-q", "-F", "-t", "ext4", *options, "--", str(disk), deadline_s=_FORMAT_DEADLINE_S)
        except BaseException:
            self._forget(name)
            raise
        return vm

    def _private_disk(self, name: VmName) -> Path:
        return self._home.vm(name) / "private.img"

    def _forget(self, name: VmName) -> None:
        shutil.rmtree(self._home.vm(name), ignore_errors=True)
        self.collection.remove(name)

    async def remove(self, name: VmName) -> None:
        """Delete a VM that does not run, with all its files. Raises :exc:`AlreadyRunning`."""
        async with services.toolstack_turn(self._home):
            vm = self.collection.get(name)
            if vm.name in await self.running():
                raise AlreadyRunning(vm.name)
            self._forget(vm.name)

    async def running(self) -> dict[VmName, RunningVm]:
        """The VMs that have not ended, by name."""
        return dict(await self.toolstack.running())

    async def running_id(self, name: VmName) -> VmId:
        """Raises :exc:`~qfilexchg.dom0.vms.collection.NoSuchVm` or :exc:`NotRunning`."""
        return (await self._running(name)).id

    async def _running(self, name: VmName) -> RunningVm:
        vm = self.collection.get(name)
        found = (await self.running()).get(vm.name)
        if found is None:
            raise NotRunning(vm.name)
        return found

    @contextlib.asynccontextmanager
    async def run(
        self, name: VmName, argv: Sequence[str], *, user: str = "user", window: tuple[int, int] | None = None
    ) -> AsyncIterator[run.Session]:
        """Begin a command in a VM. Raises :exc:`NotRunning`, and what :meth:`~qfilexchg.dom0.vms.toolstack.Toolstack.run` raises."""
        async with self.toolstack.run(await self.running_id(name), argv, user=user, window=window) as session:
            yield session

    async def start(self, name: VmName, say: Callable[[str], None]) -> VmId:
        """Start a VM and return when it answers. The daemons are started too where they do not run.

        Raises :exc:`AlreadyRunning`, :exc:`~qfilexchg.dom0.vms.template.TemplateMissing`,
        :exc:`~qfilexchg.dom0.vms.toolstack.BootFailed` or what the daemons raise; then nothing of the VM is left running.
        """
        vm = self.collection.get(name)
        if vm.kind is Kind.DISPOSABLE:
            raise NotStarted(vm.name)
        with services.toolstack_lock(self._home):
            booted = template.current(self._home, vm.release)  # which goes, once it is replaced, with this lock held
            if stale := booted.stale(time.time()):
                say(stale)
            made_of = await self.toolstack.basis(vm.memory_mib, booted)
            for service in services.start(self._home):
                say(f"{service} started")
            await self.sweep()
            if vm.name in await self.running():
                raise AlreadyRunning(vm.name)
            running = await self.toolstack.start(vm, self._private_disk(vm.name), made_of, {})
        async with or_end(self.toolstack, running):
            await self.toolstack.wait_for_hello(running)
        return running.id

    def require_screen(self, name: VmName) -> None:
        """Raise :exc:`NoScreen` if a VM would have none when it is started now."""
        if self._home.platform is Platform.XEN:
            raise NoScreen("on Xen VMs are paravirtual, without a display; 'qvm-run' and 'qvm-console' reach them")
        if not template.current(self._home, self.collection.get(name).release).has_desktop:
            raise NoScreen("the template has no desktop; 'qvm-template build --desktop' makes one that has, for VMs started from then on")

    async def screen(self, name: VmName) -> Path:
        """The socket at which the screen of a VM that runs is served. Raises :exc:`NoScreen`, :exc:`NotRunning`."""
        vm = await self._running(name)
        found = await self.toolstack.hypervisor.screen(vm.id)
        if found is None:
            self.require_screen(vm.name)
            raise NoScreen(f"{vm.name} was started from a template without a desktop; shut it down and start it again")
        return found

    async def shutdown(self, name: VmName, deadline_s: float = SHUTDOWN_DEADLINE_S) -> None:
        """Ask a VM to end, and return when it has. Raises :exc:`StillRunning` past the deadline, and :exc:`NotRunning`."""
        vm = await self._running(name)
        await self.toolstack.shut_down(vm.id, deadline_s)
        if not await self.toolstack.wait_for_end(vm.id, deadline_s):
            raise StillRunning(f"{vm.name} has not ended within {deadline_s:g} s: 'qvm-kill {vm.name}' ends it at once")
        await self._clean_up_after(vm)

    async def kill(self, name: VmName) -> None:
        """End a VM at once, as by pulling its plug. Raises :exc:`NotRunning`."""
        vm = await self._running(name)
        await self.toolstack.hypervisor.kill(vm.id)
        await self._clean_up_after(vm)

    async def _clean_up_after(self, vm: RunningVm) -> None:
        """Remove what is left of a domain that has ended, and of a DisposableVM all, when the hypervisor has nothing of it any more."""
        if any(known.uuid == vm.id.uuid and known.kind is Kind.DISPOSABLE for known in self.collection.list()):
            await self.toolstack.end(vm)
        await self.toolstack.hypervisor.release(vm.id.domain)
        self._forget_disposable(vm.name)

    def _forget_disposable(self, name: VmName) -> None:
        with contextlib.suppress(NoSuchVm):  # not of the collection, or qfilexchgd was quicker
            if self.collection.get(name).kind is Kind.DISPOSABLE:
                restoring.forget(self._home, self.collection, name)

    async def sweep(self) -> None:
        """Clean up after domains that have ended. To be called with the toolstack's lock held, so that none is only starting."""
        await self.toolstack.sweep(self._forget_disposable)

    async def down(self, say: Callable[[str], None]) -> None:
        """End everything of this home: its VMs, then the daemons."""
        with services.toolstack_lock(self._home):
            await self._down_vms(say)
            for service in await asyncio.to_thread(services.stop, self._home):
                say(f"{service} stopped")
            self.toolstack.clear()
            for vm in self.collection.list():
                self._forget_disposable(vm.name)

    async def down_vms(self, say: Callable[[str], None]) -> None:
        """End all VMs of this home in good order, those that do not go by force. None is started meanwhile."""
        with services.toolstack_lock(self._home):
            await self._down_vms(say)

    async def _down_vms(self, say: Callable[[str], None]) -> None:
        """DisposableVMs come first: what has been changed in one can go back only while the VM runs that it came from."""
        disposables = {vm.name for vm in self.collection.list() if vm.kind is Kind.DISPOSABLE}
        known = set(self._home.spool.iterdir())
        await asyncio.gather(*(self._down(vm, say) for name, vm in (await self.running()).items() if name in disposables))
        await self._taken(known)
        await asyncio.gather(*(self._down(vm, say) for vm in (await self.running()).values()))

    async def _taken(self, known: AbstractSet[Path]) -> None:
        """Return when no pendrive is left but those ``known``: the VMs have what DisposableVMs have just given back to them.

        After :data:`TAKEN_DEADLINE_S` seconds it is left to qfilexchgd, which keeps what nobody took.
        """
        await asyncio.to_thread(wait_until, lambda: not set(self._home.spool.iterdir()) - known, TAKEN_DEADLINE_S)

    async def _down(self, vm: RunningVm, say: Callable[[str], None]) -> None:
        with contextlib.suppress(QfilexchgError):
            if not await self.toolstack.paused(vm.id):  # one that is still to be woken hears nobody
                await self.shutdown(vm.name)
                say(f"{vm.name} shut down")
                return
        await self.toolstack.hypervisor.kill(vm.id)
        say(f"{vm.name} killed")
