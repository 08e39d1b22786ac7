"""The toolstack of the QEMU platform: what ``qvm-create``, ``qvm-start``, ``qvm-shutdown`` and their like do.

A VM is started whole or not at all, and one command at a time starts or removes something. A domain that has ended by itself is
cleaned up by qfilexchgd or by the next command here, whichever comes first.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from qfilexchg.dom0 import programs
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import acceleration, qemu, qemu_command, run, services, template
from qfilexchg.dom0.vms.collection import Collection, Kind, Label, Vm
from qfilexchg.dom0.vms.hypervisor import HypervisorError, RunningVm, VmId
from qfilexchg.dom0.vms.processes import Process
from qfilexchg.errors import CallerError, QfilexchgError, VmError
from qfilexchg.protocol import keys
from qfilexchg.protocol.names import VmName
from qfilexchg.xenstore.client import Store

PRIVATE_DISK_BYTES = 10 << 30
"""Of a new VM's /home. It takes room on the host as it fills."""
START_DEADLINE_S = 180.0
"""Under emulation, on a busy host."""
SHUTDOWN_DEADLINE_S = 60.0
_FORMAT_DEADLINE_S = 60.0
_CONSOLE_LINES = 20
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


class BootFailed(HypervisorError):
    """A VM that ended or fell silent before it was ready. ``detail`` is the end of what it said, or of QEMU's log."""

    def __str__(self) -> str:
        lines = self.detail.splitlines()[-_CONSOLE_LINES:]
        return "\n".join((f"{self.what}{'; the last it said:' if lines else ''}", *(ascii(line)[1:-1] for line in lines)))


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

        Raises :exc:`AlreadyRunning`, :exc:`~qfilexchg.dom0.vms.template.TemplateMissing`, :exc:`BootFailed` or what the daemons
        raise; then nothing of the VM is left running.
        """
        vm = self.collection.get(name)
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
                vm.name, vm.uuid, domain, vm.memory_mib, _processors(), self._private_disk(vm.name), booted, accelerator
            )
            running = RunningVm(VmId(domain, vm.uuid), vm.name)
            await self._launch(running, vm.kind, [program, *qemu_command.command(machine, self._home)])
        async with self._or_kill(running):
            await self._wait_for_hello(running)
        return running.id

    async def _launch(self, running: RunningVm, kind: Kind, argv: list[str]) -> None:
        domain = running.id.domain
        folder = self._home.domain(domain)
        folder.mkdir(mode=0o700, parents=True)
        async with self._or_kill(running):
            qemu.Record(running, None).save(self._home)
            async with await Store.connect(self._home.store_socket) as store:
                await _write_keys(store, running, kind)
                await store.introduce(domain)
            log = self._home.vm(running.name) / "qemu.log"
            log.unlink(missing_ok=True)
            process = Process.start(argv, log=log)
            if process is None:
                raise BootFailed(f"{running.name}: QEMU ended at once", _tail(log))
            qemu.Record(running, process).save(self._home)

    @asynccontextmanager
    async def _or_kill(self, running: RunningVm) -> AsyncIterator[None]:
        """Leave nothing of the domain when the body fails."""
        try:
            yield
        except BaseException:
            await self.hypervisor.kill(running.id)
            await self.hypervisor.release(running.id.domain)
            raise

    async def _wait_for_hello(self, running: RunningVm) -> None:
        """Return when the VM's run agent answers. Raises :exc:`BootFailed`."""
        found = qemu.record(self._home, running.id.domain)
        log = self._home.vm(running.name) / "qemu.log"
        try:
            if found is None or found.process is None:
                raise run.NoAnswer("QEMU ended at once")
            await self._hello(running.id, found.process)
        except run.NoAnswer as error:
            try:
                said = await self.hypervisor.console(running.id)
            except HypervisorError:
                said = _tail(log)
            runs = found is not None and found.process is not None and found.process.running
            how = f"was not ready within {START_DEADLINE_S:g} s" if runs else "ended before it was ready"
            raise BootFailed(f"{running.name} {how}", said) from error

    async def _hello(self, vm: VmId, process: Process) -> None:
        end = time.monotonic() + START_DEADLINE_S
        while True:
            try:
                async with run.session(self._home, vm.domain, [], deadline_s=end - time.monotonic()) as session:
                    await session.output(_ignore, _ignore)
                return
            except run.NoAnswer:
                # QEMU makes its sockets a moment after its process is there.
                if not process.running or time.monotonic() > end:
                    raise
                await asyncio.sleep(0.02)

    async def shutdown(self, name: VmName, deadline_s: float = SHUTDOWN_DEADLINE_S) -> None:
        """Ask a VM to end, and return when it has. Raises :exc:`StillRunning` past the deadline, and :exc:`NotRunning`."""
        found = self._running(name)
        vm = found.vm.id
        assert found.process is not None
        try:
            async with asyncio.timeout(deadline_s), run.session(self._home, vm.domain, _POWER_OFF, user="root") as session:
                await session.output(_ignore, _ignore)
        except (run.NoAnswer, VmError, TimeoutError):
            pass  # it may be on its way out already; what counts is whether it ends
        if not await asyncio.to_thread(found.process.wait, deadline_s):
            raise StillRunning(f"{found.vm.name} has not ended within {deadline_s:g} s: 'qvm-kill {found.vm.name}' ends it at once")
        await self.hypervisor.release(vm.domain)

    async def kill(self, name: VmName) -> None:
        """End a VM at once, as by pulling its plug. Raises :exc:`NotRunning`."""
        vm = self.running_id(name)
        await self.hypervisor.kill(vm)
        await self.hypervisor.release(vm.domain)

    async def sweep(self) -> None:
        """Clean up after domains that have ended. To be called with the toolstack's lock held, so that none is only starting."""
        for domain in qemu.domains(self._home):
            found = qemu.record(self._home, domain)
            if found is None or found.process is None:
                await self.hypervisor.release(domain)

    async def down(self, say: Callable[[str], None]) -> None:
        """End everything of this home: VMs in good order, those that do not go by force, then the daemons."""
        with services.toolstack_lock(self._home):
            await asyncio.gather(*(self._down(found.vm, say) for found in self.running().values()))
            for service in await asyncio.to_thread(services.stop, self._home):
                say(f"{service} stopped")
            for domain in qemu.domains(self._home):
                shutil.rmtree(self._home.domain(domain), ignore_errors=True)

    async def _down(self, vm: RunningVm, say: Callable[[str], None]) -> None:
        try:
            await self.shutdown(vm.name)
            say(f"{vm.name} shut down")
        except QfilexchgError:
            await self.hypervisor.kill(vm.id)
            say(f"{vm.name} killed")


