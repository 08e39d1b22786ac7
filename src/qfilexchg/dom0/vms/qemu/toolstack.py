"""The toolstack of the QEMU platform: domains with a folder each, their processes, and the store that is ours."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from qfilexchg.dom0 import programs
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import run, services, template
from qfilexchg.dom0.vms.collection import Collection, Kind, Vm
from qfilexchg.dom0.vms.hypervisor import RunningVm, VmId
from qfilexchg.dom0.vms.processes import Process
from qfilexchg.dom0.vms.qemu import acceleration, channels, command, hypervisor, launch
from qfilexchg.dom0.vms.qemu.command import Machine, MemoryFile
from qfilexchg.dom0.vms.qemu.hypervisor import Qemu
from qfilexchg.dom0.vms.qemu.stamp import accelerator, stamp
from qfilexchg.dom0.vms.savefile import Savefile
from qfilexchg.dom0.vms.template import Template
from qfilexchg.dom0.vms.toolstack import Basis, Memory
from qfilexchg.errors import VmError
from qfilexchg.protocol import keys
from qfilexchg.protocol.names import VmName
from qfilexchg.xenstore.client import Store

OVERHEAD_MIB = 128
"""What a VM's QEMU takes beside the VM's own memory."""
DESKTOP_OVERHEAD_MIB = 96
"""What it takes more for one with a desktop: a larger cache of translated code, the picture, and what VNC holds of it."""
_POWER_OFF = ("systemctl", "poweroff")


class QemuToolstack:
    """:class:`~qfilexchg.dom0.vms.toolstack.Toolstack` for the VMs of one home."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._qemu = Qemu(home)

    @functools.cached_property
    def _collection(self) -> Collection:
        return Collection(self._home.collection)

    @property
    def hypervisor(self) -> Qemu:
        return self._qemu

    async def basis(self, memory_mib: int, booted: Template | None = None) -> Basis:
        booted = booted or template.current(self._home)
        booted.mark_used()
        memory_mib = max(memory_mib, booted.memory_min_mib)
        choice = await acceleration.choose(self._home, booted)
        return Basis(booted, memory_mib, stamp(booted, choice.accelerator, memory_mib))

    async def memory(self) -> Memory:
        """DisposableVMs share the savefile's memory until they write to it: what those that run have not taken yet is promised.

        Raises :exc:`~qfilexchg.dom0.vms.template.TemplateMissing`.
        """
        overhead_mib = OVERHEAD_MIB + (DESKTOP_OVERHEAD_MIB if template.current(self._home).has_desktop else 0)
        sizes = {vm.uuid: vm.memory_mib + overhead_mib for vm in self._collection.list() if vm.kind is Kind.DISPOSABLE}
        promised_mib = sum(
            max(0, sizes[found.vm.id.uuid] - (found.process.private_bytes() >> 20))
            for found in hypervisor.running(self._home).values()
            if found.process and found.vm.id.uuid in sizes
        )
        return Memory(_available_mib(), promised_mib, overhead_mib)

    async def running(self) -> Mapping[VmName, RunningVm]:
        return {name: found.vm for name, found in hypervisor.running(self._home).items()}

    async def start(self, vm: Vm, disk: Path, made_of: Basis, keys: Mapping[str, str], *, save_to: Savefile | None = None) -> RunningVm:
        running = self._new_domain(vm)
        memory = MemoryFile(save_to.memory, restored=False) if save_to else None
        await self._launch(running, vm, disk, made_of, memory, keys)
        return running

    def _new_domain(self, vm: Vm) -> RunningVm:
        return RunningVm(VmId(self._collection.next_domain(), vm.uuid), vm.name)

    async def _launch(
        self, running: RunningVm, vm: Vm, disk: Path, made_of: Basis, memory: MemoryFile | None, more_keys: Mapping[str, str]
    ) -> None:
        domain, processors, how = running.id.domain, launch.processors(), accelerator(made_of.stamp)
        machine = Machine(vm.name, vm.uuid, domain, made_of.memory_mib, processors, disk, made_of.template, how, memory)
        argv = [programs.find_program(command.PROGRAM), *command.command(machine, self._home)]
        process = await launch.launch(self._home, running, vm.kind, argv, more_keys)
        self._qemu.adopt(domain, process)

    async def wait_for_hello(self, vm: RunningVm) -> None:
        await launch.wait_for_hello(self._home, vm)

    def run(
        self, vm: VmId, argv: Sequence[str], *, user: str = "user", window: tuple[int, int] | None = None, deadline_s: float | None = None
    ) -> AbstractAsyncContextManager[run.Session]:
        return channels.session(self._home.domain(vm.domain), argv, user=user, window=window, deadline_s=deadline_s)

    async def shut_down(self, vm: VmId, deadline_s: float) -> None:
        with contextlib.suppress(run.NoAnswer, VmError, TimeoutError):
            async with asyncio.timeout(deadline_s), self.run(vm, _POWER_OFF, user="root") as session:
                await session.output(run.ignore, run.ignore)

    async def wait_for_end(self, vm: VmId, deadline_s: float) -> bool:
        process = self._process(vm)
        if process is None:
            return True
        return await asyncio.to_thread(process.wait, deadline_s) if deadline_s > 0 else not process.running

    def _process(self, vm: VmId) -> Process | None:
        found = hypervisor.record(self._home, vm.domain)
        return found.process if found and found.vm.id == vm else None

    async def save(self, vm: VmId, saved: Savefile) -> None:
        await self._qemu.save(vm, saved.state)

    async def restore(self, vm: Vm, disk: Path, saved: Savefile, made_of: Basis) -> RunningVm:
        """The disk has no name any more once QEMU has it open: when the process ends, however that comes, nothing of it is on the host."""
        running = self._new_domain(vm)
        async with services.toolstack_turn(self._home):
            await self._launch(running, vm, disk, made_of, MemoryFile(saved.memory, restored=True), {})
        async with launch.or_kill(self._home, running):
            await self._qemu.restore(running.id, saved.state)
            disk.unlink()  # noqa: ASYNC240  nobody waits for it
        return running

    async def wake(self, vm: RunningVm) -> None:
        """The VM takes its randomness from the host itself, by virtio-rng."""
        domain = vm.id.domain
        async with await Store.connect(self._home.store_socket) as store:
            path = keys.absolute(domain, keys.RESTORE_COMPLETE)
            await store.write(path, b"True")
            await store.set_perms(path, keys.readable_by(domain))
        await self._qemu.resume(vm.id)

    async def paused(self, vm: VmId) -> bool:
        return await self._qemu.paused(vm)

    async def end(self, vm: RunningVm) -> None:
        await self._qemu.kill(vm.id)
        await self._qemu.release(vm.id.domain)

    async def sweep(self, ended: Callable[[RunningVm], None]) -> None:
        for domain in hypervisor.domains(self._home):
            found = hypervisor.record(self._home, domain)
            if found is None:
                await self._qemu.release(domain)
            elif found.process is None:
                await self._qemu.release(domain)
                ended(found.vm)

    def clear(self) -> None:
        for domain in hypervisor.domains(self._home):
            shutil.rmtree(self._home.domain(domain), ignore_errors=True)


def _available_mib() -> int:
    with Path("/proc/meminfo").open(encoding="ascii") as file:
        fields = {line.partition(":")[0]: int(line.split()[1]) for line in file}
    return fields["MemAvailable"] >> 10
