"""The way to a Xen VM's run agent: the VM's console, at whose other end xenconsoled has made a terminal in dom0.

There is one for each VM, so its commands take turns. The run protocol goes over it with what protocol/console.py adds. At its end each
session begins another that runs nothing, as nobody hangs up a console: it ends what was left of the first.

The store names the terminal. What stands there is believed only if the VM could not have written it, and it is a terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import secrets
import socket
import stat
import termios
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import run
from qfilexchg.dom0.vms.hypervisor import HypervisorError, VmId
from qfilexchg.dom0.vms.run import NoAnswer
from qfilexchg.dom0.vms.xen import nodes
from qfilexchg.dom0.vms.xen.operations import operation
from qfilexchg.protocol import keys
from qfilexchg.protocol.console import Line
from qfilexchg.protocol.names import DomainId
from qfilexchg.protocol.run import NONCE_BYTES, PREAMBLE, Start

SAID_MAX = 64 << 10
"""Bytes of what a VM has said that are kept to be shown. Stops a VM that says much from filling our memory."""
TURN_DEADLINE_S = 15.0
"""For another command in the VM to end: less than a session waits for the VM, so that it is known what it waited for."""
_TTY = "console/tty"
_TERMINAL = re.compile(rb"/dev/pts/(?:0|[1-9][0-9]{0,6})")
_UNIX98_PTY_MAJORS = range(136, 144)
_QUERY_DEADLINE_S = 20.0
_FAREWELL_DEADLINE_S = 2.0
"""To end what was left. A VM that reads nothing for so long hears it no more."""
_TURN_STEP_S = 0.05
_READ_BYTES = 64 << 10


class ConsoleBusy(NoAnswer):
    """Another command uses the VM's console."""


