"""Copies what a survey found onto a mounted pendrive.

The sources are only read. A file that is not, when it is read, what the survey saw, or that changes meanwhile, breaks the copy
off: what arrives is what was there at one moment, or nothing.
"""

from __future__ import annotations

import errno
import os
import stat

from qfilexchg.errors import CallerError, HostError
from qfilexchg.guest import fat
from qfilexchg.guest.outcome import NoRoom
from qfilexchg.guest.progress import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from qfilexchg.guest.interruption import Interruption
    from qfilexchg.guest.progress import Progress
    from qfilexchg.guest.survey import Item

CHUNK_BYTES: Final = 1 << 20
"""Copied at a time. Larger pieces gain nothing; a signal is heeded after each."""


class SourceChanged(CallerError):
    """A file or folder was changed after it was looked at."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.source = source

    def __str__(self) -> str:
        return f"{printable(self.source)} changed while it was being copied; nothing was sent. Try again when it is at rest"


class SourceUnreadable(CallerError):
    """A file cannot be read, though it could be before."""

    def __init__(self, source: str, error: OSError) -> None:
        super().__init__(source, error)
        self.source = source
        self.why = error.strerror or str(error)

    def __str__(self) -> str:
        return f"{printable(self.source)} cannot be read ({self.why}); nothing was sent"


class PendriveBroken(HostError):
    """The pendrive cannot be written."""

    def __init__(self, target: str, why: str) -> None:
        super().__init__(target, why)
        self.target = target
        self.why = why

    def __str__(self) -> str:
        return (
            f"the pendrive could not be written at {printable(self.target)} ({self.why}); nothing was sent. "
            "dom0's disk may be full: ask the person there"
        )


def write_failed(target: str, error: OSError, needed_bytes: int) -> CallerError | HostError:
    """What an error of the pendrive's filesystem means."""
    if error.errno == errno.ENOSPC:
        return NoRoom(needed_bytes)
    return PendriveBroken(target, error.strerror or str(error))


class Copy:
    """Copies items to ``folder``; the numbers go to ``progress``, and ``interruption`` may stop it between two pieces."""

    def __init__(self, folder: str, progress: Progress, interruption: Interruption, needed_bytes: int) -> None:
        self._folder = folder
        self._progress = progress
        self._interruption = interruption
        self._needed_bytes = needed_bytes
        self._buffer = memoryview(bytearray(CHUNK_BYTES))

    def run(self, items: Sequence[Item]) -> None:
        """Copy everything, times included. Raises :exc:`SourceChanged`, :exc:`NoRoom` and the other errors of this module."""
        for item in items:
            self._interruption.check()
            target = os.path.join(self._folder, item.target)
            if item.is_folder:
                self._make_folder(target)
            else:
                self._copy_file(item, target)
                self._progress.file_done()
        # Last, as each new entry would set the folder's time again.
        for item in reversed(items):
            if item.is_folder:
                check_unchanged(item, os.lstat(item.source))
                self._set_times(os.path.join(self._folder, item.target), item.status)

    def _make_folder(self, target: str) -> None:
        try:
            os.mkdir(target)
        except OSError as error:
            raise write_failed(target, error, self._needed_bytes) from error

    def _set_times(self, target: str | int, status: os.stat_result) -> None:
        try:
            os.utime(target, (fat.clamped_s(status.st_atime), fat.clamped_s(status.st_mtime)))
        except OSError as error:
            raise write_failed(str(target), error, self._needed_bytes) from error

    def _copy_file(self, item: Item, target: str) -> None:
        source = open_unchanged(item)
        try:
            try:
                descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise write_failed(target, error, self._needed_bytes) from error
            try:
                self._copy_bytes(item, source, descriptor, target)
                check_unchanged(item, os.fstat(source))
                self._set_times(descriptor, item.status)
            finally:
                os.close(descriptor)
        finally:
            os.close(source)

    def _copy_bytes(self, item: Item, source: int, descriptor: int, target: str) -> None:
        left = item.size_bytes
        while left:
            try:
                count = os.readv(source, [self._buffer[: min(left, CHUNK_BYTES)]])
            except OSError as error:
                raise SourceUnreadable(item.source, error) from error
            if not count:
                raise SourceChanged(item.source)
            left -= count
            piece = self._buffer[:count]
            while piece:
                try:
                    piece = piece[os.write(descriptor, piece) :]
                except OSError as error:
                    raise write_failed(target, error, self._needed_bytes) from error
            self._progress.advance(count)
            self._interruption.check()


def open_unchanged(item: Item) -> int:
    """Open the item's file for reading, if it is still the one that was surveyed."""
    try:
        # O_NONBLOCK: a pipe put in the file's place must not hold us.
        descriptor = os.open(item.source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise SourceChanged(item.source) from error
        raise SourceUnreadable(item.source, error) from error
    try:
        check_unchanged(item, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_unchanged(item: Item, now: os.stat_result) -> None:
    """Raise :exc:`SourceChanged` unless ``now`` is the state that was surveyed."""
    then = item.status
    same_file = (now.st_dev, now.st_ino, stat.S_IFMT(now.st_mode)) == (then.st_dev, then.st_ino, stat.S_IFMT(then.st_mode))
    if not same_file or (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns):
        raise SourceChanged(item.source)
