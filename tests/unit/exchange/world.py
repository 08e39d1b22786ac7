"""A second implementation of all that surrounds the exchange machine: VMs, disks, a person; and the rules they all rest on.

It carries out effects as a hypervisor would and checks at each step what must always hold, whatever the history.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from qfilexchg.dom0.exchange import messages as m
from qfilexchg.dom0.exchange.machine import Exchange, Limits
from qfilexchg.dom0.exchange.phases import Place
from qfilexchg.dom0.vms.hypervisor import RunningVm, Slot, VmId
from qfilexchg.protocol.names import DomainId, VmName
from qfilexchg.protocol.qpen import Reply, Request

MIB = 1 << 20
LIMITS = Limits(1024 * MIB, 4096 * MIB)


@dataclass
class World:
    """One host. ``pending`` are effects under way; a test decides when each ends, and how."""

    machine: Exchange = field(default_factory=lambda: Exchange(LIMITS))
    running: dict[VmId, RunningVm] = field(default_factory=dict)
    images: set[m.PendriveId] = field(default_factory=set)
    made: set[m.PendriveId] = field(default_factory=set)
    ended: list[m.PendriveId] = field(default_factory=list)
    attached: dict[tuple[VmId, Slot], m.PendriveId] = field(default_factory=dict)
    journal: dict[m.PendriveId, m.Entry] = field(default_factory=dict)
    questions: dict[m.QuestionId, m.Question] = field(default_factory=dict)
    asked_for: dict[m.QuestionId, m.PendriveId] = field(default_factory=dict)
    allowed: set[tuple[m.PendriveId, VmId, VmId]] = field(default_factory=set)
    pending: list[m.Effect] = field(default_factory=list)
    replies: dict[VmId, list[Reply]] = field(default_factory=dict)
    announced: dict[VmId, tuple[VmName, int]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    reminders: list[m.Remind] = field(default_factory=list)
    domains: int = 0
    serial: int = 0

    # What a test does

    def start(self, name: str) -> RunningVm:
        self.domains += 1
        vm = RunningVm(VmId(DomainId(self.domains), UUID(int=sum(name.encode()))), VmName.parse(name))
        self.running[vm.id] = vm
        self.handle(m.VmStarted(vm))
        return vm

    def die(self, vm: RunningVm) -> None:
        """The VM ends; the machine has not heard of it yet."""
        del self.running[vm.id]
        for key in [key for key in self.attached if key[0] == vm.id]:
            del self.attached[key]

    def stop(self, vm: RunningVm) -> None:
        self.die(vm)
        self.handle(m.VmStopped(vm.id))

    def ask(self, vm: RunningVm, request: Request) -> None:
        self.serial += 1
        self.handle(m.Requested(vm.id, request, m.PendriveId(f"p{self.serial}")))

    def answer(self, allow: bool, question: m.QuestionId | None = None) -> None:
        chosen = next(iter(self.questions)) if question is None else question
        asked = self.questions.pop(chosen)
        if allow and asked.target and not asked.doubt:
            self.allowed.add((self.asked_for[chosen], asked.source.id, asked.target.id))
        self.handle(m.Answered(chosen, allow, "allowed" if allow else "the person said no"))

    def settle(self) -> None:
        """Let every effect under way succeed, until none is left."""
        while self.pending:
            self.finish(self.pending[0])

    def finish(self, effect: m.Effect | None = None, *, fail: bool = False) -> None:
        """End one effect that is under way (the only one, unless it is named): as asked, or with an error."""
        if effect is None:
            (effect,) = self.pending
        self.handle(self.carry_out(effect, fail=fail))

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
                    entry = self.journal[pendrive]
                    assert (pendrive, entry.sender.id, vm.id) in self.allowed, "nothing moves without an allow"
                    assert self.announced[vm.id] == (entry.sender.name, entry.seq)
                self.attached[vm.id, slot] = pendrive
                return m.Attached(pendrive)
            case m.Detach(pendrive, vm, slot, again):
                if fail and (vm.id in self.running or not again):
                    return m.Failed(pendrive, "the VM does not let go")
                if self.attached.get((vm.id, slot)) == pendrive:
                    del self.attached[vm.id, slot]
                return m.Detached(pendrive)
            case m.Delete(pendrive):
                self._end(pendrive)
                return m.Deleted(pendrive)
            case m.Keep(pendrive):
                self._end(pendrive)
                return m.Kept(pendrive, "kept/image")
            case _:
                raise AssertionError(effect)

    def restart(self) -> None:
        """The daemon dies and starts again: only the journal, the store and the hypervisor are left."""
        self.replies = {vm_id: replies for vm_id, replies in self.replies.items() if vm_id in self.running}
        self.machine = Exchange(LIMITS)
        self.questions.clear()
        self.pending.clear()
        for vm in self.running.values():
            last = self.replies.get(vm.id)
            self.machine.handle(m.VmStarted(vm, last[-1] if last else None))
        self.handle(m.Recovered(tuple((entry, self.place(entry)) for entry in self.journal.values())))

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
            match effect:
                case m.Record(entry):
                    self.journal[entry.pendrive] = entry
                case m.Forget(pendrive):
                    del self.journal[pendrive]
                case m.Tell(vm, reply):
                    self.replies.setdefault(vm, []).append(reply)
                case m.Announce(receiver, source, seq):
                    self.announced[receiver] = (source, seq)
                case m.Ask(question, pendrive):
                    self.questions[question.id] = question
                    self.asked_for[question.id] = pendrive
                case m.Withdraw(question_id):
                    del self.questions[question_id]
                case m.Notify(_, text):
                    self.notices.append(text)
                case m.Remind():
                    self.reminders.append(effect)
                case m.Moved() | m.Outcome():
                    pass
                case _:
                    self.pending.append(effect)
        self.check()

    def check(self) -> None:
        for effect in self.pending:
            same = [other for other in self.pending if getattr(other, "pendrive", None) == getattr(effect, "pendrive", "")]
            assert len(same) == 1, "a pendrive has one effect under way at most"
        entries = list(self.machine.entries)
        assert {entry.pendrive for entry in entries} == set(self.journal), "the journal knows every pendrive"
        assert self.images <= set(self.journal), "no image is forgotten"

    def _end(self, pendrive: m.PendriveId) -> None:
        assert pendrive not in self.attached.values(), "an image is not deleted while a VM has it"
        if pendrive in self.images:  # else it was done before the daemon died
            self.images.remove(pendrive)
            self.ended.append(pendrive)
