"""xenstore's packets: a header of four 32-bit words in the host's byte order, and a payload of at most 4096 bytes.

Requests and replies carry the same ``op`` and ``req_id``, unless the reply is ERROR; ``WATCH_EVENT`` comes unasked. Most
payloads are strings, each ended by a NUL. Parsing is incremental and does no I/O: bytes in, packets out, in pieces of any
size. What a byte stream can do wrong is one thing, to announce a payload that is too long, and it cannot be mended.

VM tools import this module, so it imports ``struct`` alone (see :mod:`qfilexchg.protocol`).
"""

from __future__ import annotations

from struct import Struct

from qfilexchg.errors import VmError
from qfilexchg.xenstore.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

PAYLOAD_MAX: Final = 4096
"""Bytes. Bounds what a peer can make us buffer for one message."""

_HEADER = Struct("=IIII")
HEADER_SIZE: Final = _HEADER.size
OK: Final = b"OK\0"


class Op:
    """Operations, by the spec's names. 20 was RESTRICT once, and is free."""

    CONTROL: Final = 0
    DIRECTORY: Final = 1
    READ: Final = 2
    GET_PERMS: Final = 3
    WATCH: Final = 4
    UNWATCH: Final = 5
    TRANSACTION_START: Final = 6
    TRANSACTION_END: Final = 7
    INTRODUCE: Final = 8
    RELEASE: Final = 9
    GET_DOMAIN_PATH: Final = 10
    WRITE: Final = 11
    MKDIR: Final = 12
    RM: Final = 13
    SET_PERMS: Final = 14
    WATCH_EVENT: Final = 15
    ERROR: Final = 16
    IS_DOMAIN_INTRODUCED: Final = 17
    RESUME: Final = 18
    SET_TARGET: Final = 19
    RESET_WATCHES: Final = 21
    DIRECTORY_PART: Final = 22


class Malformed(VmError):
    """A peer sent what cannot be a packet: the stream is of no further use."""


class Packet:
    """One message, either way."""

    __slots__ = ("op", "payload", "req_id", "tx_id")

    def __init__(self, op: int, payload: bytes = b"", req_id: int = 0, tx_id: int = 0) -> None:
        self.op: Final = op
        self.payload: Final = payload
        self.req_id: Final = req_id
        self.tx_id: Final = tx_id

    def _fields(self) -> tuple[int, bytes, int, int]:
        return (self.op, self.payload, self.req_id, self.tx_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Packet) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def __repr__(self) -> str:
        return f"Packet(op={self.op}, payload={self.payload!r}, req_id={self.req_id}, tx_id={self.tx_id})"

    def encode(self) -> bytes:
        return _HEADER.pack(self.op, self.req_id, self.tx_id, len(self.payload)) + self.payload

    def reply(self, payload: bytes) -> Packet:
        """The answer to this request."""
        return Packet(self.op, payload, self.req_id, self.tx_id)

    def error(self, errno_name: str) -> Packet:
        """The refusal of this request."""
        return Packet(Op.ERROR, errno_name.encode("ascii") + b"\0", self.req_id, self.tx_id)


class Parser:
    """Turns a byte stream into packets. Holds at most what it was fed and has not given out yet."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def __len__(self) -> int:
        """Bytes that wait for the rest of their packet, or to be asked for."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next_packet(self) -> Packet | None:
        """The next packet, or None until more was fed.

        Raises :exc:`Malformed` as soon as a header announces more than a payload may have, and again whenever asked.
        """
        if len(self._buffer) < HEADER_SIZE:
            return None
        op, req_id, tx_id, size = _HEADER.unpack_from(self._buffer)
        if size > PAYLOAD_MAX:
            raise Malformed(f"a message announced {size} bytes of payload; {PAYLOAD_MAX} is the most")
        end = HEADER_SIZE + size
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[HEADER_SIZE:end])
        del self._buffer[:end]
        return Packet(op, payload, req_id, tx_id)


def join(strings: Iterable[str]) -> bytes:
    """``strings`` as a payload; raises :exc:`Invalid` where one holds a NUL."""
    strings = list(strings)
    payload = "".join([f"{string}\0" for string in strings]).encode("utf-8", "surrogateescape")
    if payload.count(b"\0") != len(strings):
        raise Invalid("a string with a NUL in it")
    return payload


def split(payload: bytes) -> list[str]:
    """The strings of ``payload``; raises :exc:`Invalid` where the last lacks its NUL."""
    if not payload.endswith(b"\0"):
        raise Invalid("a string that does not end")
    return payload[:-1].decode("utf-8", "surrogateescape").split("\0")


def watch_event(packet: Packet) -> tuple[str, str]:
    """The path and the token that a WATCH_EVENT tells; raises :exc:`Malformed` where it does not."""
    match packet.payload.split(b"\0"):
        case [path, token, b""]:
            return path.decode("utf-8", "surrogateescape"), token.decode("utf-8", "surrogateescape")
        case _:
            raise Malformed("a watch event is not a path and a token")
