"""``~/.dvm``: which documents of this person are open in DisposableVMs, and where they belong.

A document is known by its sequence number, SEQ, the one thing that comes back with it. Of 2010 are ``seq`` (the last SEQ, a native
4-byte integer) and ``SEQ`` (the document's absolute path, ended by a NUL). Ours are ``SEQ.original`` (what was sent, to know it
again) and ``SEQ.outcome`` (what became of it, for the command that waits).

``SEQ`` is there as long as the document may come back, and a return without it is not taken. Every file but ``seq`` is written
whole or not at all, so whoever was killed half-way is understood by the next.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import sys

from qfilexchg.errors import HostError
from qfilexchg.guest.document import DIGEST_BYTES
from qfilexchg.protocol.dvm_header import FILE_NAME_MAX
from qfilexchg.protocol.qpen import SEQ_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final, Protocol

    class Waiter(Protocol):
        """See :class:`qfilexchg.guest.interruption.Interruption`."""

        def wait(self, descriptors: Sequence[int], timeout_s: float) -> bool: ...


ACCOUNT: Final = "user"
"""The one account whose documents come back: the services of a VM that deal with documents run as this
(packaging/vm/qubes-pendrive@.service)."""
FOLDER: Final = ".dvm"
LOCK_S: Final = 10.0
"""Seconds that others may hold ``seq``; each holds it for the time of one write."""
_LOCK_PAUSE_S: Final = 0.02
_NUMBER_BYTES: Final = 4
_FILE_MAX: Final = 16 << 10
"""Bytes that are read of any file here; a path has at most 4096."""
_OLD_S: Final = 24 * 3600.0
"""Seconds after which what nobody has fetched is cleared away."""
_TIDY_MAX: Final = 1000
"""Entries that one command looks at to clear away."""

REPLACED: Final = "replaced"
BESIDE: Final = "beside"
REFUSED: Final = "refused"
FAILED: Final = "failed"
_WORDS = (REPLACED, BESIDE, REFUSED, FAILED)


class BookLocked(HostError):
    """Another program holds the number of the last document."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path} has been locked for {LOCK_S:.0f} s: end the program that holds it (see: fuser {self.path}), and try again"


class Original:
    """A document as it was sent. ``digest`` is empty where it is not known: then nothing is known to be the same."""

    __slots__ = ("boot", "digest", "mode", "name", "path", "size_bytes")

    def __init__(self, path: str, name: str, size_bytes: int, digest: bytes, mode: int, boot: str = "") -> None:
        self.path: Final = path
        """Absolute, without symbolic links."""
        self.name: Final = name
        """As it was sent, which is that of the link where one led to it. It comes back under this name."""
        self.size_bytes: Final = size_bytes
        self.digest: Final = digest
        self.mode: Final = mode
        self.boot: Final = boot
        """Which run of this VM sent it: a document comes back to the same run, or never."""

    def encode(self) -> bytes:
        """As it stands in ``SEQ.original``, beside the path."""
        name = self.name.encode().hex()
        lines = f"name={name}\nsize={self.size_bytes}\ndigest={self.digest.hex()}\nmode={self.mode:o}\nboot={self.boot}\n"
        return lines.encode("ascii")

    @classmethod
    def parse(cls, path: bytes, data: bytes | None) -> Original | None:
        """The document that ``SEQ`` and ``SEQ.original`` tell of, or None where ``SEQ`` holds no path."""
        path = path.partition(b"\0")[0]
        if not path.startswith(b"/") or path.endswith(b"/"):
            return None
        lines = (data or b"").decode("ascii", "replace").splitlines()
        values = dict(line.split("=", 1) for line in lines if "=" in line)
        try:
            size_bytes, mode = int(values["size"]), int(values["mode"], 8) & 0o777
            digest, name = bytes.fromhex(values["digest"]), bytes.fromhex(values["name"]).decode()
            if len(digest) == DIGEST_BYTES:
                return cls(os.fsdecode(path), name, size_bytes, digest, mode, values.get("boot", ""))
        except (KeyError, ValueError):
            pass
        return cls(os.fsdecode(path), "", 0, b"", 0o600)

    def part(self, folder: str, seq: int) -> str:
        """The hidden file in ``folder`` that the document is written to before it has its place. The same for each attempt."""
        return os.path.join(folder, named(os.path.basename(self.path), f".dvm-{seq}", prefix="."))


class Outcome:
    """What became of a document that came back."""

    __slots__ = ("path", "why", "word")

    def __init__(self, word: str, path: str = "", why: str = "") -> None:
        self.word: Final = word
        """``replaced``: it is in its place. ``beside``: it is at ``path``, because of ``why``. ``refused``: what came was none.
        ``failed``: it has no place yet; it is kept on its pendrive and tried again."""
        self.path: Final = path
        self.why: Final = why

    def _fields(self) -> tuple[str, str, str]:
        return (self.word, self.path, self.why)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outcome) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def __repr__(self) -> str:
        return f"Outcome({self.word!a}, {self.path!a}, {self.why!a})"

    @property
    def final(self) -> bool:
        return self.word != FAILED

    def encode(self) -> bytes:
        return b"".join(os.fsencode(field) + b"\0" for field in self._fields())

    @classmethod
    def parse(cls, data: bytes) -> Outcome | None:
        fields = data.split(b"\0")
        if len(fields) != 4 or fields[3] or fields[0] not in [word.encode() for word in _WORDS]:
            return None
        return cls(*map(os.fsdecode, fields[:3]))


