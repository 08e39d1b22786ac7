"""What is in flight, on disk, so that a daemon that starts can finish or undo what another left; and what became of the rest.

SQLite with a write-ahead log. An entry is written before the effects that it announces, and each call is one transaction: after
a death of the daemon at any moment, the file has every call that returned.

``synchronous=NORMAL`` is enough for that, and spares the daemon, and so all VMs, an fsync at each step. It leaves one case, that
the host itself loses its power: then the last calls may be missing, though never one without all later ones, so that what is on
disk is an earlier moment of the same history. All VMs have ended by then too, and at an earlier moment of a pendrive its sender
still has the files; an image of which the journal knows nothing is kept for the person.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final
from uuid import UUID

from qfilexchg.dom0.exchange.messages import Document, Entry, Fate, PendriveId
from qfilexchg.dom0.exchange.phases import Course, Phase
from qfilexchg.dom0.vms.hypervisor import RunningVm, VmId
from qfilexchg.errors import CallerError, HostError
from qfilexchg.protocol.names import DomainId, VmName

HISTORY_MAX: Final = 10_000
"""Outcomes that are remembered. A VM that sends in a loop fills no disk."""
HISTORY_OF_ONE_MAX: Final = 1_000
"""Of those, from one sender. In a loop it drives out its own, and nobody else's."""
_BUSY_S: Final = 5.0
"""Only a person's own tools can lock the file; then the daemon waits for so long."""

_FORGET: Final = """
DELETE FROM history WHERE number <= (SELECT number FROM history ORDER BY number DESC LIMIT 1 OFFSET :most)
"""
_FORGET_OF_ONE: Final = """
DELETE FROM history WHERE sender = :sender
AND number <= (SELECT number FROM history WHERE sender = :sender ORDER BY number DESC LIMIT 1 OFFSET :most)
"""
_STEPS: Final = (
    """
CREATE TABLE pendrive (
    pendrive TEXT PRIMARY KEY,
    phase TEXT NOT NULL,
    sender_domain INTEGER NOT NULL, sender_uuid TEXT NOT NULL, sender_name TEXT NOT NULL,
    receiver_domain INTEGER, receiver_uuid TEXT, receiver_name TEXT,
    seq INTEGER NOT NULL,
    request_id TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    baseline_bytes INTEGER NOT NULL
) STRICT;
CREATE TABLE history (
    number INTEGER PRIMARY KEY,
    time_s REAL NOT NULL,
    sender TEXT NOT NULL,
    receiver TEXT,
    used_bytes INTEGER NOT NULL,
    outcome TEXT NOT NULL
) STRICT;
""",
    """
ALTER TABLE pendrive ADD COLUMN course TEXT NOT NULL DEFAULT 'copy';
ALTER TABLE pendrive ADD COLUMN view_only INTEGER NOT NULL DEFAULT 0;
CREATE TABLE document (
    vm_domain INTEGER NOT NULL, vm_uuid TEXT NOT NULL, vm_name TEXT NOT NULL,
    asker_domain INTEGER NOT NULL, asker_uuid TEXT NOT NULL, asker_name TEXT NOT NULL,
    seq INTEGER NOT NULL,
    view_only INTEGER NOT NULL,
    fate TEXT NOT NULL,
    PRIMARY KEY (vm_domain, vm_uuid)
) STRICT;
""",
    """
ALTER TABLE pendrive ADD COLUMN since_s REAL NOT NULL DEFAULT 0;
ALTER TABLE document ADD COLUMN since_s REAL NOT NULL DEFAULT 0;
""",
)
"""Each makes of a journal of the version before it one of its own; the first makes one of an empty file."""
VERSION: Final = len(_STEPS)
_DAMAGED = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one transfer. ``time_s`` counts from the epoch; ``receiver`` is None where there was none."""

    time_s: float
    sender: VmName
    receiver: VmName | None
    used_bytes: int
    text: str


class JournalFailed(HostError):
    """The journal cannot be read or written. What was there before is still there."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"the journal {self.path} cannot be used: {self.why}"


class JournalTooNew(CallerError):
    """The journal of a later version of this program."""

    def __init__(self, path: Path, version: int) -> None:
        super().__init__(path, version)
        self.path = path
        self.version = version

    def __str__(self) -> str:
        return f"the journal {self.path} has version {self.version}, above {VERSION}: start the newer qfilexchgd that made it"


class _Damaged(Exception):
    """Why the file is no journal of ours."""


