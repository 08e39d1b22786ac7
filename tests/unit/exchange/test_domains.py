"""How the request lines of VMs are taken, of VMs that write without end too. What comes of a request is in test_daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from qfilexchg.dom0.exchange.domains import PAUSE_S, Domains
from qfilexchg.dom0.exchange.messages import Requested, VmStarted, VmStopped
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.hypervisor import RunningVm
from qfilexchg.protocol import keys
from qfilexchg.protocol.names import DomainId
from qfilexchg.xenstore.client import ATTEMPTS, Store
from qfilexchg.xenstore.errors import Again
from qfilexchg.xenstore.server import Server
from tests.fakes.hypervisor import FakeHypervisor

LOOK_S = 0.5
MOST = round(LOOK_S / PAUSE_S) + 1


class Scene:
    """One VM, and the daemon's side of the store, with a count of what is asked of that."""

    def __init__(self, store: Store, hypervisor: FakeHypervisor, vm: RunningVm, dom0: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.hypervisor = hypervisor
        self.vm = vm
        self.dom0 = dom0
        self.bodies = 0
        """How often a transaction was begun."""
        self.conflicts = 0
        """So many transactions are undone by nobody who would be heard of."""
        self.heard: asyncio.Queue[VmStarted | VmStopped | Requested] = asyncio.Queue()
        transaction = dom0.transaction

        async def counted(body: Callable[[int], Awaitable[Any]], attempts: int = ATTEMPTS) -> Any:
            async def once(tx: int) -> Any:
                self.bodies += 1
                return await body(tx)

            if self.conflicts:
                self.conflicts -= 1
                raise Again("device/qpen")
            return await transaction(once, attempts)

        monkeypatch.setattr(dom0, "transaction", counted)

    async def write(self, request: bytes) -> None:
        await self.store.write(keys.absolute(self.vm.id.domain, keys.REQUEST), request)


@asynccontextmanager
async def serving(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    home = Home(folder, folder / "run", folder / "cache")
    home.make()
    async with Server(home.store), await Store.connect(home.store_socket) as store, await Store.connect(home.store_socket) as dom0:
        hypervisor = FakeHypervisor(store)
        scene = Scene(store, hypervisor, await hypervisor.start("work"), dom0, monkeypatch)
        domains = Domains(dom0, hypervisor, scene.heard.put_nowait)
        await domains.start()
        assert isinstance(await scene.heard.get(), VmStarted)
        task = asyncio.create_task(domains.serve())
        yield scene
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_domain_that_gets_a_name_by_which_it_can_be_called_is_heard_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path, monkeypatch) as scene, asyncio.timeout(20):
        running = scene.hypervisor.running

        async def callable_ones() -> dict[DomainId, RunningVm]:
            """As a hypervisor tells it: one whose name is none is not among them."""
            there = await running()
            named = {domain: await scene.store.read(keys.absolute(domain, keys.NAME)) for domain in there}
            return {domain: vm for domain, vm in there.items() if b"." not in named[domain]}

        monkeypatch.setattr(scene.hypervisor, "running", callable_ones)
        name = keys.absolute(scene.vm.id.domain, keys.NAME)
        await scene.store.write(name, b"my.vm")
        assert isinstance(await scene.heard.get(), VmStopped)
        await scene.store.write(name, b"work")
        assert isinstance(await scene.heard.get(), VmStarted)


async def test_what_a_vm_writes_below_its_key_waits_as_one_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path, monkeypatch) as scene:
        looking = asyncio.Event()
        running = scene.hypervisor.running

        async def slow() -> Mapping[DomainId, RunningVm]:
            await looking.wait()
            return await running()

        monkeypatch.setattr(scene.hypervisor, "running", slow)
        await scene.store.write(keys.absolute(scene.vm.id.domain, keys.NAME), b"other")
        for number in range(100):
            path = keys.absolute(scene.vm.id.domain, f"{keys.REQUEST}/{number}")
            await scene.store.write(path, b"")
            await scene.store.rm(path)
        assert scene.dom0.events.qsize() <= 2
        looking.set()


async def write_without_end(scene: Scene, request: bytes) -> int:
    """For so long; how often, then."""
    writes = 0
    async with asyncio.timeout(60):
        end = asyncio.get_running_loop().time() + LOOK_S
        while asyncio.get_running_loop().time() < end:
            await scene.write(request)
            writes += 1
    return writes


@pytest.mark.parametrize("request_", [b"", b"status", b"nonsense"])
async def test_a_vm_that_writes_without_end_has_its_key_looked_at_only_after_each_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_: bytes
) -> None:
    async with serving(tmp_path, monkeypatch) as scene:
        begun = scene.bodies
        writes = await write_without_end(scene, request_)
        assert writes > 2 * MOST and scene.bodies - begun <= MOST


async def test_a_request_whose_taking_was_undone_is_taken_again_whoever_has_undone_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, monkeypatch) as scene:
        scene.conflicts = 2
        await scene.write(b"status")
        async with asyncio.timeout(20):
            heard = await scene.heard.get()
        assert isinstance(heard, Requested) and heard.request.verb == "status" and scene.conflicts == 0
