"""Looks through a mounted pendrive that another VM has written, and copies it out, file by file.

The filesystem is hostile or broken until it has shown otherwise: folders that contain themselves, files that claim more than there
is, names that are none, reads that fail. So nothing is held in memory but the way down to where it is, all is counted, and what
cannot be had is told and passed over. Nothing that is in the target folder is touched: what has a name there gets another.
"""

from __future__ import annotations

import errno
import os
import stat

from qfilexchg.errors import CallerError
from qfilexchg.guest.copying import CHUNK_BYTES
from qfilexchg.guest.progress import printable
from qfilexchg.guest.sequence import named

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Final

    from qfilexchg.guest.progress import Progress

THINGS_MAX: Final = 1_000_000
"""Files and folders of one pendrive. Ends a walk through folders that contain each other, which would take for ever."""
DEPTH_MAX: Final = 200
"""Folders within folders. Each costs a descriptor while it is walked through."""
NAMES_MAX: Final = 1000
"""Names that are tried for one thing that is there already."""
_NAME_IS_NONE: Final = frozenset({errno.EEXIST, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ})
"""What is wrong with one name alone. After any other error there is no sense in going on with the next."""
_LOOK: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class CannotWrite(CallerError):
    """The target folder takes no more. What was copied before is complete."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"{printable(self.path)} cannot be written ({self.why}); what was copied before it is complete"


class Found:
    """A file or folder, or why one cannot be had. ``path`` is relative to the pendrive's folder."""

    __slots__ = ("path", "status", "why")

    def __init__(self, path: str, status: os.stat_result | None, why: str = "") -> None:
        self.path: Final = path
        self.status: Final = status
        self.why: Final = why

    @property
    def is_folder(self) -> bool:
        return self.status is not None and stat.S_ISDIR(self.status.st_mode)

    @property
    def size_bytes(self) -> int:
        return self.status.st_size if self.status and not self.is_folder else 0


def walk(top: str, checkpoint: Callable[[], None], things_max: int = THINGS_MAX) -> Iterator[Found]:
    """Everything in the folder ``top``: a folder before what is in it. ``checkpoint`` is called for each thing."""
    count = 0
    open_folders = [("", _entries(top, ""))]
    try:
        while open_folders:
            folder, entries = open_folders[-1]
            entry = next(entries, None)
            if entry is None:
                open_folders.pop()
                continue
            checkpoint()
            count += 1
            if count > things_max:
                yield Found(folder, None, f"there are more than {things_max} things; the rest is left out")
                return
            found = _look(top, folder, entry) if isinstance(entry, str) else entry
            if found.is_folder and len(open_folders) >= DEPTH_MAX:
                found = Found(found.path, None, f"it is {DEPTH_MAX} folders deep")
            yield found
            if found.is_folder:
                open_folders.append((found.path, _entries(top, found.path)))
    finally:
        for _, entries in open_folders:
            entries.close()  # type: ignore[attr-defined]


def _entries(top: str, folder: str) -> Iterator[str | Found]:
    """The names in a folder, in the order of the disk, and last why there are no more, if it is broken."""
    try:
        with os.scandir(os.path.join(top, folder)) as entries:
            for entry in entries:
                yield entry.name
    except OSError as error:
        yield Found(folder, None, f"it cannot be read ({error.strerror})")


def _look(top: str, folder: str, name: str) -> Found:
    path = os.path.join(folder, name)
    if "/" in name or name in ("", ".", ".."):
        return Found(folder, None, f"it has a thing without a possible name: {name!a}")
    try:
        status = os.lstat(os.path.join(top, path))
    except OSError as error:
        return Found(path, None, f"it cannot be read ({error.strerror})")
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        return Found(path, None, "it is neither a file nor a folder")
    return Found(path, status)


