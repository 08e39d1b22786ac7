"""A second implementation of all that surrounds the exchange machine: VMs, disks, a person; and the rules they all rest on.

It carries out effects as a hypervisor would and checks at each step what must always hold, whatever the history.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from qfilexchg.dom0.exchange import messages as m
from qfilexchg.dom0.exchange.documents import SHOWN_MAX
from qfilexchg.dom0.exchange.machine import Exchange
from qfilexchg.dom0.exchange.phases import Course, Phase, Place
from qfilexchg.dom0.exchange.state import Limits
from qfilexchg.dom0.vms.hypervisor import RunningVm, Slot, VmId
from qfilexchg.protocol.names import DomainId, VmName
from qfilexchg.protocol.qpen import Reply, Request
from qfilexchg.protocol.stages import Stage

MIB = 1 << 20
LIMITS = Limits(1024 * MIB, 4096 * MIB, 3)


@dataclass(frozen=True)
class Errand:
    """What a DisposableVM was made for."""

    asker: VmId
    seq: int
    view_only: bool


def _started() -> Exchange:
    """The machine of a daemon that has found nothing to take up."""
    machine = Exchange(LIMITS)
    machine.handle(m.Recovered((), ()))
    return machine


@dataclass
class World:
    """One host. ``pending`` are effects under way; a test decides when each ends, and how."""

    machine: Exchange = field(default_factory=_started)
    running: dict[VmId, RunningVm] = field(default_factory=dict)
    images: set[m.PendriveId] = field(default_factory=set)
    made: set[m.PendriveId] = field(default_factory=set)
    ended: list[m.PendriveId] = field(default_factory=list)
    attached: dict[tuple[VmId, Slot], m.PendriveId] = field(default_factory=dict)
    journal: dict[m.PendriveId, m.Entry] = field(default_factory=dict)
    questions: dict[m.QuestionId, m.Question] = field(default_factory=dict)
    asked_for: dict[m.QuestionId, m.PendriveId] = field(default_factory=dict)
    allowed: set[tuple[m.PendriveId, VmId, VmId | None]] = field(default_factory=set)
    """Pendrive, sender, and receiver or None for a new DisposableVM."""
    errands: dict[VmId, Errand] = field(default_factory=dict)
    foreign: set[VmId] = field(default_factory=set)
    """DisposableVMs that are none of the exchange's."""
    restored: dict[m.PendriveId, VmId] = field(default_factory=dict)
    returned: list[VmId] = field(default_factory=list)
    documents: dict[VmId, m.Document] = field(default_factory=dict)
    dissolved: list[VmId] = field(default_factory=list)
    shown: dict[tuple[VmId, int], Stage] = field(default_factory=dict)
    unheard: list[RunningVm] = field(default_factory=list)
    """VMs that have ended without that the machine has heard of it."""
    taken: set[m.PendriveId] = field(default_factory=set)
    """Pendrives of which their receivers have said that they are done with them."""
    stopped: set[m.PendriveId] = field(default_factory=set)
    pending: list[m.Effect] = field(default_factory=list)
    replies: dict[VmId, list[Reply]] = field(default_factory=dict)
    announced: dict[VmId, tuple[VmName, int, bool]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    screens: list[str] = field(default_factory=list)
    """Of the VMs whose screen the person was to see, one for each time."""
    told: dict[str, str] = field(default_factory=dict)
    """The last notice of each transfer, which is the one that a person sees."""
    outcomes: list[str] = field(default_factory=list)
    reminders: list[m.Remind] = field(default_factory=list)
    limits: list[VmId] = field(default_factory=list)
    domains: int = 0
    serial: int = 0

    # What a test does

    def start(self, name: str, *, disposable: bool = False) -> RunningVm:
        vm = self._boot(name)
        if disposable:
            self.foreign.add(vm.id)
        self.handle(m.VmStarted(vm, disposable=disposable))
        return vm

    def _boot(self, name: str) -> RunningVm:
        self.domains += 1
        vm = RunningVm(VmId(DomainId(self.domains), UUID(int=sum(name.encode()))), VmName.parse(name))
        self.running[vm.id] = vm
        return vm

    def die(self, vm: RunningVm) -> None:
        """The VM ends; the machine has not heard of it yet."""
        del self.running[vm.id]
        for key in [key for key in self.attached if key[0] == vm.id]:
            del self.attached[key]
        for document in [key for key in self.shown if key[0] == vm.id]:
            del self.shown[document]

    def rename(self, vm: RunningVm, name: str) -> RunningVm:
        """It runs on under another name, which is to be as if it had ended, and another had started with what it has."""
        renamed = self.running[vm.id] = RunningVm(vm.id, VmName.parse(name))
        self.handle(m.VmStopped(vm.id, runs_on=True))
        last = self.replies.get(vm.id)
        disposable = vm.id in self.errands.keys() | self.foreign
        self.handle(m.VmStarted(renamed, last[-1] if last else None, disposable, self._shown_to(vm)))
        return renamed

    def stop(self, vm: RunningVm) -> None:
        self.die(vm)
        self.handle(m.VmStopped(vm.id))

    def ask(self, vm: RunningVm, request: Request, *, killed_after: int | None = None) -> None:
        """``killed_after``: so many effects of it are carried out, and then the daemon dies and starts again."""
        self.serial += 1
        asked = m.Requested(vm.id, request, m.PendriveId(f"p{self.serial}"))
        if killed_after is None:
            self.handle(asked)
        else:
            for effect in self.machine.handle(asked)[:killed_after]:
                self._begin(effect)
            self.restart()
        if request.verb == "umount" and vm.id in self.running:
            for entry in self.journal.values():
                if entry.receiver == vm and entry.phase is Phase.DETACHING:
                    self.taken.add(entry.pendrive)

    def answer(self, allow: bool, question: m.QuestionId | None = None) -> None:
        chosen = next(iter(self.questions)) if question is None else question
        asked = self.questions.pop(chosen)
        if allow and (asked.target or asked.disposable) and not asked.doubt:
            self.allowed.add((self.asked_for[chosen], asked.source.id, asked.target.id if asked.target else None))
        self.handle(m.Answered(chosen, allow, "allowed" if allow else "the person said no"))

    def settle(self) -> None:
        """Let every effect under way succeed, until none is left."""
        while self.pending:
            self.finish(self.pending[0])

    def finish(self, effect: m.Effect | None = None, *, fail: bool = False) -> None:
        """End one effect that is under way (the only one, unless it is named): as asked, or with an error."""
        if effect is None:
            (effect,) = self.pending
        event = self.carry_out(effect, fail=fail)
        if isinstance(event, m.Restored):
            self.handle(m.VmStarted(event.vm, disposable=True))
        self.handle(event)

    def hear(self) -> None:
        """The machine hears of the VM that ended first."""
        self.handle(m.VmStopped(self.unheard.pop(0).id))

    def carry_out(self, effect: m.Effect, *, fail: bool = False) -> m.Event:
        """What the hypervisor and the disk do; the machine has not heard of it yet."""
        self.pending.remove(effect)
        match effect:
            case m.Create(pendrive):
                if fail:
                    return m.Failed(pendrive, "the disk is full")
                assert pendrive not in self.made, "a pendrive is made once"
                self.made.add(pendrive)
                self.images.add(pendrive)
                return m.Created(pendrive, 2 * MIB)
            case m.Attach(pendrive, vm, slot):
                if fail or vm.id not in self.running or self.attached.get((vm.id, slot), pendrive) != pendrive:
                    return m.Failed(pendrive, "the hypervisor refused")
                assert pendrive in self.images
                elsewhere = [key for key, value in self.attached.items() if value == pendrive and key != (vm.id, slot)]
                assert not elsewhere, "a pendrive is attached to one VM at most"
                if slot is Slot.INCOMING:
                    self._arrives(self.journal[pendrive], vm)
                self.attached[vm.id, slot] = pendrive
                return m.Attached(pendrive)
            case m.Detach(pendrive, vm, slot, again):
                if fail and (vm.id in self.running or not again):
                    return m.Failed(pendrive, "the VM does not let go")
                assert self.attached.get((vm.id, slot), pendrive) == pendrive, "what is taken away is what was to be"
                self.attached.pop((vm.id, slot), None)
                return m.Detached(pendrive)
            case m.Delete(pendrive):
                back = self.journal[pendrive].course is Course.BACK
                assert not back or pendrive in self.taken, "the only copy of a document is not deleted before it is taken"
                self._end(pendrive)
                return m.Deleted(pendrive)
            case m.Restore(pendrive, asker):
                if fail:
                    return m.Failed(pendrive, "there is no memory", "no-memory")
                assert (pendrive, asker.id, None) in self.allowed, "no DisposableVM is made without an allow"
                vm = self._boot(f"disp{self.domains + 1}")
                entry = self.journal[pendrive]
                self.errands[vm.id] = Errand(asker.id, entry.seq, entry.view_only)
                self.restored[pendrive] = vm.id
                return m.Restored(pendrive, vm)
            case m.Destroy(vm, again):
                assert vm.id in self.errands, "only DisposableVMs are destroyed"
                if fail and vm.id in self.running and not again:
                    return m.DestroyFailed(vm.id)
                if vm.id in self.running:
                    self.die(vm)
                    self.unheard.append(vm)
                return m.Destroyed(vm.id)
            case m.Keep(pendrive):
                assert self.journal[pendrive].course is not Course.OUT, "what is kept may be the only copy"
                self._end(pendrive)
                return m.Kept(pendrive, "kept/image")
            case _:
                raise AssertionError(effect)

    def restart(self, *, unknown: tuple[RunningVm, ...] = ()) -> None:
        """The daemon dies and starts again: only the journal, the store and the hypervisor are left.

        ``unknown`` are VMs that run, of which a new store does not know.
        """
        self.replies = {vm_id: replies for vm_id, replies in self.replies.items() if vm_id in self.running}
        self.machine = Exchange(LIMITS)
        self.questions.clear()
        self.pending.clear()
        self.unheard.clear()
        self.stopped.clear()
        self._sweep()
        for vm in self.running.values():
            if vm in unknown:
                continue
            last = self.replies.get(vm.id)
            disposable = vm.id in self.errands.keys() | self.foreign
            self.machine.handle(m.VmStarted(vm, last[-1] if last else None, disposable, self._shown_to(vm)))
        found = tuple((entry, self.place(entry)) for entry in self.journal.values())
        self.handle(m.Recovered(found, tuple(self.documents.values())))

    def _sweep(self) -> None:
        for vm in list(self.running.values()):
            if vm.id in self.errands and vm.id not in self.documents:
                self.die(vm)
                self.dissolved.append(vm.id)

    def _shown_to(self, vm: RunningVm) -> dict[int, Stage | None]:
        return {seq: self.shown[asker, seq] for asker, seq in sorted(self.shown, key=lambda key: key[1]) if asker == vm.id}

    def place(self, entry: m.Entry) -> Place:
        if self.attached.get((entry.sender.id, Slot.OUTGOING)) == entry.pendrive:
            return Place.AT_SENDER
        if entry.receiver and self.attached.get((entry.receiver.id, Slot.INCOMING)) == entry.pendrive:
            return Place.AT_RECEIVER
        return Place.NOWHERE

    def last(self, vm: RunningVm) -> Reply:
        return self.replies[vm.id][-1]

    def phase(self) -> str:
        """The phase of the only pendrive."""
        (entry,) = self.machine.entries
        return entry.phase.value

    # What the machine asks for

    def handle(self, event: m.Event) -> None:
        for effect in self.machine.handle(event):
            self._begin(effect)
        self.check()

    def _begin(self, effect: m.Effect) -> None:
        match effect:
            case m.Record(entry):
                self.journal[entry.pendrive] = entry
            case m.Forget(pendrive):
                del self.journal[pendrive]
            case m.Tell(vm, reply):
                self.replies.setdefault(vm, []).append(reply)
            case m.RecordDocument(document):
                self.documents[document.vm.id] = document
            case m.ForgetDocument(vm):
                del self.documents[vm]
            case m.Stop(pendrive):
                assert any(isinstance(other, m.Restore) and other.pendrive == pendrive for other in self.pending)
                self.stopped.add(pendrive)
            case m.Dissolve(vm):
                assert vm not in self.running and vm not in self.dissolved, "what is left of a VM is removed once, after its end"
                self.dissolved.append(vm)
            case m.Show(asker, seq, stage):
                self._show(asker, seq, stage)
            case m.ShowScreen(vm):
                self.screens.append(vm.name)
            case m.Announce(receiver, source, seq, view_only):
                self.announced[receiver] = (source, seq, view_only)
            case m.Ask(question, pendrive):
                self.questions[question.id] = question
                self.asked_for[question.id] = pendrive
            case m.Withdraw(question_id):
                del self.questions[question_id]
            case m.Notify(transfer, text):
                self.notices.append(text)
                if transfer is not None:
                    self.told[transfer] = text
            case m.Remind():
                self.reminders.append(effect)
            case m.RemindDocument(vm):
                self.limits.append(vm)
            case m.Outcome(_, text):
                self.outcomes.append(text)
            case m.Moved():
                pass
            case _:
                self.pending.append(effect)

    def check(self) -> None:
        for effect in self.pending:
            same = [other for other in self.pending if getattr(other, "pendrive", None) == getattr(effect, "pendrive", "")]
            assert len(same) <= 1, "a pendrive has one effect under way at most"
        destroys = [effect.vm for effect in self.pending if isinstance(effect, m.Destroy)]
        assert len(destroys) == len(set(destroys)), "a VM is destroyed by one effect at a time"
        entries = list(self.machine.entries)
        assert {entry.pendrive for entry in entries} == set(self.journal), "the journal knows every pendrive"
        assert self.images <= set(self.journal), "no image is forgotten"
        assert {document.vm.id: document for document in self.machine.documents} == self.documents, "the journal knows every document"
        numbers = [(document.asker, document.seq) for document in self.documents.values() if document.fate is not m.Fate.RETURNING]
        numbers += [(e.receiver, e.seq) for e in entries if e.course is Course.BACK and e.receiver and e.receiver.id in self.running]
        assert len(numbers) == len(set(numbers)), "an asker has one document of a number at a time"

    def check_settled(self) -> None:
        """What holds once nothing is under way, and no end of a VM is unheard."""
        if self.pending or self.unheard:
            return
        for vm in self.running.keys() & self.errands.keys():
            assert vm in self.documents, "a DisposableVM that is not needed is destroyed"
            assert self.errands[vm].asker in self.running, "a DisposableVM does not outlive its asker"
            assert self.documents[vm].fate in {m.Fate.DELIVERED, m.Fate.OPEN}, "it has its document, or has no use"
        assert self.documents.keys() <= self.running.keys()
        for (asker, seq), stage in self.shown.items():
            going = [document for document in self.documents.values() if (document.asker.id, document.seq) == (asker, seq)]
            going_back = [e for e in self.journal.values() if e.course is Course.BACK and e.receiver and e.receiver.id == asker]
            assert stage.final or going or any(entry.seq == seq for entry in going_back), "what is told is what is"

    def _arrives(self, entry: m.Entry, vm: RunningVm) -> None:
        """A pendrive is about to be attached to a receiver: may it?"""
        assert self.announced[vm.id] == (entry.sender.name, entry.seq, entry.view_only)
        match entry.course:
            case Course.COPY:
                assert (entry.pendrive, entry.sender.id, vm.id) in self.allowed, "nothing moves without an allow"
                assert vm.id not in self.errands.keys() | self.foreign and entry.seq == 0, "a DisposableVM gets nothing but its document"
            case Course.OUT:
                assert self.restored[entry.pendrive] == vm.id, "a document goes to the VM that was made for it"
                assert self.errands[vm.id] == Errand(entry.sender.id, entry.seq, entry.view_only)
            case Course.BACK:
                errand = Errand(vm.id, entry.seq, False)
                assert self.errands[entry.sender.id] == errand, "a document goes back to its asker, under its number, or not at all"
                assert entry.sender.id not in self.running, "no VM has its hand on a document that goes back"
                if entry.sender.id not in self.returned:  # else it is put there again, after a restart
                    self.returned.append(entry.sender.id)
                assert sum(other.course is Course.BACK and other.sender == entry.sender for other in self.journal.values()) == 1

    def _show(self, asker: VmId, seq: int, stage: Stage | None) -> None:
        if asker not in self.running:
            return
        if stage is None:
            del self.shown[asker, seq]
        else:
            self.shown[asker, seq] = stage
        assert sum(vm == asker for vm, _ in self.shown) <= SHOWN_MAX + LIMITS.disposables_max

    def _end(self, pendrive: m.PendriveId) -> None:
        assert pendrive not in self.attached.values(), "an image is not deleted while a VM has it"
        if pendrive in self.images:  # else it was done before the daemon died
            self.images.remove(pendrive)
            self.ended.append(pendrive)
