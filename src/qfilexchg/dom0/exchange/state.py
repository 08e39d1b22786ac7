"""What the exchange machine knows of each VM that runs and of each pendrive, and which phases are in whose slot."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

from qfilexchg.dom0.exchange import messages as m
from qfilexchg.dom0.exchange.phases import Course, Phase
from qfilexchg.dom0.vms.hypervisor import RunningVm
from qfilexchg.protocol.names import VmName
from qfilexchg.protocol.qpen import Reply

RECEIVER_ASKS = frozenset((Phase.LOADED, Phase.DETACHING))
"""Phases in which it is the receiver that waits for an answer, not the sender."""
WAITING = frozenset((Phase.QUEUED, Phase.HELD))
"""Phases that last until the receiver's slot is free."""
_IN_NO_SLOT = frozenset((Phase.DELETING, Phase.KEEPING, Phase.HELD, Phase.GONE))
IN_OUTGOING_SLOT = frozenset(Phase) - RECEIVER_ASKS - _IN_NO_SLOT
IN_INCOMING_SLOT = frozenset((Phase.LEAVING, Phase.ARRIVING, Phase.PULLING)) | RECEIVER_ASKS
"""From the allow until it is gone again the receiver's slot is this pendrive's, so that no other is let in between."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of pendrives, in bytes; and how many documents may be in DisposableVMs at a time."""

    default_bytes: int
    maximum_bytes: int
    disposables_max: int


class Pendrive:
    """One pendrive, from its making until it is deleted or kept."""

    __slots__ = (
        "baseline_bytes",
        "course",
        "id",
        "made",
        "phase",
        "question",
        "receiver",
        "request_id",
        "sender",
        "seq",
        "size_bytes",
        "target_name",
        "told",
        "view_only",
    )

    def __init__(self, pendrive_id: m.PendriveId, sender: RunningVm, size_bytes: int, request_id: str | None) -> None:
        self.id = pendrive_id
        self.phase = Phase.GONE
        self.made = False
        """Whether there is an image. One that is being made when it is abandoned may never come to be."""
        self.sender = sender
        self.request_id = request_id
        """Of the request that still waits for its last reply."""
        self.size_bytes = size_bytes
        self.baseline_bytes = 0
        self.told = False
        """Whether the person was told something of it, which is not to stay where it is true no more."""
        self.forget_transfer()

    def forget_transfer(self) -> None:
        """It is for nobody yet, or not any more."""
        self.course = Course.COPY
        self.receiver: RunningVm | None = None
        self.target_name: VmName | None = None
        self.question: m.Question | None = None
        self.seq = 0
        self.view_only = False

    @classmethod
    def recovered(cls, entry: m.Entry) -> Pendrive:
        """The pendrive as the journal has it."""
        pendrive = cls(entry.pendrive, entry.sender, entry.size_bytes, entry.request_id or None)
        pendrive.phase = entry.phase
        pendrive.made = True
        pendrive.baseline_bytes = entry.baseline_bytes
        pendrive.course = entry.course
        pendrive.receiver = entry.receiver
        pendrive.target_name = entry.receiver.name if entry.receiver else None
        pendrive.seq = entry.seq
        pendrive.view_only = entry.view_only
        return pendrive

    def entry(self) -> m.Entry:
        """What the journal must know of it."""
        return m.Entry(
            self.id,
            self.phase,
            self.sender,
            self.receiver,
            self.seq,
            self.request_id or "",
            self.size_bytes,
            self.baseline_bytes,
            self.course,
            self.view_only,
        )

    @property
    def target(self) -> str:
        """Where it goes, for the person."""
        if self.target_name is not None:
            return self.target_name
        return "DisposableVM" if self.course is Course.OUT else "nowhere yet"

    @property
    def transfer(self) -> str:
        """What notices of it are about."""
        if self.course is Course.OUT:
            return m.transfer_of(self.sender, self.seq)
        if self.course is Course.BACK and self.receiver:
            return m.transfer_of(self.receiver, self.seq)
        return self.id


class Vm:
    """One run of one VM."""

    __slots__ = ("disposable", "incoming", "outgoing", "refusals", "replies", "vm", "waiting")

    def __init__(self, vm: RunningVm, *, disposable: bool) -> None:
        self.vm = vm
        self.disposable = disposable
        self.outgoing: Pendrive | None = None
        self.incoming: Pendrive | None = None
        self.waiting: deque[Pendrive] = deque()
        """Transfers to this VM that wait for its slot, the oldest first."""
        self.replies: OrderedDict[str, Reply] = OrderedDict()
        self.refusals = 0
        """Times that it was refused at once, without a question."""

    @property
    def busy(self) -> bool:
        """Whether its incoming slot is taken, or will be as soon as it is free."""
        return self.incoming is not None or bool(self.waiting)
