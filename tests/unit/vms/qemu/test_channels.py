from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from qfilexchg.dom0.vms import run
from qfilexchg.dom0.vms.qemu.channels import AllPortsBusy, run_socket, session
from qfilexchg.protocol import run as protocol
from qfilexchg.protocol.channels import RUN_PORTS


class Agent:
    """A VM's end of one port: it says what it was asked for, and ends with status 3. ``deaf`` is how many calls it does not answer."""

    def __init__(self) -> None:
        self.deaf = 0
        self.calls = 0
        self.ended: list[asyncio.Event] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.calls += 1
        self.ended.append(ended := asyncio.Event())
        try:
            await self._hear(reader, writer)
        finally:
            writer.close()
            ended.set()

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until the host hangs up."""
        decoder, deaf = protocol.Decoder(), self.calls <= self.deaf
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                for kind, payload in () if deaf else decoder.feed(data.removeprefix(protocol.PREAMBLE)):
                    if kind == protocol.START:
                        start = protocol.Start.parse(payload)
                        writer.write(b"noise of a console" + protocol.hello(start.nonce))
                        writer.write(protocol.frame(protocol.STDOUT, b" ".join(start.argv)) + protocol.frame(protocol.EXIT, b"\3"))


@asynccontextmanager
async def port(folder: Path, number: int = 0) -> AsyncIterator[Agent]:
    agent = Agent()
    async with await asyncio.start_unix_server(agent.serve, run_socket(folder, number)):
        yield agent
        for ended in agent.ended:  # each command is hung up
            await ended.wait()


async def test_a_command_says_what_it_says_and_ends_with_its_status(tmp_path: Path) -> None:
    said: list[bytes] = []
    async with port(tmp_path), session(tmp_path, ["echo", "x"]) as begun:
        assert await begun.output(said.append, run.ignore) == 3
    assert b"".join(said) == b"echo x"


async def test_a_vm_that_takes_a_call_for_another_is_called_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_HELLO_TRY_S", 0.05)
    async with port(tmp_path) as agent:
        agent.deaf = 2
        async with session(tmp_path, ["true"]) as begun:
            assert await begun.output(run.ignore, run.ignore) == 3
        assert agent.calls == 3


async def test_a_vm_that_does_not_answer_by_the_deadline_is_said_to_be_starting(tmp_path: Path) -> None:
    async with port(tmp_path) as agent:
        agent.deaf = 9
        with pytest.raises(run.NoAnswer, match="still starting"):
            async with session(tmp_path, ["true"], deadline_s=0.05):
                pass


@pytest.mark.parametrize("folder", ["", "gone"])
async def test_a_vm_without_a_port_does_not_answer(tmp_path: Path, folder: str) -> None:
    with pytest.raises(run.NoAnswer):
        async with session(tmp_path / folder, ["true"]):
            pass


async def test_each_command_has_a_port_of_its_own_until_there_is_none(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        agents = [await stack.enter_async_context(port(tmp_path, number)) for number in range(len(RUN_PORTS))]
        async with AsyncExitStack() as commands:
            for _ in agents:
                await commands.enter_async_context(session(tmp_path, ["true"]))
            assert [agent.calls for agent in agents] == [1] * len(RUN_PORTS)
            with pytest.raises(AllPortsBusy):
                await commands.enter_async_context(session(tmp_path, ["true"]))
        async with session(tmp_path, ["true"]):
            assert agents[0].calls == 2


async def test_a_queue_full_of_attempts_that_were_given_up_is_waited_for(tmp_path: Path) -> None:
    # The connection was taken for one that was there, and what was written to it failed as nothing that is caught.
    with socket.socket(socket.AF_UNIX) as listening, contextlib.ExitStack() as attempts:
        listening.bind(str(run_socket(tmp_path, 0)))
        listening.listen(0)
        with pytest.raises(BlockingIOError):
            while True:
                attempt = attempts.enter_context(socket.socket(socket.AF_UNIX))
                attempt.setblocking(False)
                attempt.connect(str(run_socket(tmp_path, 0)))
        with pytest.raises(run.NoAnswer, match="does not answer"):
            async with session(tmp_path, ["true"], deadline_s=0.2):
                raise AssertionError("nobody has answered")
