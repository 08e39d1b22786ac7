"""The exchange machine, one way through it at a time."""

from __future__ import annotations

import pytest

from qfilexchg.dom0.exchange import messages as m
from qfilexchg.dom0.exchange.machine import Exchange
from qfilexchg.dom0.exchange.moves import REMEMBERED_REPLIES, UnexpectedSignal
from qfilexchg.dom0.exchange.phases import EDGES, Course, Phase, Place, Signal, diagram
from qfilexchg.dom0.exchange.recovery import resume
from qfilexchg.dom0.vms.hypervisor import RunningVm, Slot
from qfilexchg.protocol.names import VmName
from qfilexchg.protocol.qpen import Request
from tests.unit.exchange.world import LIMITS, MIB, World


def send(target: str, request_id: str = "s", seq: int = 0) -> Request:
    return Request("send", target=VmName.parse(target), seq=seq, request_id=request_id)


class Three:
    """Three VMs; the first has a pendrive to fill."""

    def __init__(self) -> None:
        self.world = World()
        self.work, self.personal, self.vault = (self.world.start(name) for name in ("work", "personal", "vault"))
        self.fill(self.work)

    def fill(self, vm: RunningVm, request_id: str = "n") -> None:
        self.world.ask(vm, Request("new", request_id=request_id))
        self.world.settle()
        assert str(self.world.last(vm).state) == "attached"

    def deliver(self, source: RunningVm, target: str) -> None:
        self.world.ask(source, send(target, "d"))
        self.world.answer(True)
        self.world.settle()

    def states(self, vm: RunningVm) -> list[str]:
        return [reply.encode().decode() for reply in self.world.replies.get(vm.id, [])]


@pytest.fixture
def three() -> Three:
    return Three()


class TestCopy:
    def test_a_pendrive_goes_from_the_sender_to_the_receiver_and_is_deleted(self, three: Three) -> None:
        world = three.world
        world.ask(three.work, send("personal"))
        assert three.states(three.work) == ["n accepted", "n attached", "s asking"]
        world.answer(True)
        world.settle()
        assert three.states(three.work)[3:] == ["s accepted", "s delivered"]
        assert world.attached == {(three.personal.id, Slot.INCOMING): "p1"}
        assert world.announced[three.personal.id] == ("work", 0, False)
        world.ask(three.personal, Request("umount", request_id="u"))
        world.settle()
        assert three.states(three.personal) == ["u accepted", "u detached"]
        assert not world.images and not world.journal and not list(world.machine.entries)

    def test_the_sender_can_have_a_new_pendrive_while_the_last_is_at_the_receiver(self, three: Three) -> None:
        three.deliver(three.work, "personal")
        three.fill(three.work, "n2")
        assert set(three.world.attached) == {(three.personal.id, Slot.INCOMING), (three.work.id, Slot.OUTGOING)}

    def test_a_size_may_be_asked_for_up_to_the_limit(self) -> None:
        world = World()
        vm = world.start("work")
        world.ask(vm, Request("new", size_bytes=LIMITS.maximum_bytes + 1, request_id="a"))
        assert world.last(vm).encode() == b"a failed too-large maximum=%d" % LIMITS.maximum_bytes
        world.ask(vm, Request("new", size_bytes=LIMITS.maximum_bytes, request_id="b"))
        (create,) = world.pending
        assert create == m.Create(m.PendriveId("p2"), LIMITS.maximum_bytes, "work")

    def test_without_a_size_a_pendrive_has_the_default(self) -> None:
        world = World()
        world.ask(world.start("work"), Request("new"))
        assert isinstance(world.pending[0], m.Create) and world.pending[0].size_bytes == 1024 * MIB

    def test_the_dictionary_holds_the_vms_that_run(self, three: Three) -> None:
        three.world.stop(three.vault)
        assert three.world.machine.domains == {"work": 1, "personal": 2}


