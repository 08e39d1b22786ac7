"""Random histories of the exchange: VMs that come and go, requests, answers, failures, restarts of the daemon."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qfilexchg.dom0.exchange import messages as m
from qfilexchg.dom0.vms.hypervisor import RunningVm
from qfilexchg.protocol.names import VmName
from qfilexchg.protocol.qpen import FINAL_STATES, KILL_REASONS, Request
from tests.unit.exchange.world import World

NAMES = ("work", "personal", "vault")


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.ids = 0

    def vm(self, data: st.DataObject) -> RunningVm:
        return data.draw(st.sampled_from(sorted(self.world.running.values(), key=lambda vm: vm.id.domain)))

    def ask(self, data: st.DataObject, verb: str, target: str | None = None, seq: int = 0) -> None:
        self.ids += 1
        vm = self.vm(data)
        name = VmName.parse(target) if target else None
        self.world.ask(vm, Request(verb, target=name, seq=seq, request_id=f"r{self.ids}"))  # type: ignore[arg-type]
        assert self.world.replies[vm.id], "every request is answered at once, if only with the state it is in"

    @initialize()
    def all_vms_start(self) -> None:
        for name in NAMES:
            self.world.start(name)

    @rule(name=st.sampled_from(NAMES))
    def a_vm_starts(self, name: str) -> None:
        if name not in {vm.name for vm in self.world.running.values()}:
            self.world.start(name)

    @precondition(lambda self: self.world.running)
    @rule(data=st.data())
    def a_vm_ends(self, data: st.DataObject) -> None:
        self.world.stop(self.vm(data))

    @precondition(lambda self: self.world.running)
    @rule(data=st.data())
    def a_vm_ends_unheard(self, data: st.DataObject) -> None:
        vm = self.vm(data)
        self.world.die(vm)
        self.world.unheard.append(vm)

    @precondition(lambda self: self.world.running)
    @rule(data=st.data(), name=st.sampled_from((*NAMES, "other")))
    def a_vm_gets_another_name(self, data: st.DataObject, name: str) -> None:
        vm = self.vm(data)
        if name not in {vm.name for vm in self.world.running.values()}:
            self.world.rename(vm, name)

    @precondition(lambda self: self.world.unheard)
    @rule()
    def its_end_is_heard(self) -> None:
        self.world.hear()

    @precondition(lambda self: self.world.running)
    @rule(data=st.data(), verb=st.sampled_from(("new", "new", "cancel", "umount", "umount", "status", "killme")))
    def a_vm_asks(self, data: st.DataObject, verb: str) -> None:
        self.ask(data, verb)

    @precondition(lambda self: self.world.running)
    @rule(data=st.data(), to=st.sampled_from((*NAMES, "nobody", "dom0")), seq=st.sampled_from((0, 0, 0, 7)))
    def a_vm_sends(self, data: st.DataObject, to: str, seq: int) -> None:
        self.ask(data, "send", to, seq)

    @precondition(lambda self: len(self.world.running) > 1)
    @rule(data=st.data(), answer=st.sampled_from((True, True, False, None)))
    def a_vm_gets_fills_and_sends_a_pendrive(self, data: st.DataObject, answer: bool | None) -> None:
        """The usual way, in one step, so that histories get far enough to have something to disturb."""
        source = self.vm(data)
        others = sorted({vm.name for vm in self.world.running.values()} - {source.name})
        if not others:
            return
        self.world.settle()
        self.ids += 1
        self.world.ask(source, Request("new", request_id=f"r{self.ids}n"))
        self.world.settle()
        target = VmName.parse(data.draw(st.sampled_from(others)))
        self.world.ask(source, Request("send", target=target, request_id=f"r{self.ids}s"))
        if answer is not None and self.world.questions:
            self.world.answer(answer, max(self.world.questions))

    # Documents

    def disposable(self, data: st.DataObject) -> RunningVm | None:
        made = [vm for vm in self.world.running.values() if vm.id in self.world.errands]
        return data.draw(st.sampled_from(made)) if made else None

    @rule()
    def a_disposable_vm_that_nobody_asked_for_starts(self) -> None:
        if not self.world.foreign & self.world.running.keys():
            self.world.start("spare", disposable=True)

    @precondition(lambda self: self.world.running)
    @rule(data=st.data(), seq=st.integers(1, 3), view_only=st.booleans())
    def a_vm_sends_a_document(self, data: st.DataObject, seq: int, view_only: bool) -> None:
        self.ids += 1
        self.world.ask(self.vm(data), Request("send", seq=seq, view_only=view_only, request_id=f"r{self.ids}"))

    @precondition(lambda self: self.world.running)
    @rule(data=st.data(), seq=st.integers(1, 5), view_only=st.sampled_from((False, False, True)), to_the_end=st.booleans())
    def a_document_is_opened(self, data: st.DataObject, seq: int, view_only: bool, to_the_end: bool) -> None:
        """The usual way, in one step."""
        askers = [vm for vm in self.world.running.values() if vm.id not in self.world.errands.keys() | self.world.foreign]
        if not askers:
            return
        asker = data.draw(st.sampled_from(askers))
        self.world.settle()
        self.ids += 1
        self.world.ask(asker, Request("new", request_id=f"r{self.ids}n"))
        self.world.settle()
        self.world.ask(asker, Request("send", seq=seq, view_only=view_only, request_id=f"r{self.ids}s"))
        if self.world.last(asker).state == "asking":
            self.world.answer(True, max(self.world.questions))
        if to_the_end:
            self.world.settle()

    @rule(data=st.data(), right=st.sampled_from((True, True, False)), to_the_end=st.booleans())
    def a_document_is_sent_back(self, data: st.DataObject, right: bool, to_the_end: bool) -> None:
        """The usual way, and the same to another VM or with another number."""
        self.world.settle()
        vm = self.disposable(data)
        if vm is None:
            return
        errand = self.world.errands[vm.id]
        asker = self.world.running.get(errand.asker)
        for verb in ("umount", "new"):
            self.ids += 1
            self.world.ask(vm, Request(verb, request_id=f"r{self.ids}"))
            self.world.settle()
        name = asker.name if asker and right else data.draw(st.sampled_from((*map(VmName.parse, NAMES), None)))
        seq = errand.seq if right else data.draw(st.integers(1, 3))
        self.ids += 1
        self.world.ask(vm, Request("send", target=name, seq=seq, request_id=f"r{self.ids}"))
        if to_the_end:
            self.world.settle()

    @rule(data=st.data(), why=st.sampled_from(("", *KILL_REASONS)))
    def a_disposable_vm_gives_up(self, data: st.DataObject, why: str) -> None:
        if vm := self.disposable(data):
            self.ids += 1
            self.world.ask(vm, Request("killme", why=why, request_id=f"r{self.ids}"))

    @precondition(lambda self: self.world.running)
    @rule(data=st.data(), seq=st.integers(1, 5))
    def an_asker_forgets(self, data: st.DataObject, seq: int) -> None:
        self.ids += 1
        self.world.ask(self.vm(data), Request("forget", seq=seq, request_id=f"r{self.ids}"))

    @rule(data=st.data())
    def the_savefile_is_made_again(self, data: st.DataObject) -> None:
        restores = [effect for effect in self.world.pending if isinstance(effect, m.Restore)]
        if restores:
            self.world.handle(m.Preparing(data.draw(st.sampled_from(restores)).pendrive, "booting"))

    @rule()
    def all_settles(self) -> None:
        self.world.settle()
        while self.world.unheard:
            self.world.hear()
            self.world.settle()
        self.world.check_settled()

    @precondition(lambda self: self.world.questions)
    @rule(allow=st.booleans() | st.just(True))
    def the_person_answers(self, allow: bool) -> None:
        self.world.answer(allow)

    @precondition(lambda self: self.world.pending)
    @rule(data=st.data(), fail=st.booleans())
    def an_effect_ends(self, data: st.DataObject, fail: bool) -> None:
        self.world.finish(data.draw(st.sampled_from(self.world.pending)), fail=fail)

    @precondition(lambda self: self.world.reminders)
    @rule()
    def a_wait_is_over(self) -> None:
        reminder = self.world.reminders.pop(0)
        self.world.handle(m.QueueExpired(reminder.pendrive, reminder.question))

    @rule(data=st.data(), unheard=st.booleans())
    def the_daemon_restarts(self, data: st.DataObject, unheard: bool) -> None:
        if unheard and self.world.pending:
            self.world.carry_out(data.draw(st.sampled_from(self.world.pending)))
        self.world.restart()

    @precondition(lambda self: self.world.running)
    @rule(
        data=st.data(),
        verb=st.sampled_from(("new", "send", "send", "umount", "umount", "cancel", "killme", "forget")),
        seq=st.integers(0, 5),
        effects=st.integers(0, 8),
    )
    def the_daemon_is_killed_at_a_request_that_then_comes_again(self, data: st.DataObject, verb: str, seq: int, effects: int) -> None:
        vm = self.vm(data)
        errand = self.world.errands.get(vm.id)
        asker = self.world.running.get(errand.asker) if errand else None
        if verb == "send" and errand and asker:
            request = Request("send", target=asker.name, seq=errand.seq, request_id=f"r{self.ids}k")
        elif verb == "send" and seq == 0:
            request = Request("send", target=VmName.parse(data.draw(st.sampled_from(NAMES))), request_id=f"r{self.ids}k")
        else:
            request = Request(verb, seq=seq or 1, request_id=f"r{self.ids}k")  # type: ignore[arg-type]
        self.ids += 1
        self.world.ask(vm, request, killed_after=effects)
        if vm.id not in self.world.running:
            return  # nobody knew of it
        self.world.ask(vm, request)
        heard = [reply.state for reply in self.world.replies.get(vm.id, []) if reply.request_id == request.request_id]
        waiting = {entry.request_id for entry in self.world.machine.entries}
        going = [document for document in self.world.documents.values() if document.fate in m.ENDINGS]
        if verb == "killme":
            assert "denied" in heard or vm.id in [document.vm.id for document in going], "a VM that is done is destroyed"
        else:
            assert FINAL_STATES & set(heard) or request.request_id in waiting, "who is told to wait waits for something"
        if verb == "forget" and "cancelled" in heard:
            known = [document for document in self.world.documents.values() if (document.asker, document.seq) == (vm, request.seq)]
            assert all(document in going for document in known), "what is said to be destroyed is"

    @invariant()
    def a_finished_request_is_not_answered_otherwise_later(self) -> None:
        for replies in self.world.replies.values():
            final: dict[str, str] = {}
            for reply in replies:
                if reply.request_id in final:
                    assert reply.state == final[reply.request_id]
                if reply.state in FINAL_STATES:
                    final[reply.request_id] = reply.state

    def teardown(self) -> None:
        """Whatever happened: when every VM is gone and all is settled, no image is left that was not put aside."""
        for vm in list(self.world.running.values()):
            if vm.id not in self.world.errands:
                self.world.stop(vm)
        while self.world.unheard or self.world.pending:
            self.world.settle()
            if self.world.unheard:
                self.world.hear()
        assert not list(self.world.machine.entries)
        assert not self.world.images
        assert not self.world.attached
        assert not self.world.running and not self.world.documents and not self.world.shown
        dissolved = set(self.world.dissolved) - self.world.foreign
        assert dissolved == set(self.world.errands), "every DisposableVM is removed"
        assert sorted(self.world.ended) == sorted(self.world.made)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=120, stateful_step_count=60)
