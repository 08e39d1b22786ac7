"""What is where at one moment, for the person: ``qfilexchg status`` and ``monitor``.

As a line of JSON it is an object, which both commands print with ``--json``. A name is a VM's name, a time is in seconds since the
epoch, and what is not there or not known is null::

    {"status": 1, "time_s": 1793668508.2,
     "vms": [{"name": "work", "domain": 1, "disposable": false, "outgoing": "4f0c9a1b", "incoming": null}],
     "pendrives": [{"pendrive": "4f0c9a1b", "phase": "asking", "course": "copy", "sender": "work", "receiver": "personal",
                    "number": 0, "view_only": false, "size_bytes": 1073741824, "used_bytes": 4312064, "since_s": 1793668500.1}],
     "questions": [{"question": 7, "kind": "copy", "source": "work", "target": "personal", "size_bytes": 4312064,
                    "busy": false, "since_s": 1793668500.1, "until_s": 1793668560.1}],
     "documents": [{"vm": "disp3", "asker": "work", "number": 2, "view_only": false, "fate": "open", "since_s": 1793668450.0}],
     "history": [{"time_s": 1793668400.0, "sender": "work", "receiver": "disp3", "used_bytes": 52224, "outcome": "delivered"}]}

``phase`` and ``course`` are those of ``phases``, ``fate`` that of ``messages``; ``outgoing`` and ``incoming`` say whose pendrive a
VM's slot is. ``size_bytes`` of a pendrive is how much it could hold, ``used_bytes`` what its files take. A question is there when a
person is being asked; its target is null for a new DisposableVM. ``history`` has the last outcomes, the newest first, and
``qfilexchg history --json`` prints objects of that kind. Nothing in it is a text of a VM's.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, TypeVar

from qfilexchg.dom0.consent import protocol as consent
from qfilexchg.dom0.exchange import journal
from qfilexchg.dom0.exchange import messages as m
from qfilexchg.dom0.exchange.phases import Course, Phase
from qfilexchg.dom0.exchange.state import IN_INCOMING_SLOT, IN_OUTGOING_SLOT
from qfilexchg.dom0.vms.hypervisor import RunningVm
from qfilexchg.errors import HostError
from qfilexchg.protocol.names import BadName, VmName

VERSION: Final = 1
LINE_MAX: Final = 4 << 20
"""Bytes of a status with its newline: thousands of VMs. What is longer is not ours."""


class BadStatus(HostError):
    """What qfilexchgd sent is no status. ``why`` is our phrase."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"qfilexchgd's status is not understood ({self.why}): check that it and this program have the same version"


@dataclass(frozen=True, slots=True)
class Vm:
    """A VM that runs, and the pendrives in its slots."""

    name: VmName
    domain: int
    disposable: bool
    outgoing: str | None
    incoming: str | None


@dataclass(frozen=True, slots=True)
class Pendrive:
    pendrive: str
    phase: Phase
    course: Course
    sender: VmName
    receiver: VmName | None
    number: int
    view_only: bool
    size_bytes: int
    used_bytes: int | None
    since_s: float | None


@dataclass(frozen=True, slots=True)
class Question:
    """What a person is being asked; ``kind`` is a word of the agents' protocol."""

    question: int
    kind: str
    source: VmName
    target: VmName | None
    size_bytes: int
    busy: bool
    since_s: float
    until_s: float


