"""A domain on QEMU, from nothing to a VM that answers: whole, or nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import run
from qfilexchg.dom0.vms.collection import Kind
from qfilexchg.dom0.vms.hypervisor import HypervisorError, RunningVm, VmId
from qfilexchg.dom0.vms.processes import Process
from qfilexchg.dom0.vms.qemu import channels, hypervisor
from qfilexchg.dom0.vms.toolstack import START_DEADLINE_S, BootFailed
from qfilexchg.protocol import keys
from qfilexchg.xenstore.client import Store

_STEP_S = 0.02


def processors() -> int:
    """A VM's processors: two where the host has them, as starting a system is two things at a time."""
    return min(2, len(os.sched_getaffinity(0)))


async def launch(home: Home, running: RunningVm, kind: Kind, argv: list[str], more_keys: Mapping[str, str]) -> Process:
    """Introduce the domain to the store and start its QEMU; ``more_keys`` are relative, and readable to the VM.

    To be called with the toolstack's lock held, so that nobody takes the domain for one that has ended. Raises :exc:`BootFailed`.
    """
    domain = running.id.domain
    home.domain(domain).mkdir(mode=0o700, parents=True)
    async with or_kill(home, running):
        hypervisor.Record(running, None).save(home)
        async with await Store.connect(home.store_socket) as store:
            await _write_keys(store, running, kind, more_keys)
            await store.introduce(domain)
        log = home.vm(running.name) / "qemu.log"
        log.unlink(missing_ok=True)
        process = Process.start(argv, log=log)
        if process is None:
            raise BootFailed(f"{running.name}: QEMU ended at once", _tail(home, running))
        hypervisor.Record(running, process).save(home)
        return process


@asynccontextmanager
async def or_kill(home: Home, running: RunningVm) -> AsyncIterator[None]:
    """Leave nothing of the domain when the body fails."""
    try:
        yield
    except BaseException:
        qemu = hypervisor.Qemu(home)
        await qemu.kill(running.id)
        await qemu.release(running.id.domain)
        raise


async def wait_for_hello(home: Home, running: RunningVm) -> None:
    """Return when the VM's run agent answers. Raises :exc:`BootFailed`."""
    found = hypervisor.record(home, running.id.domain)
    try:
        if found is None or found.process is None:
            raise run.NoAnswer("QEMU ended at once")
        await _hello(home, running.id, found.process)
    except run.NoAnswer as error:
        try:
            said = await hypervisor.Qemu(home).console(running.id)
        except HypervisorError:
            said = _tail(home, running)
        runs = found is not None and found.process is not None and found.process.running
        how = f"was not ready within {START_DEADLINE_S:g} s" if runs else "ended before it was ready"
        raise BootFailed(f"{running.name} {how}", said) from error


async def _hello(home: Home, vm: VmId, process: Process) -> None:
    end = time.monotonic() + START_DEADLINE_S
    while True:
        try:
            async with channels.session(home.domain(vm.domain), [], deadline_s=end - time.monotonic()) as session:
                await session.output(run.ignore, run.ignore)
            return
        except run.NoAnswer:
            # QEMU makes its sockets a moment after its process is there.
            if not process.running or time.monotonic() > end:
                raise
            await asyncio.sleep(_STEP_S)


def _tail(home: Home, running: RunningVm) -> str:
    return (home.vm(running.name) / "qemu.log").read_bytes()[-4096:].decode("utf-8", "backslashreplace")


async def _write_keys(store: Store, running: RunningVm, kind: Kind, more: Mapping[str, str]) -> None:
    """What libxl writes and the exchange reads. The domain may read its own keys and write none."""
    domain = running.id.domain
    vm_path = hypervisor.vm_path(running.id.uuid)
    values = {
        keys.absolute(domain, keys.VM_PATH): vm_path,
        keys.absolute(domain, keys.NAME): running.name,
        keys.absolute(domain, "domid"): str(int(domain)),
        keys.absolute(domain, keys.VM_TYPE): kind.value,
        f"{vm_path}/uuid": str(running.id.uuid),
        f"{vm_path}/name": running.name,
        **{keys.absolute(domain, key): value for key, value in more.items()},
    }

    async def write(tx: int) -> None:
        for folder in (keys.home(domain), vm_path, keys.absolute(domain, "device")):
            await store.mkdir(folder, tx)
            await store.set_perms(folder, keys.readable_by(domain), tx)
        for path, value in values.items():
            await store.write(path, value.encode("ascii"), tx)

    await store.transaction(write)
