"""What goes into the exchange machine (events) and what comes out of it (effects).

Every ``Create``, ``Attach``, ``Detach``, ``Delete``, ``Keep`` and ``Restore`` that comes out is answered by exactly one event that
names the same pendrive (a ``Stop`` only hurries it), every ``Destroy`` by one that names the same VM, and every ``Ask`` by one
``Answered``, unless it was withdrawn.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NewType

from qfilexchg.dom0.exchange.phases import Course, Phase, Place
from qfilexchg.dom0.vms.hypervisor import RunningVm, Slot, VmId
from qfilexchg.protocol.names import VmName
from qfilexchg.protocol.qpen import Reply, Request
from qfilexchg.protocol.stages import Stage

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
    course: Course = Course.COPY
    view_only: bool = False


class Fate(enum.Enum):
    """How far a DisposableVM is with its document, or why it is being destroyed. All from RETURNING on are endings."""

    BROUGHT = "brought"  # the pendrive with the document is on its way to it
    DELIVERED = "delivered"  # it has the pendrive
    OPEN = "open"  # it has taken the document from the pendrive
    RETURNING = "returning"  # it has sent the changed document back
    UNDELIVERED = "undelivered"  # its document could not be brought, or was not wanted any more
    UNCHANGED = "unchanged"  # it says that its document was closed as it came
    NO_PROGRAM = "no-program"  # it says that nothing in it opens the document
    BAD_DOCUMENT = "bad-document"  # it says that the pendrive holds no document
    FAILED = "failed"  # it says that something went wrong
    KILLED = "killed"  # it gave no reason, or its asker does not want it or runs no more


ENDINGS = frozenset(Fate) - {Fate.BROUGHT, Fate.DELIVERED, Fate.OPEN}


@dataclass(frozen=True, slots=True)
class Document:
    """A DisposableVM and the document that it was made for, as the journal has it. ``seq`` is the asker's number for it."""

    vm: RunningVm
    asker: RunningVm
    seq: int
    view_only: bool
    fate: Fate

    @property
    def transfer(self) -> str:
        """What notices of it are about."""
        return transfer_of(self.asker, self.seq)


def transfer_of(asker: RunningVm, seq: int) -> str:
    """There and back are one transfer to the person, whichever pendrive the document is on."""
    return f"document-{asker.id.domain}-{seq}"


class QuestionKind(enum.Enum):
    """What the person is asked."""

    COPY = "copy"  # may these files go?
    WAIT = "wait"  # they may, but the receiver is busy: wait for it?


@dataclass(frozen=True, slots=True)
class Question:
    """A transfer that needs an answer from the rules or from the person.

    ``target_name`` is None for a new DisposableVM. ``doubt`` says why the answer will be no whatever the rules are (there is no
    such VM, say). It is for the person alone: the VM must not be able to tell this no from another, so it is asked and answered
    like any question.
    """

    id: QuestionId
    kind: QuestionKind
    source: RunningVm
    target_name: VmName | None
    target: RunningVm | None
    busy: bool
    doubt: str = ""

    @property
    def disposable(self) -> bool:
        """Whether it is for a DisposableVM that is yet to be made."""
        return self.target_name is None


# Events