class TestRefusals:
    @pytest.mark.parametrize("target", ["nobody", "dom0", "work", "vault"])
    def test_a_vm_cannot_tell_one_no_from_another(self, three: Three, target: str) -> None:
        three.world.ask(three.work, send(target))
        three.world.answer(target != "vault")
        assert three.states(three.work)[2:] == ["s asking", "s denied"]
        assert three.world.phase() == "clean"

    def test_the_person_is_told_why(self, three: Three) -> None:
        three.world.ask(three.work, send("nobody"))
        (question,) = three.world.questions.values()
        assert question.doubt == "no VM of that name runs" and question.target is None

    def test_an_appvm_returns_no_document(self, three: Three) -> None:
        three.world.ask(three.work, send("personal", seq=5))
        (question,) = three.world.questions.values()
        assert question.doubt
        three.world.answer(True)
        assert three.world.last(three.work).state == "denied"

    def test_two_vms_of_one_name_are_no_destination(self, three: Three) -> None:
        three.world.start("personal")
        three.world.ask(three.work, send("personal"))
        assert [question.doubt for question in three.world.questions.values()] == ["several VMs of that name run"]

    def test_send_without_a_pendrive_fails(self, three: Three) -> None:
        three.world.ask(three.vault, send("personal"))
        assert three.states(three.vault) == ["s failed no-pendrive"]

    def test_new_twice_fails(self, three: Three) -> None:
        three.world.ask(three.work, Request("new", request_id="n2"))
        assert three.world.last(three.work).encode() == b"n2 failed have-pendrive clean"

    def test_umount_and_cancel_without_a_pendrive_fail(self, three: Three) -> None:
        for verb in ("umount", "cancel"):
            three.world.ask(three.vault, Request(verb, request_id=verb))
        assert three.states(three.vault) == ["umount failed no-pendrive", "cancel failed no-pendrive"]

    def test_umount_before_dom0_knows_that_the_disk_is_there_is_to_be_tried_again(self, three: Three) -> None:
        three.world.ask(three.work, send("personal"))
        three.world.answer(True)
        three.world.ask(three.personal, Request("umount", request_id="u1"))
        three.world.finish()
        three.world.ask(three.personal, Request("umount", request_id="u2"))
        three.world.finish()
        three.world.ask(three.personal, Request("umount", request_id="u3"))
        assert three.states(three.personal) == ["u1 failed no-pendrive", "u2 failed arriving", "u3 accepted"]

    def test_an_appvm_is_not_destroyed_on_its_own_word(self, three: Three) -> None:
        three.world.ask(three.work, Request("killme", request_id="k"))
        assert three.world.last(three.work).state == "denied" and not three.world.pending

    def test_a_vm_that_does_not_run_is_not_heard(self, three: Three) -> None:
        three.world.stop(three.vault)
        three.world.ask(three.vault, Request("new"))
        assert not three.world.pending and three.vault.id not in three.world.replies


class TestRepeatedRequests:
    def test_a_repeated_request_hears_its_last_reply_and_does_nothing(self, three: Three) -> None:
        for _ in range(3):
            three.world.ask(three.work, Request("new", request_id="n"))
        assert three.states(three.work) == ["n accepted", "n attached", "n attached", "n attached", "n attached"]
        assert not three.world.pending

    def test_a_request_that_was_answered_before_a_restart_is_not_carried_out_again(self, three: Three) -> None:
        three.deliver(three.work, "personal")
        three.world.restart()
        three.world.ask(three.work, send("personal", "d"))
        assert three.world.last(three.work).state == "delivered" and not three.world.questions

    def test_requests_without_an_id_are_each_carried_out(self, three: Three) -> None:
        for _ in range(2):
            three.world.ask(three.vault, Request("status"))
        assert three.states(three.vault) == ["- accepted outgoing=none incoming=none"] * 2

    def test_only_so_many_ids_are_remembered(self, three: Three) -> None:
        for number in range(REMEMBERED_REPLIES + 1):
            three.world.ask(three.work, Request("status", request_id=f"x{number}"))
        three.world.ask(three.work, Request("new", request_id="n"))
        assert three.world.last(three.work).encode() == b"n failed have-pendrive clean"


