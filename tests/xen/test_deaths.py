"""VMs that are destroyed in the middle of a transfer, and a daemon that is killed at each of its stages."""

from __future__ import annotations

from tests.xen.dom0 import Dom0
from tests.xen.steps import INCOMING, LETTER, OUTGOING, PENCTL, given, holders, paused, receive, received, sending
from tests.xen.vm import XenVm


class TestTheSender:
    def test_destroyed_while_it_has_the_pendrive_it_leaves_nothing(self, dom0: Dom0, work: XenVm) -> None:
        given(work)
        assert holders(dom0) == [f"{work.domain}/{OUTGOING}"]
        work.destroy()
        dom0.nothing_left()

    def test_destroyed_while_the_person_is_asked_the_question_is_taken_back(self, dom0: Dom0, work: XenVm) -> None:
        with dom0.person() as person:
            copying = sending(work, "personal")
            question = person.question()
            work.destroy()
            assert person.withdrawal() == question.id
            copying.close()
        dom0.nothing_left()

    def test_destroyed_after_the_yes_the_receiver_has_the_files(self, dom0: Dom0, work: XenVm, personal: XenVm) -> None:
        with dom0.person() as person:
            copying = sending(work, "personal")
            question = person.question()
            with paused(work):
                person.say(question, True)
                dom0.logged("asking → leaving")
                dom0.output("xl", "destroy", work.domain)
            copying.close()
        assert receive(personal) == received()
        dom0.nothing_left()


class TestTheReceiver:
    def test_destroyed_while_the_person_is_asked_the_sender_is_refused(self, dom0: Dom0, work: XenVm, personal: XenVm) -> None:
        with dom0.person() as person:
            copying = sending(work, "personal")
            question = person.question()
            personal.destroy()
            assert person.withdrawal() == question.id
            assert copying.wait().returncode == 3
        assert work.output("cat", "letter.txt") == LETTER
        dom0.nothing_left()

    def test_destroyed_before_it_takes_the_pendrive_it_goes_home(self, dom0: Dom0, work: XenVm, personal: XenVm) -> None:
        dom0.rule("work personal allow")
        with paused(personal):
            copying = sending(work, "personal")
            dom0.logged("leaving → arriving")
            dom0.until('xenstore-exists "$1"', f"/local/domain/0/backend/vbd/{personal.domain}/{INCOMING}")
            dom0.output("xl", "destroy", personal.domain)
        done = copying.wait()
        assert done.returncode == 1 and b"could not take" in done.stderr, done.stderr
        assert work.output("cat", "letter.txt") == LETTER
        dom0.nothing_left()

    def test_destroyed_with_the_pendrive_mounted_it_leaves_nothing(self, dom0: Dom0, work: XenVm, personal: XenVm) -> None:
        dom0.rule("work personal allow")
        assert sending(work, "personal").wait().returncode == 0
        personal.sh("for i in $(seq 600); do mountpoint -q /mnt/incoming && break; sleep 0.1; done")
        assert holders(dom0) == [f"{personal.domain}/{INCOMING}"]
        personal.destroy()
        dom0.nothing_left()


class TestTheDaemon:
    def test_killed_at_each_stage_of_a_transfer_it_finishes_it(self, dom0: Dom0, work: XenVm, personal: XenVm) -> None:
        given(work)
        dom0.kill_daemon()
        assert work.output(PENCTL, "status") == "accepted outgoing=clean incoming=none\n"
        with dom0.person() as person:
            copying = work.popen(PENCTL, "send", "personal")
            person.question()
            # It puts the question again, which this rule then answers.
            dom0.rule("work personal allow")
            with paused(work):
                dom0.kill_daemon()
                dom0.logged("asking → leaving")
                dom0.kill_daemon()
                dom0.output("xl", "pause", personal.domain)
            dom0.logged("leaving → arriving")
            dom0.kill_daemon()
            dom0.output("xl", "unpause", personal.domain)
            assert copying.wait().stdout.split()[-1] == b"delivered"
        assert holders(dom0) == [f"{personal.domain}/{INCOMING}"]
        dom0.kill_daemon()
        assert personal.output(PENCTL, "status") == "accepted outgoing=none incoming=loaded\n"
        personal.sh("umount /mnt/incoming")
        dom0.nothing_left()

    def test_killed_while_the_person_is_asked_nobody_is_a_no(self, dom0: Dom0, work: XenVm) -> None:
        with dom0.person() as person:
            copying = sending(work, "personal")
            person.question()
            dom0.kill_daemon()
        assert copying.wait().returncode == 3
        dom0.nothing_left()
