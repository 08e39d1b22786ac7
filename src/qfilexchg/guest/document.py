"""A document on a pendrive without a filesystem: a dvm_header, then the body, on the raw device.

Both are moved past the page cache, in large aligned pieces: under emulation that is several times as fast, and nothing is left to
be written when the disk leaves. What refuses that (a filesystem in memory, say) is read and written in the usual way.

The digest of the body, BLAKE2b of 32 bytes, comes with every move: by it two states of a document are compared.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat

from qfilexchg.errors import HostError
from qfilexchg.guest.copying import write_failed
from qfilexchg.guest.outcome import CannotBeHeld, NoRoom
from qfilexchg.guest.progress import printable
from qfilexchg.protocol import dvm_header
from qfilexchg.protocol.dvm_header import HEADER_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from hashlib import blake2b
    from typing import Final, Protocol

    from qfilexchg.protocol.dvm_header import Header

    class Advance(Protocol):
        """See :class:`qfilexchg.guest.progress.Progress`."""

        def advance(self, size_bytes: int) -> None: ...

    class Checkpoint(Protocol):
        """See :class:`qfilexchg.guest.interruption.Interruption`."""

        def check(self) -> None: ...
else:
    from _blake2 import blake2b  # what hashlib would give us, without OpenSSL: that costs more than all else here


CHUNK_BYTES: Final = 1 << 20
"""Moved at a time; the buffer has this size. A signal is heeded after each."""
DIGEST_BYTES: Final = 32
_ALIGNMENT_BYTES: Final = 4096
"""What goes past the page cache is counted in blocks of the device; none has larger ones."""


class Changed(CannotBeHeld):
    """A document was changed while it was being read: what is on the pendrive never was its content."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{printable(name)} changed while it was being read; nothing was sent. Try again when it is at rest")
        self.name = name