class TestBusyReceiver:
    @pytest.fixture
    def busy(self, three: Three) -> Three:
        three.deliver(three.work, "personal")
        three.fill(three.vault)
        three.world.ask(three.vault, send("personal"))
        return three

    def test_the_person_is_asked_whether_to_wait(self, busy: Three) -> None:
        (question,) = busy.world.questions.values()
        assert question.busy
        busy.world.answer(True)
        assert busy.world.last(busy.vault).state == "queued" and not busy.world.pending

    def test_the_person_is_told_of_the_wait_and_of_its_end_in_one_place(self, busy: Three) -> None:
        world = busy.world
        world.answer(True)
        assert world.told["p3"] == "vault → personal: waits until personal has ejected another pendrive"
        world.ask(busy.personal, Request("umount", request_id="u"))
        world.settle()
        assert world.told["p3"] == "vault → personal: delivered"

    def test_a_wait_that_is_taken_back_is_told_no_more(self, busy: Three) -> None:
        busy.world.answer(True)
        busy.world.ask(busy.vault, Request("cancel", request_id="c"))
        assert busy.world.told["p3"] == "vault → personal: cancelled" and busy.world.outcomes[-1] == "cancelled"

    def test_a_question_that_is_taken_back_is_in_the_history_and_not_told(self, busy: Three) -> None:
        busy.world.stop(busy.vault)
        assert "p3" not in busy.world.told and busy.world.outcomes[-1] == "cancelled, vault ended"

    def test_waiting_transfers_go_in_order_once_the_receiver_is_free(self, busy: Three) -> None:
        world = busy.world
        world.answer(True)
        busy.fill(busy.work, "n2")
        busy.world.ask(busy.work, send("personal", "s2"))
        world.answer(True)
        for expected in ("vault", "work"):
            world.ask(busy.personal, Request("umount", request_id=f"u{expected}"))
            world.settle()
            assert world.announced[busy.personal.id] == (expected, 0, False)

    def test_who_became_busy_after_the_question_is_asked_about_again(self, three: Three) -> None:
        three.fill(three.vault)
        three.world.ask(three.work, send("personal"))
        three.world.ask(three.vault, send("personal"))
        first, second = three.world.questions
        three.world.answer(True, first)
        three.world.answer(True, second)
        (again,) = three.world.questions.values()
        assert again.kind is m.QuestionKind.WAIT and again.busy
        three.world.answer(True)
        assert three.world.last(three.vault).state == "queued"

    def test_a_waiting_sender_can_cancel(self, busy: Three) -> None:
        busy.world.answer(True)
        busy.world.ask(busy.vault, Request("cancel", request_id="c"))
        busy.world.settle()
        assert busy.states(busy.vault)[-2:] == ["s cancelled", "c cancelled"]

    def test_a_wait_ends_at_last(self, busy: Three) -> None:
        busy.world.answer(True)
        (reminder,) = busy.world.reminders
        busy.world.handle(m.QueueExpired(reminder.pendrive, reminder.question))
        assert busy.world.last(busy.vault).encode() == b"s failed waited-too-long"

    def test_a_late_reminder_of_an_earlier_wait_does_nothing(self, busy: Three) -> None:
        busy.world.answer(True)
        (reminder,) = busy.world.reminders
        busy.world.handle(m.QueueExpired(reminder.pendrive, m.QuestionId(reminder.question - 1)))
        assert busy.world.last(busy.vault).state == "queued"

    def test_when_the_receiver_ends_the_sender_keeps_its_pendrive(self, busy: Three) -> None:
        busy.world.answer(True)
        busy.world.stop(busy.personal)
        assert busy.world.last(busy.vault).encode() == b"s failed receiver-ended"
        assert busy.world.attached == {(busy.vault.id, Slot.OUTGOING): "p2"} or busy.world.pending


