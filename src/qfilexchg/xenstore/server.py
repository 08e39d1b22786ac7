"""qxenstored: the store for hosts without Xen. Sockets around :mod:`qfilexchg.xenstore.store`.

``qxenstored --rundir DIR`` serves dom0 at ``DIR/socket``. INTRODUCE of domain N opens ``DIR/domain/N``: whoever connects there *is*
domain N, so the folder is closed to other users. RELEASE closes it. A socket appears under its name when it takes connections,
not before.

One client cannot hold up another. Input is parsed as it comes, a few requests at a turn; a message that does not come to its end
waits in its own connection's parser. Output waits in a queue of ours, in which equal events are one. While as many replies wait
there as a guest may have outstanding, nothing more is read from that client; events come unasked, so they alone can make the
queue longer, and past :data:`QUEUE_MAX_BYTES` the client is cut off. So is one that sends what cannot be a message.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import fcntl
import logging
import os
import signal
import socket
import sys
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, assert_never, cast

from qfilexchg.errors import HostError
from qfilexchg.protocol.names import DomainId
from qfilexchg.xenstore.store import CONNECTIONS_MAX, Close, Connection, Cut, Effect, Open, Send, Store, TooManyConnections
from qfilexchg.xenstore.wire import Malformed, Op, Packet, Parser

log = logging.getLogger("qxenstored")

REQUESTS_A_TURN = 16
"""Requests of one client after which the others have their turn."""
QUEUE_MAX_BYTES = 1 << 20
"""What may wait for one guest's client. Stops a guest that watches much and reads nothing from filling dom0's memory."""
DOM0_QUEUE_MAX_BYTES = 64 << 20
"""The same for a client in dom0, which is not hostile, and which a guest must not be able to get cut off: one transaction of a guest
makes up to 4 MiB of events below a key that dom0 watches."""
ACCEPT_PAUSE_S = 1.0
"""Where the host has no file descriptor left, it would fail again at once."""
RUNDIR_MAX = 107 - len("/domain/.32751")
"""Bytes. sockaddr_un.sun_path takes 107 beside its NUL (unix(7))."""
DOM0 = DomainId(0)


class AlreadyServed(HostError):
    """Another qxenstored has this folder."""

    def __init__(self, rundir: Path) -> None:
        super().__init__(rundir)
        self.rundir = rundir

    def __str__(self) -> str:
        return f"another qxenstored serves {self.rundir}: use that one, or end it first"


class CannotServe(HostError):
    """The folder or its sockets cannot be made."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(path, error)
        self.path = path
        self.error = error

    def __str__(self) -> str:
        return f"cannot serve at {self.path}: {self.error.strerror}; choose another --rundir, with a path of at most {RUNDIR_MAX} bytes"


class Listener:
    """A listening socket of one domain. Whom it accepts is that domain as long as the listener is open."""

    def __init__(self, server: Server, domain: DomainId, path: Path) -> None:
        """Listens at once. Raises OSError, and leaves nothing, where that cannot be."""
        self.domain = domain
        self.path = path
        self.is_open = True
        unnamed = path.with_name(f".{path.name}")
        unnamed.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.bind(os.fspath(unnamed))
            unnamed.chmod(0o600)
            self._socket.listen(CONNECTIONS_MAX)
            unnamed.rename(path)
        except OSError:
            self._socket.close()
            unnamed.unlink(missing_ok=True)
            raise
        self._server = server
        self._arriving: set[asyncio.Task[object]] = set()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._accept)

    def close(self) -> None:
        """Take no more connections; those that wait, or are being accepted, are refused. A second time is harmless."""
        if not self.is_open:
            return
        self.is_open = False
        self.path.unlink(missing_ok=True)
        self._loop.remove_reader(self._socket)
        self._socket.close()

    async def closed(self) -> None:
        """Wait for connections that were being accepted to be refused."""
        await asyncio.gather(*self._arriving)

    def _accept(self) -> None:
        try:
            peer, _ = self._socket.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            log.error("domain %d: cannot accept connections for %.0f s: %s", self.domain, ACCEPT_PAUSE_S, error)
            self._loop.remove_reader(self._socket)
            self._loop.call_later(ACCEPT_PAUSE_S, self._accept_again)
            return
        arriving = self._loop.create_task(self._loop.connect_accepted_socket(lambda: Client(self._server, self), peer))
        self._arriving.add(arriving)
        arriving.add_done_callback(self._arriving.discard)

    def _accept_again(self) -> None:
        if self.is_open:
            self._loop.add_reader(self._socket, self._accept)