@dataclass(frozen=True, slots=True)
class VmStarted:
    """A VM runs. ``last_reply`` is what its reply key holds already, from before a restart of the daemon.

    ``disposable`` says that it is a DisposableVM, whoever made it; ``shown`` is what its keys tell of documents already
    (None: something that this daemon does not know).
    """

    vm: RunningVm
    last_reply: Reply | None = None
    disposable: bool = False
    shown: Mapping[int, Stage | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VmStopped:
    """A VM runs no more; or, where it ``runs_on``, not under the name that it had."""

    vm: VmId
    runs_on: bool = False


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
    """A Create, Attach, Detach or Restore did not succeed. ``why`` is for the person and the log.

    ``word`` is what a VM is told for which no DisposableVM was made.
    """

    pendrive: PendriveId
    why: str
    word: str = ""


@dataclass(frozen=True, slots=True)
class Preparing:
    """Before the DisposableVM for this pendrive, the savefile is being made again. ``step`` says for the person how far it is."""

    pendrive: PendriveId
    step: str


@dataclass(frozen=True, slots=True)
class Restored:
    """The DisposableVM for this pendrive is made. It comes after the ``VmStarted`` of the same VM."""

    pendrive: PendriveId
    vm: RunningVm


@dataclass(frozen=True, slots=True)
class Destroyed:
    """The VM is gone, and with it all that it had open."""

    vm: VmId


@dataclass(frozen=True, slots=True)
class DestroyFailed:
    """The VM may still run."""

    vm: VmId


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
class DocumentExpired:
    """A DisposableVM has had its document for as long as it may."""

    vm: VmId


@dataclass(frozen=True, slots=True)
class Recovered:
    """At the daemon's start, after all ``VmStarted``: the pendrives of the journal, and where the hypervisor says each is.

    And its DisposableVMs with their documents.
    """

    found: tuple[tuple[Entry, Place], ...]
    documents: tuple[Document, ...] = ()


Event = (
    VmStarted
    | VmStopped
    | Requested
    | Created
    | Attached
    | Detached
    | Deleted
    | Kept
    | Failed
    | Preparing
    | Restored
    | Destroyed
    | DestroyFailed
    | Answered
    | QueueExpired
    | DocumentExpired
    | Recovered
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
class RecordDocument:
    """Write to the journal, before the effects that follow."""

    document: Document


@dataclass(frozen=True, slots=True)
class ForgetDocument:
    """The journal need not know this DisposableVM any more."""

    vm: VmId


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
class Restore:
    """Make a DisposableVM for the document on this pendrive."""

    pendrive: PendriveId
    asker: RunningVm


@dataclass(frozen=True, slots=True)
class Stop:
    """The DisposableVM that is being made for this pendrive is not wanted any more."""

    pendrive: PendriveId


@dataclass(frozen=True, slots=True)
class Destroy:
    """End a DisposableVM. ``again``: it failed a moment ago; leave the hypervisor some time first."""

    vm: RunningVm
    again: bool = False


@dataclass(frozen=True, slots=True)
class Dissolve:
    """Remove what is left of a DisposableVM that has ended."""

    vm: VmId


@dataclass(frozen=True, slots=True)
class Announce:
    """Write who sends, the sequence number, and whether the document is only to be looked at, to the receiver's keys."""

    receiver: VmId
    source: VmName
    seq: int
    view_only: bool = False


@dataclass(frozen=True, slots=True)
class Show:
    """Tell a VM how far its document is. None: it is not told any more."""

    asker: VmId
    seq: int
    stage: Stage | None


@dataclass(frozen=True, slots=True)
class ShowScreen:
    """Open the screen of a DisposableVM for the person, if it has one: its document is about to be there."""

    vm: RunningVm


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
class RemindDocument:
    """Send ``DocumentExpired`` when the time that a document may be open is over, if it ever is."""

    vm: VmId


@dataclass(frozen=True, slots=True)
class Moved:
    """A change of state, for the log."""

    entry: Entry
    was: Phase


@dataclass(frozen=True, slots=True)
class Notify:
    """Tell the person. One notice for a transfer at a time: a later one takes the place of an earlier."""

    transfer: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a transfer, for the history."""

    entry: Entry
    text: str


Effect = (
    Record
    | Forget
    | RecordDocument
    | ForgetDocument
    | Create
    | Attach
    | Detach
    | Delete
    | Keep
    | Restore
    | Stop
    | Destroy
    | Dissolve
    | Announce
    | Show
    | ShowScreen
    | Tell
    | Ask
    | Withdraw
    | Remind
    | RemindDocument
    | Moved
    | Notify
    | Outcome
)
