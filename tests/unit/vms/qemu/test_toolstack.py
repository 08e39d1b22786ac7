"""The QEMU toolstack with real stores, records and processes, and without machines."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.collection import Collection
from qfilexchg.dom0.vms.processes import Process, wait_until
from qfilexchg.dom0.vms.qemu.toolstack import QemuToolstack
from qfilexchg.protocol import keys
from qfilexchg.protocol.names import DomainId, VmName
from qfilexchg.xenstore.client import Store
from qfilexchg.xenstore.server import Server
from tests.fakes.qemu import FakeQemu, Started


class Scene:
    def __init__(self, home: Home) -> None:
        self.home = home
        self.toolstack = QemuToolstack(home)
        self.qemu = FakeQemu(home, Collection(home.collection))

    async def start(self) -> Started:
        """A restored VM, a child of the toolstack's."""
        started = await self.qemu.disposable()
        self.toolstack.hypervisor.adopt(started.vm.id.domain, started.process)
        return started


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    home = Home(folder, folder / "run", folder / "cache")
    home.make()
    async with Server(home.store):
        here = Scene(home)
        try:
            yield here
        finally:
            here.qemu.end()


def is_a_zombie(process: Process) -> bool:
    """It has ended, and nobody has asked how."""
    try:
        return Path(f"/proc/{process.pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except FileNotFoundError:
        return False


def kill(process: Process) -> None:
    os.kill(process.pid, signal.SIGKILL)
    assert wait_until(lambda: is_a_zombie(process), 10)


async def test_a_restored_vm_waits_to_be_woken_and_is_told_that_it_is_complete(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        vm = (await here.start()).vm
        assert await here.toolstack.paused(vm.id) and await here.toolstack.running() == {vm.name: vm}
        await here.toolstack.wake(vm)
        assert not await here.toolstack.paused(vm.id)
        async with await Store.connect(here.home.store_socket) as store:
            path = keys.absolute(vm.id.domain, keys.RESTORE_COMPLETE)
            assert (await store.read(path), await store.get_perms(path)) == (b"True", ("n0", f"r{vm.id.domain}"))


async def test_the_end_of_a_vm_is_seen_at_once_and_waited_for(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        started = await here.start()
        assert not await here.toolstack.wait_for_end(started.vm.id, 0)
        assert not await here.toolstack.wait_for_end(started.vm.id, 0.01)
        os.kill(started.process.pid, signal.SIGKILL)
        assert await here.toolstack.wait_for_end(started.vm.id, 10)
        assert await here.toolstack.wait_for_end(started.vm.id, 0)


async def test_a_vm_that_is_ended_leaves_nothing_and_can_be_ended_twice(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        started = await here.start()
        await here.toolstack.end(started.vm)
        assert not started.process.running and not here.home.domain(started.vm.id.domain).exists()
        async with await Store.connect(here.home.store_socket) as store:
            assert not await store.exists(keys.home(started.vm.id.domain))
        await here.toolstack.end(started.vm)


async def test_no_zombie_is_left_of_a_vm_that_others_have_cleaned_up_after(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        started = await here.start()
        kill(started.process)
        shutil.rmtree(here.home.domain(started.vm.id.domain))
        await here.toolstack.hypervisor.release(started.vm.id.domain)
        assert not is_a_zombie(started.process)


async def test_a_sweep_cleans_up_after_what_has_ended_and_tells_of_it(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        ended, other = await here.start(), await here.start()
        half_made = here.home.domain(DomainId(99))
        half_made.mkdir()
        kill(ended.process)
        told: list[VmName] = []
        await here.toolstack.sweep(told.append)
        assert told == [ended.vm.name] and not half_made.exists()
        assert [int(folder.name) for folder in here.home.domains.iterdir()] == [int(other.vm.id.domain)]


async def test_what_is_left_without_a_store_can_still_be_cleared_away(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        started = await here.start()
        await here.toolstack.hypervisor.kill(started.vm.id)
    here.toolstack.clear()
    assert not list(here.home.domains.iterdir())