class Client(asyncio.Protocol):
    """One connection: bytes to requests, messages to bytes."""

    _transport: asyncio.Transport
    _connection: Connection

    def __init__(self, server: Server, listener: Listener) -> None:
        self._server = server
        self._listener = listener
        self._parser = Parser()
        self._queue: OrderedDict[bytes | int, bytes] = OrderedDict()
        self._queued_bytes = 0
        self._replies_waiting = 0
        self._replies = 0
        self._writable = True
        self._open = False
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0)
        connection = self._server.connected(self, self._listener)
        if connection is None:
            self.abort()
        else:
            self._connection = connection
            self._open = True

    def connection_lost(self, _error: Exception | None) -> None:
        self._open = False
        self.gone.set_result(None)
        if hasattr(self, "_connection"):
            self._server.disconnected(self._connection)

    def data_received(self, data: bytes) -> None:
        self._parser.feed(data)
        self._serve()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._flush()
        self._serve()

    def send(self, packet: Packet) -> None:
        """Queue a message. An event that is queued already is told once, in the first one's place."""
        if not self._open:
            return
        if packet.op == Op.WATCH_EVENT:
            if packet.payload in self._queue:
                return
            key: bytes | int = packet.payload
        else:
            key = self._replies = self._replies + 1
            self._replies_waiting += 1
        message = packet.encode()
        self._queue[key] = message
        self._queued_bytes += len(message)
        self._flush()
        if self._queued_bytes > (DOM0_QUEUE_MAX_BYTES if self._listener.domain == DOM0 else QUEUE_MAX_BYTES):
            self.cut(f"it left {self._queued_bytes} bytes unread")

    def cut(self, why: str) -> None:
        """Drop the connection, with all that waits for it."""
        log.warning("domain %d: connection cut: %s", self._listener.domain, why)
        self.abort()

    def abort(self) -> None:
        self._open = False
        self._queue.clear()
        self._transport.abort()

    def _flush(self) -> None:
        while self._writable and self._queue:
            key, message = self._queue.popitem(last=False)
            self._queued_bytes -= len(message)
            if isinstance(key, int):
                self._replies_waiting -= 1
            self._transport.write(message)

    def _serve(self) -> None:
        """Carry out what was received, as far as this client's turn and its queue go."""
        for _ in range(REQUESTS_A_TURN):
            if not self._open:
                return
            if self._replies_waiting >= self._server.outstanding_requests:
                self._transport.pause_reading()  # resume_writing comes back here
                return
            try:
                packet = self._parser.next_packet()
            except Malformed as error:
                self.cut(str(error))
                return
            if packet is None:
                self._transport.resume_reading()
                return
            self._server.request(self._connection, packet)
        self._transport.pause_reading()
        asyncio.get_running_loop().call_soon(self._serve)


class Server:
    """A store and its sockets, below one folder. An asynchronous context: it serves from entry to exit."""

    def __init__(self, rundir: Path) -> None:
        self._rundir = rundir
        self._store = Store()
        self._clients: dict[Connection, Client] = {}
        self._listeners: dict[DomainId, Listener] = {}

    @property
    def outstanding_requests(self) -> int:
        """Replies that may wait for one client before nothing more is read from it."""
        return self._store.quota.outstanding_requests

    async def __aenter__(self) -> Self:
        """Raises :exc:`AlreadyServed` or :exc:`CannotServe`."""
        domains = self._rundir / "domain"
        if len(os.fsencode(self._rundir)) > RUNDIR_MAX:
            raise CannotServe(self._rundir, OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG)))
        try:
            for folder in (self._rundir, domains):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                folder.chmod(0o700)
            self._lock = os.open(self._rundir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CannotServe(self._rundir, error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for stale in domains.iterdir():
                stale.unlink()
            self._listen(DOM0)
        except BlockingIOError:
            os.close(self._lock)
            raise AlreadyServed(self._rundir) from None
        except OSError as error:
            os.close(self._lock)
            raise CannotServe(self._rundir, error) from error
        log.info("serving %s", self._path(DOM0))
        return self

    async def __aexit__(self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None) -> None:
        for listener in self._listeners.values():
            listener.close()
            await listener.closed()
        clients = list(self._clients.values())
        for client in clients:
            client.abort()
        await asyncio.gather(*(client.gone for client in clients))
        os.close(self._lock)
        log.info("ended")

    def connected(self, client: Client, listener: Listener) -> Connection | None:
        """A client of ``listener``'s domain; None where it comes too late or is one too many."""
        if not listener.is_open:
            return None
        try:
            connection = self._store.connect(listener.domain)
        except TooManyConnections:
            log.warning("domain %d: connection refused: it has %d", listener.domain, CONNECTIONS_MAX)
            return None
        self._clients[connection] = client
        return connection

    def disconnected(self, connection: Connection) -> None:
        self._clients.pop(connection, None)
        self._carry_out(self._store.disconnect(connection))

    def request(self, connection: Connection, packet: Packet) -> None:
        try:
            self._carry_out(self._store.request(connection, packet))
        except CannotServe as error:
            log.error("%s", error)
            self._carry_out([*self._store.release(DomainId(int(error.path.name))), Send(connection, packet.error("EIO"))])

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(connection, packet):
                    self._clients[connection].send(packet)
                case Cut(connection):
                    if connection in self._clients:
                        self._clients[connection].cut("a change made more events for it than it can have at once")
                case Open(domain):
                    try:
                        self._listen(domain)
                    except OSError as error:
                        raise CannotServe(self._path(domain), error) from error
                    log.info("domain %d: introduced", domain)
                case Close(domain, connections):
                    if domain in self._listeners:
                        self._listeners.pop(domain).close()
                    for connection in connections:
                        self._clients.pop(connection).abort()
                    log.info("domain %d: released", domain)
                case _:
                    assert_never(effect)

    def _path(self, domain: DomainId) -> Path:
        return self._rundir / "socket" if domain == DOM0 else self._rundir / "domain" / str(int(domain))

    def _listen(self, domain: DomainId) -> None:
        self._listeners[domain] = Listener(self, domain, self._path(domain))


async def serve(rundir: Path) -> None:
    """Serve until SIGTERM or SIGINT."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with Server(rundir):
        await ended.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="qxenstored",
        description="The xenstore of hosts without Xen.",
        epilog="Exit status: 0 told to end (SIGTERM, SIGINT), 1 cannot serve (one line says why), 2 arguments not understood.",
    )
    parser.add_argument("--rundir", type=Path, required=True, metavar="DIR", help="serve dom0 at DIR/socket and domain N at DIR/domain/N")
    rundir = parser.parse_args(arguments).rundir.absolute()
    logging.basicConfig(format="%(asctime)s qxenstored: %(message)s", level=logging.INFO)
    try:
        asyncio.run(serve(rundir))
    except HostError as error:
        print(f"qxenstored: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
