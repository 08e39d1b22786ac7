"""What goes into the exchange machine (events) and what comes out of it (effects).

Every ``Create``, ``Attach``, ``Detach``, ``Delete`` and ``Keep`` that comes out is answered by exactly one event that names the
same pendrive, and every ``Ask`` by one ``Answered``, unless it was withdrawn.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NewType

from qfilexchg.dom0.exchange.phases import Phase, Place
from qfilexchg.dom0.vms.hypervisor import RunningVm, Slot, VmId
from qfilexchg.protocol.names import VmName
from qfilexchg.protocol.qpen import Reply, Request

PendriveId = NewType("PendriveId", str)
QuestionId = NewType("QuestionId", int)


@dataclass(frozen=True, slots=True)
class Entry:
    """A pendrive as the journal has it: enough to finish or undo what was in flight.

    ``request_id`` is that of the request which still waits for its last reply; empty when none does.
    """

    pendrive: PendriveId
    phase: Phase
    sender: RunningVm
    receiver: RunningVm | None
    seq: int
    request_id: str
    size_bytes: int
    baseline_bytes: int


class QuestionKind(enum.Enum):
    """What the person is asked."""

    COPY = "copy"  # may these files go?
    WAIT = "wait"  # they may, but the receiver is busy: wait for it?


@dataclass(frozen=True, slots=True)
class Question:
    """A transfer that needs an answer from the rules or from the person.

    ``doubt`` says why the answer will be no whatever the rules are (there is no such VM, say). It is for the person alone: the
    VM must not be able to tell this no from another, so it is asked and answered like any question.
    """

    id: QuestionId
    kind: QuestionKind
    source: RunningVm
    target_name: VmName
    target: RunningVm | None
    busy: bool
    doubt: str = ""


# Events


@dataclass(frozen=True, slots=True)
class VmStarted:
    """A VM runs. ``last_reply`` is what its reply key holds already, from before a restart of the daemon."""

    vm: RunningVm
    last_reply: Reply | None = None


@dataclass(frozen=True, slots=True)
class VmStopped:
    """A VM runs no more."""

    vm: VmId


@dataclass(frozen=True, slots=True)
class Requested:
    """A VM asks for something. ``fresh`` is the id for the pendrive that ``new`` would make."""

    vm: VmId
    request: Request
    fresh: PendriveId


@dataclass(frozen=True, slots=True)
class Created:
    """The image is made. ``baseline_bytes`` is what an empty filesystem of its size takes on the host's disk."""

    pendrive: PendriveId
    baseline_bytes: int


@dataclass(frozen=True, slots=True)
class Attached:
    pendrive: PendriveId


@dataclass(frozen=True, slots=True)
class Detached:
    pendrive: PendriveId


@dataclass(frozen=True, slots=True)
class Deleted:
    pendrive: PendriveId


@dataclass(frozen=True, slots=True)
class Kept:
    """The image was put aside; ``where`` tells the person."""

    pendrive: PendriveId
    where: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A Create, Attach or Detach did not succeed. ``why`` is for the person and the log."""

    pendrive: PendriveId
    why: str


@dataclass(frozen=True, slots=True)
class Answered:
    """The rules or the person decided. ``why`` is for the person and the log."""

    question: QuestionId
    allow: bool
    why: str


@dataclass(frozen=True, slots=True)
class QueueExpired:
    """A transfer has waited for its receiver as long as one may. ``question`` names the wait that is meant."""

    pendrive: PendriveId
    question: QuestionId


@dataclass(frozen=True, slots=True)
class Recovered:
    """At the daemon's start, after all ``VmStarted``: the pendrives of the journal, and where the hypervisor says each is."""

    found: tuple[tuple[Entry, Place], ...]


Event = (
    VmStarted | VmStopped | Requested | Created | Attached | Detached | Deleted | Kept | Failed | Answered | QueueExpired | Recovered
)

# Effects


@dataclass(frozen=True, slots=True)
class Record:
    """Write to the journal, before the effects that follow."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Forget:
    """The journal need not know this pendrive any more."""

    pendrive: PendriveId


@dataclass(frozen=True, slots=True)
class Create:
    """Make an image with an empty filesystem in the spool."""

    pendrive: PendriveId
    size_bytes: int
    label: str


@dataclass(frozen=True, slots=True)
class Attach:
    pendrive: PendriveId
    vm: RunningVm
    slot: Slot


@dataclass(frozen=True, slots=True)
class Detach:
    """Take it away. ``again``: it failed a moment ago for a VM that is gone; leave the hypervisor some time first."""

    pendrive: PendriveId
    vm: RunningVm
    slot: Slot
    again: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    pendrive: PendriveId


@dataclass(frozen=True, slots=True)
class Keep:
    """Put the image aside for the person."""

    pendrive: PendriveId


@dataclass(frozen=True, slots=True)
class Announce:
    """Write who sends, and the sequence number, to the receiver's keys."""

    receiver: VmId
    source: VmName
    seq: int


@dataclass(frozen=True, slots=True)
class Tell:
    """Write the reply key of a VM."""

    vm: VmId
    reply: Reply


@dataclass(frozen=True, slots=True)
class Ask:
    question: Question
    pendrive: PendriveId


@dataclass(frozen=True, slots=True)
class Withdraw:
    question: QuestionId


@dataclass(frozen=True, slots=True)
class Remind:
    """Send ``QueueExpired`` when the time that a transfer may wait is over."""

    pendrive: PendriveId
    question: QuestionId


@dataclass(frozen=True, slots=True)
class Moved:
    """A change of state, for the log."""

    entry: Entry
    was: Phase


@dataclass(frozen=True, slots=True)
class Notify:
    """Tell the person. One notice for a transfer at a time: a later one takes the place of an earlier."""

    pendrive: PendriveId | None
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a transfer, for the history."""

    entry: Entry
    text: str


Effect = Record | Forget | Create | Attach | Detach | Delete | Keep | Announce | Tell | Ask | Withdraw | Remind | Moved | Notify | Outcome
