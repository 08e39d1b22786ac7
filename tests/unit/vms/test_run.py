from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from qfilexchg.dom0.vms import run
from qfilexchg.protocol.run import EXIT, PREAMBLE, START, Decoder, Start, frame, hello


class SlowAgent:
    """A VM's run agent that begins to answer when it is asked for the second time, and answers everything then."""

    def __init__(self) -> None:
        self.nonces: list[bytes] = []

    @contextlib.asynccontextmanager
    async def way(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        from_host, to_host = await asyncio.open_connection(sock=theirs)
        serving = asyncio.create_task(self._serve(from_host, to_host))
        try:
            yield reader, writer
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            for end in (writer, to_host):
                end.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = Decoder()
        data = await reader.readexactly(len(PREAMBLE))
        while True:
            for kind, payload in decoder.feed(data):
                assert kind == START
                self.nonces.append(Start.parse(payload).nonce)
            if len(self.nonces) == 2:
                writer.write(b"".join(hello(nonce) for nonce in self.nonces) + frame(EXIT, b"\7"))
                return
            data = await reader.read(1 << 16)


async def test_the_answer_to_an_attempt_that_was_given_up_is_not_taken_for_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy computer the second attempt had the first one's nonce, so its own answer was read as what the command said."""
    monkeypatch.setattr(run, "_HELLO_TRY_S", 0.05)
    agent = SlowAgent()
    async with run.session(agent.way, ["true"]) as session:
        assert await session.output(run.ignore, run.ignore) == 7
    assert len(set(agent.nonces)) == 2
