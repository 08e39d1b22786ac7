"""The console with a real run agent at its other end; what xenconsoled does between the two terminals is done by the test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import termios
import threading
import tty
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import run
from qfilexchg.dom0.vms.run import NoAnswer
from qfilexchg.dom0.vms.xen import console
from qfilexchg.dom0.vms.xen.console import Console, ConsoleBusy
from qfilexchg.protocol import keys
from qfilexchg.xenstore.client import Store
from tests.python import PYTHON
from tests.unit.vms.xen.xen import Domain, FakeXen, xen

SOURCES = Path(__file__).parents[4] / "src"
USER = pwd.getpwuid(os.getuid()).pw_name
_AGENT = "import sys; from qfilexchg.guest import run_agent as a; a.serve((), [a.open_console(sys.argv[1])])"


class Scene:
    """A VM whose console is ``dom0``; its kernel's end is ``vm``."""

    def __init__(self, fake: FakeXen, home: Home, store: Store) -> None:
        self.fake = fake
        self.home = home
        self.store = store
        self.agent: asyncio.subprocess.Process | None = None
        self._threads: list[threading.Thread] = []
        self._pairs = [os.openpty(), os.openpty()]
        for _, slave in self._pairs:
            tty.setraw(slave)
        (self._daemon, self._dom0), (self._kernel, self._vm) = self._pairs

    async def start(self) -> Domain:
        domain = await self.fake.start("work")
        await self.name(domain, os.ttyname(self._dom0).encode())
        return domain

    async def name(self, domain: Domain, terminal: bytes) -> None:
        path = keys.absolute(domain.id, "console/tty")
        await self.store.write(path, terminal)
        await self.store.set_perms(path, keys.readable_by(domain.id))

    def connect(self) -> None:
        """xenconsoled carries bytes both ways."""
        for one, other in ((self._daemon, self._kernel), (self._kernel, self._daemon)):
            thread = threading.Thread(target=_carry, args=(one, other), daemon=True)
            thread.start()
            self._threads.append(thread)

    async def serve(self) -> None:
        """The VM's run agent comes up."""
        environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
        self.agent = await asyncio.create_subprocess_exec(*PYTHON, "-S", "-c", _AGENT, os.ttyname(self._vm), env=environment)

    @property
    def terminal(self) -> int:
        """What the store names."""
        return self._dom0

    def say(self, text: bytes) -> None:
        """The VM's kernel says something."""
        os.write(self._daemon, text)

    async def close(self) -> None:
        if self.agent:
            self.agent.kill()
            await self.agent.wait()
        for _, slave in self._pairs:
            with contextlib.suppress(OSError):
                os.close(slave)
        for thread in self._threads:
            await asyncio.to_thread(thread.join, 10)
        for master, _ in self._pairs:
            with contextlib.suppress(OSError):
                os.close(master)

    def hang_up(self) -> None:
        """The VM has ended, and xenconsoled closes the terminal."""
        os.close(self._dom0)
        os.close(self._daemon)


def _carry(one: int, other: int) -> None:
    with contextlib.suppress(OSError):  # its other end is closed
        while data := os.read(one, 512):
            os.write(other, data)


@contextlib.asynccontextmanager
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(run, "_HELLO_TRY_S", 0.5)  # the agent hears nothing of what comes before it is up
    async with xen(tmp_path, monkeypatch) as (fake, home, store):
        here = Scene(fake, home, store)
        try:
            yield here
        finally:
            await here.close()


async def output(way: Console, *argv: str, input: bytes = b"", deadline_s: float | None = None) -> tuple[int, bytes]:
    heard = bytearray()
    async with run.session(way, argv, user=USER, deadline_s=deadline_s) as session:
        feeding = asyncio.create_task(session.feed(_Bytes(input)))
        status = await session.output(heard.extend, heard.extend)
        await feeding
    return status, bytes(heard)


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self) -> bytes:
        data, self._data = self._data[: 32 << 10], self._data[32 << 10 :]
        return data


async def test_a_command_runs_and_every_byte_passes_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(tmp_path, monkeypatch) as here:
        work = await here.start()
        here.connect()
        await here.serve()
        data = bytes(range(256)) * 2048
        assert await output(Console(here.home, work.vm.id), "cat", input=data, deadline_s=30) == (0, data)
        assert await output(Console(here.home, work.vm.id), "sh", "-c", "exit 3") == (3, b"")