def _ignore(_data: bytes) -> None:
    """For sessions whose output nobody wants."""


def _processors() -> int:
    """A VM's processors: two where the host has them, as starting a system is two things at a time."""
    return min(2, len(os.sched_getaffinity(0)))


def _tail(log: Path) -> str:
    return log.read_bytes()[-4096:].decode("utf-8", "backslashreplace")


async def _write_keys(store: Store, running: RunningVm, kind: Kind) -> None:
    """What libxl writes and the exchange reads. The domain may read its own keys and write none."""
    domain = running.id.domain
    vm_path = qemu.vm_path(running.id.uuid)
    values = {
        keys.absolute(domain, keys.VM_PATH): vm_path,
        keys.absolute(domain, keys.NAME): running.name,
        keys.absolute(domain, "domid"): str(int(domain)),
        keys.absolute(domain, keys.VM_TYPE): kind.value,
        f"{vm_path}/uuid": str(running.id.uuid),
        f"{vm_path}/name": running.name,
    }

    async def write(tx: int) -> None:
        for folder in (keys.home(domain), vm_path, keys.absolute(domain, "device")):
            await store.mkdir(folder, tx)
            await store.set_perms(folder, keys.readable_by(domain), tx)
        for path, value in values.items():
            await store.write(path, value.encode("ascii"), tx)

    await store.transaction(write)