class DocumentUnreadable(HostError):
    """A pendrive that arrived cannot be read."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"the pendrive with the document cannot be read ({self.why})"


def new_digest() -> blake2b:
    """What the body is fed to, piece by piece."""
    return blake2b(digest_size=DIGEST_BYTES)


def pendrive_bytes(size_bytes: int) -> int:
    """The size of a pendrive to ask for, for a body of ``size_bytes``."""
    return max(CHUNK_BYTES, HEADER_BYTES + size_bytes)


def write(device: str, name: str, source: int, size_bytes: int, progress: Advance, interruption: Checkpoint) -> bytes:
    """Write a header and the ``size_bytes`` of the file ``source``, from its beginning, to ``device``; returns the body's digest.

    When this returns the disk may leave. Raises BadDocumentName before anything is written, :exc:`Changed` if ``source`` has not
    exactly this size or is written to meanwhile, CannotBeHeld if it cannot be read, NoRoom, PendriveBroken, and what the
    checkpoint raises.
    """
    view = memoryview(mmap.mmap(-1, CHUNK_BYTES))
    view[:HEADER_BYTES] = dvm_header.encode(name, size_bytes)
    digest = new_digest()
    before = os.fstat(source)
    total_bytes = HEADER_BYTES + size_bytes
    try:
        target = _open(device, os.O_WRONLY)
        try:
            limit_bytes = _limit_bytes(target, total_bytes)
            for at in range(0, total_bytes, CHUNK_BYTES):
                skip = 0 if at else HEADER_BYTES
                end = min(CHUNK_BYTES, total_bytes - at)
                body = view[skip:end]
                _fill(body, name, source, at + skip - HEADER_BYTES)
                digest.update(body)
                padded = min(-(-end // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES, limit_bytes - at)
                view[end:padded] = bytes(padded - end)
                _write_out(target, view[:padded], at)
                progress.advance(len(body))
                interruption.check()
            os.fsync(target)
        finally:
            os.close(target)
    except OSError as error:
        raise write_failed(device, error, total_bytes) from error
    after = os.fstat(source)
    if (after.st_size, after.st_mtime_ns) != (size_bytes, before.st_mtime_ns):
        raise Changed(name)
    return digest.digest()


def open_to_read(device: str) -> tuple[int, int]:
    """A descriptor of ``device``, for the functions below, and its size. Raises :exc:`DocumentUnreadable`."""
    try:
        descriptor = _open(device, os.O_RDONLY)
        try:
            return descriptor, os.lseek(descriptor, 0, os.SEEK_END)
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise DocumentUnreadable(error.strerror or str(error)) from error


def read_header(device: int, device_bytes: int) -> Header:
    """The header on the descriptor ``device``. Raises BadHeader and :exc:`DocumentUnreadable`."""
    view = memoryview(mmap.mmap(-1, _ALIGNMENT_BYTES))
    count = _read(device, view, 0)
    return dvm_header.parse(bytes(view[: min(count, HEADER_BYTES)]), device_bytes)


def copy_body(device: int, header: Header, target: int, advance: Callable[[int], None]) -> bytes:
    """Write the body that ``header`` tells of, and no byte more, to the file ``target``; returns its digest.

    ``advance`` is called with the size of each piece, and may end it by raising. Raises :exc:`DocumentUnreadable`; an OSError is
    one of ``target``.
    """
    view = memoryview(mmap.mmap(-1, CHUNK_BYTES))
    digest = new_digest()
    total_bytes = HEADER_BYTES + header.size_bytes
    for at in range(0, total_bytes, CHUNK_BYTES):
        skip = 0 if at else HEADER_BYTES
        end = min(CHUNK_BYTES, total_bytes - at)
        if _read(device, view, at) < end:
            raise DocumentUnreadable("it ends before the document does")
        body = view[skip:end]
        digest.update(body)
        _write_to_file(target, body)
        advance(len(body))
    return digest.digest()


def digest_of(source: int, checkpoint: Callable[[], None]) -> bytes:
    """The digest of the file ``source`` from its beginning to its end. Raises OSError, and what ``checkpoint`` raises."""
    view = memoryview(bytearray(CHUNK_BYTES))
    digest = new_digest()
    at = 0
    while count := os.preadv(source, [view], at):
        digest.update(view[:count])
        at += count
        checkpoint()
    return digest.digest()


def _open(device: str, flags: int) -> int:
    """A descriptor that moves data past the page cache, if that can be. No O_CREAT: a device that has vanished stays away."""
    try:
        return os.open(device, flags | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(device, flags | os.O_CLOEXEC)


def _through_the_cache(descriptor: int, error: OSError) -> bool:
    """Whether ``error`` meant that this cannot be moved past the page cache; from now on it need not be."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
        return False
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    return True


def _limit_bytes(target: int, total_bytes: int) -> int:
    """Where the disk ends. Raises NoRoom if that is before the document does."""
    if not stat.S_ISBLK(os.fstat(target).st_mode):
        return total_bytes + _ALIGNMENT_BYTES
    limit_bytes = os.lseek(target, 0, os.SEEK_END)
    if limit_bytes < total_bytes:
        raise NoRoom(total_bytes)
    return limit_bytes


def _fill(piece: memoryview, name: str, source: int, at: int) -> None:
    while piece:
        try:
            count = os.preadv(source, [piece], at)
        except OSError as error:
            raise CannotBeHeld(f"{printable(name)} cannot be read ({error.strerror}); nothing was sent") from error
        if not count:
            raise Changed(name)
        at += count
        piece = piece[count:]


def _write_out(target: int, piece: memoryview, at: int) -> None:
    while piece:
        try:
            count = os.pwritev(target, [piece], at)
        except OSError as error:
            if _through_the_cache(target, error):
                continue
            raise
        at += count
        piece = piece[count:]


def _write_to_file(target: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(target, piece) :]


def _read(device: int, view: memoryview, at: int) -> int:
    """As much as there is at ``at``, up to the size of ``view``; how much that was."""
    count = 0
    while count < len(view):
        try:
            got = os.preadv(device, [view[count:]], at + count)
        except OSError as error:
            if _through_the_cache(device, error):
                continue
            raise DocumentUnreadable(error.strerror or str(error)) from error
        if not got:
            break
        count += got
    return count