class TestCancel:
    def test_it_withdraws_the_question_and_deletes_the_pendrive(self, three: Three) -> None:
        three.world.ask(three.work, send("personal"))
        three.world.ask(three.work, Request("cancel", request_id="c"))
        assert not three.world.questions
        three.world.settle()
        assert three.states(three.work)[-2:] == ["s cancelled", "c cancelled"] and not three.world.images

    def test_an_answer_that_comes_after_it_does_not_count(self, three: Three) -> None:
        three.world.ask(three.work, send("personal"))
        (question,) = three.world.questions
        three.world.ask(three.work, Request("cancel", request_id="c"))
        three.world.handle(m.Answered(question, True, "allowed"))
        three.world.settle()
        assert not three.world.attached

    def test_where_none_came_to_be_none_is_left_to_send(self) -> None:
        """It was cancelled, could not be made, and the detach that was then tried failed: it counted as one to be filled."""
        world = World()
        vm = world.start("work")
        world.ask(vm, Request("new", request_id="n"))
        world.ask(vm, Request("cancel", request_id="c"))
        world.finish(fail=True)
        assert world.pending == [m.Delete(m.PendriveId("p1"))]

    @pytest.mark.parametrize("steps", [0, 1])
    @pytest.mark.parametrize("fail", [False, True])
    def test_a_pendrive_that_is_still_being_made_goes_as_soon_as_that_is_over(self, steps: int, fail: bool) -> None:
        world = World()
        vm = world.start("work")
        world.ask(vm, Request("new", request_id="n"))
        for _ in range(steps):
            world.finish()
        world.ask(vm, Request("cancel", request_id="c"))
        world.finish(fail=fail)
        world.settle()
        told = [reply.encode() for reply in world.replies[vm.id]]
        assert told == [b"n accepted", b"c accepted", b"n cancelled", b"c cancelled"]
        assert not list(world.machine.entries) and not world.images

    def test_asked_again_while_the_disk_is_taken_away_it_is_at_work(self, three: Three) -> None:
        """On Xen that takes seconds; the second asking was told that the first had failed."""
        three.world.ask(three.work, Request("cancel", request_id="c"))
        three.world.ask(three.work, Request("cancel", request_id="c"))
        assert three.states(three.work)[-2:] == ["c accepted", "c accepted"]
        three.world.settle()
        assert three.states(three.work)[-1] == "c cancelled" and not three.world.images

    def test_it_comes_too_late_once_the_pendrive_leaves(self, three: Three) -> None:
        three.world.ask(three.work, send("personal"))
        three.world.answer(True)
        three.world.ask(three.work, Request("cancel", request_id="c"))
        assert three.world.last(three.work).encode() == b"c failed leaving"


class TestFailures:
    def test_no_room_for_the_pendrive(self) -> None:
        world = World()
        vm = world.start("work")
        world.ask(vm, Request("new", request_id="n"))
        world.finish(fail=True)
        assert world.last(vm).encode() == b"n failed no-pendrive-made"
        world.settle()
        assert not list(world.machine.entries)

    def test_a_receiver_that_cannot_have_it(self, three: Three) -> None:
        three.world.ask(three.work, send("personal"))
        three.world.answer(True)
        three.world.finish()
        three.world.finish(fail=True)
        three.world.settle()
        assert three.world.last(three.work).encode() == b"s failed given-back"
        assert three.world.attached == {(three.work.id, Slot.OUTGOING): "p1"}

    def test_a_sender_that_does_not_let_go_keeps_it_and_the_receiver_is_free(self, three: Three) -> None:
        three.world.ask(three.work, send("personal"))
        three.world.answer(True)
        three.world.finish(fail=True)
        assert three.world.last(three.work).encode() == b"s failed not-detached"
        three.fill(three.vault)
        three.deliver(three.vault, "personal")
        assert three.world.attached[three.personal.id, Slot.INCOMING] == "p3"

    def test_neither_the_receiver_nor_the_sender_can_have_it(self, three: Three) -> None:
        world = three.world
        world.ask(three.work, send("personal"))
        world.answer(True)
        world.finish()
        world.finish(fail=True)  # the receiver's attach
        world.finish()
        world.finish(fail=True)  # the sender's
        world.settle()
        assert world.last(three.work).encode() == b"s failed kept-in-dom0"
        assert any("kept as kept/image" in notice for notice in world.notices)

    def test_a_receiver_that_does_not_let_go_can_try_again(self, three: Three) -> None:
        three.deliver(three.work, "personal")
        three.world.ask(three.personal, Request("umount", request_id="u"))
        three.world.finish(fail=True)
        assert three.world.last(three.personal).encode() == b"u failed not-detached"
        three.world.ask(three.personal, Request("umount", request_id="u2"))
        three.world.settle()
        assert three.world.last(three.personal).encode() == b"u2 detached"

    def test_an_answer_to_what_was_not_asked_is_an_error_and_changes_nothing(self, three: Three) -> None:
        with pytest.raises(UnexpectedSignal, match="clean cannot take 'attached'"):
            three.world.machine.handle(m.Attached(m.PendriveId("p1")))
        assert three.world.phase() == "clean"


