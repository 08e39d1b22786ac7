"""The toolstack of the Xen platform: xl, and the keys that our VMs have besides those of libxl's.

A VM is made paused, gets its keys, and runs then. Its configuration is a file for as long as xl reads it; xl keeps what it needs. The
process that xl leaves behind destroys the VM when it has ended. A DisposableVM is restored from what ``xl save`` has written, under a
name, a UUID and a volatile disk of its own; that disk has no name any more once its loop device has it open, so when the VM ends, however
that comes, nothing of it is on the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from uuid import UUID

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import run, services, template
from qfilexchg.dom0.vms.collection import Collection, Vm
from qfilexchg.dom0.vms.hypervisor import HypervisorError, RunningVm, VmId
from qfilexchg.dom0.vms.savefile import Savefile
from qfilexchg.dom0.vms.template import Template
from qfilexchg.dom0.vms.toolstack import START_DEADLINE_S, Basis, BootFailed, Memory, or_end
from qfilexchg.dom0.vms.xen import computer, config, nodes, orders, records, xl
from qfilexchg.dom0.vms.xen.computer import Computer
from qfilexchg.dom0.vms.xen.config import Machine
from qfilexchg.dom0.vms.xen.console import Console
from qfilexchg.dom0.vms.xen.hypervisor import LOGS, Xen
from qfilexchg.dom0.vms.xen.loops import LoopDevices
from qfilexchg.dom0.vms.xen.operations import operation, until
from qfilexchg.errors import CallerError
from qfilexchg.protocol import keys
from qfilexchg.protocol.names import DomainId, VmName

MAKE_DEADLINE_S = 120.0
SAVE_DEADLINE_S = 180.0
"""The VM's memory is written to the disk, a copy of all of it."""
UNPAUSE_DEADLINE_S = 20.0
_QUERY_DEADLINE_S = 30.0
_HELLO_TRIES_S = (1.0, 1.0, 5.0)
"""Now and then one that lasts, for a VM that is slow to answer."""
_HELLO_STEP_S = 0.1

log = logging.getLogger(__name__)


class NameInUse(CallerError):
    """A VM that runs has the name, and is not one of this home's."""

    def __init__(self, name: VmName, domain: DomainId) -> None:
        super().__init__(name, domain)
        self.name = name
        self.domain = domain

    def __str__(self) -> str:
        return (
            f"the name {self.name} is taken by domain {self.domain}, a VM that is not of this collection: "
            f"'xl shutdown {self.domain}' ends it, 'xl rename {self.domain} NAME' gives it another name"
        )


