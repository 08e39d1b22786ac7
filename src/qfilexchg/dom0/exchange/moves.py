"""How a pendrive goes from phase to phase: the edges of ``phases``, and what must be done on entering each phase.

The machine says which signal comes; here is what follows from it, for the pendrive, the slots of the VMs, the document that may
be on it, the VM that waits for an answer, and the person.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from qfilexchg.dom0.exchange import messages as m
from qfilexchg.dom0.exchange.documents import Documents
from qfilexchg.dom0.exchange.phases import EDGES, Course, Phase, Signal
from qfilexchg.dom0.exchange.state import IN_INCOMING_SLOT, IN_OUTGOING_SLOT, RECEIVER_ASKS, WAITING, Pendrive, Vm
from qfilexchg.dom0.vms.hypervisor import RunningVm, Slot, VmId
from qfilexchg.errors import InternalError
from qfilexchg.protocol.names import DOM0, VmName
from qfilexchg.protocol.qpen import FINAL_STATES, NO_ID, Reply
from qfilexchg.protocol.stages import Stage

if TYPE_CHECKING:
    from qfilexchg.protocol.qpen import State

REMEMBERED_REPLIES = 16
"""Request ids remembered for each VM. A client repeats a request within seconds; this bounds what a VM can make dom0 hold."""

_SENT = frozenset((Phase.ASKING, Phase.RESTORING, Phase.QUEUED))
"""Phases in which a pendrive is meant for somebody and its sender still has it."""
_RETURNED = "returned: it takes the document's place, or lies beside it where that has changed meanwhile"
"""Which of both, only the VM knows."""
_ON_COURSE = frozenset((Phase.LEAVING, Phase.ARRIVING, Phase.DELETING, Phase.GONE)) | RECEIVER_ASKS
"""Phases in which a document is on its way to its DisposableVM, or was there. In any other the VM has no use."""


class UnexpectedSignal(InternalError):
    """A signal came for which the table has no edge."""

    def __init__(self, phase: Phase, signal: Signal) -> None:
        super().__init__(phase, signal)
        self.phase = phase
        self.signal = signal

    def __str__(self) -> str:
        return f"a pendrive that is {self.phase.value} cannot take '{self.signal.value}'"


class Moves:
    """The VMs that run, the pendrives there are, and how these move. Effects are gathered in the order of their carrying out."""

    def __init__(self) -> None:
        self._vms: dict[VmId, Vm] = {}
        self._pendrives: dict[m.PendriveId, Pendrive] = {}
        self._documents = Documents(lambda effect: self._effects.append(effect))
        self._questions = 0
        self._effects: list[m.Effect] = []

    def _signal(self, pendrive: Pendrive, signal: Signal, why: str = "", word: str = "") -> None:
        """Follow the edge for ``signal``: answer, tidy up the phase that ends, enter the next.

        ``why`` is for the person, and ``word`` for the VM where the edge has none.
        """
        edge = EDGES.get((pendrive.phase, signal))
        if edge is None:
            raise UnexpectedSignal(pendrive.phase, signal)
        if edge.phase is Phase.KEEPING and pendrive.course is Course.OUT:
            edge = EDGES[pendrive.phase, Signal.SPARE]
        if edge.reply:
            self._answer(pendrive, edge.reply, edge.detail or word)
        if edge.reply in {"delivered", "denied", "failed"}:
            reached = "returned" if edge.reply == "delivered" and pendrive.course is Course.BACK else edge.reply
            outcome = f"{reached}, {why}" if why else reached
            self._effects.append(m.Outcome(pendrive.entry(), outcome))
            self._notify(pendrive, _RETURNED if outcome == "returned" else outcome)
        elif pendrive.phase in _SENT and signal in {Signal.CANCEL, Signal.SENDER_GONE}:
            outcome = f"cancelled, {why}" if why else "cancelled"
            self._effects.append(m.Outcome(pendrive.entry(), outcome))
            if pendrive.told:
                self._notify(pendrive, outcome)
        if pendrive.phase is Phase.ASKING and signal in {Signal.CANCEL, Signal.SENDER_GONE, Signal.RECEIVER_GONE}:
            assert pendrive.question is not None
            self._effects.append(m.Withdraw(pendrive.question.id))
        if pendrive.phase in WAITING and (receiver := self._slots(pendrive.receiver)):
            receiver.waiting.remove(pendrive)
        self._leave(pendrive, edge.phase)
        self._enter(pendrive, edge.phase, again=signal is Signal.DETACH_AGAIN)

    def _leave(self, pendrive: Pendrive, phase: Phase) -> None:
        """Settle what a document's DisposableVM and its asker have to do with the step from its phase to ``phase``."""
        if pendrive.course is not Course.OUT:
            return
        receiver = pendrive.receiver
        if receiver is None:
            if pendrive.phase is Phase.RESTORING and phase is not Phase.RESTORING:
                self._documents.show(pendrive.sender.id, pendrive.seq, None)
        elif phase not in _ON_COURSE:
            self._documents.end(receiver.id, m.Fate.UNDELIVERED)
        elif pendrive.phase is Phase.ARRIVING and phase is Phase.LOADED:
            self._documents.delivered(receiver.id)

    def _enter(self, pendrive: Pendrive, phase: Phase, *, again: bool = False) -> None:
        was, pendrive.phase = pendrive.phase, phase
        self._occupy(pendrive)
        if phase is Phase.CLEAN:
            pendrive.forget_transfer()
        self._effects.append(m.Moved(pendrive.entry(), was))
        if phase is not Phase.GONE:
            self._effects.append(m.Record(pendrive.entry()))
        if pendrive.course is Course.BACK:
            self._show_return(pendrive)
        match phase:
            case Phase.CREATING:
                self._effects.append(m.Create(pendrive.id, pendrive.size_bytes, pendrive.sender.name.volume_label))
            case Phase.GIVING | Phase.RETURNING:
                self._effects.append(m.Attach(pendrive.id, pendrive.sender, Slot.OUTGOING))
            case Phase.ASKING:
                self._ask(pendrive)
            case Phase.QUEUED:
                self._wait(pendrive)
                pendrive.question = pendrive.question or self._question(pendrive, busy=True)
                self._effects.append(m.Remind(pendrive.id, pendrive.question.id))
            case Phase.RESTORING:
                self._documents.show(pendrive.sender.id, pendrive.seq, Stage("starting"))
                self._effects.append(m.Restore(pendrive.id, pendrive.sender))
            case Phase.WITHDRAWING | Phase.SALVAGING:
                self._documents.end(pendrive.sender.id, m.Fate.RETURNING)
                self._documents.destroy(pendrive.sender)
            case Phase.HELD:
                self._wait(pendrive)
            case Phase.LEAVING | Phase.DISCARDING:
                if phase is Phase.LEAVING and pendrive.course is Course.OUT:
                    assert pendrive.receiver is not None
                    self._documents.begin(pendrive.receiver, pendrive.sender, pendrive.seq, view_only=pendrive.view_only)
                self._effects.append(m.Detach(pendrive.id, pendrive.sender, Slot.OUTGOING, again))
            case Phase.RECALLED:
                if again or was is Phase.STRANDED:  # else the detach that LEAVING began is still under way
                    self._effects.append(m.Detach(pendrive.id, pendrive.sender, Slot.OUTGOING, again))
            case Phase.ARRIVING:
                assert pendrive.receiver is not None
                self._effects.append(m.Announce(pendrive.receiver.id, pendrive.sender.name, pendrive.seq, pendrive.view_only))
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
            case Phase.ABANDONING:
                if was is Phase.RESTORING:
                    self._effects.append(m.Stop(pendrive.id))
            case Phase.CLEAN | Phase.LOADED | Phase.BOUNCED | Phase.STRANDED:
                pass
            case _:
                assert_never(phase)

    def _occupy(self, pendrive: Pendrive) -> None:
        """Let the slots be what the disks are: a VM that gets another name keeps both until they are taken away."""
        sender, receiver = (self._vms.get(vm.id) if vm else None for vm in (pendrive.sender, pendrive.receiver))
        if sender and (pendrive.phase in IN_OUTGOING_SLOT or sender.outgoing is pendrive):
            sender.outgoing = pendrive if pendrive.phase in IN_OUTGOING_SLOT else None
        if receiver and (pendrive.phase in IN_INCOMING_SLOT or receiver.incoming is pendrive):
            receiver.incoming = pendrive if pendrive.phase in IN_INCOMING_SLOT else None

    def _wait(self, pendrive: Pendrive) -> None:
        receiver = self._slots(pendrive.receiver)
        assert receiver is not None
        if receiver.busy:
            self._notify(pendrive, f"waits until {receiver.vm.name} has ejected another pendrive")
        receiver.waiting.append(pendrive)

    def _slots(self, vm: RunningVm | None) -> Vm | None:
        """None for one that has ended, and so has one that has another name by now: who has its slots since does not speak for it."""
        found = self._vms.get(vm.id) if vm else None
        return found if found and found.vm == vm else None

    def _show_return(self, pendrive: Pendrive) -> None:
        assert pendrive.receiver is not None
        match pendrive.phase:
            case Phase.WITHDRAWING | Phase.HELD | Phase.ARRIVING:
                stage = Stage("returning", pendrive.sender.name)
            case Phase.LOADED:
                stage = Stage("returned", pendrive.sender.name)
            case Phase.KEEPING:
                stage = Stage("ended", pendrive.sender.name, "kept-in-dom0")
            case _:
                return
        self._documents.show(pendrive.receiver.id, pendrive.seq, stage)

    def _ask(self, pendrive: Pendrive) -> None:
        receiver = self._slots(pendrive.receiver)
        pendrive.question = self._question(pendrive, busy=receiver is not None and receiver.busy)
        self._effects.append(m.Ask(pendrive.question, pendrive.id))

    def _question(self, pendrive: Pendrive, *, busy: bool) -> m.Question:
        self._questions += 1
        kind = m.QuestionKind.WAIT if pendrive.question else m.QuestionKind.COPY
        target, doubt = None, ""
        if pendrive.target_name is not None:
            target, doubt = self._find(pendrive.sender, pendrive.target_name)
            if pendrive.seq and not doubt:
                doubt = "only a DisposableVM returns a document"
        return m.Question(m.QuestionId(self._questions), kind, pendrive.sender, pendrive.target_name, target, busy, doubt)

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
            case [vm] if self._vms[vm.id].disposable:
                return None, "a DisposableVM takes no files but its document"
            case [vm]:
                return vm, ""
            case _:
                return None, "several VMs of that name run"

    # Words

    def _answer(self, pendrive: Pendrive, state: State, detail: str = "") -> None:
        """Answer the request that this pendrive's move comes from; once it has had its last reply it gets no other."""
        asker = self._slots(pendrive.sender) if state == "delivered" else self._asker(pendrive)
        if asker and pendrive.request_id is not None:
            self._tell(asker, pendrive.request_id, state, detail)
        if state in FINAL_STATES:
            pendrive.request_id = None

    def _asker(self, pendrive: Pendrive) -> Vm | None:
        """The VM that waits for an answer, if it runs."""
        return self._slots(pendrive.receiver if pendrive.phase in RECEIVER_ASKS else pendrive.sender)

    def _tell(self, vm: Vm, request_id: str, state: State, detail: str = "") -> None:
        reply = Reply(request_id, state, detail)
        if request_id != NO_ID:
            vm.replies[request_id] = reply
            vm.replies.move_to_end(request_id)
            if len(vm.replies) > REMEMBERED_REPLIES:
                vm.replies.popitem(last=False)
        self._effects.append(m.Tell(vm.vm.id, reply))

    def _notify(self, pendrive: Pendrive | None, text: str) -> None:
        if pendrive is None:
            self._effects.append(m.Notify(None, text))
            return
        pendrive.told = True
        self._effects.append(m.Notify(pendrive.transfer, f"{pendrive.sender.name} → {pendrive.target}: {text}"))
