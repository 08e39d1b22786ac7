"""The exchange: events in, effects out; no I/O, no clock, no randomness.

There is one object for each VM that runs, with two slots, and one for each pendrive; the pendrive is the thing that moves, and
its life is the table in ``phases``. What is known of DisposableVMs and their documents is in ``documents``. What always holds:

* a pendrive is in at most one VM's slot, and a slot holds at most one pendrive;
* nothing leaves a VM but by an allow for this pendrive, this sender and this receiver, each of them one run of one VM;
* every pendrive that is made is deleted, or kept for the person, once;
* what a VM asks for changes only pendrives in its own slots, and the DisposableVM that was made for it;
* a DisposableVM gets nothing but its document, and gives nothing but that, to the VM that it came from, once. It needs no allow
  for that: it is in no state to be asked about, and its asker's allow was for there and back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, assert_never

from qfilexchg.dom0.exchange import messages as m
from qfilexchg.dom0.exchange.moves import Moves
from qfilexchg.dom0.exchange.phases import EDGES, Course, Phase, Place, Signal
from qfilexchg.dom0.exchange.recovery import news, resume
from qfilexchg.dom0.exchange.state import RECEIVER_ASKS, Limits, Pendrive, Vm
from qfilexchg.dom0.vms.hypervisor import RunningVm, VmId
from qfilexchg.protocol.names import DomainId, VmName
from qfilexchg.protocol.qpen import FINAL_STATES, NO_ID, Reply, Request
from qfilexchg.protocol.stages import Stage

if TYPE_CHECKING:
    from qfilexchg.protocol.qpen import State

REFUSALS_TOLD = 8
"""Refusals of one run of a VM that the person hears of. A VM that asks without end would drown all other notices."""


class Exchange(Moves):
    """The state of all exchanges of one host."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self._limits = limits
        self._recovered = False
        """Whether what an earlier daemon left has been taken up."""

    @property
    def domains(self) -> Mapping[VmName, DomainId]:
        """The dictionary VM name → domain id."""
        return {vm.vm.name: vm.vm.id.domain for vm in self._vms.values()}

    @property
    def running(self) -> Iterator[tuple[RunningVm, bool]]:
        """Every VM that runs, and whether it is a DisposableVM."""
        return ((vm.vm, vm.disposable) for vm in self._vms.values())

    @property
    def entries(self) -> Iterator[m.Entry]:
        """Every pendrive there is now."""
        return (pendrive.entry() for pendrive in self._pendrives.values())

    @property
    def documents(self) -> Iterator[m.Document]:
        """Every DisposableVM with a document there is now."""
        return iter(self._documents)

    def handle(self, event: m.Event) -> list[m.Effect]:
        """Take one event; return what must be done, in this order.

        Raises :exc:`UnexpectedSignal` when an effect is answered that was not asked for; nothing has changed then.
        """
        self._effects = []
        match event:
            case m.VmStarted():
                self._vm_started(event)
            case m.VmStopped(vm_id, runs_on):
                if not runs_on and vm_id in self._vms and self._vms[vm_id].disposable and vm_id not in self._documents:
                    self._effects.append(m.Dissolve(vm_id))  # with a document it is dissolved when that is settled
                self._vm_stopped(vm_id)
            case m.Requested(vm_id, request, fresh):
                if vm_id in self._vms:
                    self._requested(self._vms[vm_id], request, fresh)
            case m.Created(pendrive_id, baseline_bytes):
                self._created(self._pendrives[pendrive_id], baseline_bytes)
            case m.Attached(pendrive_id):
                self._signal(self._pendrives[pendrive_id], Signal.ATTACHED)
            case m.Detached(pendrive_id):
                self._detached(self._pendrives[pendrive_id])
            case m.Deleted(pendrive_id):
                self._signal(self._pendrives[pendrive_id], Signal.DELETED)
            case m.Kept(pendrive_id, where):
                pendrive = self._pendrives[pendrive_id]
                self._notify(pendrive, f"could be neither delivered nor given back; the pendrive is kept as {where}")
                self._signal(pendrive, Signal.KEPT)
            case m.Failed(pendrive_id, why, word):
                self._failed(self._pendrives[pendrive_id], why, word)
            case m.Preparing(pendrive_id, step):
                self._preparing(self._pendrives[pendrive_id], step)
            case m.Restored(pendrive_id, vm):
                self._restored(self._pendrives[pendrive_id], vm)
            case m.Destroyed(vm_id):
                self._destroyed(vm_id)
            case m.DestroyFailed(vm_id):
                self._documents.destroy_failed(vm_id)
            case m.Answered():
                self._answered(event)
            case m.QueueExpired(pendrive_id, question):
                waiting = self._pendrives.get(pendrive_id)
                if waiting and waiting.phase is Phase.QUEUED and waiting.question and waiting.question.id == question:
                    self._signal(waiting, Signal.EXPIRED, "its receiver was busy for too long")
            case m.DocumentExpired(vm_id):
                if document := self._documents.served(vm_id):
                    self._documents.tell(document, "failed, the document was open for too long")
                    self._documents.end(vm_id, m.Fate.KILLED)
            case m.Recovered(found, documents):
                for document in documents:
                    self._document_recovered(document, [entry for entry, _ in found])
                for entry, place in found:
                    self._resume(entry, place)
                self._take_up_requests()
                for vm_id in self._vms:
                    self._documents.end_shown(vm_id, self._under_way(vm_id))
                self._recovered = True
            case _:
                assert_never(event)
        for receiver in self._vms.values():
            if receiver.waiting and receiver.incoming is None:
                self._signal(receiver.waiting[0], Signal.SLOT_FREE)
        return self._effects

    # VMs

    def _vm_started(self, event: m.VmStarted) -> None:
        vm, last_reply = event.vm, event.last_reply
        if vm.id in self._vms:
            return
        self._vms[vm.id] = Vm(vm, disposable=event.disposable)
        for pendrive in self._pendrives.values():
            self._occupy(pendrive)
        self._documents.vm_started(vm.id, event.shown)
        if self._recovered:
            self._documents.end_shown(vm.id)  # it has another name by now, and what it had under the old one is over
        # A request that is under way only a daemon that has just started goes on with: one of a VM that was renamed is over.
        if last_reply and last_reply.request_id != NO_ID and (last_reply.state in FINAL_STATES or not self._recovered):
            self._vms[vm.id].replies[last_reply.request_id] = last_reply

    def _vm_stopped(self, vm_id: VmId) -> None:
        if self._vms.pop(vm_id, None) is None:
            return
        self._documents.vm_stopped(vm_id)
        for pendrive in list(self._pendrives.values()):
            unread = pendrive.course is Course.BACK and pendrive.phase is Phase.LOADED
            receiver_gone = Signal.UNREAD if unread else Signal.RECEIVER_GONE
            for holder, signal in ((pendrive.sender, Signal.SENDER_GONE), (pendrive.receiver, receiver_gone)):
                if holder and holder.id == vm_id and (pendrive.phase, signal) in EDGES:
                    self._signal(pendrive, signal, f"{holder.name} ended")

    def _destroyed(self, vm_id: VmId) -> None:
        """A DisposableVM is gone, whether its end is heard of in the other way yet or not."""
        self._documents.destroyed(vm_id)
        for pendrive in list(self._pendrives.values()):
            if pendrive.sender.id == vm_id and (pendrive.phase, Signal.DESTROYED) in EDGES:
                self._signal(pendrive, Signal.DESTROYED, "the VM that it is for has ended")
        self._vm_stopped(vm_id)

    # Requests

    def _requested(self, vm: Vm, request: Request, fresh: m.PendriveId) -> None:
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
                self._umount(vm, request)
            case "status":
                # What is only on its way to a VM is not the VM's to know.
                incoming = vm.incoming.phase.value if vm.incoming and vm.incoming.phase in RECEIVER_ASKS else "none"
                outgoing = vm.outgoing.phase.value if vm.outgoing else "none"
                self._tell(vm, request.request_id, "accepted", f"outgoing={outgoing} incoming={incoming}")
            case "killme":
                self._kill(vm, request)
            case "forget":
                self._forget(vm, request)
            case _:
                assert_never(request.verb)

    def _new(self, vm: Vm, request: Request, fresh: m.PendriveId) -> None:
        size_bytes = request.size_bytes or self._limits.default_bytes
        if vm.disposable and not self._documents.served(vm.vm.id):
            self._refuse(vm, request, "asked for a pendrive: denied, it is a DisposableVM without a document")
        elif vm.outgoing is not None:
            self._tell(vm, request.request_id, "failed", f"have-pendrive {vm.outgoing.phase.value}")
        elif size_bytes > self._limits.maximum_bytes:
            self._tell(vm, request.request_id, "failed", f"too-large maximum={self._limits.maximum_bytes}")
        else:
            pendrive = Pendrive(fresh, vm.vm, size_bytes, request.request_id)
            self._pendrives[fresh] = pendrive
            vm.outgoing = pendrive
            self._tell(vm, request.request_id, "accepted")
            self._enter(pendrive, Phase.CREATING)

    def _send(self, vm: Vm, request: Request) -> None:
        pendrive = vm.outgoing
        if vm.disposable:
            self._return(vm, request)
        elif pendrive is None or pendrive.phase is not Phase.CLEAN:
            self._tell(vm, request.request_id, "failed", pendrive.phase.value if pendrive else "no-pendrive")
        elif request.target is None:
            self._send_disposable(vm, pendrive, request)
        else:
            pendrive.request_id = request.request_id
            pendrive.seq = request.seq
            pendrive.target_name = request.target
            pendrive.receiver, _ = self._find(vm.vm, request.target)
            self._signal(pendrive, Signal.SEND)

    def _send_disposable(self, vm: Vm, pendrive: Pendrive, request: Request) -> None:
        if self._documents.of(vm.vm.id, request.seq) or self._return_to(vm, request.seq):
            self._tell(vm, request.request_id, "failed", "sequence-in-use")
        elif self._disposables() >= self._limits.disposables_max:
            most = self._limits.disposables_max
            why = f"→ DisposableVM: failed, there are {most} (disposables_max)"
            self._refuse(vm, request, why, "failed", f"too-many-disposables maximum={most}")
        else:
            pendrive.request_id = request.request_id
            pendrive.course = Course.OUT
            pendrive.seq = request.seq
            pendrive.view_only = request.view_only
            self._signal(pendrive, Signal.SEND)

    def _disposables(self) -> int:
        """How many there are, and will be; and the documents that have outlived theirs and wait in dom0."""
        coming = {Phase.ASKING, Phase.RESTORING, Phase.ABANDONING}
        return len(self._documents) + sum(
            pendrive.phase is Phase.HELD or (pendrive.course is Course.OUT and pendrive.phase in coming)
            for pendrive in self._pendrives.values()
        )

    def _return_to(self, vm: Vm, seq: int) -> Pendrive | None:
        """The changed document that this VM calls ``seq``, on its way back or there."""
        for pendrive in self._pendrives.values():
            if pendrive.course is Course.BACK and pendrive.receiver and pendrive.receiver.id == vm.vm.id and pendrive.seq == seq:
                return pendrive
        return None

    def _under_way(self, vm: VmId) -> set[int]:
        """What this VM calls its documents of which it is still to hear."""
        opened = {document.seq for document in self._documents if document.asker.id == vm}
        coming = {pendrive.seq for pendrive in self._pendrives.values() if pendrive.phase is Phase.RESTORING and pendrive.sender.id == vm}
        backs = [pendrive for pendrive in self._pendrives.values() if pendrive.course is Course.BACK]
        return opened | coming | {pendrive.seq for pendrive in backs if pendrive.receiver and pendrive.receiver.id == vm}

    def _return(self, vm: Vm, request: Request) -> None:
        """A DisposableVM sends: its document, to whom it came from, or nothing."""
        pendrive = vm.outgoing
        asker, why = self._documents.returns(vm.vm.id, request)
        if asker is None:
            self._refuse(vm, request, f"→ {request.target or 'DisposableVM'}: denied, {why}")
        elif pendrive is None or pendrive.phase is not Phase.CLEAN:
            self._tell(vm, request.request_id, "failed", pendrive.phase.value if pendrive else "no-pendrive")
        else:
            pendrive.request_id = request.request_id
            pendrive.course = Course.BACK
            pendrive.seq = request.seq
            pendrive.receiver, pendrive.target_name = asker, asker.name
            self._signal(pendrive, Signal.RETURN)

    def _umount(self, vm: Vm, request: Request) -> None:
        pendrive = vm.incoming
        if pendrive is None or pendrive.phase is Phase.LEAVING:
            self._tell(vm, request.request_id, "failed", "no-pendrive")
        elif pendrive.phase is not Phase.LOADED:
            self._tell(vm, request.request_id, "failed", pendrive.phase.value)  # it has the disk, or will in a moment
        else:
            pendrive.request_id = request.request_id
            self._documents.opened(vm.vm.id)
            self._signal(pendrive, Signal.UMOUNT)

    def _kill(self, vm: Vm, request: Request) -> None:
        if not vm.disposable:
            self._refuse(vm, request, "asked to be destroyed, which only a DisposableVM may")
        elif vm.vm.id not in self._documents:
            self._refuse(vm, request, "asked to be destroyed: denied, it has no document")
        else:
            self._tell(vm, request.request_id, "accepted")
            self._documents.end(vm.vm.id, m.Fate(request.why or "killed"))

    def _forget(self, vm: Vm, request: Request) -> None:
        document = self._documents.of(vm.vm.id, request.seq)
        if self._return_to(vm, request.seq):
            self._tell(vm, request.request_id, "failed", "returning")
        elif document is None:
            self._tell(vm, request.request_id, "failed", "no-document")
        else:
            self._documents.end(document.vm.id, m.Fate.KILLED)
            self._tell(vm, request.request_id, "cancelled")  # its last answer, so it is told when that is written down

    def _refuse(self, vm: Vm, request: Request, why: str, state: State = "denied", detail: str = "") -> None:
        """Say no at once, with no reason to the VM but ``detail``, and with ``why`` to the person."""
        self._tell(vm, request.request_id, state, detail)
        vm.refusals += 1
        if vm.refusals <= REFUSALS_TOLD:
            self._notify(None, f"{vm.vm.name} {why}")

    def _cancel(self, vm: Vm, request: Request) -> None:
        pendrive = vm.outgoing
        if pendrive is None or (pendrive.phase, Signal.CANCEL) not in EDGES:
            self._tell(vm, request.request_id, "failed", pendrive.phase.value if pendrive else "no-pendrive")
            return
        taken_back, pendrive.request_id = pendrive.request_id, request.request_id
        self._tell(vm, request.request_id, "accepted")  # a VM asks again after a silence, and taking a disk away may be longer
        self._signal(pendrive, Signal.CANCEL)
        if taken_back is not None:
            self._tell(vm, taken_back, "cancelled")  # its last answer, so it is told when that is written down

    # Results

    def _created(self, pendrive: Pendrive, baseline_bytes: int) -> None:
        pendrive.made = True
        pendrive.baseline_bytes = baseline_bytes
        self._signal(pendrive, Signal.CREATED)

    def _detached(self, pendrive: Pendrive) -> None:
        homeless = pendrive.course is Course.BACK or self._slots(pendrive.sender) is None
        stray = homeless and (pendrive.phase, Signal.STRAY) in EDGES
        self._signal(pendrive, Signal.STRAY if stray else Signal.DETACHED, "there is no VM to give it back to" if stray else "")

    def _preparing(self, pendrive: Pendrive, step: str) -> None:
        if pendrive.phase is Phase.RESTORING:
            self._documents.show(pendrive.sender.id, pendrive.seq, Stage("preparing"))
            self._answer(pendrive, "accepted", "preparing")
            self._notify(pendrive, f"the savefile is made again first: {step}")

    def _restored(self, pendrive: Pendrive, vm: RunningVm) -> None:
        if vm.id not in self._vms:
            self._failed(pendrive, f"{vm.name} ended at once", "no-disposable")
            return
        self._vms[vm.id].disposable = True
        if pendrive.phase is Phase.RESTORING:
            pendrive.receiver, pendrive.target_name = vm, vm.name
            self._signal(pendrive, Signal.RESTORED)
        else:
            self._signal(pendrive, Signal.RESTORED)
            self._documents.abandon(vm, pendrive.sender, pendrive.seq)

    def _failed(self, pendrive: Pendrive, why: str, word: str) -> None:
        if not pendrive.made:
            signal = Signal.CREATE_FAILED
        elif pendrive.course is Course.OUT and (pendrive.phase, Signal.RESTORE_FAILED) in EDGES:
            signal = Signal.RESTORE_FAILED
        elif (pendrive.phase, Signal.ATTACH_FAILED) in EDGES:
            signal = Signal.ATTACH_FAILED
        else:
            holder = pendrive.receiver if pendrive.phase in {Phase.PULLING, Phase.DETACHING} else pendrive.sender
            signal = Signal.DETACH_FAILED if self._slots(holder) else Signal.DETACH_AGAIN
        self._signal(pendrive, signal, why, word)

    def _answered(self, answer: m.Answered) -> None:
        for pendrive in self._pendrives.values():
            question = pendrive.question
            if pendrive.phase is Phase.ASKING and question and question.id == answer.question:
                break
        else:
            return  # withdrawn meanwhile
        if answer.allow and question.disposable:
            signal = Signal.ALLOWED_DISPOSABLE
        elif not answer.allow or question.doubt or question.target is None:
            signal = Signal.DENIED
        elif not self._vms[question.target.id].busy:
            signal = Signal.ALLOWED
        else:
            signal = Signal.ALLOWED_TO_WAIT if question.busy else Signal.BUSY
        self._signal(pendrive, signal, answer.why)

    def _document_recovered(self, document: m.Document, entries: list[m.Entry]) -> None:
        vm = document.vm.id
        self._documents.recover(
            document,
            runs=self._slots(document.vm) is not None,
            asker_runs=self._slots(document.asker) is not None,
            bound=any(entry.course is Course.OUT and entry.receiver and entry.receiver.id == vm for entry in entries),
            returning=any(entry.course is Course.BACK and entry.sender.id == vm for entry in entries),
        )

    def _resume(self, entry: m.Entry, place: Place) -> None:
        pendrive = self._pendrives[entry.pendrive] = Pendrive.recovered(entry)
        runs = {"sender_runs": self._slots(entry.sender) is not None, "receiver_runs": self._slots(entry.receiver) is not None}
        phase = resume(entry.phase, place, **runs, course=entry.course)
        if told := news(entry.phase, phase):
            self._answer(pendrive, *told)
        self._leave(pendrive, phase)
        self._enter(pendrive, phase)

    def _take_up_requests(self) -> None:
        """Know of unfinished requests what the journal does.

        One that was answered before that was written down is carried out when it comes again; one that was written down is not.
        """
        for vm in self._vms.values():
            ours = [pendrive for pendrive in self._pendrives.values() if self._asker(pendrive) is vm]
            under_way = {pendrive.request_id for pendrive in ours if pendrive.request_id} - {NO_ID}
            for request_id in [known for known, reply in vm.replies.items() if reply.state not in FINAL_STATES]:
                if request_id not in under_way:
                    del vm.replies[request_id]
            for request_id in under_way - vm.replies.keys():
                vm.replies[request_id] = Reply(request_id, "accepted")
