"""The run agent's end of the VM's console on Xen: a terminal made raw, with what a console lacks (protocol/console.py)."""

from __future__ import annotations

import errno
import os

from qfilexchg.protocol.console import Line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

PRINTK: Final = "/proc/sys/kernel/printk"
_READ_BYTES: Final = 64 << 10


class Console:
    """An open console. It is read and written like a port that does not block."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._line = Line()
        self._unsent = b""

    def read(self) -> tuple[bool, bytes]:
        """Whether dom0 begins a session, and what it has sent since, which is nothing if it only made room.

        Raises BlockingIOError when there is nothing to read.
        """
        received = os.read(self._descriptor, _READ_BYTES)
        if not received:  # one that is raw never says so of itself: it has been hung up, and is to be opened anew
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        begins, data = self._line.decode(received)
        if begins:
            self._unsent = b""
        return begins, data

    def write(self, data: bytearray) -> int:
        """Send the beginning of ``data``; how much of it has been taken. Raises BlockingIOError when that is nothing."""
        if self._flush():
            taken = min(len(data), self._line.room_bytes)
            if taken:
                self._unsent = self._line.encode(data[:taken])
                self._flush()
                return taken
        raise BlockingIOError

    def taken(self) -> None:
        """All that was read has been taken, so more may come."""
        self._unsent += self._line.grants()
        self._flush()

    def _flush(self) -> bool:
        """Whether all is sent."""
        while self._unsent:
            try:
                self._unsent = self._unsent[os.write(self._descriptor, self._unsent) :]
            except BlockingIOError:
                return False
        return True


def open_console(path: str) -> int:
    """A descriptor of the terminal ``path``, which from now on hands on every byte as it is. What was typed there before is gone."""
    import termios  # only here: no other VM needs it

    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    attributes = termios.tcgetattr(descriptor)
    attributes[0] = attributes[1] = attributes[3] = 0  # how input and output are changed, and what a person at a terminal needs
    attributes[2] = termios.CS8 | termios.CREAD | termios.CLOCAL
    attributes[6][termios.VMIN], attributes[6][termios.VTIME] = 1, 0
    termios.tcsetattr(descriptor, termios.TCSAFLUSH, attributes)
    return descriptor


def hush_kernel(path: str = PRINTK) -> None:
    """Keep the kernel's messages off the console, but for the one that comes with its end (proc_sys_kernel(5))."""
    with open(path, "w", encoding="ascii") as file:
        file.write("1")
