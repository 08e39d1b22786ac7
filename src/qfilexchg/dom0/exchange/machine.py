"""The exchange: events in, effects out; no I/O, no clock, no randomness.

There is one object for each VM that runs, with two slots, and one for each pendrive; the pendrive is the thing that moves, and
its life is the table in ``phases``. What always holds:

* a pendrive is in at most one VM's slot, and a slot holds at most one pendrive;
* nothing leaves a VM but by an allow for this pendrive, this sender and this receiver, each of them one run of one VM;
* every pendrive that is made is deleted, or kept for the person, once;
* what a VM asks for changes only pendrives in its own slots.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from qfilexchg.dom0.exchange import messages as m
from qfilexchg.dom0.exchange.phases import EDGES, Phase, Place, Signal, resume
from qfilexchg.dom0.vms.hypervisor import RunningVm, Slot, VmId
from qfilexchg.errors import InternalError
from qfilexchg.protocol.names import DOM0, DomainId, VmName
from qfilexchg.protocol.qpen import FINAL_STATES, NO_ID, Reply, Request

if TYPE_CHECKING:
    from qfilexchg.protocol.qpen import State

REMEMBERED_REPLIES = 16
"""Request ids remembered for each VM. A client repeats a request within seconds; this bounds what a VM can make dom0 hold."""

_RECEIVER_ASKS = frozenset((Phase.LOADED, Phase.DETACHING))
"""Phases in which it is the receiver that waits for an answer, not the sender."""
_IN_NO_SLOT = frozenset((Phase.DELETING, Phase.KEEPING, Phase.GONE))
_IN_OUTGOING_SLOT = frozenset(Phase) - _RECEIVER_ASKS - _IN_NO_SLOT
_IN_INCOMING_SLOT = frozenset((Phase.LEAVING, Phase.ARRIVING, Phase.PULLING)) | _RECEIVER_ASKS
"""From the allow until it is gone again the receiver's slot is this pendrive's, so that no other is let in between."""


class UnexpectedSignal(InternalError):
    """A signal came for which the table has no edge."""

    def __init__(self, phase: Phase, signal: Signal) -> None:
        super().__init__(phase, signal)
        self.phase = phase
        self.signal = signal

    def __str__(self) -> str:
        return f"a pendrive that is {self.phase.value} cannot take '{self.signal.value}'"


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of pendrives, in bytes."""

    default_bytes: int
    maximum_bytes: int


class _Pendrive:
    __slots__ = ("baseline_bytes", "id", "phase", "question", "receiver", "request_id", "sender", "seq", "size_bytes", "target_name")

    def __init__(self, pendrive_id: m.PendriveId, sender: RunningVm, size_bytes: int, request_id: str | None) -> None:
        self.id = pendrive_id
        self.phase = Phase.GONE
        self.sender = sender
        self.receiver: RunningVm | None = None
        self.target_name: VmName | None = None
        self.question: m.Question | None = None
        self.seq = 0
        self.request_id = request_id
        """Of the request that still waits for its last reply."""
        self.size_bytes = size_bytes
        self.baseline_bytes = 0

    def entry(self) -> m.Entry:
        return m.Entry(
            self.id, self.phase, self.sender, self.receiver, self.seq, self.request_id or "", self.size_bytes, self.baseline_bytes
        )


class _Vm:
    __slots__ = ("incoming", "outgoing", "replies", "vm", "waiting")

    def __init__(self, vm: RunningVm) -> None:
        self.vm = vm
        self.outgoing: _Pendrive | None = None
        self.incoming: _Pendrive | None = None
        self.waiting: deque[_Pendrive] = deque()
        """Transfers to this VM that are allowed and queued, the oldest first."""
        self.replies: OrderedDict[str, Reply] = OrderedDict()

    @property
    def busy(self) -> bool:
        return self.incoming is not None or bool(self.waiting)