@dataclass(frozen=True, slots=True)
class Document:
    """A DisposableVM and the document that it has; ``number`` is what ``asker`` calls it."""

    vm: VmName
    asker: VmName
    number: int
    view_only: bool
    fate: m.Fate
    since_s: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one transfer. ``receiver`` is None where there was none; ``outcome`` is a sentence of ours."""

    time_s: float
    sender: VmName
    receiver: VmName | None
    used_bytes: int
    outcome: str


@dataclass(frozen=True, slots=True)
class Status:
    time_s: float
    vms: tuple[Vm, ...]
    pendrives: tuple[Pendrive, ...]
    questions: tuple[Question, ...]
    documents: tuple[Document, ...]
    history: tuple[Outcome, ...]


def vms(running: Iterable[tuple[RunningVm, bool]], entries: Collection[m.Entry]) -> Iterator[Vm]:
    """The VMs that run, of which each is or is not a DisposableVM, with the pendrives of ``entries`` in their slots."""
    outgoing = {entry.sender.id: entry.pendrive for entry in entries if entry.phase in IN_OUTGOING_SLOT}
    incoming = {entry.receiver.id: entry.pendrive for entry in entries if entry.phase in IN_INCOMING_SLOT and entry.receiver}
    for vm, disposable in running:
        yield Vm(vm.name, int(vm.id.domain), disposable, outgoing.get(vm.id), incoming.get(vm.id))


def pendrive(entry: m.Entry, used_bytes: int | None, since_s: float | None) -> Pendrive:
    return Pendrive(
        pendrive=entry.pendrive,
        phase=entry.phase,
        course=entry.course,
        sender=entry.sender.name,
        receiver=entry.receiver.name if entry.receiver else None,
        number=entry.seq,
        view_only=entry.view_only,
        size_bytes=entry.size_bytes,
        used_bytes=used_bytes,
        since_s=since_s,
    )


def question(asked: consent.Question, since_s: float) -> Question:
    return Question(
        question=asked.id,
        kind=asked.kind.value,
        source=asked.source,
        target=asked.target,
        size_bytes=asked.size_bytes,
        busy=asked.busy,
        since_s=since_s,
        until_s=since_s + asked.deadline_s,
    )


def document(known: m.Document, since_s: float | None) -> Document:
    return Document(known.vm.name, known.asker.name, known.seq, known.view_only, known.fate, since_s)


def outcome(noted: journal.Outcome) -> Outcome:
    return Outcome(noted.time_s, noted.sender, noted.receiver, noted.used_bytes, noted.text)


def encode(status: Status) -> bytes:
    """The line that carries ``status``, with its newline."""
    return json.dumps({"status": VERSION} | asdict(status), default=_word, allow_nan=False).encode() + b"\n"


def outcome_fields(outcome: Outcome) -> dict[str, object]:
    """An outcome as it stands in JSON."""
    return asdict(outcome)


def parse(line: bytes) -> Status:
    """What a line of the daemon's says, or :exc:`BadStatus`."""
    if len(line) > LINE_MAX or not line.endswith(b"\n"):
        raise BadStatus("cut off")
    try:
        found = json.loads(line)
        if found["status"] != VERSION:
            raise BadStatus("another version")
        return Status(
            float(found["time_s"]),
            _all(Vm, found["vms"]),
            _all(Pendrive, found["pendrives"]),
            _all(Question, found["questions"]),
            _all(Document, found["documents"]),
            _all(Outcome, found["history"]),
        )
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, BadName) as error:
        raise BadStatus(type(error).__name__) from error


T = TypeVar("T")

_PARSERS: Final[Mapping[str, Any]] = {
    "name": VmName.parse,
    "sender": VmName.parse,
    "receiver": VmName.parse,
    "source": VmName.parse,
    "target": VmName.parse,
    "vm": VmName.parse,
    "asker": VmName.parse,
    "phase": Phase,
    "course": Course,
    "fate": m.Fate,
}
"""Of the fields that are more than JSON has. ``None`` is kept."""


def _all(kind: type[T], items: Any) -> tuple[T, ...]:
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # each kind is a dataclass
    return tuple(kind(**{name: _value(name, item[name]) for name in names}) for item in items)


def _value(name: str, value: Any) -> Any:
    return value if value is None or name not in _PARSERS else _PARSERS[name](value)


def _word(value: object) -> object:
    if isinstance(value, Phase | Course | m.Fate):
        return value.value
    raise TypeError(value)
