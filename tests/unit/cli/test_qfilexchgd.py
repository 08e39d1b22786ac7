"""The daemon's process, with a real store that comes and goes, and a hypervisor that is not."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest

from qfilexchg.dom0 import systemd
from qfilexchg.dom0.cli import qfilexchgd
from qfilexchg.dom0.configuration import Configuration
from qfilexchg.dom0.consent.protocol import Answer, FromDaemon, Hello, Notice, Question, Welcome, Withdraw, encode, parse_from_daemon
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import choice
from qfilexchg.dom0.vms.disposables import Disposables
from qfilexchg.dom0.vms.hypervisor import HypervisorError, RunningVm, Slot
from qfilexchg.dom0.vms.qemu.hypervisor import Qemu
from qfilexchg.protocol import keys
from qfilexchg.protocol.names import DomainId, VmName
from qfilexchg.xenstore.client import Store
from qfilexchg.xenstore.server import Server
from tests.fakes.hypervisor import FakeHypervisor


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path, tmp_path / "run", tmp_path / "cache")
    home.make()
    return home


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(qfilexchgd, "AGAIN_S", 0.01)
    caplog.set_level(logging.INFO)


@asynccontextmanager
async def serving(home: Home) -> AsyncIterator[asyncio.Task[None]]:
    """A daemon that is told to end at the end."""
    task = asyncio.create_task(qfilexchgd.serve(home, Configuration()))
    try:
        yield task
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        await task


async def until(done: Callable[[], bool]) -> None:
    while not done():  # noqa: ASYNC110  no event tells a bystander of what the daemon has done
        await asyncio.sleep(0.005)  # between two looks: nothing tells of it


class Person:
    """An agent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def hear(self) -> FromDaemon:
        while True:
            message = parse_from_daemon(await self._reader.readuntil(b"\n"))
            if not isinstance(message, Notice):
                return message

    def say(self, message: Hello | Answer) -> None:
        self.writer.write(encode(message))


@asynccontextmanager
async def person(home: Home) -> AsyncIterator[Person]:
    await until(home.agent_socket.exists)
    agent = Person(*await asyncio.open_unix_connection(home.agent_socket))
    try:
        agent.say(Hello("test"))
        assert await agent.hear() == Welcome()
        yield agent
    finally:
        agent.writer.close()


async def test_preloading_that_goes_wrong_spoils_neither_the_daemon_nor_its_end(
    home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failed = asyncio.Event()

    async def fail(self: Disposables) -> None:
        failed.set()
        raise ZeroDivisionError

    monkeypatch.setattr(Disposables, "keep_ready", fail)
    async with Server(home.store), serving(home) as daemon:
        await failed.wait()
        await asyncio.sleep(0)  # one turn of the loop, in which the failure reaches whoever waits for that task
        assert not daemon.done()
    assert caplog.messages[-1] == "ended"


class TestWithoutAStore:
    async def test_it_ends_when_it_is_told_to(self, home: Home, caplog: pytest.LogCaptureFixture) -> None:
        async with serving(home):
            await until(lambda: "waiting" in caplog.text)
        assert caplog.messages[-1] == "ended"

    async def test_it_ends_when_the_store_goes_away_at_that_moment(self, home: Home, caplog: pytest.LogCaptureFixture) -> None:
        async with serving(home), Server(home.store):
            await until(lambda: "ready" in caplog.messages)
        assert caplog.messages[-1] == "ended"

    async def test_it_says_so_once_and_goes_on_when_there_is_one(self, home: Home, caplog: pytest.LogCaptureFixture) -> None:
        async with serving(home), person(home) as agent:
            await asyncio.sleep(0.1)  # ten more looks
            assert caplog.text.count("waiting") == 1
            async with Server(home.store):
                await until(lambda: "ready" in caplog.messages)
            await until(lambda: caplog.text.count("waiting") == 2)
            async with Server(home.store):
                await until(lambda: caplog.messages.count("ready") == 2)
            assert not agent.writer.is_closing()

    async def test_systemd_is_told_that_it_serves_agents_and_what_it_waits_for(
        self, home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        told: list[str] = []
        monkeypatch.setattr(systemd, "notify", lambda *lines: told.extend(lines))
        async with serving(home):
            await until(lambda: "waiting" in caplog.text)
            assert told[0] == "READY=1" and told[1].startswith("STATUS=waiting: no xenstore")
            async with Server(home.store):
                await until(lambda: told[-1] == "STATUS=serving")
        assert told[-1] == "STOPPING=1"


async def test_a_hypervisor_that_cannot_say_what_runs_is_asked_again(
    home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    running, failures = Qemu.running, [HypervisorError("xl list did not end within 20 s")] * 3

    async def fail_first(self: Qemu) -> Mapping[DomainId, RunningVm]:
        if failures:
            raise failures.pop()
        return await running(self)

    monkeypatch.setattr(Qemu, "running", fail_first)
    async with Server(home.store), serving(home):
        await until(lambda: "ready" in caplog.messages)
    assert caplog.text.count("waiting") == 1 and not failures


class FakeToolstack:
    """As much of one as a daemon without DisposableVMs asks."""

    def __init__(self, hypervisor: FakeHypervisor) -> None:
        self.hypervisor = hypervisor

    async def running(self) -> Mapping[VmName, RunningVm]:
        return {vm.name: vm for vm in self.hypervisor.vms.values()}


class Vm:
    """A VM's side of the store. Its connection is the VM's life."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def ask(self, request: bytes, reply: bytes) -> None:
        """Make a request, and return when it has that reply."""
        while not await self._store.exists(keys.REQUEST) or len(await self._store.get_perms(keys.REQUEST)) < 2:
            await self._store.events.get()
        await self._store.write(keys.REQUEST, request)
        while await self._store.read(keys.REPLY) != reply:
            assert await self._store.events.get()


@asynccontextmanager
async def store_with_vms(home: Home) -> AsyncIterator[tuple[FakeHypervisor, Vm]]:
    """A new store in which work and personal run, each time as the same domains; and work's side of it."""
    async with Server(home.store), await Store.connect(home.store_socket) as store:
        hypervisor = FakeHypervisor(store)
        for number, name in enumerate(("work", "personal")):
            vm = await hypervisor.start(name, UUID(int=number))
        work = home.store_domain_socket(next(iter(hypervisor.vms)).domain)
        async with await Store.connect(work) as inside, await Store.connect(home.store_domain_socket(vm.id.domain)):
            await inside.watch(keys.REPLY, "reply")
            await inside.watch(keys.REQUEST, "request")
            yield hypervisor, Vm(inside)


async def test_what_is_asked_when_the_store_goes_away_is_taken_back_and_asked_anew(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with store_with_vms(home) as (hypervisor, _):
        monkeypatch.setattr(choice, "toolstack", lambda _home: FakeToolstack(hypervisor))
    async with serving(home), person(home) as agent:
        async with store_with_vms(home) as (_, work):
            await work.ask(b"new", b"- attached")
            await work.ask(b"send personal", b"- asking")
            question = await agent.hear()
            assert isinstance(question, Question)
        assert await agent.hear() == Withdraw(question.id)
        agent.say(Answer(question.id, True))
        async with store_with_vms(home):
            again = await agent.hear()
            assert isinstance(again, Question)
            assert [slot for _, slot in hypervisor.disks] == [Slot.OUTGOING]