class TestDeaths:
    @pytest.mark.parametrize("steps", range(3))
    def test_the_receiver_ends_while_the_pendrive_is_under_way(self, three: Three, steps: int) -> None:
        """Before it left, before it arrived, or as it arrived: the sender has it again, or it was delivered."""
        three.world.ask(three.work, send("personal"))
        three.world.answer(True)
        for _ in range(steps):
            three.world.finish()
        three.world.stop(three.personal)
        three.world.settle()
        if steps < 2:
            assert three.world.attached == {(three.work.id, Slot.OUTGOING): "p1"}
            assert three.world.last(three.work).state == "failed"
        else:
            assert three.world.last(three.work).state == "delivered" and not three.world.images

    @pytest.mark.parametrize("steps", range(2))
    def test_the_sender_ends_after_the_allow_and_the_receiver_has_the_files(self, three: Three, steps: int) -> None:
        three.world.ask(three.work, send("personal"))
        three.world.answer(True)
        for _ in range(steps):
            three.world.finish()
        three.world.stop(three.work)
        three.world.settle()
        assert three.world.attached == {(three.personal.id, Slot.INCOMING): "p1"}

    def test_both_end_and_the_person_has_the_image(self, three: Three) -> None:
        three.world.ask(three.work, send("personal"))
        three.world.answer(True)
        three.world.finish()
        three.world.stop(three.work)
        three.world.stop(three.personal)
        three.world.settle()
        assert any("kept as" in notice for notice in three.world.notices)

    def test_the_sender_ends_while_it_is_being_given_back(self, three: Three) -> None:
        world = three.world
        world.ask(three.work, send("personal"))
        world.answer(True)
        world.finish()
        world.stop(three.personal)
        for _ in range(2):
            world.finish()
        assert world.phase() == "returning"
        event = world.carry_out(world.pending[0])
        world.die(three.work)
        world.handle(m.VmStopped(three.work.id))
        world.handle(event)
        world.settle()
        assert any("kept as" in notice for notice in world.notices)

    def test_the_sender_ends_while_the_question_is_open(self, three: Three) -> None:
        three.world.ask(three.work, send("personal"))
        three.world.stop(three.work)
        assert not three.world.questions
        three.world.settle()
        assert not three.world.images

    def test_the_receiver_restarts_between_question_and_answer(self, three: Three) -> None:
        """A domain id or a name may mean another run of another VM by then: the allow was for the first."""
        three.world.ask(three.work, send("personal"))
        (question,) = three.world.questions
        three.world.stop(three.personal)
        three.world.start("personal")
        three.world.handle(m.Answered(question, True, "allowed"))
        assert three.world.last(three.work).state == "denied" and three.world.phase() == "clean"

    def test_it_is_asked_again_for_a_pendrive_whose_receiver_has_ended_too(self, three: Three) -> None:
        three.world.ask(three.work, send("personal"))
        three.world.answer(True)
        three.world.stop(three.personal)
        three.world.stop(three.work)
        three.world.finish(fail=True)
        assert three.world.pending == [m.Detach(m.PendriveId("p1"), three.work, Slot.OUTGOING, again=True)]
        three.world.settle()
        assert any("kept as" in notice for notice in three.world.notices), "it had been allowed to leave"

    def test_a_hypervisor_in_trouble_is_asked_again_until_it_lets_a_dead_vm_go(self, three: Three) -> None:
        three.world.stop(three.work)
        three.world.finish(fail=True)
        (retry,) = three.world.pending
        assert retry == m.Detach(m.PendriveId("p1"), three.work, Slot.OUTGOING, again=True)
        three.world.settle()
        assert not three.world.images


