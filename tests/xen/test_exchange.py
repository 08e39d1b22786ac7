"""The exchange on genuine Xen: copies, answers, and a receiver that is busy."""

from __future__ import annotations

from tests.xen.dom0 import AGENT_SOCKET, Dom0
from tests.xen.steps import PENCTL, given, receive, received, sending
from tests.xen.vm import XenVm

_MAKE_TREE = """
mkdir -p arrives/deep/er 'arrives/with blank é'
head -c 3000000 /dev/urandom > arrives/deep/er/data
head -c 12345 /dev/urandom > 'arrives/with blank é/-option'
touch arrives/empty
"""
_SUMS = 'cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum'


class TestCopy:
    def test_a_tree_arrives_byte_for_byte_is_ejected_and_nothing_is_left(self, dom0: Dom0, work: XenVm, personal: XenVm) -> None:
        sent = work.sh(f"({_MAKE_TREE}) && {_SUMS}", "arrives")
        assert len(sent.splitlines()) == 3
        with dom0.person() as person:
            copying = work.popen("qvm-copy-to-vm", "personal", "arrives")
            question = person.answer(True)
            done = copying.wait()
            assert done.returncode == 0, done.stderr
            assert "delivered" in person.notice("work → personal")
        assert (question.source, question.target, question.busy) == ("work", "personal", False)
        assert (question.source_label, question.target_label) == ("green", "blue")
        assert 3_012_345 <= question.size_bytes < 3_012_345 + (1 << 20)
        wait = "for i in $(seq 600); do mountpoint -q /mnt/incoming && break; sleep 0.1; done"
        look = "findmnt -no FSTYPE,OPTIONS /mnt/incoming; stat -c %U /mnt/incoming/arrives/empty"
        arrived = personal.sh(f"{wait}; {_SUMS}; {look}; cd /; umount /mnt/incoming", "/mnt/incoming/arrives")
        sums, mount, owner = arrived[: len(sent)], *arrived[len(sent) :].splitlines()
        assert sums == sent
        assert {"vfat", "nosuid", "nodev", "noexec"} <= set(mount.replace(",", " ").split())
        assert owner == "user"
        dom0.nothing_left()
        assert work.output(PENCTL, "status") == "accepted outgoing=none incoming=none\n"


class TestAnswers:
    def test_a_rule_allows_and_the_persons_agent_on_a_terminal_is_only_told(self, dom0: Dom0, work: XenVm, personal: XenVm) -> None:
        dom0.rule("work personal allow")
        agent = dom0.popen("qfilexchg-agent", "--tty", user="user", window=(25, 80))
        agent.until(b"Waiting for questions")
        assert sending(work, "personal").wait().returncode == 0
        assert receive(personal) == received()
        agent.until(b"delivered")
        assert "[y/N]" not in agent.said
        agent.close()
        dom0.nothing_left()

    def test_asked_on_a_terminal_the_person_says_no_and_then_yes(self, dom0: Dom0, work: XenVm, personal: XenVm) -> None:
        agent = dom0.popen("qfilexchg-agent", "--tty", user="user", window=(25, 80))
        agent.until(b"Waiting for questions")
        for typed, status in ((b"n\r", 3), (b"y\r", 0)):
            copying = sending(work, "personal")
            question = agent.until(b"[y/N]")
            assert b"work" in question and b"personal" in question
            agent.write(typed)
            done = copying.wait()
            assert done.returncode == status, done.stderr
            assert (b"refused by dom0" in done.stderr) == (status == 3)
        assert receive(personal) == received()
        agent.close()
        dom0.nothing_left()

    def test_denied_by_a_rule_for_want_of_an_agent_and_for_want_of_a_vm_sounds_the_same(self, dom0: Dom0, work: XenVm) -> None:
        heard = set()
        dom0.rule("work personal deny")
        for target in ("personal", "nobody"):
            done = sending(work, target).wait()
            heard.add((done.returncode, done.stderr.replace(target.encode(), b"VM")))
        dom0.rule("# none")
        done = sending(work, "personal").wait()
        heard.add((done.returncode, done.stderr.replace(b"personal", b"VM")))
        assert len(heard) == 1 and heard.pop()[0] == 3, heard
        dom0.logged("10-test.policy:1", "no agent runs that could ask")
        dom0.nothing_left()

    def test_only_root_and_the_group_can_be_an_agent(self, dom0: Dom0) -> None:
        refused = dom0.run("runuser", "-u", "nobody", "--", "socat", "-", f"UNIX-CONNECT:{AGENT_SOCKET}")
        assert refused.returncode != 0 and b"Permission denied" in refused.stderr


class TestBusyReceiver:
    def test_the_person_is_asked_to_wait_and_the_second_comes_after_the_eject(self, dom0: Dom0, work: XenVm, personal: XenVm) -> None:
        dom0.rule("work personal allow")
        assert sending(work, "personal", "first").wait().returncode == 0
        with dom0.person() as person:
            second = sending(work, "personal", "second")
            assert person.answer(True).busy
            dom0.logged("asking → queued")
            assert receive(personal) == received("first")
            done = second.wait()
            assert done.returncode == 0, done.stderr
        assert receive(personal) == received("second")
        dom0.nothing_left()


class TestStepByStep:
    def test_the_tools_of_2010_still_do_it(self, dom0: Dom0, work: XenVm, personal: XenVm) -> None:
        dom0.rule("work personal allow")
        given(work)
        work.sh("for i in $(seq 100); do [ -e /dev/xvdg ] && break; sleep 0.1; done; mount /mnt/outgoing")
        work.sh("printf 'Dear Bank, ' > /mnt/outgoing/note && umount /mnt/outgoing")
        said = dom0.output("qvm-run", "work", PENCTL, "send", "personal").split()
        assert said[-1] == "delivered", said
        assert receive(personal) == received("note")
        dom0.nothing_left()
