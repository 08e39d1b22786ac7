"""Commands that the person in dom0 runs in a VM: ``qvm-run``, ``qvm-console``, ``qvm-copy-in``.

On QEMU they go over virtio-serial ports, on Xen over the VM's console, with what ``console.py`` adds to it.

Both directions carry frames: one byte of kind, two of length (big-endian), the payload. Between frames zero bytes mean nothing. ::

    dom0 → VM    START  STDIN* STDIN(empty)   WINDOW*
    VM → dom0    hello  (STDOUT | STDERR)*    EXIT

A port has no beginning: a program in dom0 that was killed may leave half a frame in it, either way. So each session makes its
own. dom0 first sends as many zero bytes as the longest frame has: they complete whatever the VM's decoder was in the middle of,
and the rest means nothing. Its START carries a fresh nonce. The VM answers with :func:`hello` of that nonce, not a frame but a
string that nothing older can contain; dom0 passes over everything before it. A START also ends a session that was there.

When dom0's side of a port closes, or another START comes, the VM sends SIGHUP to the command's process group.
"""

from __future__ import annotations

from qfilexchg.errors import CallerError, VmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Final

START: Final = 1
"""dom0 wants a command: :meth:`Start.encode`."""
STDIN: Final = 2
"""Input for the command. Empty: its end."""
WINDOW: Final = 3
"""The terminal's size has changed: rows and columns, two bytes each."""
STDOUT: Final = 17
STDERR: Final = 18
EXIT: Final = 19
"""One byte, the last of a session: the exit status, 128 and the signal's number, 126 (cannot be run) or 127 (not found)."""

HEADER_BYTES: Final = 3
FRAME_MAX: Final = 32 << 10
"""Bytes of a frame with its header: what Linux's virtio console takes in one write. Stops the other side from making us hold more."""
PAYLOAD_MAX: Final = FRAME_MAX - HEADER_BYTES
NONCE_BYTES: Final = 16
PREAMBLE: Final = bytes(FRAME_MAX)

_HELLO: Final = b"qubes-run 1 "


class CommandTooLong(CallerError):
    """A command line that does not fit into a frame."""

    def __str__(self) -> str:
        return f"the command is longer than {PAYLOAD_MAX - 256} bytes: copy a script into the VM and run that"


class BadFrame(VmError):
    """The other side sent what is no frame of this protocol."""


class Start:
    """What a session runs: ``argv`` as ``user``; on a terminal of ``window`` (rows, columns) unless that is None.

    An empty ``argv`` runs nothing and exits with 0: dom0 asks so whether the VM is ready.
    """

    __slots__ = ("argv", "nonce", "user", "window")

    def __init__(self, nonce: bytes, user: str, argv: Sequence[bytes], window: tuple[int, int] | None = None) -> None:
        self.nonce: Final = nonce
        self.user: Final = user
        self.argv: Final = tuple(argv)
        self.window: Final = window

    def encode(self) -> bytes:
        """The preamble and the frame. Raises :exc:`CommandTooLong`."""
        rows, columns = self.window or (0, 0)
        words = (self.user.encode(), b"%d" % rows, b"%d" % columns, *self.argv)
        payload = self.nonce + b"".join(word + b"\0" for word in words)
        if len(payload) > PAYLOAD_MAX:
            raise CommandTooLong
        return PREAMBLE + frame(START, payload)

    @classmethod
    def parse(cls, payload: bytes) -> Start:
        """What a START's payload says. Raises :exc:`BadFrame`."""
        nonce, words = payload[:NONCE_BYTES], payload[NONCE_BYTES:].split(b"\0")
        try:
            user, rows, columns, *argv, end = words
            window = (int(rows), int(columns))
            if end or len(nonce) != NONCE_BYTES:
                raise ValueError
            return cls(nonce, user.decode(), argv, window if all(window) else None)
        except ValueError:
            raise BadFrame("a START that is not understood") from None


def frame(kind: int, payload: bytes | memoryview = b"") -> bytes:
    """One frame. ``payload`` is at most :data:`PAYLOAD_MAX` bytes."""
    assert 0 < kind < 256 and len(payload) <= PAYLOAD_MAX
    return b"".join((bytes((kind,)), len(payload).to_bytes(2, "big"), payload))


def window_size(rows: int, columns: int) -> bytes:
    """The payload of a WINDOW."""
    return rows.to_bytes(2, "big") + columns.to_bytes(2, "big")


def hello(nonce: bytes) -> bytes:
    """What the VM sends before a session's first frame."""
    return _HELLO + nonce


class HelloSeeker:
    """Finds the beginning of a session in what the VM sends."""

    def __init__(self, nonce: bytes) -> None:
        self._hello = hello(nonce)
        self._tail = b""

    def feed(self, data: bytes) -> bytes | None:
        """None as long as the hello has not come; then what follows it in ``data``."""
        self._tail += data
        before, found, after = self._tail.partition(self._hello)
        if found:
            return after
        self._tail = before[-len(self._hello) :]
        return None


class Decoder:
    """Cuts a stream into frames; holds at most one frame that is not complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray) -> Iterator[tuple[int, bytes]]:
        """The frames that ``data`` completes, as (kind, payload); to be taken to the end.

        Raises :exc:`BadFrame` for a length that is too great, and forgets what it holds: a preamble is understood after that.
        """
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while True:
                if at < len(buffer) and not buffer[at]:
                    at = len(buffer) - len(buffer[at:].lstrip(b"\0"))
                if len(buffer) - at < HEADER_BYTES:
                    return
                length = buffer[at + 1] << 8 | buffer[at + 2]
                if length > PAYLOAD_MAX:
                    at = len(buffer)
                    raise BadFrame(f"a frame of {length} bytes")
                end = at + HEADER_BYTES + length
                if len(buffer) < end:
                    return
                kind, payload = buffer[at], bytes(buffer[at + HEADER_BYTES : end])
                at = end
                yield kind, payload
        finally:
            del buffer[:at]