class TestAnotherName:
    """A VM that is renamed has ended, and who runs on under the new name is somebody else: with its disks, until they are taken away."""

    def test_it_asks_and_is_found_under_the_new_one(self, three: Three) -> None:
        three.world.rename(three.personal, "old")
        renamed = three.world.rename(three.vault, "personal")
        three.world.ask(three.work, send("personal"))
        (question,) = three.world.questions.values()
        assert question.target == renamed

    def test_an_open_question_is_withdrawn_and_what_it_was_about_deleted(self, three: Three) -> None:
        three.world.ask(three.work, send("personal"))
        (question,) = three.world.questions
        three.world.rename(three.work, "old")
        three.world.handle(m.Answered(question, True, "allowed"))
        three.world.settle()
        assert not three.world.questions and not three.world.images and not three.world.attached

    def test_where_it_does_not_let_go_it_is_asked_again_and_sends_nothing_in_the_old_name(self, three: Three) -> None:
        renamed = three.world.rename(three.work, "old")
        three.world.finish(fail=True)
        assert three.world.pending == [m.Detach(m.PendriveId("p1"), three.work, Slot.OUTGOING, again=True)]
        three.world.ask(renamed, send("personal"))
        assert three.world.last(renamed).encode() == b"s failed discarding" and not three.world.questions
        three.world.ask(renamed, Request("new", request_id="n2"))
        assert three.world.last(renamed).encode() == b"n2 failed have-pendrive discarding"

    def test_its_slot_is_taken_until_it_has_let_go(self, three: Three) -> None:
        three.fill(three.vault)
        three.deliver(three.work, "personal")
        renamed = three.world.rename(three.personal, "old")
        three.world.finish(fail=True)
        three.world.ask(three.vault, send("old"))
        (question,) = three.world.questions.values()
        assert question.target == renamed and question.busy
        three.world.answer(True)
        assert three.world.last(three.vault).state == "queued"
        three.world.settle()
        assert three.world.attached == {(renamed.id, Slot.INCOMING): "p2"}

    def test_what_is_being_given_back_to_it_is_taken_away_again(self, three: Three) -> None:
        three.world.ask(three.work, send("personal"))
        three.world.answer(True)
        three.world.finish()
        three.world.finish(fail=True)
        three.world.finish()
        assert three.world.phase() == "returning"
        three.world.rename(three.work, "old")
        three.world.settle()
        assert not three.world.attached and any("kept as" in notice for notice in three.world.notices)

    def test_a_disposablevm_of_a_persons_own_runs_on(self, three: Three) -> None:
        vm = three.world.start("disp9", disposable=True)
        three.world.rename(vm, "mine")
        assert not three.world.dissolved

    def test_nothing_is_given_back_to_it(self, three: Three) -> None:
        three.world.ask(three.work, send("personal"))
        three.world.answer(True)
        renamed = three.world.rename(three.work, "old")
        three.world.stop(three.personal)
        three.world.settle()
        assert not three.world.attached and any("kept as" in notice for notice in three.world.notices)
        three.fill(renamed, "again")

    def test_a_request_that_it_repeats_is_answered_anew(self, three: Three) -> None:
        three.world.ask(three.work, send("personal"))
        renamed = three.world.rename(three.work, "old")
        three.world.ask(renamed, send("personal"))
        assert three.states(renamed)[-2:] == ["s asking", "s failed discarding"]

    def test_got_while_no_daemon_ran_it_ends_what_was_under_way(self, three: Three) -> None:
        three.world.ask(three.work, send("personal"))
        three.world.running[three.work.id] = RunningVm(three.work.id, VmName.parse("old"))
        three.world.restart()
        assert not three.world.questions and three.world.phase() == "discarding"
        three.world.settle()
        assert not three.world.images


