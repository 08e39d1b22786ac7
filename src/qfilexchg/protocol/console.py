"""What the run protocol (``run.py``) needs besides on Xen, where it goes over the VM's console instead of a port of its own.

A console is a byte stream that lacks three things, which this adds on both sides:

*All bytes.* The VM's kernel takes a ^O that dom0 sends for itself: the next byte would be a SysRq command. So two bytes are sent as
codes, an ESCAPE and a letter; no ^O is ever sent.

*A beginning.* dom0 sends the code RESET instead of the preamble before each START. It ends what was there, wherever that stood. There is
no hang-up: dom0 ends a session early by a RESET and a START that runs nothing.

*Room.* What dom0's console daemon cannot hand on it throws away past a megabyte; and a VM that stopped reading, as its command takes no
input, would not hear the RESET. So each side has at most WINDOW_BYTES on the way that the other has not taken, and always reads; it
sends the code GRANT for each GRANT_BYTES that it has taken.

What a kernel says on the console in between looks like anything; it is passed over as anything before a hello is. Nothing here waits.
"""

from __future__ import annotations

from qfilexchg.protocol.run import PREAMBLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

WINDOW_BYTES: Final = 256 << 10
GRANT_BYTES: Final = 64 << 10

_ESCAPE: Final = b"\x10"
RESET: Final = _ESCAPE + b"R"
GRANT: Final = _ESCAPE + b"G"
_SYSRQ, _SYSRQ_CODE = b"\x0f", _ESCAPE + b"O"
_ESCAPE_CODE: Final = _ESCAPE + b"P"


class Line:
    """One side of a console. Sizes are in bytes before they are made codes."""

    def __init__(self) -> None:
        self.start()
        self._tail = b""

    def start(self) -> None:
        """A session begins: nothing is on the way."""
        self._sent_bytes = 0
        self._received_bytes = 0

    @property
    def room_bytes(self) -> int:
        """How much may be sent now."""
        return max(0, WINDOW_BYTES - self._sent_bytes)

    def encode(self, data: bytes | bytearray | memoryview) -> bytes:
        """What to send for ``data``, which is no more than :attr:`room_bytes`, or begins with the preamble of a START."""
        data = bytes(data)
        begin = b""
        if data.startswith(PREAMBLE):
            data = data[len(PREAMBLE) :]
            self.start()
            begin = RESET
        self._sent_bytes += len(data)
        return begin + data.replace(_ESCAPE, _ESCAPE_CODE).replace(_SYSRQ, _SYSRQ_CODE)

    def decode(self, data: bytes | bytearray) -> tuple[bool, bytes]:
        """Whether the other side has begun anew, and what it has sent, since then if it has."""
        data = self._tail + data
        # An escape at the very end waits for its letter. No code ends with one.
        self._tail = _ESCAPE if data.endswith(_ESCAPE) else b""
        data = data[: len(data) - len(self._tail)]
        _, reset, data = data.rpartition(RESET)
        if reset:
            self.start()
        self._sent_bytes = max(0, self._sent_bytes - GRANT_BYTES * data.count(GRANT))
        data = data.replace(GRANT, b"").replace(_SYSRQ_CODE, _SYSRQ).replace(_ESCAPE_CODE, _ESCAPE)
        self._received_bytes += len(data)
        return bool(reset), data

    def grants(self) -> bytes:
        """What to send when all that was received has been taken."""
        grants, self._received_bytes = divmod(self._received_bytes, GRANT_BYTES)
        return GRANT * grants
