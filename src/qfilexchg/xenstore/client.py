"""The store's client for dom0: requests on one side, and a router that matches replies to waiters on the other.

Any number of requests can be under way at once. Watch events go to :attr:`Store.events`, in which equal events that nobody has
taken yet are one. When the transport dies, every waiter fails with :exc:`StoreLost` at once, and the queue ends with None.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

from qfilexchg.protocol.names import DomainId
from qfilexchg.xenstore import sockets, wire
from qfilexchg.xenstore.errors import Again, NoEntry, StoreLost, TooBig, refusal
from qfilexchg.xenstore.wire import Malformed, Op, Packet, Parser

T = TypeVar("T")

REPLY_TIMEOUT_S = 20.0
"""A store answers in milliseconds; one that has not by now never will."""
ATTEMPTS = 32
"""What others keep undoing is begun anew, but not for ever: a VM could see to it that it is undone every time."""


class WatchEvent(NamedTuple):
    """Something happened to ``path``, or may have: read it again."""

    path: str
    token: str


class EventQueue(asyncio.Queue[WatchEvent | None]):
    """Watch events, of each token the last that nobody has taken. After None no more come.

    A VM that writes below its key, each time under another name, so fills no memory.
    """

    def _init(self, maxsize: int) -> None:
        self._queue: dict[str | None, WatchEvent | None] = {}

    def _put(self, item: WatchEvent | None) -> None:
        self._queue[item.token if item else None] = item

    def _get(self) -> WatchEvent | None:
        return self._queue.pop(next(iter(self._queue)))


class Router(asyncio.Protocol):
    """What comes from the store, given to whom it is for."""

    def __init__(self) -> None:
        self.events = EventQueue()
        self.lost: StoreLost | None = None
        self.disconnected = asyncio.get_running_loop().create_future()
        self._parser = Parser()
        self._waiting: dict[int, asyncio.Future[Packet]] = {}

    def expect(self, req_id: int) -> asyncio.Future[Packet]:
        """The reply to come. Raises :exc:`StoreLost` where none can."""
        if self.lost is not None:
            raise self.lost
        self._waiting[req_id] = asyncio.get_running_loop().create_future()
        return self._waiting[req_id]

    def lose(self, why: str) -> StoreLost:
        """Nothing comes any more: end the queue and every wait. The first reason given stands."""
        if self.lost is None:
            self.lost = StoreLost(why)
            self.events.put_nowait(None)
            for waiter in self._waiting.values():
                if not waiter.done():
                    waiter.set_exception(self.lost)
            self._waiting.clear()
        return self.lost

    def data_received(self, data: bytes) -> None:
        self._parser.feed(data)
        try:
            while self.lost is None and (packet := self._parser.next_packet()) is not None:
                self._route(packet)
        except Malformed as error:
            self.lose(f"what it sent is not understood: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self.lose(f"the connection ended: {error}" if error else "it closed the connection")
        if not self.disconnected.done():
            self.disconnected.set_result(None)

    def _route(self, packet: Packet) -> None:
        if packet.op == Op.WATCH_EVENT:
            self.events.put_nowait(WatchEvent(*wire.watch_event(packet)))
        elif (waiter := self._waiting.pop(packet.req_id, None)) is not None and not waiter.done():
            waiter.set_result(packet)


def socket_path() -> Path:
    """Where this host's store is, by the rules of Xen's own clients."""
    if named := os.environ.get("XENSTORED_PATH"):
        return Path(named)
    if rundir := os.environ.get("XENSTORED_RUNDIR"):
        return Path(rundir) / "socket"
    usual = Path("/run/xenstored/socket")
    return usual if usual.exists() else Path("/dev/xen/xenbus")


class Store:
    """A connection to the store. An asynchronous context, which closes it.

    Every request raises :exc:`StoreLost` when there is no store any more, and a :exc:`StoreError` when it is refused. Relative
    paths are those of the domain at this end. ``tx`` is what :meth:`transaction` gives to its body; 0 is outside of any.
    """

    def __init__(self, router: Router, transport: asyncio.WriteTransport, others: Sequence[asyncio.BaseTransport] = ()) -> None:
        """See :meth:`connect`."""
        self._router = router
        self._transport = transport
        self._transports = (transport, *others)
        self._last_id = 0

    @classmethod
    async def connect(cls, path: Path | None = None) -> Self:
        """Connect to the Unix socket or character device ``path``; None means :func:`socket_path`."""
        path = socket_path() if path is None else path
        loop = asyncio.get_running_loop()
        try:
            if not stat.S_ISCHR(path.stat().st_mode):
                transport, router = await loop.create_unix_connection(Router, sock=await sockets.connected(path))
                return cls(router, transport)
            device = path.open("r+b", buffering=0)
            reading, router = await loop.connect_read_pipe(Router, device)
            writing, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(os.dup(device.fileno()), "wb", buffering=0))
            return cls(router, writing, [reading])
        except OSError as error:
            raise StoreLost(f"{path}: {error.strerror or error}") from error

    @property
    def events(self) -> asyncio.Queue[WatchEvent | None]:
        """Events of this connection's watches; None, once and last, when the store is lost."""
        return self._router.events

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; whoever waits for a reply gets :exc:`StoreLost`. A second time is harmless."""
        self._router.lose("the connection was closed")
        for transport in self._transports:
            transport.close()
        await self._router.disconnected

    # Keys.

    async def read(self, path: str, tx: int = 0) -> bytes:
        return await self._request(Op.READ, wire.join([path]), path, tx)

    async def write(self, path: str, value: bytes, tx: int = 0) -> None:
        """Set ``path``; it is made where it is missing, with what is missing above it."""
        await self._request(Op.WRITE, wire.join([path]) + value, path, tx)

    async def mkdir(self, path: str, tx: int = 0) -> None:
        """Make ``path`` an empty key; one that is there stays as it is."""
        await self._request(Op.MKDIR, wire.join([path]), path, tx)

    async def rm(self, path: str, tx: int = 0) -> None:
        """Remove ``path`` and all below it; success also where it is missing, but not what is above it."""
        await self._request(Op.RM, wire.join([path]), path, tx)

    async def directory(self, path: str, tx: int = 0) -> list[str]:
        """The names of the children of ``path``, however many."""
        try:
            return _strings(await self._request(Op.DIRECTORY, wire.join([path]), path, tx))
        except TooBig:
            return await self._directory_in_parts(path, tx)

    async def get_perms(self, path: str, tx: int = 0) -> tuple[str, ...]:
        """The permissions of ``path``, as in ``("n0", "r5")``: the owner first."""
        return tuple(_strings(await self._request(Op.GET_PERMS, wire.join([path]), path, tx)))

    async def set_perms(self, path: str, perms: Sequence[str], tx: int = 0) -> None:
        await self._request(Op.SET_PERMS, wire.join([path, *perms]), path, tx)

    async def exists(self, path: str, tx: int = 0) -> bool:
        try:
            await self.read(path, tx)
        except NoEntry:
            return False
        return True

    async def transaction(self, body: Callable[[int], Awaitable[T]], attempts: int = ATTEMPTS) -> T:
        """Make what ``body(tx)`` does true at once, and return what it returned.

        ``body`` is called again when others interfered, at most ``attempts`` times in all; then :exc:`Again` is raised. When it
        raises, or is cancelled, nothing of it has happened.
        """
        attempt = 1
        while True:
            tx = int(_string(await self._request(Op.TRANSACTION_START, b"\0", "transaction")))
            try:
                result = await body(tx)
            except BaseException:
                with suppress(StoreLost):
                    self._send(Op.TRANSACTION_END, b"F\0", tx).cancel()
                raise
            try:
                await self._request(Op.TRANSACTION_END, b"T\0", "transaction", tx)
            except Again:
                if attempt == attempts:
                    raise
                attempt += 1
            else:
                return result

    # Watches.

    async def watch(self, path: str, token: str) -> None:
        """From now on :attr:`events` tells of changes to ``path`` and below. One event comes at once, without a change."""
        await self._request(Op.WATCH, wire.join([path, token]), path)

    async def unwatch(self, path: str, token: str) -> None:
        """End a watch. Events of it that came before may still be in the queue."""
        await self._request(Op.UNWATCH, wire.join([path, token]), path)

    # Domains.

    async def is_introduced(self, domid: DomainId) -> bool:
        return await self._request(Op.IS_DOMAIN_INTRODUCED, wire.join([str(int(domid))]), f"domain {domid}") == b"T\0"

    async def introduce(self, domid: DomainId) -> None:
        """Let qxenstored take connections of ``domid``. The frame and event channel that Xen needs are 0: a host with Xen has xl."""
        await self._request(Op.INTRODUCE, wire.join([str(int(domid)), "0", "0"]), f"domain {domid}")

    async def release(self, domid: DomainId) -> None:
        await self._request(Op.RELEASE, wire.join([str(int(domid))]), f"domain {domid}")

    # What they are made of.

    async def _directory_in_parts(self, path: str, tx: int) -> list[str]:
        for _ in range(ATTEMPTS):
            names = b""
            first_generation = b""
            while True:
                payload = await self._request(Op.DIRECTORY_PART, wire.join([path, str(len(names))]), path, tx)
                generation, _, part = payload.partition(b"\0")
                if generation != (first_generation or generation):
                    break
                first_generation = generation
                if part == b"\0" or part.endswith(b"\0\0"):
                    return _strings(names + part[:-1])
                names += part
        raise Again(path)

    def _send(self, op: int, payload: bytes, tx: int) -> asyncio.Future[Packet]:
        self._last_id = self._last_id % 0xFFFF_FFFF + 1
        reply = self._router.expect(self._last_id)
        self._transport.write(Packet(op, payload, self._last_id, tx).encode())
        return reply

    async def _request(self, op: int, payload: bytes, what: str, tx: int = 0) -> bytes:
        if len(payload) > wire.PAYLOAD_MAX:
            raise TooBig(what)
        waiter = self._send(op, payload, tx)
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                reply = await waiter
        except TimeoutError:
            raise self._router.lose(f"no answer within {REPLY_TIMEOUT_S:.0f} s") from None
        if reply.op == Op.ERROR:
            raise refusal(_string(reply.payload), what)
        return reply.payload


def _strings(payload: bytes) -> list[str]:
    return wire.split(payload) if payload else []


def _string(payload: bytes) -> str:
    return payload.rstrip(b"\0").decode("ascii", "replace")
