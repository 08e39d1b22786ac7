"""The store's client for VM tools: one request at a time, and cheap to start.

On QEMU the way to the store is a virtio-serial port. A port serves one process at a time, and outlives it: it may still carry
replies and events for a process that was killed, or the rest of one. So whoever opens a port first sends RESET_WATCHES with a
random id and passes over all bytes until the reply to it. On Xen that must not be done: there the operation would take the
kernel's own watches away.

Imports as little as it can (see :mod:`qfilexchg.protocol`).
"""

from __future__ import annotations

import errno
import os
import select
import time

from qfilexchg.protocol.channels import PORT_FOLDER, STORE_PORTS
from qfilexchg.xenstore import wire
from qfilexchg.xenstore.errors import StoreLost, refusal
from qfilexchg.xenstore.wire import Malformed, Op, Packet, Parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Self

REPLY_TIMEOUT_S: Final = 20.0
"""A store answers in milliseconds, under emulation in tens of them; one that has not by now never will."""
XENBUS: Final = "/dev/xen/xenbus"
SOCKET: Final = "/run/xenstored/socket"
_BUSY_PAUSE_S = 0.05
_READ_BYTES = 1 << 16


class PortsBusy(StoreLost):
    """Other programs hold every port to the store."""

    def __str__(self) -> str:
        return f"every way to xenstore is in use: {self.why}; end the programs that hold them, or try again later"


