"""qubes_restore: a DisposableVM from a savefile.

It is made whole, or nothing of it is left. Its disk is a copy that has no name any more once QEMU has it open, and its memory is
QEMU's own: when the process ends, however that comes, nothing of the document is on the host.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

from qfilexchg.dom0 import programs
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import acceleration, launch, qemu, qemu_command, savefile, services, template
from qfilexchg.dom0.vms.acceleration import Accelerator
from qfilexchg.dom0.vms.collection import Collection, Kind, Label, NoSuchVm
from qfilexchg.dom0.vms.hypervisor import RunningVm, VmId
from qfilexchg.dom0.vms.processes import Process
from qfilexchg.dom0.vms.savefile import Savefile
from qfilexchg.dom0.vms.template import Template
from qfilexchg.protocol import keys
from qfilexchg.protocol.names import VmName
from qfilexchg.xenstore.client import Store

_COPY_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Basis:
    """What DisposableVMs are made of, here and now."""

    template: Template
    accelerator: Accelerator
    memory_mib: int

    @property
    def stamp(self) -> savefile.Stamp:
        return savefile.stamp(self.template, self.accelerator, self.memory_mib)


async def basis(home: Home, memory_mib: int, booted: Template | None = None) -> Basis:
    """``booted`` is the home's own template if it is not named. Raises :exc:`~qfilexchg.dom0.vms.template.TemplateMissing`."""
    booted = booted or template.current(home)
    os.utime(booted.folder)  # it is in use, and so not to be pruned
    return Basis(booted, (await acceleration.choose(home, booted)).accelerator, memory_mib)


@dataclass(frozen=True, slots=True)
class Restored:
    """A DisposableVM that was made, and its process."""

    vm: RunningVm
    process: Process


async def restore(
    home: Home,
    collection: Collection,
    saved: Savefile,
    made_of: Basis,
    label: Label,
    *,
    asker: VmName | None = None,
    preloaded: bool = False,
) -> Restored:
    """Record a new DisposableVM and give it what ``saved`` holds; it does not run before :func:`wake`.

    Raises a HostError, and leaves nothing then. ``saved`` must have been checked.
    """
    vm, domain = collection.add_new_disposablevm(label, made_of.memory_mib, asker=asker, preloaded=preloaded)
    running = RunningVm(VmId(domain, vm.uuid), vm.name)
    try:
        folder = home.vm(vm.name)
        folder.mkdir(mode=0o700, parents=True)
        disk = folder / "volatile.img"
        await programs.run("cp", "--sparse=always", "--", str(saved.disk), str(disk), deadline_s=_COPY_DEADLINE_S)
        memory = qemu_command.MemoryFile(saved.memory, restored=True)
        machine = qemu_command.Machine(
            vm.name, vm.uuid, domain, made_of.memory_mib, launch.processors(), disk, made_of.template, made_of.accelerator, memory
        )
        argv = [programs.find_program(qemu_command.PROGRAM), *qemu_command.command(machine, home)]
        async with services.toolstack_turn(home):
            process = await launch.launch(home, running, Kind.DISPOSABLE, argv)
        async with launch.or_kill(home, running):
            await qemu.Qemu(home).restore(running.id, saved.state)
            disk.unlink()
    except BaseException:
        forget(home, collection, vm.name)
        raise
    return Restored(running, process)


async def wake(home: Home, restored: Restored) -> None:
    """Tell the VM that it is complete, and let it run. Raises a HostError."""
    domain = restored.vm.id.domain
    async with await Store.connect(home.store_socket) as store:
        path = keys.absolute(domain, keys.RESTORE_COMPLETE)
        await store.write(path, b"True")
        await store.set_perms(path, keys.readable_by(domain))
    await qemu.Qemu(home).resume(restored.vm.id)


async def end(home: Home, collection: Collection, vm: RunningVm) -> None:
    """Destroy a DisposableVM, and leave nothing of it. One that has ended is a success."""
    hypervisor = qemu.Qemu(home)
    await hypervisor.kill(vm.id)
    await hypervisor.release(vm.id.domain)
    forget(home, collection, vm.name)


def forget(home: Home, collection: Collection, name: VmName) -> None:
    """Remove the record and the files of a DisposableVM that has ended. One that is not known is a success."""
    shutil.rmtree(home.vm(name), ignore_errors=True)
    try:
        collection.remove(name)
    except NoSuchVm:
        return
