"""Runs commands in a VM for the person at the host; the protocol is in protocol/run.py.

What the VM sends back is handed on as bytes, and never understood beyond the frames' three-byte headers and the exit status.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Protocol

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import qemu_command
from qfilexchg.dom0.vms.hypervisor import HypervisorError
from qfilexchg.errors import CallerError
from qfilexchg.protocol import run as protocol
from qfilexchg.protocol.channels import RUN_PORTS
from qfilexchg.protocol.names import DomainId

HELLO_DEADLINE_S = 20.0
_HELLO_TRY_S = 5.0
"""A VM that was just left by another command may take two hosts for one and wait for the first; a second call is clear."""
_READ_BYTES = 64 << 10
_UNREAD_MAX = 256 << 10


class AllPortsBusy(CallerError):
    """As many commands run in the VM as it has ports."""

    def __str__(self) -> str:
        return f"{len(RUN_PORTS)} commands run in this VM already: wait for one to end"


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
    home: Home,
    domain: DomainId,
    argv: Sequence[str],
    *,
    user: str = "user",
    window: tuple[int, int] | None = None,
    deadline_s: float = HELLO_DEADLINE_S,
) -> AsyncIterator[Session]:
    """Begin a command in a running VM, on the first port that no other program of the host uses.

    An empty ``argv`` runs nothing. Raises :exc:`AllPortsBusy`, :exc:`~qfilexchg.protocol.run.CommandTooLong` and, when the agent
    has not answered by the deadline, :exc:`NoAnswer`.
    """
    words = [os.fsencode(word) for word in argv]
    with _free_port(home, domain) as number:
        path = str(qemu_command.run_socket(home, domain, number))
        started = await _begin(path, user, words, window, deadline_s)
        try:
            yield started
        finally:
            started._writer.transport.abort()  # a VM that reads no more must not keep us


@contextlib.contextmanager
def _free_port(home: Home, domain: DomainId) -> Iterator[int]:
    for number in range(len(RUN_PORTS)):
        lock = os.open(home.domain(domain) / f"run.{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        try:
            yield number
            return
        finally:
            os.close(lock)
    raise AllPortsBusy


async def _begin(path: str, user: str, argv: Sequence[bytes], window: tuple[int, int] | None, deadline_s: float) -> Session:
    nonce = secrets.token_bytes(protocol.NONCE_BYTES)
    request = protocol.Start(nonce, user, argv, window).encode()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(deadline_s):
            while True:
                reader, writer = await _connect(path)
                seeker = protocol.HelloSeeker(nonce)
                try:
                    async with asyncio.timeout(_HELLO_TRY_S):
                        writer.write(request)
                        while data := await reader.read(_READ_BYTES):
                            rest = seeker.feed(data)
                            if rest is not None:
                                return Session(reader, writer, rest)
                    raise NoAnswer("the VM has just ended")
                except TimeoutError:
                    writer.close()
                except ConnectionError as error:
                    writer.close()
                    raise NoAnswer("the VM has just ended") from error
                except BaseException:
                    writer.close()
                    raise
    raise NoAnswer("the VM does not answer: it is still starting, or its run agent has ended")


async def _connect(path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        return await asyncio.open_unix_connection(path, limit=_UNREAD_MAX)
    except OSError as error:
        raise NoAnswer("the VM's run port does not open", str(error)) from error