class Console:
    """The console of one VM. Calling it is a :data:`~qfilexchg.dom0.vms.run.Way`."""

    def __init__(self, home: Home, vm: VmId) -> None:
        self._home = home
        self._vm = vm
        self._said = bytearray()

    @property
    def said(self) -> bytes:
        """The end of what came from the VM through this object: its own bytes."""
        return bytes(self._said)

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        async with self._turn(), self._open() as terminal:
            ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            with theirs:
                reader, writer = await asyncio.open_connection(sock=ours, limit=run.UNREAD_MAX)
                carrier = _Carrier(terminal, theirs, self._note)
                tasks = (asyncio.create_task(carrier.send()), asyncio.create_task(carrier.receive()))
                try:
                    yield reader, writer
                finally:
                    writer.transport.abort()
                    with contextlib.suppress(ConnectionError):
                        await writer.wait_closed()
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
                    await carrier.end()

    def _note(self, data: bytes) -> None:
        self._said += data
        del self._said[:-SAID_MAX]

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait for other commands in this VM to end. Raises :exc:`ConsoleBusy`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + TURN_DEADLINE_S
        with contextlib.ExitStack() as held:
            while True:
                try:
                    held.enter_context(self._lock())
                    break
                except BlockingIOError:
                    if loop.time() > end:
                        raise ConsoleBusy("another command runs in this VM, and on Xen one at a time can: wait for it to end") from None
                await asyncio.sleep(_TURN_STEP_S)
            yield

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Raises BlockingIOError while another has it."""
        folder = self._home.run / "console"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (folder / f"{int(self._vm.domain)}.lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[int]:
        path = await self._path()
        try:
            terminal = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise NoAnswer("the VM's console does not open", str(error)) from error
        try:
            status = os.fstat(terminal)
            if not stat.S_ISCHR(status.st_mode) or os.major(status.st_rdev) not in _UNIX98_PTY_MAJORS:
                raise NoAnswer("the VM's console is no terminal", str(path))
            if await self._path() != path:  # what was opened may be another VM's, which got the number of one that has ended
                raise NoAnswer("the VM's console has just changed")
            with contextlib.suppress(OSError, termios.error):  # it has just been closed at the other end, as reading will tell
                _make_raw(terminal)
            yield terminal
        finally:
            os.close(terminal)

    async def _path(self) -> Path:
        domain = self._vm.domain
        path = keys.absolute(domain, _TTY)
        try:
            async with operation(self._home, f"domain {domain}: its console is not found", _QUERY_DEADLINE_S) as store:
                if not await nodes.is_run(store, self._vm):
                    raise NoAnswer("the VM has ended")
                named = await nodes.read(store, path)
                if named is None or not _TERMINAL.fullmatch(named):
                    raise NoAnswer("the VM has no console yet")
                if _may_write(await store.get_perms(path), domain):
                    raise NoAnswer("the VM's console is not used, as the VM could have named any file there")
        except NoAnswer:
            raise
        except HypervisorError as error:
            raise NoAnswer(error.what, error.detail) from error
        return Path(os.fsdecode(named))


def _may_write(perms: tuple[str, ...], domain: DomainId) -> bool:
    """Whether a key's permissions, the owner's first, let the VM write it."""
    owner, *others = perms
    return owner[1:] != "0" or owner[0] in "wb" or any(perm[0] in "wb" and perm[1:] == str(int(domain)) for perm in others)


def _make_raw(terminal: int) -> None:
    """Hand on every byte as it is (termios(3)); xenconsoled has done so, unless somebody has changed it since."""
    attributes = termios.tcgetattr(terminal)
    attributes[0] = attributes[1] = attributes[3] = 0
    attributes[2] = termios.CS8 | termios.CREAD | termios.CLOCAL
    attributes[6][termios.VMIN], attributes[6][termios.VTIME] = 1, 0
    termios.tcsetattr(terminal, termios.TCSANOW, attributes)


class _Carrier:
    """Carries a session's bytes between its socket and the terminal. Both are non-blocking and the caller's to close."""

    def __init__(self, terminal: int, session: socket.socket, note: Callable[[bytes], None]) -> None:
        self._terminal = terminal
        self._session = session
        self._note = note
        self._line = Line()
        self._begun = False
        self._room = asyncio.Event()
        self._writing = asyncio.Lock()

    async def send(self) -> None:
        """What the session says, which begins with a START's preamble, until it says no more."""
        loop = asyncio.get_running_loop()
        data = b""
        while len(data) < len(PREAMBLE):
            if not (piece := await loop.sock_recv(self._session, _READ_BYTES)):
                return
            data += piece
        self._begun = True
        await self._write(self._line.encode(data))
        while data := await loop.sock_recv(self._session, _READ_BYTES):
            while data:
                self._room.clear()
                if room := self._line.room_bytes:
                    now, data = data[:room], data[room:]
                    await self._write(self._line.encode(now))
                else:
                    await self._room.wait()

    async def receive(self) -> None:
        """What the VM says, until its console is closed; the session learns of that."""
        loop = asyncio.get_running_loop()
        try:
            while data := await self._read():
                self._note(data)
                _, data = self._line.decode(data)
                if data:
                    await loop.sock_sendall(self._session, data)
                self._room.set()
                if grants := self._line.grants():
                    await self._write(grants)
        except OSError:
            return  # xenconsoled has closed it, or the session is being left
        finally:
            with contextlib.suppress(OSError):
                self._session.shutdown(socket.SHUT_RDWR)

    async def end(self) -> None:
        """Let the VM end what the session was in the middle of, if it can be told that."""
        if self._begun:
            nothing = Start(secrets.token_bytes(NONCE_BYTES), "root", ())
            with contextlib.suppress(OSError):  # TimeoutError is one
                async with asyncio.timeout(_FAREWELL_DEADLINE_S):
                    await self._write(self._line.encode(nothing.encode()))

    async def _read(self) -> bytes:
        while True:
            try:
                return os.read(self._terminal, _READ_BYTES)
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                await _event(self._terminal, loop.add_reader, loop.remove_reader)

    async def _write(self, data: bytes) -> None:
        async with self._writing:
            while data:
                try:
                    data = data[os.write(self._terminal, data) :]
                except BlockingIOError:
                    loop = asyncio.get_running_loop()
                    await _event(self._terminal, loop.add_writer, loop.remove_writer)


async def _event(terminal: int, add: Callable[[int, Callable[[], None]], None], remove: Callable[[int], bool]) -> None:
    """Return when there is something to read, or room to write."""
    ready = asyncio.Event()
    add(terminal, ready.set)
    try:
        await ready.wait()
    finally:
        remove(terminal)