async def test_what_the_kernel_said_before_is_passed_over_and_kept_to_be_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(tmp_path, monkeypatch) as here:
        work = await here.start()
        here.say(b"[    0.1] Linux version\r\n")
        here.connect()
        await here.serve()
        way = Console(here.home, work.vm.id)
        assert await output(way, "echo", "here", deadline_s=30) == (0, b"here\n")
        assert b"Linux version" in way.said


async def test_a_session_that_is_left_is_ended_in_the_vm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(tmp_path, monkeypatch) as here:
        work = await here.start()
        here.connect()
        await here.serve()
        heard = asyncio.Event()
        gone = tmp_path / "gone"
        command = f"exec 2>/dev/null; trap 'echo > {gone}; exit' HUP; echo up; while :; do sleep 0.05; done"

        async def leave() -> None:
            async with run.session(Console(here.home, work.vm.id), ["sh", "-c", command], user=USER, deadline_s=30) as session:
                await session.output(lambda _: heard.set(), run.ignore)

        leaving = asyncio.create_task(leave())
        await heard.wait()
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert (await output(Console(here.home, work.vm.id), "sh", "-c", f"while ! [ -e {gone} ]; do sleep 0.05; done"))[0] == 0


async def test_a_second_command_waits_for_its_turn_and_is_told_why_it_waited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "TURN_DEADLINE_S", 0.2)
    async with scene(tmp_path, monkeypatch) as here:
        work = await here.start()
        way = Console(here.home, work.vm.id)
        async with way():
            with pytest.raises(ConsoleBusy, match="one at a time"):
                await output(Console(here.home, work.vm.id), "true")
            second = asyncio.create_task(_enter(Console(here.home, work.vm.id)))
        await second


async def _enter(way: Console) -> None:
    async with way():
        return


async def test_a_vm_that_does_not_answer_is_told_from_one_that_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(tmp_path, monkeypatch) as here:
        work = await here.start()
        with pytest.raises(NoAnswer, match="does not answer"):
            await output(Console(here.home, work.vm.id), "true", deadline_s=0.2)
        async with Console(here.home, work.vm.id)() as (reader, _):
            here.hang_up()
            assert await reader.read() == b""


@pytest.mark.parametrize("named", [b"", b"/etc/shadow", b"/dev/pts/../null", b"/dev/null", b"/dev/pts/1/", b"/dev/pts/99999999"])
async def test_what_is_no_terminal_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bytes) -> None:
    async with scene(tmp_path, monkeypatch) as here:
        work = await here.start()
        await here.name(work, named)
        with pytest.raises(NoAnswer, match="no console"):
            await output(Console(here.home, work.vm.id), "true")


async def test_a_terminal_that_the_vm_could_have_named_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(tmp_path, monkeypatch) as here:
        work = await here.start()
        for perms in (keys.writable_by(work.id), (f"n{work.id}",), ("b0",)):
            await here.store.set_perms(keys.absolute(work.id, "console/tty"), perms)
            with pytest.raises(NoAnswer, match="could have named"):
                await output(Console(here.home, work.vm.id), "true")


async def test_a_console_that_is_another_vms_once_it_is_open_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(tmp_path, monkeypatch) as here:
        work = await here.start()
        attributes = termios.tcgetattr(here.terminal)
        attributes[3] |= termios.ECHO
        termios.tcsetattr(here.terminal, termios.TCSANOW, attributes)
        attributes = termios.tcgetattr(here.terminal)

        async def open_late(self: Console) -> Path:
            path = await looked(self)
            await here.store.write(keys.absolute(work.id, "vm"), f"/vm/{uuid4()}".encode())
            return path

        looked = Console._path
        monkeypatch.setattr(Console, "_path", open_late)
        with pytest.raises(NoAnswer, match="the VM has ended"):
            await output(Console(here.home, work.vm.id), "true")
        assert termios.tcgetattr(here.terminal) == attributes


async def test_of_what_a_vm_says_only_the_end_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "SAID_MAX", 4)
    async with scene(tmp_path, monkeypatch) as here:
        work = await here.start()
        here.say(b"123456")
        way = Console(here.home, work.vm.id)
        with pytest.raises(NoAnswer):
            await output(way, "true", deadline_s=0.5)
        assert way.said == b"3456"
