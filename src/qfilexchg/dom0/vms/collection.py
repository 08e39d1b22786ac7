"""The VM collection: the records of all VMs of one home, whether they run or not (qubesDB of 2010).

SQLite keeps it whole when several commands write at once or one is killed.
"""

from __future__ import annotations

import enum
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from qfilexchg.dom0.debian import Release
from qfilexchg.errors import CallerError
from qfilexchg.protocol import keys
from qfilexchg.protocol.names import DISPOSABLE, DOM0, DOMAIN_ID_MAX, DomainId, VmName

_BUSY_S = 10.0
_NUMBER_MAX = 10**9

_SCHEMA = """
CREATE TABLE IF NOT EXISTS vm (
    name TEXT PRIMARY KEY COLLATE NOCASE,
    uuid TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    label TEXT NOT NULL,
    memory_mib INTEGER NOT NULL,
    created TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS last_domain (id INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS last_disposable (number INTEGER NOT NULL) STRICT;
"""
_ADDED_COLUMNS = {"asker": "TEXT", "preloaded": "INTEGER NOT NULL DEFAULT 0", "release": "TEXT"}
"""What an older collection lacks."""

_DISPOSABLE_PREFIX = "disp"
SAVED_VM = VmName.parse("default-dvm")
"""The VM from which a savefile is made. It is in no collection: it lives for a minute."""


class Label(enum.Enum):
    """The colour of a VM, which the person sees wherever the VM asks for something: Qubes' own eight."""

    RED = "red"
    ORANGE = "orange"
    YELLOW = "yellow"
    GREEN = "green"
    GRAY = "gray"
    BLUE = "blue"
    PURPLE = "purple"
    BLACK = "black"


class Kind(enum.Enum):
    """What a VM is to the exchange; the value stands in its ``qubes_vm_type`` key."""

    APP = "AppVM"
    DISPOSABLE = keys.DISPOSABLE_TYPE.decode("ascii")


@dataclass(frozen=True, slots=True)
class Vm:
    """A VM's record. ``memory_mib`` is in MiB."""

    name: VmName
    uuid: UUID
    kind: Kind
    label: Label
    memory_mib: int
    created: datetime
    asker: VmName | None = None
    """For whom a DisposableVM was made; None where the person made it, or while it is preloaded for whoever asks first.

    :data:`SAVED_VM` where a new savefile is tried with it.
    """
    preloaded: bool = False
    release: Release | None = None
    """Of Debian, whose template an AppVM boots from; None: from whichever its home boots VMs from."""


class NoSuchVm(CallerError):
    """No VM of this home has that name."""

    def __init__(self, name: VmName) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"there is no VM {self.name}: 'qvm-ls' lists them, 'qvm-create {self.name}' makes one"


class NameTaken(CallerError):
    """The name is a VM's already, be it in other letters' case, or has a meaning of its own."""

    def __init__(self, name: VmName, taken_by: str) -> None:
        super().__init__(name, taken_by)
        self.name = name
        self.taken_by = taken_by

    def __str__(self) -> str:
        return f"no VM can be called {self.name}: the name {self.taken_by} is taken"


