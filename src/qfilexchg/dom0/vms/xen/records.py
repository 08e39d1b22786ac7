"""The VMs that this home has made and not yet seen end: a file for each below ``Home.run``, by UUID, as the domain id is Xen's to choose.

A VM is announced by the store while xl is still at work on it, and before its keys can be written: there is no home for them yet.
Whoever sees it first writes them, so qfilexchgd never takes a DisposableVM for an AppVM. For that they stand in the record, which is
there before xl is started.

A record is locked for as long as the VM is being made, which is until it wakes: one that is neither locked nor running has ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

from qfilexchg.dom0.home import Home
from qfilexchg.protocol import keys
from qfilexchg.protocol.names import BadDomainId, BadName, DomainId, VmName
from qfilexchg.xenstore.client import Store
from qfilexchg.xenstore.errors import NoEntry


@dataclass(frozen=True, slots=True)
class Record:
    """``keys`` are relative, and readable to the VM. ``domain`` is None until Xen has chosen it."""

    name: VmName
    uuid: UUID
    keys: Mapping[str, str]
    domain: DomainId | None = None
    woken: bool = False
    """Whether its maker has let it run: if it is paused later, a person has done that."""


class Making:
    """A VM that is being made. See :func:`making`."""

    def __init__(self, record: Record, file: int) -> None:
        self._record = record
        self._file = file

    async def made(self, store: Store, domain: DomainId) -> None:
        """The VM is there: note its domain id, and write its keys. Raises :exc:`~qfilexchg.xenstore.errors.NoEntry` if it has ended."""
        _write(self._file, Record(self._record.name, self._record.uuid, self._record.keys, domain))
        await write_keys(store, domain, self._record.keys)

    def hold(self) -> int:
        """A descriptor that keeps the VM being made until it is closed, here or by the end of this process."""
        return os.dup(self._file)


def folder(home: Home) -> Path:
    """Where the records are, and each VM's configuration while xl reads it."""
    return home.run / "xen"


def _path(home: Home, uuid: UUID) -> Path:
    return folder(home) / f"{uuid}.json"


@contextlib.contextmanager
def making(home: Home, name: VmName, uuid: UUID, keys: Mapping[str, str]) -> Iterator[Making]:
    """While xl makes the VM. The record stays, until :func:`remove` says that nothing of the VM is left."""
    folder(home).mkdir(mode=0o700, parents=True, exist_ok=True)
    path = _path(home, uuid)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        record = Record(name, uuid, keys)
        _write(file, record)
        yield Making(record, file)
    finally:
        os.close(file)


def _write(file: int, record: Record) -> None:
    fields = {"name": record.name, "uuid": str(record.uuid), "keys": dict(record.keys), "domain": record.domain, "woken": record.woken}
    os.pwrite(file, json.dumps(fields).encode("ascii").ljust(os.fstat(file).st_size), 0)


def all_records(home: Home) -> list[Record]:
    return [record for record in map(_read, folder(home).glob("*.json")) if record]


def made(home: Home) -> Iterator[Record]:
    """Those of VMs that are not being made any more, each read when its turn comes: with what its maker wrote last."""
    for known in all_records(home):
        if not is_being_made(home, known.uuid) and (record := get(home, known.uuid)):
            yield record


def _read(path: Path) -> Record | None:
    try:
        fields = json.loads(path.read_bytes())
        domain = None if fields["domain"] is None else DomainId.parse(str(fields["domain"]))
        return Record(VmName.parse(fields["name"]), UUID(fields["uuid"]), dict(fields["keys"]), domain, fields.get("woken", True) is True)
    except (FileNotFoundError, ValueError, KeyError, TypeError, BadName, BadDomainId):
        return None


def get(home: Home, uuid: UUID) -> Record | None:
    return _read(_path(home, uuid))


def note_woken(home: Home, uuid: UUID) -> None:
    """The VM runs. One that has no record any more has ended."""
    if record := get(home, uuid):
        with contextlib.suppress(FileNotFoundError), _path(home, uuid).open("r+b") as file:
            _write(file.fileno(), replace(record, woken=True))


def is_being_made(home: Home, uuid: UUID) -> bool:
    try:
        with _path(home, uuid).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def remove(home: Home, uuid: UUID) -> None:
    _path(home, uuid).unlink(missing_ok=True)


async def complete(home: Home, store: Store, running: Mapping[UUID, DomainId]) -> None:
    """Write the keys of those VMs that have none yet."""
    for record in all_records(home):
        domain = running.get(record.uuid)
        if domain is not None and not await store.exists(keys.absolute(domain, keys.VM_TYPE)):
            with contextlib.suppress(NoEntry):  # it has just ended
                await write_keys(store, domain, record.keys)


async def write_keys(store: Store, domain: DomainId, readable: Mapping[str, str], writable: Mapping[str, str] | None = None) -> None:
    """Write keys that the VM may read, and such that it may write too, all at once.

    Raises :exc:`~qfilexchg.xenstore.errors.NoEntry` when the VM has ended.
    """
    values = [(key, value, keys.readable_by(domain)) for key, value in readable.items()]
    values += [(key, value, keys.writable_by(domain)) for key, value in (writable or {}).items()]

    async def write(tx: int) -> None:
        await store.read(keys.absolute(domain, keys.NAME), tx)  # else a domain that has ended would get its home again
        for key, value, perms in values:
            path = keys.absolute(domain, key)
            await store.write(path, value.encode("ascii"), tx)
            await store.set_perms(path, perms, tx)

    await store.transaction(write)