class Book:
    """The folder. Every call may raise an OSError of it."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def take(self, waiter: Waiter) -> int:
        """A number that no document has, from 1 to :data:`SEQ_MAX`; never the same twice, however many ask at once.

        Raises :exc:`BookLocked` and what the waiter raises.
        """
        os.makedirs(self._folder, 0o700, exist_ok=True)
        file = os.open(self._path("seq"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            self._lock(file, waiter)
            data = os.pread(file, _NUMBER_BYTES, 0)
            seq = int.from_bytes(data, sys.byteorder, signed=True) if len(data) == _NUMBER_BYTES else 0
            while True:
                seq = seq + 1 if 0 <= seq < SEQ_MAX else 1
                if not os.path.lexists(self._path(str(seq))):
                    break
            # Four bytes of one block: they reach the disk together.
            os.pwrite(file, seq.to_bytes(_NUMBER_BYTES, sys.byteorder, signed=True), 0)
            os.fsync(file)
            return seq
        finally:
            os.close(file)

    def note(self, seq: int, original: Original) -> None:
        """From now on the document may come back."""
        self.drop_outcome(seq)
        self._write(f"{seq}.original", original.encode())
        self._write(str(seq), os.fsencode(original.path) + b"\0")

    def original(self, seq: int) -> Original | None:
        """The document ``seq``, or None if nobody here waits for it."""
        path = self._read(str(seq))
        return None if path is None else Original.parse(path, self._read(f"{seq}.original"))

    def forget(self, seq: int) -> None:
        """The document does not come back, or has. A second time is harmless."""
        self._remove(str(seq))
        self._remove(f"{seq}.original")

    def conclude(self, seq: int, outcome: Outcome) -> None:
        """Tell the command that waits; after a final outcome the document is forgotten."""
        self._write(f"{seq}.outcome", outcome.encode())
        if outcome.final:
            self.forget(seq)

    def outcome(self, seq: int) -> Outcome | None:
        """What became of the document ``seq``, as far as that is known."""
        data = self._read(f"{seq}.outcome")
        return None if data is None else Outcome.parse(data)

    def drop_outcome(self, seq: int) -> None:
        """The outcome has been read."""
        self._remove(f"{seq}.outcome")

    def tidy(self, boot: str, now_s: float) -> None:
        """Clear away what nobody will ask for again: it is old, or of another run of this VM."""
        try:
            with os.scandir(self._folder) as entries:
                for _, entry in zip(range(_TIDY_MAX), entries, strict=False):
                    if entry.stat(follow_symlinks=False).st_mtime < now_s - _OLD_S:
                        self._tidy(entry.name, boot)
        except FileNotFoundError:
            pass  # no folder yet, or another command was faster

    def _tidy(self, name: str, boot: str) -> None:
        number, _, kind = name.partition(".")
        if not (number.isascii() and number.isdecimal()):
            return
        if kind in ("outcome", "outcome.new", "original.new", "path.new"):
            self._remove(name)
        elif kind == "original":
            original = self.original(int(number))
            if original is None or original.boot != boot:
                if original:
                    self._remove_parts(original, int(number))
                self.forget(int(number))

    def _remove_parts(self, original: Original, seq: int) -> None:
        """What a VM that was killed while the document came back has left of it."""
        for folder in (os.path.dirname(original.path), os.path.dirname(self._folder)):
            try:  # noqa: SIM105 - contextlib is dear to import
                os.unlink(original.part(folder, seq))
            except OSError:
                pass

    def _lock(self, file: int, waiter: Waiter) -> None:
        for _ in range(round(LOCK_S / _LOCK_PAUSE_S)):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                waiter.wait((), _LOCK_PAUSE_S)
        raise BookLocked(self._path("seq"))

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _read(self, name: str) -> bytes | None:
        try:
            file = os.open(self._path(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return os.read(file, _FILE_MAX)
        finally:
            os.close(file)

    def _write(self, name: str, data: bytes) -> None:
        """All of ``data`` under ``name``, on the disk, or what was there before."""
        new = self._path(f"{name}.new") if "." in name else self._path(f"{name}.path.new")
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(file, data)
            os.fsync(file)
        finally:
            os.close(file)
        os.rename(new, self._path(name))
        self._sync()

    def _remove(self, name: str) -> None:
        try:  # noqa: SIM105 - contextlib is dear to import
            os.unlink(self._path(name))
        except FileNotFoundError:
            pass

    def _sync(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def named(name: str, suffix: str, prefix: str = "") -> str:
    """A file name made from ``name``, which is cut where the whole would be too long for a filesystem."""
    text = os.fsencode(name)
    room = FILE_NAME_MAX - len(prefix.encode()) - len(suffix.encode())
    if len(text) > room:
        while room and text[room] & 0xC0 == 0x80:  # not within a character
            room -= 1
        text = text[:room]
    return prefix + os.fsdecode(text) + suffix


def comes_back() -> bool:
    """Whether a document that this process sends can come back: whether it is of the :data:`ACCOUNT`."""
    try:
        return pwd.getpwnam(ACCOUNT).pw_uid == os.getuid()
    except KeyError:
        return False


def home() -> str:
    """This person's home, whatever the environment says: the command and the pendrive script must mean the same."""
    return pwd.getpwuid(os.getuid()).pw_dir


def book_in(home: str) -> Book:
    """The book of whoever has this home."""
    return Book(os.path.join(home, FOLDER))


def this_boot() -> str:
    """A name for this run of the VM, empty where the kernel gives none."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