class XenToolstack:
    """:class:`~qfilexchg.dom0.vms.toolstack.Toolstack` for the VMs of one home."""

    def __init__(self, home: Home, loops: LoopDevices | None = None, logs: Path = LOGS) -> None:
        self._home = home
        self._collection = Collection(home.collection)
        self._xen = Xen(home, loops, logs)
        self._computer = Computer(lambda: self._xen.kills)
        self._held: dict[UUID, int] = {}
        """Locks on the records of VMs that were restored here and are still to be woken."""

    @property
    def hypervisor(self) -> Xen:
        return self._xen

    async def basis(self, memory_mib: int, booted: Template | None = None) -> Basis:
        booted = booted or template.current(self._home)
        booted.mark_used()
        return Basis(booted, memory_mib, computer.stamp(booted, await self._computer.info(), memory_mib))

    async def memory(self) -> Memory:
        return await self._computer.memory()

    async def running(self) -> Mapping[VmName, RunningVm]:
        """Also those that were destroyed by half, which the store knows no more; and each by our name for it, whatever it is called now."""
        names = {record.uuid: record.name for record in records.all_records(self._home)}
        names |= {vm.uuid: vm.name for vm in self._collection.list()}
        there = [listed.id for listed in await xl.list_domains() if listed.id.uuid in names]
        return {names[vm.uuid]: RunningVm(vm, names[vm.uuid]) for vm in there}

    async def start(self, vm: Vm, disk: Path, made_of: Basis, keys: Mapping[str, str], *, save_to: Savefile | None = None) -> RunningVm:
        machine = await self._machine(vm, disk, made_of)
        if save_to is not None:
            save_to.state.write_text(config.serialise(config.settings(machine)), encoding="ascii")
        running = await self._make(machine, keys, lambda file: ("create", "-p", file))
        async with or_end(self, running):
            await self._unpause(running.id)
        return running

    async def restore(self, vm: Vm, disk: Path, saved: Savefile, made_of: Basis) -> RunningVm:
        machine = await self._machine(vm, disk, made_of)
        async with services.toolstack_turn(self._home):
            running = await self._make(machine, {}, lambda file: ("restore", "-p", file, str(saved.memory)), hold=True)
        async with or_end(self, running):
            await asyncio.to_thread(disk.unlink)
        return running

    async def _machine(self, vm: Vm, disk: Path, made_of: Basis) -> Machine:
        info = await self._computer.info()
        processors, guest_type = computer.processors(info), computer.guest_type(info)
        return Machine(vm.name, vm.uuid, vm.kind, vm.memory_mib, processors, disk, made_of.template, guest_type)

    async def _make(
        self, machine: Machine, more_keys: Mapping[str, str], command: Callable[[str], Sequence[str]], *, hold: bool = False
    ) -> RunningVm:
        """A paused VM with all its keys, made by what ``command`` makes of its configuration's path.

        ``hold`` says that it may stay paused for long: nobody takes it for one that was left over, as long as this process is there.
        """
        await self._require_name_free(machine.name)
        order = {keys.VM_TYPE: machine.kind.value, **more_keys}
        with records.making(self._home, machine.name, machine.uuid, order) as record, self._computer.promised(machine.memory_mib):
            try:
                with _file(self._home, machine) as file:
                    await xl.run(*command(str(file)), deadline_s=MAKE_DEADLINE_S)
                async with operation(self._home, f"{machine.name} was made and is not found", _QUERY_DEADLINE_S) as store:
                    domain = await nodes.find(store, machine.uuid)
                    if domain is None:
                        raise HypervisorError(f"{machine.name} has ended at once")
                    await record.made(store, domain)
                if hold:
                    self._held[machine.uuid] = record.hold()
            except BaseException:
                await self._clear_away(machine)
                raise
        return RunningVm(VmId(domain, machine.uuid), machine.name)

    async def _require_name_free(self, wanted: VmName) -> None:
        """Raise :exc:`NameInUse` if a VM has the name."""
        async with operation(self._home, "the store cannot be asked for the names of VMs", _QUERY_DEADLINE_S) as store:
            domains = await nodes.domains(store)
            names = await asyncio.gather(*(nodes.name(store, domain) for domain in domains))
        for domain, name in zip(domains, names, strict=True):
            if name == wanted:
                raise NameInUse(wanted, domain)

    async def _clear_away(self, machine: Machine) -> None:
        """Destroy what xl has half made. The store may not know of it yet, so Xen is asked. What is left is swept later."""
        try:
            for listed in await xl.list_domains():
                if listed.id.uuid == machine.uuid:
                    await self._xen.kill(listed.id)
            records.remove(self._home, machine.uuid)
        except HypervisorError as error:
            log.error("%s could not be made, and something of it may be left: %s", machine.name, error)

    async def wait_for_hello(self, vm: RunningVm) -> None:
        console = Console(self._home, vm.id)
        hello = asyncio.create_task(_hello(console))
        end = asyncio.create_task(self.wait_for_end(vm.id, START_DEADLINE_S))
        try:
            await asyncio.wait({hello, end}, return_when=asyncio.FIRST_COMPLETED)
            if hello.done():
                await hello
                return
            how = "ended before it was ready" if await end else f"was not ready within {START_DEADLINE_S:g} s"
            raise BootFailed(f"{vm.name} {how}", _text(console.said))
        finally:
            for task in (hello, end):
                task.cancel()
            await asyncio.gather(hello, end, return_exceptions=True)

    def run(
        self, vm: VmId, argv: Sequence[str], *, user: str = "user", window: tuple[int, int] | None = None, deadline_s: float | None = None
    ) -> AbstractAsyncContextManager[run.Session]:
        return run.session(Console(self._home, vm), argv, user=user, window=window, deadline_s=deadline_s)

    async def shut_down(self, vm: VmId, deadline_s: float) -> None:
        """By Xen's own word to the VM's kernel, which reaches it whatever its console is used for."""
        try:
            if not await self._store_knows(vm):
                return
            await xl.run("shutdown", str(vm.domain), deadline_s=min(deadline_s, _QUERY_DEADLINE_S))
        except HypervisorError as error:
            log.info("domain %d is not told to end: %s", vm.domain, error)

    async def wait_for_end(self, vm: VmId, deadline_s: float) -> bool:
        async with operation(self._home, f"domain {vm.domain}: cannot be asked whether it runs", deadline_s + _QUERY_DEADLINE_S) as store:

            async def has_ended() -> bool:
                return not await nodes.is_run(store, vm)

            if deadline_s <= 0:
                return await has_ended()
            try:
                async with asyncio.timeout(deadline_s):
                    await until(store, has_ended, keys.absolute(vm.domain, keys.VM_PATH), keys.RELEASE_DOMAIN)
            except TimeoutError:
                return False
            return True

    async def save(self, vm: VmId, saved: Savefile) -> None:
        what = f"domain {vm.domain}: cannot be saved"
        async with operation(self._home, what, SAVE_DEADLINE_S + _QUERY_DEADLINE_S) as store:
            if not await nodes.is_run(store, vm):
                raise HypervisorError(what, "it has ended")
            await xl.run("save", str(vm.domain), str(saved.memory), deadline_s=SAVE_DEADLINE_S)
            saved.memory.chmod(0o600)
            await self._xen.ended(store, vm)

    async def wake(self, vm: RunningVm) -> None:
        """Xen gives a VM no randomness, so dom0 does. What is in the key is for the VM alone, and it empties it."""
        domain = vm.id.domain
        async with operation(self._home, f"{vm.name} cannot be woken", _QUERY_DEADLINE_S) as store:
            if not await nodes.is_run(store, vm.id):
                raise HypervisorError(f"{vm.name} has ended before it was woken")
            seed = secrets.token_hex(keys.RANDOM_SEED_BYTES)
            await records.write_keys(store, domain, {keys.RESTORE_COMPLETE: "True"}, {keys.RANDOM_SEED: seed})
        await self._unpause(vm.id)

    async def _unpause(self, vm: VmId) -> None:
        await xl.run("unpause", str(vm.domain), deadline_s=UNPAUSE_DEADLINE_S)
        records.note_woken(self._home, vm.uuid)
        self._let_go(vm.uuid)

    def _let_go(self, uuid: UUID) -> None:
        if (held := self._held.pop(uuid, None)) is not None:
            os.close(held)

    async def paused(self, vm: VmId) -> bool:
        return any(found.paused for found in await xl.list_domains() if found.id == vm)

    async def end(self, vm: RunningVm) -> None:
        self._let_go(vm.id.uuid)  # whatever comes of it: who sweeps may end it too
        await self._xen.kill(vm.id)
        if record := records.get(self._home, vm.id.uuid):
            self._xen.forget(record)

    async def sweep(self, ended: Callable[[VmName], None]) -> None:
        """xl destroys a VM of ours when it has ended; where its process is gone too, we do.

        So do we with one that waits to be woken, if who has made it is gone, and with one that was destroyed by half. What was preloaded
        the next qfilexchgd ends.
        """
        known = {listed.id.uuid: listed for listed in await xl.list_domains()}
        preloaded = {vm.uuid for vm in self._collection.list() if vm.preloaded}
        for record in records.made(self._home):
            if found := known.get(record.uuid):
                left_over = found.paused and not record.woken and record.uuid not in preloaded
                if found.runs and not left_over and await self._store_knows(found.id):
                    continue
                await self._xen.kill(found.id)
            self._xen.forget(record)
            ended(record.name)

    async def _store_knows(self, vm: VmId) -> bool:
        async with operation(self._home, f"domain {vm.domain}: cannot be asked who it is", _QUERY_DEADLINE_S) as store:
            return await nodes.is_run(store, vm)

    def clear(self) -> None:
        for folder in (records.folder(self._home), orders.folder(self._home), self._home.run / "console"):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _file(home: Home, machine: Machine) -> Iterator[Path]:
    """The configuration, while xl reads it."""
    path = records.folder(home) / f"{machine.uuid}.cfg"
    path.write_text(config.serialise(config.settings(machine)), encoding="ascii")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


async def _hello(console: Console) -> None:
    """Return when the VM's agent has answered. What it is asked before it is there it never hears, so it is asked often."""
    for deadline_s in itertools.cycle(_HELLO_TRIES_S):
        try:
            async with run.session(console, [], deadline_s=deadline_s) as session:
                await session.output(run.ignore, run.ignore)
            return
        except run.NoAnswer:
            await asyncio.sleep(_HELLO_STEP_S)  # its console is made a moment after the VM is, and nothing tells when


def _text(said: bytes) -> str:
    return said.decode("utf-8", "backslashreplace")