class TestRestart:
    def test_a_clean_pendrive_is_still_the_senders(self, three: Three) -> None:
        three.world.restart()
        three.deliver(three.work, "personal")
        assert three.world.last(three.work).state == "delivered"

    def test_a_loaded_pendrive_is_still_the_receivers(self, three: Three) -> None:
        three.deliver(three.work, "personal")
        three.world.restart()
        three.world.ask(three.personal, Request("umount", request_id="u"))
        three.world.settle()
        assert three.world.last(three.personal).state == "detached" and not three.world.images

    def test_an_open_question_is_asked_again(self, three: Three) -> None:
        three.world.ask(three.work, send("personal"))
        three.world.restart()
        three.world.answer(True)
        three.world.settle()
        assert three.world.last(three.work).encode() == b"s delivered"

    def test_what_was_allowed_is_finished(self, three: Three) -> None:
        three.world.ask(three.work, send("personal"))
        three.world.answer(True)
        three.world.finish()
        three.world.restart()
        three.world.settle()
        assert three.world.last(three.work).encode() == b"s delivered"

    def test_the_queue_behind_a_loaded_pendrive_is_kept(self, three: Three) -> None:
        three.deliver(three.work, "personal")
        three.fill(three.vault)
        three.world.ask(three.vault, send("personal"))
        three.world.answer(True)
        three.world.restart()
        assert three.world.last(three.vault).state == "queued" and not three.world.pending
        three.world.ask(three.personal, Request("umount", request_id="u"))
        three.world.settle()
        assert three.world.announced[three.personal.id] == ("vault", 0, False)

    def test_a_pendrive_that_was_attached_before_that_was_written_down_is_attached(self) -> None:
        world = World()
        vm = world.start("work")
        world.ask(vm, Request("new", request_id="n"))
        world.finish()
        world.carry_out(world.pending[0])
        world.restart()
        assert world.last(vm).encode() == b"n attached" and world.phase() == "clean"

    def test_who_asked_to_send_to_a_vm_that_ended_meanwhile_is_denied_it(self, three: Three) -> None:
        three.world.ask(three.work, send("personal"))
        three.world.die(three.personal)
        three.world.restart()
        assert three.world.last(three.work).encode() == b"s denied" and three.world.phase() == "clean"

    def test_a_pendrive_that_was_being_made_is_given_up(self) -> None:
        world = World()
        vm = world.start("work")
        world.ask(vm, Request("new", request_id="n"))
        world.restart()
        world.settle()
        assert world.last(vm).encode() == b"n failed interrupted" and not world.journal

    @pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.GONE])
    @pytest.mark.parametrize("place", Place)
    @pytest.mark.parametrize("sender_runs", [True, False])
    @pytest.mark.parametrize("receiver_runs", [True, False])
    @pytest.mark.parametrize("course", [Course.COPY, Course.OUT])
    def test_every_phase_resumes_in_one_that_can_go_on(
        self, phase: Phase, place: Place, sender_runs: bool, receiver_runs: bool, course: Course
    ) -> None:
        resumed = resume(phase, place, sender_runs=sender_runs, receiver_runs=receiver_runs, course=course)
        assert any(start is resumed for start, _ in EDGES)
        assert resumed not in {Phase.WITHDRAWING, Phase.SALVAGING, Phase.HELD}
        if resumed is Phase.RESTORING:
            assert sender_runs and place is Place.AT_SENDER and course is Course.OUT
        if place is Place.AT_RECEIVER and phase not in {Phase.DELETING, Phase.KEEPING}:
            assert resumed in {Phase.LOADED, Phase.DETACHING, Phase.PULLING}
        if resumed in {Phase.CLEAN, Phase.ASKING, Phase.QUEUED, Phase.RETURNING}:
            assert sender_runs
        if resumed is Phase.KEEPING and phase is not Phase.KEEPING:
            assert course is Course.COPY, "of a document its asker has the original"

    @pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.GONE])
    @pytest.mark.parametrize("place", Place)
    @pytest.mark.parametrize("receiver_runs", [True, False])
    def test_a_document_on_its_way_back_is_deleted_only_if_its_receiver_has_said_that_it_has_it(
        self, phase: Phase, place: Place, receiver_runs: bool
    ) -> None:
        resumed = resume(phase, place, sender_runs=False, receiver_runs=receiver_runs, course=Course.BACK)
        assert any(start is resumed for start, _ in EDGES)
        assert resumed is not Phase.DELETING or phase in {Phase.DELETING, Phase.DETACHING}
        assert resumed is not Phase.DETACHING or phase is Phase.DETACHING
        assert resumed not in {Phase.RETURNING, Phase.CLEAN, Phase.DISCARDING}, "there is nobody to have it but its receiver"
        if resumed in {Phase.HELD, Phase.WITHDRAWING, Phase.LOADED}:
            assert receiver_runs


class TestTable:
    def test_every_phase_can_be_left_and_reached(self) -> None:
        assert {phase for phase, _ in EDGES} == set(Phase) - {Phase.GONE}
        assert {edge.phase for edge in EDGES.values()} == set(Phase) - {Phase.CREATING}

    def test_only_an_allow_or_a_free_receiver_lets_a_pendrive_leave(self) -> None:
        ways = {signal for (_, signal), edge in EDGES.items() if edge.phase is Phase.LEAVING}
        assert ways == {Signal.ALLOWED, Signal.SLOT_FREE, Signal.RESTORED, Signal.DETACH_AGAIN}

    def test_where_something_is_kept_a_copy_is_not(self) -> None:
        kept = {phase for (phase, _), edge in EDGES.items() if edge.phase is Phase.KEEPING} - {Phase.SALVAGING, Phase.HELD}
        assert {phase for phase, signal in EDGES if signal is Signal.SPARE} == kept, "SALVAGING and HELD are for what comes back"

    def test_the_diagram_has_every_edge(self) -> None:
        assert diagram().count("-->") == len(EDGES) + 1

    def test_an_unknown_pendrive_is_our_own_mistake(self) -> None:
        with pytest.raises(KeyError):
            Exchange(LIMITS).handle(m.Attached(m.PendriveId("none")))
