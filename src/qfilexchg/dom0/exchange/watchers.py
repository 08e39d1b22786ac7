"""Who watches the exchange: a socket in the home's run folder at which the daemon tells what is where, and tells it again as it changes.

Whoever connects is sent a line at once, and a whole new one after each change, ten a second at most. They have nothing to say: the
first byte that comes from one ends its watch, so there is nothing here that a person's program could do to the daemon. It is a
socket of its own, and not the agents', so that no number of watchers keeps an agent out. Its group and mode are those of the
agents' socket, so that it is open to the same people.

A watcher that does not read holds up no one but itself: it is sent the next status when it has taken the last.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from qfilexchg.dom0.home import Home
from qfilexchg.errors import HostError

WATCHERS_MAX: Final = 16
"""At a time. A program that connects in a loop costs the daemon no more."""
PACE_S: Final = 0.1
"""Between two lines. What a VM can make change in a loop is told ten times a second at most."""

log = logging.getLogger(__name__)


class NoWatching(HostError):
    """The socket for watchers cannot be made."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"cannot listen for watchers at {self.path}: {self.why}"


def socket_path(home: Home) -> Path:
    """Where the daemon of ``home`` tells its status."""
    return home.run / "status.socket"


class Watchers:
    """The watchers of one daemon. :meth:`serve` makes one."""

    def __init__(self, line: Callable[[], bytes]) -> None:
        self._line = line
        self._changes: set[asyncio.Event] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def serve(cls, path: Path, like: Path, line: Callable[[], bytes]) -> AsyncIterator[Watchers]:
        """Listen at the Unix socket ``path``, open to those to whom the socket ``like`` is, and send each what ``line`` returns.

        Raises :exc:`NoWatching`. At the end all are disconnected.
        """
        watchers = cls(line)
        server = await asyncio.start_unix_server(watchers._serve, sock=_listen(path, like))
        try:
            yield watchers
        finally:
            server.close()
            for task in watchers._tasks:
                task.cancel()
            await asyncio.gather(*watchers._tasks, return_exceptions=True)

    def changed(self) -> None:
        """What ``line`` returns is not what it was any more."""
        for change in self._changes:
            change.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._tasks) >= WATCHERS_MAX:
            log.warning("watcher is refused: there are %d already", WATCHERS_MAX)
            writer.close()
            return
        self._tasks.add(task)
        try:
            async with asyncio.TaskGroup() as group:
                telling = group.create_task(self._tell(writer))
                await reader.read(1)
                telling.cancel()
        except* OSError:
            pass  # it went away, which is how every watcher ends
        except* HostError as errors:
            log.error("watcher is cut off: %s", errors.exceptions[0])
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _tell(self, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(0)  # so that drain waits until all is taken
        change = asyncio.Event()
        self._changes.add(change)
        try:
            while True:
                change.clear()
                writer.write(self._line())
                await writer.drain()
                await asyncio.sleep(PACE_S)
                await change.wait()
        finally:
            self._changes.discard(change)


def _listen(path: Path, like: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        model = like.stat()
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        if path.stat().st_gid != model.st_gid:
            os.chown(path, -1, model.st_gid)
        path.chmod(stat.S_IMODE(model.st_mode))
        listener.listen()
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise NoWatching(path, error.strerror or str(error)) from error
    return listener