class Collection:
    """The collection in ``file``, which is made where it does not exist. Each call is one transaction."""

    def __init__(self, file: Path) -> None:
        self._file = file
        with self._transaction() as database:
            for statement in _SCHEMA.split(";"):
                database.execute(statement)
            known = {row[1] for row in database.execute("PRAGMA table_info (vm)")}
            for column in _ADDED_COLUMNS.keys() - known:
                database.execute(f"ALTER TABLE vm ADD COLUMN {column} {_ADDED_COLUMNS[column]}")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._file, timeout=_BUSY_S, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

    def add(self, name: VmName, label: Label, memory_mib: int, release: Release | None = None) -> Vm:
        """Record a new AppVM. Raises :exc:`NameTaken`."""
        for word in (DOM0, DISPOSABLE, SAVED_VM):
            if name.lower() == word:
                raise NameTaken(name, word)
        if name.lower().removeprefix(_DISPOSABLE_PREFIX).isdecimal():
            raise NameTaken(name, f"{_DISPOSABLE_PREFIX}N of DisposableVMs")
        vm = Vm(name, uuid.uuid4(), Kind.APP, label, memory_mib, datetime.now(UTC), release=release)
        with self._transaction() as database:
            if row := database.execute("SELECT name FROM vm WHERE name = ?", (name,)).fetchone():
                raise NameTaken(name, row[0])
            _insert(database, vm)
        return vm

    def add_new_disposablevm(self, label: Label, memory_mib: int, *, asker: VmName | None = None, preloaded: bool = False) -> Vm:
        """Record a new DisposableVM under the next number, which no other has had."""
        with self._transaction() as database:
            name = VmName.parse(f"{_DISPOSABLE_PREFIX}{_next(database, _LAST_DISPOSABLE, _NUMBER_MAX)}")
            vm = Vm(name, uuid.uuid4(), Kind.DISPOSABLE, label, memory_mib, datetime.now(UTC), asker, preloaded)
            _insert(database, vm)
            return vm

    def claim(self, name: VmName, label: Label, asker: VmName) -> None:
        """A preloaded DisposableVM is ``asker``'s from now on. Raises :exc:`NoSuchVm`."""
        with self._transaction() as database:
            change = "UPDATE vm SET label = ?, asker = ?, preloaded = 0 WHERE name = ?"
            if not database.execute(change, (label.value, asker, name)).rowcount:
                raise NoSuchVm(name)

    def get(self, name: VmName) -> Vm:
        """The VM called ``name``, in whatever case. Raises :exc:`NoSuchVm`."""
        with self._transaction() as database:
            row = database.execute(f"{_SELECT} WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise NoSuchVm(name)
        return _vm(row)

    def label(self, name: VmName) -> str | None:
        """The colour of the VM called ``name``; None for one that is not recorded."""
        try:
            return self.get(name).label.value
        except NoSuchVm:
            return None

    def list(self) -> list[Vm]:
        """All VMs, by name."""
        with self._transaction() as database:
            return [_vm(row) for row in database.execute(f"{_SELECT} ORDER BY name")]

    def remove(self, name: VmName) -> None:
        """Forget a VM. Raises :exc:`NoSuchVm`."""
        with self._transaction() as database:
            if not database.execute("DELETE FROM vm WHERE name = ?", (name,)).rowcount:
                raise NoSuchVm(name)

    def next_domain(self) -> DomainId:
        """A domain id, on a platform that leaves the choice to us, that this home has not used before.

        After :data:`DOMAIN_ID_MAX` starts they begin again, as Xen's do. It is kept here, not in the store, so that a new store does
        not bring old ids back.
        """
        with self._transaction() as database:
            return DomainId(_next(database, _LAST_DOMAIN, DOMAIN_ID_MAX))


_SELECT = "SELECT name, uuid, kind, label, memory_mib, created, asker, preloaded, release FROM vm"
_INSERT = "INSERT INTO vm (name, uuid, kind, label, memory_mib, created, asker, preloaded, release) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_LAST_DOMAIN = ("SELECT id FROM last_domain", "DELETE FROM last_domain", "INSERT INTO last_domain (id) VALUES (?)")
_LAST_DISPOSABLE = ("SELECT number FROM last_disposable", "DELETE FROM last_disposable", "INSERT INTO last_disposable (number) VALUES (?)")


def _insert(database: sqlite3.Connection, vm: Vm) -> None:
    made = (vm.name, str(vm.uuid), vm.kind.value, vm.label.value, vm.memory_mib, vm.created.isoformat())
    database.execute(_INSERT, (*made, vm.asker, int(vm.preloaded), vm.release and vm.release.value))


def _next(database: sqlite3.Connection, counter: tuple[str, str, str], most: int) -> int:
    """Count on in a table of one number, from 1 to ``most`` and then again."""
    read, clear, write = counter
    row = database.execute(read).fetchone()
    number: int = row[0] % most + 1 if row else 1
    database.execute(clear)
    database.execute(write, (number,))
    return number


def _vm(row: tuple[str, str, str, str, int, str, str | None, int, str | None]) -> Vm:
    name, uuid, kind, label, memory_mib, created, asker, preloaded, release = row
    made = datetime.fromisoformat(created)
    made_for = VmName(asker) if asker else None
    of = Release(release) if release else None
    return Vm(VmName(name), UUID(uuid), Kind(kind), Label(label), memory_mib, made, made_for, bool(preloaded), of)
