"""Puts a document that was changed in a DisposableVM where it belongs, and loses neither of its two states.

It replaces the original whole, and only if that is still, to the byte, what was sent. Otherwise it is put beside it under a name
that nothing else has, ``NAME (edited in dispN)``; and where the original's folder cannot be written, into the next best one.
What is under a name of these is always complete and on the disk: everything is written to a hidden file first, whose name the
next attempt knows, so nothing is left behind by one that was killed. An attempt that had come to its end before is recognised by
the digest, and not made twice.
"""

from __future__ import annotations

import errno
import os
import stat

from qfilexchg.errors import HostError
from qfilexchg.guest import document
from qfilexchg.guest.progress import printable
from qfilexchg.guest.sequence import BESIDE, REPLACED, Outcome, named

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final, TypeVar

    from qfilexchg.guest.sequence import Original
    from qfilexchg.protocol.dvm_header import Header
    from qfilexchg.protocol.names import VmName

    T = TypeVar("T")

NAMES_MAX: Final = 1000
"""Names that are tried in one folder. Stops a folder full of them from costing more than the next best one."""

_CHANGED: Final = "it was changed here meanwhile"
_OTHER_NAME: Final = "it came back under another name"
_ACL: Final = "system.posix_acl_access"
_NO_ACL: Final = (errno.ENODATA, errno.EOPNOTSUPP)
"""What a file without an access list answers, or one on a filesystem that has none."""
_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What filesystems without hard links answer."""
_LOOK: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""O_NONBLOCK: a pipe put in a file's place must not hold us."""


