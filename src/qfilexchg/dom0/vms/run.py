"""Runs commands in a VM for the person at the host; the protocol is in protocol/run.py.

How the bytes get to the VM's run agent and back is the platform's: a :data:`Way`. What the VM sends back is handed on as bytes, and
never understood beyond the frames' three-byte headers and the exit status.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from qfilexchg.dom0.vms.hypervisor import HypervisorError
from qfilexchg.protocol import run as protocol

HELLO_DEADLINE_S = 20.0
_HELLO_TRY_S = 5.0
"""A VM that was just left by another command may take two hosts for one and wait for the first; a second call is clear."""
_READ_BYTES = 64 << 10
UNREAD_MAX = 256 << 10
"""Bytes that a way reads ahead of who hears them."""

Way = Callable[[], contextlib.AbstractAsyncContextManager[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
"""One connection to a VM's run agent, with nobody else on it, each time it is called. At its end the command there is hung up, and what
the VM has not read is dropped: one that reads no more must not keep us. Raises :exc:`NoAnswer` where there is no agent to be reached."""


class NoAnswer(HypervisorError):
    """The VM's run agent does not answer."""


class Source(Protocol):
    """Where a command's input comes from."""

    async def read(self) -> bytes:
        """The next piece; the empty string at the end."""
        ...


class Session:
    """A command in a VM. It ends with the VM's EXIT; closing it before hangs the command up."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rest: bytes) -> None:
        self._reader = reader
        self._writer = writer
        self._rest = rest

    async def feed(self, source: Source) -> None:
        """Give the command all of ``source``, as fast as it takes it."""
        with contextlib.suppress(ConnectionError):  # the command has ended: no input is needed any more
            while data := await source.read():
                for start in range(0, len(data), protocol.PAYLOAD_MAX):
                    self._writer.write(protocol.frame(protocol.STDIN, memoryview(data)[start : start + protocol.PAYLOAD_MAX]))
                await self._writer.drain()
            self._writer.write(protocol.frame(protocol.STDIN))
            await self._writer.drain()

    def resize(self, rows: int, columns: int) -> None:
        """Tell the command that its terminal has another size."""
        self._writer.write(protocol.frame(protocol.WINDOW, protocol.window_size(rows, columns)))

    async def output(self, stdout: Callable[[bytes], object], stderr: Callable[[bytes], object]) -> int:
        """Hand on what the command says until it ends, and return its exit status.

        Raises :exc:`~qfilexchg.protocol.run.BadFrame` when the VM breaks the protocol and :exc:`NoAnswer` when it ends before.
        """
        decoder = protocol.Decoder()
        data = self._rest
        while True:
            for kind, payload in decoder.feed(data):
                if kind == protocol.STDOUT:
                    stdout(payload)
                elif kind == protocol.STDERR:
                    stderr(payload)
                elif kind == protocol.EXIT and len(payload) == 1:
                    return payload[0]
                else:
                    raise protocol.BadFrame("a frame that only dom0 may send")
            data = await self._reader.read(_READ_BYTES)
            if not data:
                raise NoAnswer("the VM ended before the command did")


def ignore(_data: bytes) -> None:
    """For a session whose output nobody wants."""


@contextlib.asynccontextmanager
async def session(
    way: Way, argv: Sequence[str], *, user: str = "user", window: tuple[int, int] | None = None, deadline_s: float | None = None
) -> AsyncIterator[Session]:
    """Begin a command in a running VM. An empty ``argv`` runs nothing.

    Raises :exc:`~qfilexchg.protocol.run.CommandTooLong`, what ``way`` raises and, when the agent has not answered by the deadline (of
    :data:`HELLO_DEADLINE_S` seconds, where none is given), :exc:`NoAnswer`.
    """
    words = [os.fsencode(word) for word in argv]
    async with contextlib.AsyncExitStack() as stack:
        yield await _begin(stack, way, user, words, window, HELLO_DEADLINE_S if deadline_s is None else deadline_s)


async def _begin(
    stack: contextlib.AsyncExitStack, way: Way, user: str, argv: Sequence[bytes], window: tuple[int, int] | None, deadline_s: float
) -> Session:
    """The connection is left to ``stack``."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(deadline_s):
            while True:
                # Each attempt has its own: the hello to one that was given up may still come, and the next one's after it.
                nonce = secrets.token_bytes(protocol.NONCE_BYTES)
                request = protocol.Start(nonce, user, argv, window).encode()
                async with contextlib.AsyncExitStack() as attempt:
                    reader, writer = await attempt.enter_async_context(way())
                    try:
                        async with asyncio.timeout(_HELLO_TRY_S):
                            rest = await _hello(reader, writer, nonce, request)
                    except TimeoutError:
                        continue
                    stack.push_async_exit(attempt.pop_all())
                    return Session(reader, writer, rest)
    raise NoAnswer("the VM does not answer: it is still starting, or its run agent has ended")


async def _hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, nonce: bytes, request: bytes) -> bytes:
    """What the VM has said after its hello."""
    seeker = protocol.HelloSeeker(nonce)
    try:
        writer.write(request)
        while data := await reader.read(_READ_BYTES):
            if (rest := seeker.feed(data)) is not None:
                return rest
    except ConnectionError as error:
        raise NoAnswer("the VM has just ended") from error
    raise NoAnswer("the VM has just ended")