class Store:
    """A connection to the store. A context, which closes it.

    Every request raises :exc:`StoreLost` when there is no store any more, and a :exc:`StoreError` when it is refused. Relative
    paths are this VM's own.
    """

    __slots__ = ("_events", "_fd", "_last_id", "_parser", "_poll")

    def __init__(self, fd: int) -> None:
        """Take over the connected file descriptor ``fd``."""
        os.set_blocking(fd, False)
        self._fd = fd
        self._parser = Parser()
        self._events: list[tuple[str, str]] = []
        self._last_id = int.from_bytes(os.urandom(3), "big")
        self._poll = select.poll()

    @classmethod
    def open(cls, deadline_s: float = 10) -> Self:
        """Connect: to ``XENSTORED_PATH`` if it is set, else to the first port that is free, ``/dev/xen/xenbus``, or the socket.

        The numbered ports come first, as the other is for programs started by hand. Where all ports are in use, tries again for
        ``deadline_s`` seconds, then raises :exc:`PortsBusy`; raises :exc:`StoreLost` where there is no way at all.
        """
        end_s = time.monotonic() + deadline_s
        named = os.environ.get("XENSTORED_PATH")
        ports = [f"{PORT_FOLDER}/{name}" for name in (*STORE_PORTS[1:], STORE_PORTS[0])]
        while True:
            busy = ""
            for path in [named] if named else [*ports, XENBUS, SOCKET]:
                try:
                    store = cls(_open(path))
                except OSError as error:
                    if error.errno == errno.EBUSY:
                        busy = path
                    elif named or error.errno != errno.ENOENT:
                        raise StoreLost(f"{path}: {error.strerror}") from error
                    continue
                if path.startswith(PORT_FOLDER):
                    try:
                        store._resynchronise(end_s)
                    except BaseException:
                        store.close()
                        raise
                return store
            if not busy:
                raise StoreLost("there is neither a port, nor xenbus, nor a socket")
            if time.monotonic() >= end_s:
                raise PortsBusy(busy)
            time.sleep(_BUSY_PAUSE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """For poll: readable when :meth:`next_event` may have something. First ask :meth:`next_event` with a timeout of 0."""
        return self._fd

    def close(self) -> None:
        """Close the connection. A second time is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, path: str, tx: int = 0) -> bytes:
        return self._request(Op.READ, wire.join([path]), path, tx)

    def write(self, path: str, value: bytes, tx: int = 0) -> None:
        self._request(Op.WRITE, wire.join([path]) + value, path, tx)

    def rm(self, path: str, tx: int = 0) -> None:
        self._request(Op.RM, wire.join([path]), path, tx)

    def transaction_start(self) -> int:
        """Begin a transaction and return its number, for ``tx``."""
        return int(self._request(Op.TRANSACTION_START, b"\0", "transaction")[:-1])

    def transaction_end(self, tx: int, *, commit: bool = True) -> None:
        """End a transaction. Raises :exc:`Again` where others interfered; then nothing of it has happened."""
        self._request(Op.TRANSACTION_END, b"T\0" if commit else b"F\0", "transaction", tx)

    def watch(self, path: str, token: str) -> None:
        """From now on :meth:`next_event` tells of changes to ``path`` and below. One event comes at once, without a change."""
        self._request(Op.WATCH, wire.join([path, token]), path)

    def unwatch(self, path: str, token: str) -> None:
        """End a watch. Events of it that came before may still come out of :meth:`next_event`."""
        self._request(Op.UNWATCH, wire.join([path, token]), path)

    def next_event(self, timeout_s: float | None) -> tuple[str, str] | None:
        """The path and token of the next watch event, or None after ``timeout_s`` seconds without one. None waits for ever.

        Equal events that were not taken yet are one.
        """
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._events:
            if self._receive(end_s) is None:
                return None
        return self._events.pop(0)

    def _request(self, op: int, payload: bytes, what: str, tx: int = 0) -> bytes:
        if len(payload) > wire.PAYLOAD_MAX:
            raise refusal("E2BIG", what)
        end_s = time.monotonic() + REPLY_TIMEOUT_S
        self._last_id += 1
        self._send(Packet(op, payload, self._last_id, tx).encode(), end_s)
        while (packet := self._receive(end_s)) is not None:
            if packet.op == Op.WATCH_EVENT or packet.req_id != self._last_id:
                continue
            if packet.op == Op.ERROR:
                raise refusal(packet.payload.rstrip(b"\0").decode("ascii", "replace"), what)
            return packet.payload
        raise StoreLost(f"no answer within {REPLY_TIMEOUT_S:.0f} s")

    def _resynchronise(self, end_s: float) -> None:
        """Make the port ours: no watches, no transactions, and nothing of what was meant for others."""
        request = Packet(Op.RESET_WATCHES, b"\0", int.from_bytes(os.urandom(4), "big"))
        self._send(request.encode(), end_s)
        reply = request.reply(wire.OK).encode()
        seen = b""
        while (at := seen.find(reply)) < 0:
            more = self._read(end_s)
            if more is None:
                raise StoreLost("the port is open, but nothing answers there")
            seen = seen[-len(reply) :] + more
        self._parser.feed(seen[at + len(reply) :])

    def _send(self, data: bytes, end_s: float) -> None:
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                # Only now: xenbus takes all that it is given, and poll never says of it that it would.
                if not self._wait(select.POLLOUT, end_s):
                    raise StoreLost("it takes no requests") from None
            except OSError as error:
                raise StoreLost(f"cannot send: {error.strerror}") from error

    def _receive(self, end_s: float | None) -> Packet | None:
        """The next packet, or None past ``end_s``. An event is kept for :meth:`next_event`, too."""
        while True:
            try:
                packet = self._parser.next_packet()
                if packet is not None and packet.op == Op.WATCH_EVENT:
                    self._note(wire.watch_event(packet))
            except Malformed as error:
                raise StoreLost(f"what it sent is not understood: {error}") from error
            if packet is not None:
                return packet
            data = self._read(end_s)
            if data is None:
                return None
            self._parser.feed(data)

    def _note(self, event: tuple[str, str]) -> None:
        if event not in self._events:
            self._events.append(event)

    def _read(self, end_s: float | None) -> bytes | None:
        """Some bytes, or None past ``end_s``. What is there already is read even then."""
        while self._wait(select.POLLIN, end_s):
            try:
                data = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                raise StoreLost(f"cannot read: {error.strerror}") from error
            if not data:
                raise StoreLost("it closed the connection")
            return data
        return None

    def _wait(self, readiness: int, end_s: float | None) -> bool:
        timeout_ms = None if end_s is None else max(0.0, (end_s - time.monotonic()) * 1000)
        self._poll.register(self._fd, readiness)
        return bool(self._poll.poll(timeout_ms))


def _open(path: str) -> int:
    """A file descriptor of the character device or Unix socket ``path``. Raises OSError."""
    try:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ENXIO:  # what a socket answers
            raise
    import socket  # only here: it costs more than all the rest, and VMs have devices

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        return connection.detach()