class Exchange:
    """The state of all exchanges of one host."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._vms: dict[VmId, _Vm] = {}
        self._pendrives: dict[m.PendriveId, _Pendrive] = {}
        self._questions = 0
        self._effects: list[m.Effect] = []

    @property
    def domains(self) -> Mapping[VmName, DomainId]:
        """The dictionary VM name → domain id."""
        return {vm.vm.name: vm.vm.id.domain for vm in self._vms.values()}

    @property
    def entries(self) -> Iterator[m.Entry]:
        """Every pendrive there is now."""
        return (pendrive.entry() for pendrive in self._pendrives.values())

    def handle(self, event: m.Event) -> list[m.Effect]:
        """Take one event; return what must be done, in this order.

        Raises :exc:`UnexpectedSignal` when an effect is answered that was not asked for; nothing has changed then.
        """
        self._effects = []
        match event:
            case m.VmStarted(vm, last_reply):
                self._vm_started(vm, last_reply)
            case m.VmStopped(vm_id):
                self._vm_stopped(vm_id)
            case m.Requested(vm_id, request, fresh):
                if vm_id in self._vms:
                    self._requested(self._vms[vm_id], request, fresh)
            case m.Created(pendrive_id, baseline_bytes):
                self._pendrives[pendrive_id].baseline_bytes = baseline_bytes
                self._signal(self._pendrives[pendrive_id], Signal.CREATED)
            case m.Attached(pendrive_id):
                self._signal(self._pendrives[pendrive_id], Signal.ATTACHED)
            case m.Detached(pendrive_id):
                self._signal(self._pendrives[pendrive_id], Signal.DETACHED)
            case m.Deleted(pendrive_id):
                self._signal(self._pendrives[pendrive_id], Signal.DELETED)
            case m.Kept(pendrive_id, where):
                pendrive = self._pendrives[pendrive_id]
                self._notify(pendrive, f"could be neither delivered nor given back; the pendrive is kept as {where}")
                self._signal(pendrive, Signal.KEPT)
            case m.Failed(pendrive_id, why):
                self._failed(self._pendrives[pendrive_id], why)
            case m.Answered():
                self._answered(event)
            case m.QueueExpired(pendrive_id, question):
                waiting = self._pendrives.get(pendrive_id)
                if waiting and waiting.phase is Phase.QUEUED and waiting.question and waiting.question.id == question:
                    self._signal(waiting, Signal.EXPIRED, "its receiver was busy for too long")
            case m.Recovered(found):
                for entry, place in found:
                    self._recovered(entry, place)
            case _:
                assert_never(event)
        for receiver in self._vms.values():
            if receiver.waiting and receiver.incoming is None:
                self._signal(receiver.waiting[0], Signal.SLOT_FREE)
        return self._effects

    # VMs

    def _vm_started(self, vm: RunningVm, last_reply: Reply | None) -> None:
        if vm.id in self._vms:
            return
        self._vms[vm.id] = _Vm(vm)
        if last_reply and last_reply.request_id != NO_ID:
            self._vms[vm.id].replies[last_reply.request_id] = last_reply

    def _vm_stopped(self, vm_id: VmId) -> None:
        if self._vms.pop(vm_id, None) is None:
            return
        for pendrive in list(self._pendrives.values()):
            for holder, signal in ((pendrive.sender, Signal.SENDER_GONE), (pendrive.receiver, Signal.RECEIVER_GONE)):
                if holder and holder.id == vm_id and (pendrive.phase, signal) in EDGES:
                    self._signal(pendrive, signal, f"{holder.name} ended")

    def _find(self, source: RunningVm, name: VmName) -> tuple[RunningVm | None, str]:
        """The VM that ``source`` means by ``name``, or why there is none."""
        found = [vm.vm for vm in self._vms.values() if vm.vm.name == name]
        match found:
            case _ if name == source.name:
                return None, "a VM does not send to itself"
            case [] if name == DOM0:
                return None, "dom0 takes no files from VMs"
            case []:
                return None, "no VM of that name runs"
            case [vm]:
                return vm, ""
            case _:
                return None, "several VMs of that name run"

    # Requests

    def _requested(self, vm: _Vm, request: Request, fresh: m.PendriveId) -> None:
        if repeated := vm.replies.get(request.request_id):
            self._effects.append(m.Tell(vm.vm.id, repeated))
            return
        match request.verb:
            case "new":
                self._new(vm, request, fresh)
            case "send":
                self._send(vm, request)
            case "cancel":
                self._cancel(vm, request)
            case "umount":
                pendrive = vm.incoming
                if pendrive is None or pendrive.phase is Phase.LEAVING:
                    self._tell(vm, request.request_id, "failed", "no-pendrive")
                elif pendrive.phase is not Phase.LOADED:
                    self._tell(vm, request.request_id, "failed", pendrive.phase.value)  # it has the disk, or will in a moment
                else:
                    pendrive.request_id = request.request_id
                    self._signal(pendrive, Signal.UMOUNT)
            case "status":
                # What is only on its way to a VM is not the VM's to know.
                incoming = vm.incoming.phase.value if vm.incoming and vm.incoming.phase in _RECEIVER_ASKS else "none"
                outgoing = vm.outgoing.phase.value if vm.outgoing else "none"
                self._tell(vm, request.request_id, "accepted", f"outgoing={outgoing} incoming={incoming}")
            case "killme":
                self._tell(vm, request.request_id, "denied")
                self._notify(None, f"{vm.vm.name} asked to be destroyed, which only a DisposableVM may")
            case _:
                assert_never(request.verb)

    def _new(self, vm: _Vm, request: Request, fresh: m.PendriveId) -> None:
        size_bytes = request.size_bytes or self._limits.default_bytes
        if vm.outgoing is not None:
            self._tell(vm, request.request_id, "failed", f"have-pendrive {vm.outgoing.phase.value}")
        elif size_bytes > self._limits.maximum_bytes:
            self._tell(vm, request.request_id, "failed", f"too-large maximum={self._limits.maximum_bytes}")
        else:
            pendrive = _Pendrive(fresh, vm.vm, size_bytes, request.request_id)
            self._pendrives[fresh] = pendrive
            vm.outgoing = pendrive
            self._tell(vm, request.request_id, "accepted")
            self._enter(pendrive, Phase.CREATING)

    def _send(self, vm: _Vm, request: Request) -> None:
        pendrive = vm.outgoing
        if pendrive is None or pendrive.phase is not Phase.CLEAN:
            self._tell(vm, request.request_id, "failed", pendrive.phase.value if pendrive else "no-pendrive")
        elif request.target is None:
            self._tell(vm, request.request_id, "denied")
            self._notify(None, f"{vm.vm.name} → DisposableVM: denied, this host makes no DisposableVMs")
        else:
            pendrive.request_id = request.request_id
            pendrive.seq = request.seq
            pendrive.target_name = request.target
            pendrive.receiver, _ = self._find(vm.vm, request.target)
            self._signal(pendrive, Signal.SEND)

    def _cancel(self, vm: _Vm, request: Request) -> None:
        pendrive = vm.outgoing
        if pendrive is None or (pendrive.phase, Signal.CANCEL) not in EDGES:
            self._tell(vm, request.request_id, "failed", pendrive.phase.value if pendrive else "no-pendrive")
            return
        if pendrive.request_id is not None:
            self._tell(vm, pendrive.request_id, "cancelled")
        pendrive.request_id = request.request_id
        self._signal(pendrive, Signal.CANCEL)

    # Results

    def _failed(self, pendrive: _Pendrive, why: str) -> None:
        if pendrive.phase is Phase.CREATING:
            signal = Signal.CREATE_FAILED
        elif (pendrive.phase, Signal.ATTACH_FAILED) in EDGES:
            signal = Signal.ATTACH_FAILED
        else:
            holder = pendrive.receiver if pendrive.phase in {Phase.PULLING, Phase.DETACHING} else pendrive.sender
            signal = Signal.DETACH_FAILED if holder and holder.id in self._vms else Signal.DETACH_AGAIN
        self._signal(pendrive, signal, why)

    def _answered(self, answer: m.Answered) -> None:
        for pendrive in self._pendrives.values():
            question = pendrive.question
            if pendrive.phase is Phase.ASKING and question and question.id == answer.question:
                break
        else:
            return  # withdrawn meanwhile
        if not answer.allow or question.doubt or question.target is None:
            signal = Signal.DENIED
        elif not self._vms[question.target.id].busy:
            signal = Signal.ALLOWED
        else:
            signal = Signal.ALLOWED_TO_WAIT if question.busy else Signal.BUSY
        self._signal(pendrive, signal, answer.why)

    def _recovered(self, entry: m.Entry, place: Place) -> None:
        pendrive = _Pendrive(entry.pendrive, entry.sender, entry.size_bytes, entry.request_id or None)
        pendrive.phase = entry.phase
        pendrive.receiver = entry.receiver
        pendrive.target_name = entry.receiver.name if entry.receiver else None
        pendrive.seq = entry.seq
        pendrive.baseline_bytes = entry.baseline_bytes
        sender = self._vms.get(entry.sender.id)
        receiver = self._vms.get(entry.receiver.id) if entry.receiver else None
        phase = resume(entry.phase, place, sender_runs=sender is not None, receiver_runs=receiver is not None)
        self._pendrives[pendrive.id] = pendrive
        match entry.phase, phase:
            case (Phase.GIVING, Phase.CLEAN):
                self._answer(pendrive, "attached")
            case (Phase.ARRIVING, Phase.LOADED):
                self._answer(pendrive, "delivered")
            case (Phase.ASKING, Phase.ASKING):
                self._answer(pendrive, "asking")
            case (Phase.QUEUED, Phase.QUEUED):
                self._answer(pendrive, "queued")
            case (Phase.ASKING, Phase.CLEAN):
                self._answer(pendrive, "denied")
            case (Phase.CREATING | Phase.GIVING | Phase.ABANDONING), _:
                self._answer(pendrive, "failed", "interrupted")
            case _, (Phase.CLEAN | Phase.DELETING | Phase.KEEPING) if phase is not entry.phase:
                self._answer(pendrive, "failed", "interrupted")
        self._enter(pendrive, phase)

    # Moving

    def _signal(self, pendrive: _Pendrive, signal: Signal, why: str = "") -> None:
        """Follow the edge for ``signal``: answer, tidy up the phase that ends, enter the next."""
        edge = EDGES.get((pendrive.phase, signal))
        if edge is None:
            raise UnexpectedSignal(pendrive.phase, signal)
        if edge.reply:
            self._answer(pendrive, edge.reply, edge.detail)
        if edge.reply in {"delivered", "denied", "failed"}:
            outcome = f"{edge.reply}, {why}" if why else edge.reply
            self._effects.append(m.Outcome(pendrive.entry(), outcome))
            self._notify(pendrive, outcome)
        if pendrive.phase is Phase.ASKING and signal in {Signal.CANCEL, Signal.SENDER_GONE, Signal.RECEIVER_GONE}:
            assert pendrive.question is not None
            self._effects.append(m.Withdraw(pendrive.question.id))
        if pendrive.phase is Phase.QUEUED and (receiver := self._slots(pendrive.receiver)):
            receiver.waiting.remove(pendrive)
        self._enter(pendrive, edge.phase, again=signal is Signal.DETACH_AGAIN)

    def _enter(self, pendrive: _Pendrive, phase: Phase, *, again: bool = False) -> None:
        was, pendrive.phase = pendrive.phase, phase
        sender, receiver = self._slots(pendrive.sender), self._slots(pendrive.receiver)
        if sender and (phase in _IN_OUTGOING_SLOT or sender.outgoing is pendrive):
            sender.outgoing = pendrive if phase in _IN_OUTGOING_SLOT else None
        if receiver and (phase in _IN_INCOMING_SLOT or receiver.incoming is pendrive):
            receiver.incoming = pendrive if phase in _IN_INCOMING_SLOT else None
        if phase is Phase.CLEAN:
            pendrive.receiver, pendrive.target_name, pendrive.question, pendrive.seq = None, None, None, 0
        self._effects.append(m.Moved(pendrive.entry(), was))
        if phase is not Phase.GONE:
            self._effects.append(m.Record(pendrive.entry()))
        match phase:
            case Phase.CREATING:
                self._effects.append(m.Create(pendrive.id, pendrive.size_bytes, pendrive.sender.name.volume_label))
            case Phase.GIVING | Phase.RETURNING:
                self._effects.append(m.Attach(pendrive.id, pendrive.sender, Slot.OUTGOING))
            case Phase.ASKING:
                self._ask(pendrive)
            case Phase.QUEUED:
                assert receiver is not None
                receiver.waiting.append(pendrive)
                pendrive.question = pendrive.question or self._question(pendrive, busy=True)
                self._effects.append(m.Remind(pendrive.id, pendrive.question.id))
            case Phase.LEAVING | Phase.DISCARDING:
                self._effects.append(m.Detach(pendrive.id, pendrive.sender, Slot.OUTGOING, again))
            case Phase.RECALLED:
                if again:  # else the detach that LEAVING began is still under way
                    self._effects.append(m.Detach(pendrive.id, pendrive.sender, Slot.OUTGOING, again))
            case Phase.ARRIVING:
                assert pendrive.receiver is not None
                self._effects.append(m.Announce(pendrive.receiver.id, pendrive.sender.name, pendrive.seq))
                self._effects.append(m.Attach(pendrive.id, pendrive.receiver, Slot.INCOMING))
            case Phase.PULLING | Phase.DETACHING:
                assert pendrive.receiver is not None
                self._effects.append(m.Detach(pendrive.id, pendrive.receiver, Slot.INCOMING, again))
            case Phase.DELETING:
                self._effects.append(m.Delete(pendrive.id))
            case Phase.KEEPING:
                self._effects.append(m.Keep(pendrive.id))
            case Phase.GONE:
                del self._pendrives[pendrive.id]
                self._effects.append(m.Forget(pendrive.id))
            case Phase.CLEAN | Phase.LOADED | Phase.ABANDONING | Phase.BOUNCED | Phase.STRANDED:
                pass
            case _:
                assert_never(phase)

    def _slots(self, vm: RunningVm | None) -> _Vm | None:
        return self._vms.get(vm.id) if vm else None

    def _ask(self, pendrive: _Pendrive) -> None:
        receiver = self._slots(pendrive.receiver)
        pendrive.question = self._question(pendrive, busy=receiver is not None and receiver.busy)
        self._effects.append(m.Ask(pendrive.question, pendrive.id))

    def _question(self, pendrive: _Pendrive, *, busy: bool) -> m.Question:
        assert pendrive.target_name is not None
        self._questions += 1
        kind = m.QuestionKind.WAIT if pendrive.question else m.QuestionKind.COPY
        target, doubt = self._find(pendrive.sender, pendrive.target_name)
        if pendrive.seq and not doubt:
            doubt = "only a DisposableVM returns a document"
        return m.Question(m.QuestionId(self._questions), kind, pendrive.sender, pendrive.target_name, target, busy, doubt)

    # Words

    def _answer(self, pendrive: _Pendrive, state: State, detail: str = "") -> None:
        """Answer the request that this pendrive's move comes from; once it has had its last reply it gets no other."""
        asker = self._slots(pendrive.receiver if pendrive.phase in _RECEIVER_ASKS and state != "delivered" else pendrive.sender)
        if asker and pendrive.request_id is not None:
            self._tell(asker, pendrive.request_id, state, detail)
        if state in FINAL_STATES:
            pendrive.request_id = None

    def _tell(self, vm: _Vm, request_id: str, state: State, detail: str = "") -> None:
        reply = Reply(request_id, state, detail)
        if request_id != NO_ID:
            vm.replies[request_id] = reply
            vm.replies.move_to_end(request_id)
            if len(vm.replies) > REMEMBERED_REPLIES:
                vm.replies.popitem(last=False)
        self._effects.append(m.Tell(vm.vm.id, reply))

    def _notify(self, pendrive: _Pendrive | None, text: str) -> None:
        if pendrive is not None and not text.startswith(pendrive.sender.name):
            text = f"{pendrive.sender.name} → {pendrive.target_name or 'nowhere yet'}: {text}"
        self._effects.append(m.Notify(pendrive.id if pendrive else None, text))
