"""The toolstack of the QEMU platform: what ``qvm-create``, ``qvm-start``, ``qvm-shutdown`` and their like do.

A VM is started whole or not at all, and one command at a time starts or removes something. A domain that has ended by itself is
cleaned up by qfilexchgd or by the next command here, whichever comes first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from pathlib import Path

from qfilexchg.dom0 import programs
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import acceleration, launch, qemu, qemu_command, restoring, run, services, template
from qfilexchg.dom0.vms.collection import Collection, Kind, Label, NoSuchVm, Vm
from qfilexchg.dom0.vms.hypervisor import HypervisorError, RunningVm, VmId
from qfilexchg.dom0.vms.processes import wait_until
from qfilexchg.errors import CallerError, QfilexchgError, VmError
from qfilexchg.protocol.names import VmName

PRIVATE_DISK_BYTES = 10 << 30
"""Of a new VM's /home. It takes room on the host as it fills."""
SHUTDOWN_DEADLINE_S = 60.0
TAKEN_DEADLINE_S = 60.0
_FORMAT_DEADLINE_S = 60.0
_POWER_OFF = ("systemctl", "poweroff")


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


class StillRunning(HypervisorError):
    """A VM that was asked to shut down and goes on."""


class Machines:
    """The VMs of one home."""

    def __init__(self, home: Home) -> None:
        home.make()
        self._home = home
        self.collection = Collection(home.collection)
        self.hypervisor = qemu.Qemu(home)

    async def create(self, name: VmName, label: Label, memory_mib: int) -> Vm:
        """Record a new VM and make its private disk. Raises :exc:`~qfilexchg.dom0.vms.collection.NameTaken`."""
        template.current(self._home)
        vm = self.collection.add(name, label, memory_mib)
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

    def remove(self, name: VmName) -> None:
        """Delete a VM that does not run, with all its files. Raises :exc:`AlreadyRunning`."""
        with services.toolstack_lock(self._home):
            vm = self.collection.get(name)
            if vm.name in self.running():
                raise AlreadyRunning(vm.name)
            self._forget(vm.name)

    def running(self) -> dict[VmName, qemu.Record]:
        """The VMs that have a process, by name: even one that has lost the store, and the exchange with it, is found and ended."""
        records = (qemu.record(self._home, domain) for domain in qemu.domains(self._home))
        return {found.vm.name: found for found in records if found and found.process}

    def running_id(self, name: VmName) -> VmId:
        """Raises :exc:`~qfilexchg.dom0.vms.collection.NoSuchVm` or :exc:`NotRunning`."""
        return self._running(name).vm.id

    def _running(self, name: VmName) -> qemu.Record:
        vm = self.collection.get(name)
        found = self.running().get(vm.name)
        if found is None:
            raise NotRunning(vm.name)
        return found

    async def start(self, name: VmName, say: Callable[[str], None]) -> VmId:
        """Start a VM and return when it answers. The daemons are started too where they do not run.

        Raises :exc:`AlreadyRunning`, :exc:`~qfilexchg.dom0.vms.template.TemplateMissing`,
        :exc:`~qfilexchg.dom0.vms.launch.BootFailed` or what the daemons raise; then nothing of the VM is left running.
        """
        vm = self.collection.get(name)
        if vm.kind is Kind.DISPOSABLE:
            raise NotStarted(vm.name)
        booted = template.current(self._home)
        os.utime(booted.folder)  # it is in use, and so not to be pruned
        accelerator = (await acceleration.choose(self._home, booted)).accelerator
        program = programs.find_program(qemu_command.PROGRAM)
        with services.toolstack_lock(self._home):
            for service in services.start(self._home):
                say(f"{service} started")
            await self.sweep()
            if vm.name in self.running():
                raise AlreadyRunning(vm.name)
            domain = self.collection.next_domain()
            machine = qemu_command.Machine(
                vm.name, vm.uuid, domain, vm.memory_mib, launch.processors(), self._private_disk(vm.name), booted, accelerator
            )
            running = RunningVm(VmId(domain, vm.uuid), vm.name)
            await launch.launch(self._home, running, vm.kind, [program, *qemu_command.command(machine, self._home)])
        async with launch.or_kill(self._home, running):
            await launch.wait_for_hello(self._home, running)
        return running.id

    async def shutdown(self, name: VmName, deadline_s: float = SHUTDOWN_DEADLINE_S) -> None:
        """Ask a VM to end, and return when it has. Raises :exc:`StillRunning` past the deadline, and :exc:`NotRunning`."""
        found = self._running(name)
        vm = found.vm.id
        assert found.process is not None
        try:
            async with asyncio.timeout(deadline_s), run.session(self._home, vm.domain, _POWER_OFF, user="root") as session:
                await session.output(run.ignore, run.ignore)
        except (run.NoAnswer, VmError, TimeoutError):
            pass  # it may be on its way out already; what counts is whether it ends
        if not await asyncio.to_thread(found.process.wait, deadline_s):
            raise StillRunning(f"{found.vm.name} has not ended within {deadline_s:g} s: 'qvm-kill {found.vm.name}' ends it at once")
        await self._clean_up_after(found.vm)

    async def kill(self, name: VmName) -> None:
        """End a VM at once, as by pulling its plug. Raises :exc:`NotRunning`."""
        vm = self._running(name).vm
        await self.hypervisor.kill(vm.id)
        await self._clean_up_after(vm)

    async def _clean_up_after(self, vm: RunningVm) -> None:
        """Remove what is left of a domain that has ended, and of a DisposableVM all."""
        await self.hypervisor.release(vm.id.domain)
        self._forget_disposable(vm.name)

    def _forget_disposable(self, name: VmName) -> None:
        with contextlib.suppress(NoSuchVm):  # not of the collection, or qfilexchgd was quicker
            if self.collection.get(name).kind is Kind.DISPOSABLE:
                restoring.forget(self._home, self.collection, name)

    async def sweep(self) -> None:
        """Clean up after domains that have ended. To be called with the toolstack's lock held, so that none is only starting."""
        for domain in qemu.domains(self._home):
            found = qemu.record(self._home, domain)
            if found is None:
                await self.hypervisor.release(domain)
            elif found.process is None:
                await self._clean_up_after(found.vm)

    async def down(self, say: Callable[[str], None]) -> None:
        """End everything of this home: VMs in good order, those that do not go by force, then the daemons.

        DisposableVMs come first: what has been changed in one can go back only while the VM runs that it came from.
        """
        with services.toolstack_lock(self._home):
            disposables = {vm.name for vm in self.collection.list() if vm.kind is Kind.DISPOSABLE}
            running = [found.vm for found in self.running().values()]
            known = set(self._home.spool.iterdir())
            await asyncio.gather(*(self._down(vm, say) for vm in running if vm.name in disposables))
            await self._taken(known)
            await asyncio.gather(*(self._down(vm, say) for vm in running if vm.name not in disposables))
            for service in await asyncio.to_thread(services.stop, self._home):
                say(f"{service} stopped")
            for domain in qemu.domains(self._home):
                shutil.rmtree(self._home.domain(domain), ignore_errors=True)
            for vm in self.collection.list():
                self._forget_disposable(vm.name)

    async def _taken(self, known: AbstractSet[Path]) -> None:
        """Return when no pendrive is left but those ``known``: the VMs have what DisposableVMs have just given back to them.

        After :data:`TAKEN_DEADLINE_S` seconds it is left to qfilexchgd, which keeps what nobody took.
        """
        await asyncio.to_thread(wait_until, lambda: not set(self._home.spool.iterdir()) - known, TAKEN_DEADLINE_S)

    async def _down(self, vm: RunningVm, say: Callable[[str], None]) -> None:
        with contextlib.suppress(QfilexchgError):
            if not await self.hypervisor.paused(vm.id):  # one that is still to be woken hears nobody
                await self.shutdown(vm.name)
                say(f"{vm.name} shut down")
                return
        await self.hypervisor.kill(vm.id)
        say(f"{vm.name} killed")
