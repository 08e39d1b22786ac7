"""Documents in DisposableVMs, one way through the exchange machine at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qfilexchg.dom0.exchange import messages as m
from qfilexchg.dom0.exchange.documents import SHOWN_MAX
from qfilexchg.dom0.exchange.machine import REFUSALS_TOLD
from qfilexchg.dom0.exchange.phases import Phase
from qfilexchg.dom0.vms.hypervisor import RunningVm, Slot
from qfilexchg.protocol.names import VmName
from qfilexchg.protocol.qpen import KILL_REASONS, Request
from tests.unit.exchange.world import LIMITS, World


class Asker:
    """One VM with a pendrive to fill, and a neighbour."""

    def __init__(self) -> None:
        self.world = World()
        self.work, self.personal = self.world.start("work"), self.world.start("personal")
        self.fill(self.work)

    def fill(self, vm: RunningVm, request_id: str = "n") -> None:
        self.world.ask(vm, Request("new", request_id=request_id))
        self.world.settle()
        assert str(self.world.last(vm).state) == "attached"

    def send(self, seq: int = 7, request_id: str = "s", *, view_only: bool = False) -> None:
        self.world.ask(self.work, Request("send", seq=seq, view_only=view_only, request_id=request_id))

    def open(self, seq: int = 7, *, view_only: bool = False) -> RunningVm:
        """The document is open in the DisposableVM that is returned."""
        vm = self.deliver(seq, view_only=view_only)
        self.world.ask(vm, Request("umount", request_id="u"))
        self.world.settle()
        return vm

    def deliver(self, seq: int = 7, *, view_only: bool = False) -> RunningVm:
        self.send(seq, f"s{seq}", view_only=view_only)
        self.world.answer(True)
        self.world.settle()
        assert self.world.last(self.work).state == "delivered"
        return self.disposables()[-1]

    def give_back(self, vm: RunningVm, seq: int = 7, target: str = "work") -> None:
        self.world.ask(vm, Request("send", target=VmName.parse(target), seq=seq, request_id="r"))

    def disposables(self) -> list[RunningVm]:
        return [vm for vm in self.world.running.values() if vm.id in self.world.errands]

    def stage(self, seq: int = 7) -> str | None:
        stage = self.world.shown.get((self.work.id, seq))
        return stage.encode().decode() if stage else None

    def states(self, vm: RunningVm) -> list[str]:
        return [reply.encode().decode() for reply in self.world.replies.get(vm.id, [])]


@pytest.fixture
def asker() -> Asker:
    return Asker()


class TestThere:
    def test_a_document_goes_to_a_vm_that_is_made_for_it(self, asker: Asker) -> None:
        world = asker.world
        asker.send()
        (question,) = world.questions.values()
        assert question.disposable and question.target is None and not question.busy and not question.doubt
        world.answer(True)
        assert asker.stage() == "starting" and world.phase() == "restoring"
        world.settle()
        (vm,) = asker.disposables()
        assert asker.states(asker.work)[2:] == ["s asking", "s accepted", "s delivered"]
        assert world.attached == {(vm.id, Slot.INCOMING): "p1"}
        assert world.announced[vm.id] == ("work", 7, False)
        assert asker.stage() == "starting", "it has not been opened yet"
        world.ask(vm, Request("umount", request_id="u"))
        assert asker.stage() == f"open {vm.name}"
        world.settle()
        assert not world.images and world.documents[vm.id].fate is m.Fate.OPEN

    def test_the_person_is_told_with_names_alone(self, asker: Asker) -> None:
        vm = asker.deliver()
        assert asker.world.notices == [f"work → {vm.name}: delivered"]

    def test_the_screen_is_shown_once_and_not_before_the_document_is_there(self, asker: Asker) -> None:
        asker.send()
        asker.world.answer(True)
        asker.world.finish()
        assert asker.world.screens == []
        asker.world.settle()
        (vm,) = asker.disposables()
        assert asker.world.screens == [vm.name]
        asker.world.ask(vm, Request("umount", request_id="u"))
        asker.world.restart()
        assert asker.world.screens == [vm.name]

    def test_a_document_to_be_looked_at_says_so(self, asker: Asker) -> None:
        vm = asker.deliver(view_only=True)
        assert asker.world.announced[vm.id] == ("work", 7, True)

    def test_a_savefile_that_is_made_again_first_is_told_to_the_asker_and_the_person(self, asker: Asker) -> None:
        asker.send()
        asker.world.answer(True)
        asker.world.handle(m.Preparing(m.PendriveId("p1"), "booting"))
        assert asker.stage() == "preparing"
        assert asker.world.notices[-1] == "work → DisposableVM: the savefile is made again first: booting"
        assert asker.world.last(asker.work).encode() == b"s accepted preparing"
        asker.world.ask(asker.work, Request("cancel"))
        asker.world.handle(m.Preparing(m.PendriveId("p1"), "booting"))
        assert asker.stage() is None, "nobody waits for it any more"

    def test_one_that_is_open_for_too_long_is_ended_and_the_person_told(self, asker: Asker) -> None:
        vm = asker.open()
        assert asker.world.limits == [vm.id]
        asker.world.handle(m.DocumentExpired(vm.id))
        assert asker.world.notices[-1] == f"work → {vm.name}: failed, the document was open for too long"
        asker.world.settle()
        assert asker.stage() == f"ended {vm.name} killed" and not asker.disposables()
        asker.world.handle(m.DocumentExpired(vm.id))
        assert len(asker.world.notices) == 2, "it has ended already"

    def test_a_vm_that_asks_for_what_it_must_not_have_is_told_of_a_few_times(self, asker: Asker) -> None:
        before = len(asker.world.notices)
        for number in range(20):
            asker.world.ask(asker.personal, Request("killme", request_id=f"k{number}"))
        assert len(asker.world.notices) - before == REFUSALS_TOLD

    def test_no_means_that_none_is_made(self, asker: Asker) -> None:
        asker.send()
        asker.world.answer(False)
        assert asker.states(asker.work)[-1] == "s denied" and not asker.world.pending
        assert asker.world.notices == ["work → DisposableVM: denied, the person said no"]

    def test_where_none_can_be_made_the_asker_has_its_pendrive_and_one_word_why(self, asker: Asker) -> None:
        asker.send()
        asker.world.answer(True)
        asker.world.finish(fail=True)
        assert asker.states(asker.work)[-1] == "s failed no-memory"
        assert asker.world.phase() == "clean" and asker.stage() is None
        asker.send(7, "again")
        assert asker.states(asker.work)[-1] == "again asking"

    def test_one_that_ends_at_once_counts_as_none(self, asker: Asker) -> None:
        asker.send()
        asker.world.answer(True)
        event = asker.world.carry_out(asker.world.pending[0])
        assert isinstance(event, m.Restored)
        asker.world.handle(m.VmStarted(event.vm, disposable=True))
        asker.world.stop(event.vm)
        asker.world.handle(event)
        assert asker.states(asker.work)[-1] == "s failed no-disposable"
        assert asker.world.dissolved == [event.vm.id] and asker.stage() is None

    def test_only_so_many_may_be_at_a_time(self, asker: Asker) -> None:
        for seq in range(1, LIMITS.disposables_max + 1):
            asker.deliver(seq)
            asker.fill(asker.work, f"n{seq}")
        before = len(asker.world.notices)
        for number in range(REFUSALS_TOLD + 10):
            asker.send(9, f"t{number}")
            assert asker.states(asker.work)[-1] == f"t{number} failed too-many-disposables maximum={LIMITS.disposables_max}"
        told = asker.world.notices[before:]
        assert told == ["work → DisposableVM: failed, there are 3 (disposables_max)"] * REFUSALS_TOLD, "a few times"
        asker.world.stop(asker.disposables()[0])
        asker.world.settle()
        asker.send(9, "s9")
        assert asker.states(asker.work)[-1] == "s9 asking"

    def test_a_number_is_for_one_document_at_a_time(self, asker: Asker) -> None:
        vm = asker.open()
        asker.fill(asker.work, "n2")
        asker.send()
        assert asker.states(asker.work)[-1] == "s failed sequence-in-use"
        asker.fill(vm)
        asker.give_back(vm)
        asker.world.settle()
        asker.send(7, "s2")
        assert asker.states(asker.work)[-1] == "s2 failed sequence-in-use", "it is on a pendrive here"
        asker.world.ask(asker.work, Request("umount"))
        asker.world.settle()
        asker.send(7, "s3")
        assert asker.states(asker.work)[-1] == "s3 asking"

    @pytest.mark.parametrize("fail", [False, True])
    def test_it_can_be_cancelled_while_the_vm_is_made(self, asker: Asker, fail: bool) -> None:
        world = asker.world
        asker.send()
        world.answer(True)
        world.ask(asker.work, Request("cancel", request_id="c"))
        assert world.stopped == {"p1"} and world.phase() == "abandoning" and asker.stage() is None
        world.finish(fail=fail)
        world.settle()
        assert asker.states(asker.work)[-2:] == ["s cancelled", "c cancelled"]
        assert not world.images and not asker.disposables() and not world.documents

    def test_a_vm_that_says_that_it_has_taken_the_document_twice_has_it_once(self, asker: Asker) -> None:
        vm = asker.deliver()
        asker.world.ask(vm, Request("umount"))
        asker.world.finish(fail=True)  # the disk is still there
        asker.world.ask(vm, Request("umount"))
        assert asker.world.documents[vm.id].fate is m.Fate.OPEN and asker.stage() == f"open {vm.name}"

    def test_a_hypervisor_in_trouble_is_asked_again_and_the_document_goes_to_the_same_vm(self, asker: Asker) -> None:
        """The asker has ended, so nobody has the pendrive, and the VM is being destroyed; until it is, nothing else changes."""
        asker.send()
        asker.world.answer(True)
        asker.world.finish()
        (vm,) = asker.disposables()
        asker.world.stop(asker.work)
        asker.world.finish(asker.world.pending[0], fail=True)
        assert next(effect for effect in asker.world.pending if isinstance(effect, m.Detach)).again
        asker.world.settle()
        assert not asker.disposables() and asker.world.dissolved == [vm.id]

    def test_a_pendrive_that_the_vm_cannot_have_is_given_back_and_the_vm_destroyed(self, asker: Asker) -> None:
        world = asker.world
        asker.send()
        world.answer(True)
        world.finish()  # the VM is made
        world.finish()  # detached from the asker
        world.finish(fail=True)
        world.settle()
        assert asker.states(asker.work)[-1] == "s failed given-back"
        assert not asker.disposables() and not world.documents and asker.stage() is None

    def test_an_asker_that_does_not_let_go_of_the_pendrive_keeps_it_and_the_vm_is_destroyed(self, asker: Asker) -> None:
        world = asker.world
        asker.send()
        world.answer(True)
        world.finish()
        world.finish(fail=True)
        assert asker.states(asker.work)[-1] == "s failed not-detached"
        world.settle()
        assert not asker.disposables() and asker.stage() is None and world.phase() == "clean"


class TestBack:
    def test_a_changed_document_comes_back_without_a_question_once_its_vm_is_gone(self, asker: Asker) -> None:
        world = asker.world
        vm = asker.open()
        asker.fill(vm)
        asker.give_back(vm)
        assert asker.states(vm)[-1] == "r accepted" and not world.questions
        assert asker.stage() == f"returning {vm.name}"
        assert world.pending == [m.Destroy(vm)]
        world.settle()
        assert world.attached == {(asker.work.id, Slot.INCOMING): "p4"}
        assert world.announced[asker.work.id] == (vm.name, 7, False)
        assert asker.stage() == f"returned {vm.name}" and world.dissolved == [vm.id]
        assert world.notices[-1].startswith(f"{vm.name} → work: returned: ") and world.outcomes == ["delivered", "returned"]
        assert world.told == {"document-1-7": world.notices[-1]}, "there and back are one transfer"
        world.ask(asker.work, Request("umount"))
        world.settle()
        assert not world.images and asker.stage() == f"returned {vm.name}"

    def test_it_is_the_same_whichever_way_its_end_is_heard_of_first(self, asker: Asker) -> None:
        vm = asker.open()
        asker.fill(vm)
        asker.give_back(vm)
        asker.world.stop(vm)
        assert asker.world.phase() == "withdrawing" and not asker.world.dissolved, "it may have it open still"
        asker.world.settle()
        assert asker.stage() == f"returned {vm.name}" and asker.world.dissolved == [vm.id]

    def test_a_vm_that_is_not_destroyed_at_once_is_destroyed_later(self, asker: Asker) -> None:
        vm = asker.open()
        asker.fill(vm)
        asker.give_back(vm)
        asker.world.finish(fail=True)
        assert asker.world.pending == [m.Destroy(vm, again=True)] and asker.world.phase() == "withdrawing"
        asker.world.settle()
        assert asker.stage() == f"returned {vm.name}"

    def test_it_waits_for_an_asker_that_has_another_pendrive(self, asker: Asker) -> None:
        world = asker.world
        vm = asker.open()
        asker.fill(asker.personal)
        world.ask(asker.personal, Request("send", target=asker.work.name, request_id="s"))
        world.answer(True)
        world.settle()
        asker.fill(vm)
        asker.give_back(vm)
        world.settle()
        assert [entry.phase.value for entry in world.machine.entries] == ["loaded", "held"]
        assert asker.stage() == f"returning {vm.name}" and not asker.disposables()
        world.ask(asker.work, Request("umount"))
        world.settle()
        assert world.announced[asker.work.id] == (vm.name, 7, False) and asker.stage() == f"returned {vm.name}"

    @pytest.mark.parametrize(
        ("target", "seq"), [("personal", 7), ("work", 8), ("work", 0), ("nobody", 7), ("dom0", 7)], ids=lambda value: str(value)
    )
    def test_it_goes_to_no_other_vm_and_under_no_other_number(self, asker: Asker, target: str, seq: int) -> None:
        vm = asker.open()
        asker.fill(vm)
        asker.give_back(vm, seq, target)
        assert asker.states(vm)[-1] == "r denied" and not asker.world.questions and not asker.world.pending
        assert asker.world.notices[-1].startswith(f"{vm.name} → {target}: denied, its document ")
        asker.give_back(vm)
        assert asker.states(vm)[-1] == "r denied", "the same id has the same answer"

    def test_a_document_that_is_only_to_be_looked_at_never_comes_back(self, asker: Asker) -> None:
        vm = asker.open(view_only=True)
        asker.fill(vm)
        asker.give_back(vm)
        assert asker.states(vm)[-1] == "r denied" and "only to be looked at" in asker.world.notices[-1]

    def test_nothing_comes_back_before_the_document_has_arrived(self, asker: Asker) -> None:
        asker.send()
        asker.world.answer(True)
        asker.world.finish()
        (vm,) = asker.disposables()
        asker.give_back(vm)
        assert asker.states(vm)[-1] == "r denied" and "not got its document yet" in asker.world.notices[-1]

    def test_a_disposable_vm_gets_no_other(self, asker: Asker) -> None:
        vm = asker.open()
        asker.fill(vm)
        asker.world.ask(vm, Request("send", seq=1, request_id="d"))
        assert asker.states(vm)[-1] == "d denied"
        assert asker.world.notices[-1] == f"{vm.name} → DisposableVM: denied, a DisposableVM gets no other"

    def test_without_a_pendrive_there_is_nothing_to_send_back(self, asker: Asker) -> None:
        vm = asker.open()
        asker.give_back(vm)
        assert asker.states(vm)[-1] == "r failed no-pendrive"
        asker.world.ask(vm, Request("new", request_id="n"))
        asker.world.ask(vm, Request("send", target=asker.work.name, seq=7, request_id="r2"))
        assert asker.states(vm)[-1] == "r2 failed creating"

    def test_it_comes_back_once(self, asker: Asker) -> None:
        vm = asker.open()
        asker.fill(vm)
        asker.give_back(vm)
        asker.world.ask(vm, Request("send", target=asker.work.name, seq=7, request_id="r2"))
        asker.world.ask(vm, Request("killme", request_id="k"))
        asker.world.ask(vm, Request("new", request_id="n2"))
        assert asker.states(vm)[-3:] == ["r2 denied", "k accepted", "n2 denied"]
        assert asker.world.pending == [m.Destroy(vm)]

    def test_another_run_of_the_asker_does_not_get_it(self, asker: Asker) -> None:
        vm = asker.open()
        asker.fill(vm)
        asker.world.stop(asker.work)
        asker.world.start("work")
        asker.give_back(vm)
        assert asker.states(vm)[-1] == "r denied"
        asker.world.settle()
        assert not asker.disposables() and not asker.world.images

    @pytest.mark.parametrize("steps", range(3))
    def test_an_asker_that_ends_meanwhile_leaves_the_document_to_the_person(self, asker: Asker, steps: int) -> None:
        """While its VM is being destroyed, while it is being attached, and before it was taken from the pendrive."""
        vm = asker.open()
        asker.fill(vm)
        asker.give_back(vm)
        for _ in range(steps):
            asker.world.finish()
        asker.world.stop(asker.work)
        asker.world.settle()
        assert any("kept as kept/image" in notice for notice in asker.world.notices) and not asker.disposables()
        assert f"{vm.name} → work: failed, " in "".join(asker.world.notices)

    def test_an_asker_that_ends_while_the_document_waits_for_it(self, asker: Asker) -> None:
        world = asker.world
        vm = asker.open()
        asker.fill(asker.personal)
        world.ask(asker.personal, Request("send", target=asker.work.name, request_id="s"))
        world.answer(True)
        world.settle()
        asker.fill(vm)
        asker.give_back(vm)
        world.settle()
        world.stop(asker.work)
        world.settle()
        assert [notice for notice in world.notices if "kept as" in notice] == [
            f"{vm.name} → work: could be neither delivered nor given back; the pendrive is kept as kept/image"
        ]

    def test_an_asker_that_cannot_have_it_is_told_where_it_is(self, asker: Asker) -> None:
        vm = asker.open()
        asker.fill(vm)
        asker.give_back(vm)
        asker.world.finish()
        asker.world.finish(fail=True)
        asker.world.settle()
        assert asker.stage() == f"ended {vm.name} kept-in-dom0"
        assert not asker.world.attached and any("kept as" in notice for notice in asker.world.notices)


class TestEnds:
    @pytest.mark.parametrize("why", ["", *KILL_REASONS])
    def test_a_vm_that_is_done_is_destroyed_and_the_asker_told_why(self, asker: Asker, why: str) -> None:
        vm = asker.open()
        asker.world.ask(vm, Request("killme", why=why, request_id="k"))
        assert asker.states(vm)[-1] == "k accepted" and asker.stage() == f"open {vm.name}", "it still runs"
        asker.world.settle()
        expected = {"": f"ended {vm.name} killed", "unchanged": f"unchanged {vm.name}"}.get(why, f"ended {vm.name} {why}")
        assert asker.stage() == expected and asker.world.dissolved == [vm.id] and not asker.disposables()

    @pytest.mark.parametrize("why", ["no-program", "bad-document", "failed"])
    def test_the_person_is_told_of_a_document_that_could_not_be_opened_in_the_place_of_its_delivery(self, asker: Asker, why: str) -> None:
        vm = asker.open()
        asker.world.ask(vm, Request("killme", why=why, request_id="k"))
        asker.world.settle()
        assert list(asker.world.told) == ["document-1-7"]
        assert asker.world.told["document-1-7"].startswith(f"work → {vm.name}: failed, ")

    def test_one_that_ends_by_itself_was_killed(self, asker: Asker) -> None:
        vm = asker.open()
        asker.world.stop(vm)
        assert asker.world.pending == [m.Destroy(vm)] and not asker.world.dissolved, "the hypervisor may still have it"
        asker.world.settle()
        assert asker.stage() == f"ended {vm.name} killed" and asker.world.dissolved == [vm.id]

    def test_one_that_ends_by_itself_while_it_is_destroyed_is_destroyed_once(self, asker: Asker) -> None:
        vm = asker.open()
        asker.world.ask(asker.work, Request("forget", seq=7, request_id="f"))
        asker.world.stop(vm)
        assert asker.world.pending == [m.Destroy(vm)]
        asker.world.settle()
        assert asker.world.dissolved == [vm.id]

    def test_one_that_ends_with_the_pendrive_in_it(self, asker: Asker) -> None:
        vm = asker.deliver()
        asker.world.stop(vm)
        asker.world.settle()
        assert asker.stage() == f"ended {vm.name} killed" and not asker.world.images

    @pytest.mark.parametrize("steps", [1, 2])
    def test_one_that_ends_before_it_has_the_pendrive_leaves_it_to_the_asker(self, asker: Asker, steps: int) -> None:
        asker.send()
        asker.world.answer(True)
        for _ in range(steps):
            asker.world.finish()
        (vm,) = asker.disposables()
        asker.world.stop(vm)
        asker.world.settle()
        assert asker.states(asker.work)[-1] in {"s failed given-back", "s failed receiver-ended"}
        assert asker.stage() is None and asker.world.dissolved == [vm.id]

    def test_one_that_gives_up_before_it_has_the_pendrive_leaves_it_to_the_asker(self, asker: Asker) -> None:
        asker.send()
        asker.world.answer(True)
        asker.world.finish()
        (vm,) = asker.disposables()
        asker.world.ask(vm, Request("killme", why="failed"))
        asker.world.finish(m.Destroy(vm))
        asker.world.settle()
        assert asker.states(asker.work)[-1] == "s failed given-back" and asker.stage() is None

    def test_one_that_has_it_before_it_is_destroyed_was_killed(self, asker: Asker) -> None:
        """It gave up as the pendrive was on its way; the asker has heard of the delivery, so it must hear of the end."""
        asker.send()
        asker.world.answer(True)
        asker.world.finish()
        asker.world.finish()
        (vm,) = asker.disposables()
        asker.world.ask(vm, Request("killme", why="failed"))
        asker.world.finish(asker.world.pending[0])
        assert asker.states(asker.work)[-1] == "s delivered"
        asker.world.settle()
        assert asker.stage() == f"ended {vm.name} killed"

    def test_with_the_asker_go_its_disposable_vms(self, asker: Asker) -> None:
        asker.open(1)
        asker.fill(asker.work, "n2")
        asker.deliver(2)
        asker.world.stop(asker.work)
        asker.world.settle()
        assert not asker.disposables() and not asker.world.images and not asker.world.documents
        assert len(asker.world.dissolved) == 2

    @pytest.mark.parametrize("steps", range(3))
    def test_an_asker_that_ends_while_its_document_is_on_the_way(self, asker: Asker, steps: int) -> None:
        asker.send()
        asker.world.answer(True)
        for _ in range(steps):
            asker.world.finish()
        asker.world.stop(asker.work)
        asker.world.settle()
        assert not asker.disposables() and not asker.world.images
        assert not any("kept as" in notice for notice in asker.world.notices), "the document never left"

    @pytest.mark.parametrize("steps", range(4))
    @pytest.mark.parametrize("restarts", [False, True])
    def test_of_a_document_that_can_be_neither_brought_nor_given_back_no_copy_is_kept(
        self, asker: Asker, steps: int, restarts: bool
    ) -> None:
        """Its VM ends, its asker too, at each step of the way back."""
        world = asker.world
        asker.send()
        world.answer(True)
        world.finish()
        (vm,) = asker.disposables()
        world.stop(vm)
        for _ in range(steps):
            if step := next((effect for effect in world.pending if not isinstance(effect, m.Destroy)), None):
                world.finish(step, fail=steps == 3 and world.phase() == "returning")
        if asker.work.id in world.running:
            world.die(asker.work) if restarts else world.stop(asker.work)
        if restarts:
            world.restart()
        world.settle()
        assert not world.images and not any("kept as" in notice for notice in world.notices)

    def test_an_asker_can_have_its_disposable_vm_destroyed(self, asker: Asker) -> None:
        vm = asker.open()
        asker.world.ask(asker.work, Request("forget", seq=7, request_id="f"))
        assert asker.states(asker.work)[-1] == "f cancelled"
        asker.world.settle()
        assert asker.stage() == f"ended {vm.name} killed" and not asker.disposables()

    def test_what_is_not_there_cannot_be_forgotten(self, asker: Asker) -> None:
        asker.open()
        for vm, seq in ((asker.work, 8), (asker.personal, 7)):
            asker.world.ask(vm, Request("forget", seq=seq, request_id="f"))
            assert asker.states(vm)[-1] == "f failed no-document"
        assert asker.disposables()

    @pytest.mark.parametrize("steps", range(3))
    def test_what_is_on_its_way_back_is_not_forgotten(self, asker: Asker, steps: int) -> None:
        vm = asker.open()
        asker.fill(vm)
        asker.give_back(vm)
        for _ in range(steps):
            asker.world.finish()
        asker.world.ask(asker.work, Request("forget", seq=7, request_id="f"))
        assert asker.states(asker.work)[-1] == "f failed returning"
        asker.world.settle()
        assert asker.stage() == f"returned {vm.name}"


class TestForeign:
    """DisposableVMs that the exchange has not made: one that is to be saved, one that is kept ready."""

    @pytest.mark.parametrize(
        "request_",
        [
            Request("new", request_id="x"),
            Request("killme", request_id="x"),
            Request("send", seq=1, request_id="x"),
            Request("send", target=VmName.parse("work"), seq=7, request_id="x"),
            Request("send", target=VmName.parse("work"), request_id="x"),
        ],
        ids=repr,
    )
    def test_they_get_nothing(self, asker: Asker, request_: Request) -> None:
        asker.open()
        spare = asker.world.start("spare", disposable=True)
        asker.world.ask(spare, request_)
        assert asker.states(spare) == ["x denied"] and not asker.world.pending
        assert asker.world.notices[-1].startswith("spare ")

    def test_one_that_ends_leaves_nothing(self, asker: Asker) -> None:
        spare = asker.world.start("spare", disposable=True)
        asker.world.stop(spare)
        assert asker.world.dissolved == [spare.id]

    @pytest.mark.parametrize("made", [False, True])
    def test_no_disposable_vm_is_a_destination(self, asker: Asker, made: bool) -> None:
        vm = asker.open() if made else asker.world.start("spare", disposable=True)
        asker.fill(asker.personal)
        asker.world.ask(asker.personal, Request("send", target=vm.name, request_id="s"))
        (question,) = asker.world.questions.values()
        assert question.target is None and question.doubt == "a DisposableVM takes no files but its document"
        asker.world.answer(True)
        assert asker.states(asker.personal)[-1] == "s denied"

    def test_an_appvm_cannot_ask_to_be_destroyed(self, asker: Asker) -> None:
        asker.world.ask(asker.work, Request("killme", request_id="k"))
        assert asker.states(asker.work)[-1] == "k denied" and not asker.world.pending


class TestTold:
    def test_of_the_oldest_that_are_over_nothing_is_told_any_more(self, asker: Asker) -> None:
        for seq in range(1, SHOWN_MAX + 4):
            asker.world.stop(asker.deliver(seq))
            asker.world.settle()
            asker.fill(asker.work, f"n{seq}")
        assert sorted(seq for _, seq in asker.world.shown) == list(range(4, SHOWN_MAX + 4))

    def test_of_one_that_is_open_it_always_is(self, asker: Asker) -> None:
        vm = asker.open(1)
        asker.fill(asker.work, "n1")
        for seq in range(2, SHOWN_MAX + 4):
            asker.world.stop(asker.deliver(seq))
            asker.world.settle()
            asker.fill(asker.work, f"n{seq}")
        assert asker.stage(1) == f"open {vm.name}" and len(asker.world.shown) == SHOWN_MAX

    def test_an_asker_that_gets_another_name_is_told_that_what_it_had_is_over(self, asker: Asker) -> None:
        """Its keys are still there, and whoever waits for one would wait for ever."""
        world = asker.world
        opened = asker.open(1)
        asker.fill(asker.work, "n2")
        returned = asker.open(2)
        asker.fill(asker.work, "n3")
        waits = asker.open(3)
        for seq, vm in ((2, returned), (3, waits)):
            asker.fill(vm)
            asker.give_back(vm, seq)
            world.settle()
        assert [asker.stage(seq) for seq in (1, 2, 3)] == [f"open {opened.name}", f"returned {returned.name}", f"returning {waits.name}"]
        world.rename(asker.work, "old")
        world.settle()
        assert asker.stage(1) == f"ended {opened.name} killed"
        assert [asker.stage(seq) for seq in (2, 3)] == [f"ended {vm.name} kept-in-dom0" for vm in (returned, waits)]

    def test_what_was_told_before_a_restart_counts(self, asker: Asker) -> None:
        asker.world.stop(asker.deliver(1))
        asker.world.settle()
        asker.world.restart()
        for seq in range(2, SHOWN_MAX + 2):
            asker.fill(asker.work, f"n{seq}")
            asker.world.stop(asker.deliver(seq))
            asker.world.settle()
        assert sorted(seq for _, seq in asker.world.shown) == list(range(2, SHOWN_MAX + 2))


class TestRestart:
    def test_the_vm_is_made_after_it_and_one_that_was_half_made_is_swept_away(self, asker: Asker) -> None:
        world = asker.world
        asker.send()
        world.answer(True)
        event = world.carry_out(world.pending[0])
        assert isinstance(event, m.Restored)
        world.restart()
        assert world.dissolved == [event.vm.id]
        world.settle()
        assert asker.states(asker.work)[-1] == "s delivered" and len(asker.disposables()) == 1

    def test_what_is_told_of_a_vm_that_is_being_made_stays(self, asker: Asker) -> None:
        asker.send()
        asker.world.answer(True)
        asker.world.restart()
        assert asker.stage() == "starting" and asker.world.phase() == "restoring"

    def test_an_open_question_is_asked_again(self, asker: Asker) -> None:
        asker.send()
        asker.world.restart()
        (question,) = asker.world.questions.values()
        assert question.disposable
        asker.world.answer(True)
        asker.world.settle()
        assert asker.states(asker.work)[-1] == "s delivered"

    def test_an_asker_that_ended_meanwhile_needs_no_vm(self, asker: Asker) -> None:
        asker.send()
        asker.world.answer(True)
        asker.world.die(asker.work)
        asker.world.restart()
        asker.world.settle()
        assert not asker.disposables() and not asker.world.images

    @pytest.mark.parametrize("view_only", [False, True])
    def test_an_open_document_is_still_open_and_what_may_be_done_with_it_is_the_same(self, asker: Asker, view_only: bool) -> None:
        vm = asker.open(view_only=view_only)
        asker.world.restart()
        assert asker.stage() == f"open {vm.name}"
        asker.fill(vm)
        asker.give_back(vm)
        assert asker.states(vm)[-1] == ("r denied" if view_only else "r accepted")

    def test_a_document_on_its_way_there_arrives(self, asker: Asker) -> None:
        asker.send(view_only=True)
        asker.world.answer(True)
        asker.world.finish()
        asker.world.finish()
        asker.world.restart()
        asker.world.settle()
        (vm,) = asker.disposables()
        assert asker.states(asker.work)[-1] == "s delivered" and asker.world.announced[vm.id] == ("work", 7, True)

    @pytest.mark.parametrize("steps", range(3))
    @pytest.mark.parametrize("unheard", [False, True])
    def test_a_document_on_its_way_back_arrives(self, asker: Asker, steps: int, unheard: bool) -> None:
        vm = asker.open()
        asker.fill(vm)
        asker.give_back(vm)
        for _ in range(steps):
            asker.world.finish()
        if unheard and asker.world.pending:
            asker.world.carry_out(asker.world.pending[0])
        asker.world.restart()
        asker.world.settle()
        assert asker.stage() == f"returned {vm.name}" and not asker.disposables()
        assert asker.world.attached == {(asker.work.id, Slot.INCOMING): "p4"}

    @pytest.mark.parametrize("steps", range(3))
    def test_a_document_on_its_way_back_to_an_asker_that_ended_meanwhile_is_kept(self, asker: Asker, steps: int) -> None:
        vm = asker.open()
        asker.fill(vm)
        asker.give_back(vm)
        for _ in range(steps):
            asker.world.finish()
        asker.world.die(asker.work)
        asker.world.restart()
        asker.world.settle()
        assert any("kept as" in notice for notice in asker.world.notices) and not asker.disposables()

    def test_a_vm_that_ended_meanwhile_was_killed(self, asker: Asker) -> None:
        vm = asker.open()
        asker.world.die(vm)
        asker.world.restart()
        asker.world.settle()
        assert asker.stage() == f"ended {vm.name} killed" and asker.world.dissolved == [vm.id] and not asker.world.documents

    def test_one_of_which_a_new_store_does_not_know_is_destroyed(self, asker: Asker) -> None:
        vm = asker.open()
        asker.world.restart(unknown=(vm,))
        assert asker.world.pending == [m.Destroy(vm)] and asker.world.documents
        asker.world.settle()
        assert not asker.disposables() and asker.world.dissolved == [vm.id] and asker.stage() == f"ended {vm.name} killed"

    @pytest.mark.parametrize("effects", range(6))
    def test_a_request_that_was_answered_and_not_written_down_is_carried_out_when_it_comes_again(self, asker: Asker, effects: int) -> None:
        world = asker.world
        vm = asker.deliver()
        taken = Request("umount", request_id="u")
        sent_back = Request("send", target=asker.work.name, seq=7, request_id="r")
        for request in (taken, sent_back):
            world.ask(vm, request, killed_after=effects)
            world.ask(vm, request)
            world.settle()
            if request is taken:
                asker.fill(vm)
        assert asker.stage() == f"returned {vm.name}" and not asker.disposables()

    @pytest.mark.parametrize("effects", range(5))
    @pytest.mark.parametrize("verb", ["killme", "forget"])
    def test_one_that_is_to_go_goes_when_that_was_answered_and_not_written_down(self, asker: Asker, verb: str, effects: int) -> None:
        world = asker.world
        vm = asker.open()
        who = vm if verb == "killme" else asker.work
        request = Request("killme", why="failed", request_id="k") if verb == "killme" else Request("forget", seq=7, request_id="f")
        world.ask(who, request, killed_after=effects)
        if "f cancelled" not in asker.states(who):
            world.ask(who, request)
        world.settle()
        assert not asker.disposables() and not world.documents

    @pytest.mark.parametrize("effects", range(6))
    def test_what_was_cancelled_is_cancelled_though_the_daemon_is_killed(self, asker: Asker, effects: int) -> None:
        asker.send()
        request = Request("cancel", request_id="c")
        asker.world.ask(asker.work, request, killed_after=effects)
        if "s cancelled" not in asker.states(asker.work):
            asker.world.ask(asker.work, request)
        while asker.world.questions:
            asker.world.answer(True)
        asker.world.settle()
        assert not asker.world.images and not asker.disposables()
        told = asker.states(asker.work)
        assert "c cancelled" in told and not [state for state in told if state.startswith(("c failed", "s delivered"))]

    def test_one_that_was_being_destroyed_is_destroyed_for_the_same_reason(self, asker: Asker) -> None:
        vm = asker.open()
        asker.world.ask(vm, Request("killme", why="unchanged"))
        asker.world.restart()
        assert asker.world.pending == [m.Destroy(vm)]
        asker.world.settle()
        assert asker.stage() == f"unchanged {vm.name}"

    def test_one_whose_asker_ended_meanwhile_is_destroyed(self, asker: Asker) -> None:
        asker.open()
        asker.world.die(asker.work)
        asker.world.restart()
        asker.world.settle()
        assert not asker.disposables() and not asker.world.documents

    @pytest.mark.parametrize("runs", [True, False])
    def test_one_that_was_written_down_without_what_it_then_did_goes_the_same_way(self, asker: Asker, runs: bool) -> None:
        """The daemon died between two lines of the journal: that the pendrive goes back, and that its VM is to be destroyed."""
        vm = asker.open()
        asker.fill(vm)
        document = asker.world.documents[vm.id]
        asker.give_back(vm)
        asker.world.documents[vm.id] = document
        if not runs:
            asker.world.die(vm)
        asker.world.restart()
        asker.world.settle()
        assert asker.stage() == f"returned {vm.name}" and not asker.disposables()

    def test_one_that_had_its_pendrive_before_that_was_written_down_has_it(self, asker: Asker) -> None:
        vm = asker.deliver()
        asker.world.journal[m.PendriveId("p1")] = replace(asker.world.journal[m.PendriveId("p1")], phase=Phase.ARRIVING)
        asker.world.restart()
        assert asker.world.documents[vm.id].fate is m.Fate.DELIVERED and asker.world.phase() == "loaded"

    def test_one_to_which_no_pendrive_goes_is_destroyed(self, asker: Asker) -> None:
        asker.send()
        asker.world.answer(True)
        asker.world.finish()
        (vm,) = asker.disposables()
        document = asker.world.documents[vm.id]
        asker.world.finish(fail=True)  # the asker does not let go
        asker.world.documents[vm.id] = document
        asker.world.restart()
        asker.world.settle()
        assert not asker.disposables() and asker.stage() is None