class Unloading:
    """Copies what is in ``top`` into the folder ``target``. ``sender`` goes into the names of what is there already.

    A file has at most ``limit_bytes``, and so have all together: more than the disk has is a lie.
    """

    def __init__(self, top: str, target: str, sender: str, limit_bytes: int, progress: Progress, checkpoint: Callable[[], None]) -> None:
        self._top = top
        self._target = target
        self._sender = sender
        self._left_bytes = limit_bytes
        self._progress = progress
        self._checkpoint = checkpoint
        self._place = ""
        self._lost = ""
        self._buffer = memoryview(bytearray(CHUNK_BYTES))
        self.files = 0
        self.bytes = 0
        self.renamed: list[tuple[str, str]] = []
        """What got another name than it has on the pendrive, and that name."""

    def run(self) -> Iterator[Found]:
        """Copy everything; what could not be had comes out. Raises :exc:`CannotWrite` and what the checkpoint raises.

        A file that is broken off, for whatever reason, does not stay.
        """
        for found in walk(self._top, self._checkpoint):
            if found.status is None:
                yield found
                continue
            place = self._make(found)
            if isinstance(place, Found):
                yield place
            elif place is not None and not found.is_folder and (why := self._fill(found, *place)):
                yield Found(found.path, None, why)

    def _make(self, found: Found) -> tuple[str, int] | Found | None:
        """Make a new file, or a folder; the file's path and descriptor."""
        if self._lost and found.path.startswith(f"{self._lost}/"):
            return None  # its folder could not be made, which was told
        top, _, below = found.path.partition("/")
        try:
            made = self._create(os.path.join(self._target, self._place, below), found) if below else self._make_at_top(top, found)
        except OSError as error:
            why = "it is there twice" if error.errno == errno.EEXIST else f"the target cannot have its name ({error.strerror})"
            made = Found(found.path, None, why)
        if isinstance(made, Found) and found.is_folder:
            self._lost = found.path
        return made

    def _make_at_top(self, top: str, found: Found) -> tuple[str, int] | Found | None:
        for name in self._names(top):
            try:
                made = self._create(os.path.join(self._target, name), found)
            except OSError as error:
                if error.errno == errno.EEXIST or (error.errno == errno.ENAMETOOLONG and name == top):
                    continue
                raise
            self._place = name
            if name != top:
                self.renamed.append((top, name))
            return made
        return Found(found.path, None, "all names for it are taken")

    def _names(self, top: str) -> Iterator[str]:
        """Its own; that cut, where it is too long; then those by which it is known whose it is."""
        yield top
        yield named(top, "")
        for number in range(1, NAMES_MAX + 1):
            yield named(top, f" (from {self._sender}){f' {number}' if number > 1 else ''}")

    def _create(self, path: str, found: Found) -> tuple[str, int] | None:
        """Raises OSError if it is the name's fault alone, else :exc:`CannotWrite`."""
        try:
            if found.is_folder:
                os.mkdir(path)
                return None
            return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno in _NAME_IS_NONE:
                raise
            raise CannotWrite(path, error.strerror or str(error)) from error

    def _fill(self, found: Found, path: str, target: int) -> str:
        """Copy one file; why it could not be had, or an empty text."""
        assert found.status
        complete = False
        try:
            why = self._copy(os.path.join(self._top, found.path), path, target)
            if not why:
                os.utime(target, ns=(found.status.st_mtime_ns, found.status.st_mtime_ns))
                complete = True
                self.files += 1
                self._progress.file_done()
            return why
        finally:
            os.close(target)
            if not complete:
                os.unlink(path)

    def _copy(self, source_path: str, path: str, target: int) -> str:
        try:
            source = os.open(source_path, _LOOK)
        except OSError as error:
            return f"it cannot be read ({error.strerror})"
        try:
            while True:
                self._checkpoint()
                try:
                    count = os.readv(source, [self._buffer])
                except OSError as error:
                    return f"it cannot be read ({error.strerror})"
                if not count:
                    return ""
                if count > self._left_bytes:
                    return "it claims more than there is on the pendrive"
                self._left_bytes -= count
                piece = self._buffer[:count]
                while piece:
                    try:
                        piece = piece[os.write(target, piece) :]
                    except OSError as error:
                        raise CannotWrite(path, error.strerror or str(error)) from error
                self.bytes += count
                self._progress.advance(count)
        finally:
            os.close(source)