class NoPlace(HostError):
    """A changed document can be written nowhere. ``problems`` are the folders that were tried, each with the reason."""

    def __init__(self, name: str, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__(name, problems)
        self.name = name
        self.problems = problems

    def __str__(self) -> str:
        tried = ", ".join(f"{printable(folder)} ({why})" for folder, why in self.problems)
        return f"the changed {printable(self.name)} can be written nowhere: {tried}; it stays on its pendrive: make room in one of these"


class Placing:
    """One document that came back from ``source``: its body is on the descriptor ``device``, behind ``header``.

    ``checkpoint`` is called after each piece that is copied or read; what it raises ends the attempt, which leaves nothing.
    """

    def __init__(self, device: int, header: Header, original: Original, source: VmName, seq: int, checkpoint: Callable[[], None]) -> None:
        self._device = device
        self._header = header
        self._original = original
        self._checkpoint = checkpoint
        self._folder, self._name = os.path.split(original.path)
        self._source = source
        self._seq = seq

    def place(self, other_folders: Sequence[str]) -> Outcome:
        """Put it into its place, beside the original, or into the first of ``other_folders`` that can be written.

        Returns when it is on the disk. Raises :exc:`NoPlace`, DocumentUnreadable and what the checkpoint raises.
        """
        problems: list[tuple[str, str]] = []
        why = ""
        for folder in dict.fromkeys((self._folder, *other_folders)):
            try:
                return self._place_in(folder, why)
            except OSError as error:
                problems.append((folder, error.strerror or str(error)))
                why = f"its folder cannot be written ({problems[0][1]})"
        raise NoPlace(self._name, problems)

    def _place_in(self, folder: str, why: str) -> Outcome:
        """``why`` is the reason for which it may not go into its own folder; empty if this is its own."""
        part = self._original.part(folder, self._seq)
        _remove(part)
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            _remove_acl(file)
            digest = document.copy_body(self._device, self._header, file, lambda _: self._checkpoint())
            if not why:
                why = self._replace(part, file, digest)
                if not why:
                    return Outcome(REPLACED, self._original.path)
                _try(os.fchmod, file, self._original.mode)
            os.fsync(file)
            return Outcome(BESIDE, self._publish(part, folder, digest), why)
        finally:
            os.close(file)
            _remove(part)

    def _replace(self, part: str, file: int, digest: bytes) -> str:
        """Put ``part`` in the original's place; why that may not be, or an empty text if it is done."""
        path = self._original.path
        try:
            current = os.open(path, _LOOK)
        except OSError as error:
            return _absence(error)
        try:
            status = os.fstat(current)
            if not stat.S_ISREG(status.st_mode):
                return "it is no file any more"
            known = status.st_size in (self._original.size_bytes, self._header.size_bytes)
            now = document.digest_of(current, self._checkpoint) if known else b""
            if now == digest:  # an earlier attempt did it
                _sync(self._folder)
                return ""
            if not known or now != self._original.digest:
                return _CHANGED
            if self._header.name != self._original.name:
                return _OTHER_NAME
            if why := _dress(file, current, status):
                return why
        except OSError as error:
            return _absence(error)
        finally:
            os.close(current)
        os.fsync(file)
        if not _is_still(path, status):
            return _CHANGED
        try:
            os.rename(part, path)
        except OSError as error:
            return f"it cannot be replaced ({error.strerror})"
        _sync(self._folder)
        return ""

    def _publish(self, part: str, folder: str, digest: bytes) -> str:
        """Give ``part`` a name that nothing else has; its path."""
        for number in range(1, NAMES_MAX + 1):
            path = os.path.join(folder, named(self._name, f" (edited in {self._source}){f' {number}' if number > 1 else ''}"))
            try:
                _link(part, path)
            except FileExistsError:
                if not self._holds(path, digest):
                    continue  # else an earlier attempt did it
            _sync(folder)
            return path
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    def _holds(self, path: str, digest: bytes) -> bool:
        """Whether ``path`` is a file with just this content."""
        try:
            file = os.open(path, _LOOK)
        except OSError:
            return False
        try:
            status = os.fstat(file)
            same_size = stat.S_ISREG(status.st_mode) and status.st_size == self._header.size_bytes
            return same_size and document.digest_of(file, self._checkpoint) == digest
        except OSError:
            return False
        finally:
            os.close(file)


def _absence(error: OSError) -> str:
    """Why the original cannot be looked at."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "it is gone"
    if error.errno == errno.ELOOP:
        return "a symbolic link is in its place"
    return f"it cannot be read ({error.strerror})"


def _dress(file: int, original: int, status: os.stat_result) -> str:
    """Give ``file``, which has no access list, the owner, rights and attributes of ``original``; why that may not be, or an empty text.

    No bit but those of access: another VM wrote the content, so it must not run with anybody's rights. Attributes are kept as
    far as the filesystem lets us.
    """
    new = os.fstat(file)
    try:
        if (new.st_uid, new.st_gid) != (status.st_uid, status.st_gid):
            os.fchown(file, status.st_uid, status.st_gid)
        # Before the mode: with a list, its bits for the group are a limit, and say nothing of what the group may.
        if acl := _acl(original):
            os.setxattr(file, _ACL, acl)
        if stat.S_IMODE(new.st_mode) != status.st_mode & 0o777:
            os.fchmod(file, status.st_mode & 0o777)
    except OSError as error:
        return f"its owner and rights cannot be kept ({error.strerror})"
    for name in _try(os.listxattr, original) or ():
        if name.startswith("user."):
            value = _try(os.getxattr, original, name)
            if value is not None:
                _try(os.setxattr, file, name, value)
    return ""


def _acl(file: int) -> bytes:
    """The access list of ``file``, empty where it has none (acl(5))."""
    try:
        return os.getxattr(file, _ACL)
    except OSError as error:
        if error.errno not in _NO_ACL:
            raise
        return b""


def _remove_acl(file: int) -> None:
    """Take away what a new file has inherited of its folder: other rights than the mode says, as soon as that has any for a group."""
    try:
        os.removexattr(file, _ACL)
    except OSError as error:
        if error.errno not in _NO_ACL:
            raise


def _is_still(path: str, then: os.stat_result) -> bool:
    """Whether ``path`` is the very file that ``then`` tells of, and nothing has touched it."""
    try:
        now = os.lstat(path)
    except OSError:
        return False
    return all(
        getattr(now, field) == getattr(then, field) for field in ("st_dev", "st_ino", "st_mode", "st_size", "st_mtime_ns", "st_ctime_ns")
    )


def _link(part: str, path: str) -> None:
    """Let ``part`` be ``path``, too, or that alone. Raises FileExistsError if there is anything at ``path``."""
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            os.rename(part, path)
        except OSError:
            _remove(path)
            raise


def _sync(folder: str) -> None:
    """Have a folder's entries on the disk, if this user may: the content is there, and a new place would be one too many."""
    file = _try(os.open, folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if file is not None:
        _try(os.fsync, file)
        os.close(file)


def _remove(path: str) -> None:
    _try(os.unlink, path)


def _try(call: Callable[..., T], *arguments: object) -> T | None:
    """What ``call`` returns, or None where the filesystem refuses it."""
    try:
        return call(*arguments)
    except OSError:
        return None