class Journal:
    """The journal in one file, for one process.

    Raises :exc:`JournalFailed` from any method when the disk does not take what is written; the change is then not made.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        """Open the journal, or make it. A damaged one is moved aside, said in the log, and a new one takes its place.

        Raises :exc:`JournalFailed`, :exc:`JournalTooNew`.
        """
        self._path = path
        self._now = now
        try:
            self._database = self._open()
        except _Damaged as error:
            aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now()))}")
            log.error("the journal %s is damaged (%s); it is kept as %s and a new one is begun", path, error, aside)
            self._move_aside(aside)
            self._database = self._open()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    def put(self, entry: Entry) -> None:
        """Write down where a pendrive is now, in the place of what was known of it."""
        sender, receiver = entry.sender, entry.receiver
        with self._blamed():
            self._database.execute(
                "INSERT OR REPLACE INTO pendrive VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?,"
                " COALESCE((SELECT since_s FROM pendrive WHERE pendrive = ? AND phase = ?), ?))",
                (
                    entry.pendrive,
                    entry.phase.value,
                    *_columns(sender),
                    *(_columns(receiver) if receiver else (None, None, None)),
                    entry.seq,
                    entry.request_id,
                    entry.size_bytes,
                    entry.baseline_bytes,
                    entry.course.value,
                    entry.view_only,
                    *(entry.pendrive, entry.phase.value, self._now()),
                ),
            )

    def forget(self, pendrive: PendriveId) -> None:
        """The pendrive is gone. One that is not known is a success."""
        with self._blamed():
            self._database.execute("DELETE FROM pendrive WHERE pendrive = ?", (pendrive,))

    def entries(self) -> list[Entry]:
        """All pendrives in flight, that which was put down last at the end: so those that wait keep their order."""
        with self._blamed():
            return [_entry(row) for row in self._database.execute("SELECT * FROM pendrive ORDER BY rowid")]

    def put_document(self, document: Document) -> None:
        """Write down how far a DisposableVM is with its document, in the place of what was known of it."""
        with self._blamed():
            self._database.execute(
                "INSERT OR REPLACE INTO document VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?,"
                " COALESCE((SELECT since_s FROM document WHERE vm_domain = ? AND vm_uuid = ? AND fate = ?), ?))",
                (
                    *_columns(document.vm),
                    *_columns(document.asker),
                    document.seq,
                    document.view_only,
                    document.fate.value,
                    *(*_columns(document.vm)[:2], document.fate.value, self._now()),
                ),
            )

    def forget_document(self, vm: VmId) -> None:
        """The DisposableVM is gone. One that is not known is a success."""
        with self._blamed():
            self._database.execute("DELETE FROM document WHERE vm_domain = ? AND vm_uuid = ?", (int(vm.domain), str(vm.uuid)))

    def documents(self) -> list[Document]:
        """All DisposableVMs with a document."""
        with self._blamed():
            return [_document(row) for row in self._database.execute("SELECT * FROM document ORDER BY rowid")]

    def since(self) -> dict[PendriveId | VmId, float]:
        """When each pendrive came into its phase, and each DisposableVM with a document to its fate, in seconds of the epoch.

        Those are left out that were taken over from a version of this program which did not write it down.
        """
        with self._blamed():
            found: dict[PendriveId | VmId, float] = {}
            for pendrive, since_s in self._database.execute("SELECT pendrive, since_s FROM pendrive WHERE since_s > 0"):
                found[PendriveId(pendrive)] = since_s
            for domain, uuid, since_s in self._database.execute("SELECT vm_domain, vm_uuid, since_s FROM document WHERE since_s > 0"):
                found[VmId(DomainId.parse(str(domain)), UUID(uuid))] = since_s
            return found

    def note_outcome(self, entry: Entry, used_bytes: int, text: str) -> None:
        """Add what became of a transfer to the history; ``text`` is for the person."""
        receiver = None if entry.receiver is None else str(entry.receiver.name)
        with self._blamed(), self._database:
            self._database.execute("BEGIN IMMEDIATE")
            sender = str(entry.sender.name)
            self._database.execute(
                "INSERT INTO history (time_s, sender, receiver, used_bytes, outcome) VALUES (?, ?, ?, ?, ?)",
                (self._now(), sender, receiver, used_bytes, text),
            )
            self._database.execute(_FORGET_OF_ONE, {"sender": sender, "most": HISTORY_OF_ONE_MAX})
            self._database.execute(_FORGET, {"most": HISTORY_MAX})

    def history(self, limit: int = HISTORY_MAX) -> list[Outcome]:
        """The last ``limit`` outcomes, the newest first."""
        with self._blamed():
            return _outcomes(self._database, 0, limit)

    def _open(self) -> sqlite3.Connection:
        """Raises :exc:`_Damaged` for a file that is not a whole journal."""
        try:
            self._path.touch(mode=0o600)
        except OSError as error:
            raise JournalFailed(self._path, error.strerror or str(error)) from error
        database = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
        try:
            self._prepare(database)
        except sqlite3.DatabaseError as error:
            database.close()
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
                raise _Damaged(str(error)) from error
            raise JournalFailed(self._path, str(error)) from error
        except BaseException:
            database.close()
            raise
        return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        [(version,)] = database.execute("PRAGMA user_version")
        if version > VERSION:
            raise JournalTooNew(self._path, version)
        if version == 0 and list(database.execute("SELECT name FROM sqlite_schema")):
            raise _Damaged("it has tables of another program")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        if version < VERSION:
            database.executescript(f"BEGIN IMMEDIATE; {''.join(_STEPS[version:])} PRAGMA user_version = {VERSION}; COMMIT;")
        [(verdict, *_), *_] = database.execute("PRAGMA quick_check(1)")
        if verdict != "ok":
            raise _Damaged(verdict)
        try:
            for row in database.execute("SELECT * FROM pendrive"):
                _entry(row)
            for row in database.execute("SELECT * FROM document"):
                _document(row)
        except (ValueError, CallerError) as error:
            raise _Damaged(f"an entry has {error}") from error

    def _move_aside(self, aside: Path) -> None:
        try:
            for suffix in ("-wal", "-shm", ""):
                part = self._path.with_name(self._path.name + suffix)
                if part.exists():
                    part.rename(aside.with_name(aside.name + suffix))
        except OSError as error:
            raise JournalFailed(self._path, f"it is damaged and cannot be moved aside ({error.strerror})") from error

    @contextlib.contextmanager
    def _blamed(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise JournalFailed(self._path, str(error)) from error


def read_history(path: Path, since_s: float = 0, limit: int = HISTORY_MAX) -> list[Outcome]:
    """The last ``limit`` outcomes since ``since_s``, the newest first, of a journal that is another's: nothing in it is changed.

    Where there is none yet there are no outcomes. Raises :exc:`JournalFailed`, :exc:`JournalTooNew`.
    """
    if not path.exists():
        return []
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=_BUSY_S, uri=True)) as database:
            [(version,)] = database.execute("PRAGMA user_version")
            if version > VERSION:
                raise JournalTooNew(path, version)
            return _outcomes(database, since_s, limit) if version else []
    except sqlite3.DatabaseError as error:
        raise JournalFailed(path, str(error)) from error


def _outcomes(database: sqlite3.Connection, since_s: float, limit: int) -> list[Outcome]:
    rows = database.execute(
        "SELECT time_s, sender, receiver, used_bytes, outcome FROM history WHERE time_s >= ? ORDER BY number DESC LIMIT ?",
        (since_s, limit),
    )
    return [
        Outcome(time_s, VmName.parse(sender), VmName.parse(receiver) if receiver else None, used, text)
        for time_s, sender, receiver, used, text in rows
    ]


def _entry(row: tuple[str, str, int, str, str, int | None, str | None, str | None, int, str, int, int, str, int, float]) -> Entry:
    pendrive, phase, sender_domain, sender_uuid, sender_name, domain, uuid, name, seq, request_id, *sizes, course, view_only, _ = row
    size_bytes, baseline_bytes = (int(size) for size in sizes)
    receiver = None
    if domain is not None and uuid is not None and name is not None:
        receiver = _vm(domain, uuid, name)
    sender = _vm(sender_domain, sender_uuid, sender_name)
    whither = (Course(course), bool(view_only))
    return Entry(PendriveId(pendrive), Phase(phase), sender, receiver, seq, request_id, size_bytes, baseline_bytes, *whither)


def _document(row: tuple[int, str, str, int, str, str, int, int, str, float]) -> Document:
    *_, seq, view_only, fate, _ = row
    return Document(_vm(*row[:3]), _vm(*row[3:6]), seq, bool(view_only), Fate(fate))


def _vm(domain: int, uuid: str, name: str) -> RunningVm:
    return RunningVm(VmId(DomainId.parse(str(domain)), UUID(uuid)), VmName.parse(name))


def _columns(vm: RunningVm) -> tuple[int, str, str]:
    return int(vm.id.domain), str(vm.id.uuid), str(vm.name)
