"""The exchange between real VMs: copies, refusals, deaths, restarts."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qfilexchg.lab import tree
from tests.machines import CHECKOUT
from tests.vm.lab import Lab, Vm
from tests.vm.person import Person
from tests.vm.steps import DEADLINE_S, PENCTL, daemon_process, ended, log, qemu, restart_daemon, rule, spool_is_empty, until, write_request

WAIT_MOUNTED = "for i in $(seq 300); do mountpoint -q /mnt/incoming && exit 0; sleep 0.1; done; exit 1"
WAIT_STATUS = 'for i in $(seq 150); do /usr/lib/qubes/qubes_penctl status | grep -q "$1" && exit 0; sleep 0.2; done; exit 1'


def sending(vm: Vm, target: str, name: str = "letter.txt") -> subprocess.Popen[bytes]:
    """qvm-copy-to-vm under way in a VM; its status is that of the returned process."""
    vm.output("sh", "-c", 'printf "Dear Bank, " > "$1"', "sh", name)
    return vm.lab.popen("qvm-run", vm.name, "qvm-copy-to-vm", target, name)


def receive(vm: Vm) -> dict[str, bytes]:
    """What lies on the incoming pendrive, which is then ejected."""
    assert vm.run("sh", "-c", WAIT_MOUNTED).returncode == 0, "nothing was mounted"
    names = vm.output("find", "/mnt/incoming", "-type", "f", "-printf", "%P\\n").splitlines()
    files = {name: vm.run("cat", f"/mnt/incoming/{name}").stdout for name in names}
    vm.output("umount", "/mnt/incoming")
    return files


@pytest.fixture(autouse=True)
def _tidy(lab: Lab) -> Iterator[None]:
    """Each test begins without rules and pendrives, and leaves none."""
    rule(lab, "# none")
    yield
    rule(lab, "# none")
    for name in ("work", "personal"):
        if lab.command("qvm-run", name, "true").returncode == 0:
            lab.command("qvm-run", name, PENCTL, "cancel")
            lab.command("qvm-run", name, "umount", "/mnt/incoming")
    spool_is_empty(lab)


class TestCopy:
    @pytest.mark.other_release
    def test_a_tree_of_files_arrives_byte_for_byte(self, lab: Lab, work: Vm, personal: Vm) -> None:
        source = Path(tree.__file__).read_bytes()
        done = work.run("python3", "-", "arrives", input=source)
        assert done.returncode == 0, done.stderr
        sums = 'cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum'
        times = "cd \"$1\" && find . -type f -printf '%T@ %P\\n' | sort"
        expected = work.output("sh", "-c", sums, "sh", "arrives"), work.output("sh", "-c", times, "sh", "arrives")
        with Person(lab.home.agent_socket) as person:
            copying = lab.popen("qvm-run", "work", "qvm-copy-to-vm", "personal", "arrives")
            question = person.answer(True)
            status, said = ended(copying)
        assert status == 0, said
        assert (question.source, question.target, question.busy) == ("work", "personal", False)
        size_bytes = int(done.stdout.split()[1])
        assert size_bytes <= question.size_bytes < size_bytes + (16 << 20)
        assert personal.run("sh", "-c", WAIT_MOUNTED).returncode == 0
        assert personal.output("sh", "-c", sums, "sh", "/mnt/incoming/arrives") == expected[0]
        assert personal.output("sh", "-c", times, "sh", "/mnt/incoming/arrives") == expected[1]
        personal.output("umount", "/mnt/incoming")
        work.output("rm", "-rf", "arrives")

    @pytest.mark.other_release
    def test_an_archive_keeps_what_a_pendrive_cannot(self, lab: Lab, work: Vm, personal: Vm) -> None:
        rule(lab, "work personal allow")
        make = 'mkdir -m 750 "a: b" && cd "a: b" && echo kept >"?" && chmod 4751 "?" && ln -s "?" link && touch -d @1.5 "?"'
        work.output("sh", "-c", make)
        status, said = ended(lab.popen("qvm-run", "work", "qvm-copy-to-vm", "--archive", "personal", "a: b"))
        assert status == 0, said
        assert personal.run("sh", "-c", WAIT_MOUNTED).returncode == 0
        look = "find 'a: b' -printf '%M %l %p\\n' | sort; cat 'a: b/link'; stat -c %.Y 'a: b/?'"
        there = personal.output("sh", "-c", f"tar -xpf /mnt/incoming/files.tar && {look}")
        assert there == work.output("sh", "-c", look) and "-rwsr-x--x" in there and "kept\n1.500000000\n" in there
        personal.output("umount", "/mnt/incoming")
        for vm in (work, personal):
            vm.output("rm", "-r", "a: b")

    def test_the_volume_carries_the_senders_name_and_nothing_on_it_can_run(self, lab: Lab, work: Vm, personal: Vm) -> None:
        rule(lab, "work personal allow")
        assert ended(sending(work, "personal"))[0] == 0
        assert personal.run("sh", "-c", WAIT_MOUNTED).returncode == 0
        options = set(personal.output("findmnt", "-no", "FSTYPE,OPTIONS", "/mnt/incoming").replace(",", " ").split())
        assert {"vfat", "nosuid", "nodev", "noexec"} <= options
        assert personal.output("stat", "-c", "%U", "/mnt/incoming/letter.txt") == "user\n"
        assert personal.output("blkid", "-p", "-o", "value", "-s", "LABEL", "/dev/xvdh", user="root") == "work\n"
        personal.output("umount", "/mnt/incoming")

    def test_a_terminal_shows_what_came_takes_it_out_and_ejects_it(self, lab: Lab, work: Vm, personal: Vm) -> None:
        rule(lab, "work personal allow")
        assert personal.run("qvm-incoming").stderr == b"qvm-incoming: no pendrive is here\n"
        work.output("sh", "-c", 'mkdir "a b" && echo one > "a b/-rf" && printf two > "$(printf \'a b/caf\\303\\251\')"')
        assert work.run("qvm-copy-to-vm", "personal", "a b").returncode == 0
        assert personal.run("sh", "-c", WAIT_MOUNTED).returncode == 0
        listed = personal.output("qvm-incoming")
        assert listed.startswith("From work, in /mnt/incoming:\n") and listed.endswith("2 files, 7 B\n")
        for _ in range(2):
            assert personal.run("qvm-incoming", "copy", "came in").returncode == 0
        assert personal.output("sh", "-c", "cd 'came in' && find . -type f | sort").splitlines() == [
            "./a b (from work)/-rf",
            "./a b (from work)/café",
            "./a b/-rf",
            "./a b/café",
        ]
        assert personal.output("cat", "came in/a b/-rf") == "one\n"
        held = lab.popen("qvm-run", "personal", "sh", "-c", "cd '/mnt/incoming/a b' && echo there && exec cat")
        assert held.stdout and held.stdout.readline() == b"there\n"
        in_use = personal.run("qvm-incoming", "eject")
        assert (in_use.returncode, in_use.stderr[:47]) == (6, b"qvm-incoming: something still uses the pendrive")
        ended(held)  # whose input ends by that
        assert personal.run("qvm-incoming", "eject").stderr == b"It is gone.\n"
        spool_is_empty(lab)
        work.output("rm", "-rf", "a b")
        personal.output("rm", "-rf", "came in")

    def test_a_pendrive_without_a_vfat_goes_back_at_once_and_is_not_mounted(self, lab: Lab, work: Vm, personal: Vm) -> None:
        rule(lab, "work personal allow")
        work.output(PENCTL, "new")
        wait = "for i in $(seq 50); do [ -e /dev/xvdg ] && break; sleep 0.1; done"
        work.output("sh", "-c", f"{wait}; dd if=/dev/urandom of=/dev/xvdg bs=1M count=4 conv=fsync", user="root")
        assert work.output(PENCTL, "send", "personal").split()[-1] == "delivered"
        spool_is_empty(lab)
        assert personal.run("mountpoint", "-q", "/mnt/incoming").returncode != 0

    def test_the_tools_of_2010_still_do_it_step_by_step(self, lab: Lab, work: Vm, personal: Vm) -> None:
        rule(lab, "work personal allow")
        assert work.output(PENCTL, "new").split() == ["accepted", "attached"]
        steps = "mount /mnt/outgoing && echo by hand > /mnt/outgoing/note && umount /mnt/outgoing"
        work.output("sh", "-c", f"for i in $(seq 50); do [ -e /dev/xvdg ] && break; sleep 0.1; done; {steps}")
        assert work.output(PENCTL, "send", "personal").split()[-1] == "delivered"
        assert receive(personal) == {"note": b"by hand\n"}

    def test_the_image_on_the_host_is_sparse_private_and_gone_after_use(self, lab: Lab, work: Vm) -> None:
        work.output(PENCTL, "new", "3000000000")
        (image,) = lab.home.spool.iterdir()
        status = image.stat()
        assert (status.st_mode & 0o777, image.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert 3_000_000_000 <= status.st_size < 3_000_000_000 + (1 << 20) and status.st_blocks * 512 < 32 << 20
        work.output(PENCTL, "cancel")
        spool_is_empty(lab)

    def test_a_pendrive_above_the_limit_is_refused_with_the_limit(self, work: Vm) -> None:
        done = work.run(PENCTL, "new", str(65 << 30))
        assert done.returncode == 5 and b"64.0 GiB" in done.stderr, done


class Terminal:
    """The real agent on a real terminal; the test is the person's eyes and fingers."""

    def __init__(self, lab: Lab) -> None:
        self._said = ""
        self._pid, self._master = pty.fork()
        if self._pid == 0:
            os.environ.update(lab.environment)
            os.execv(CHECKOUT / "bin/qfilexchg-agent", ["qfilexchg-agent", "--tty"])
        self.wait_for("Waiting for questions")

    def wait_for(self, text: str) -> str:
        """Read on until ``text`` has been said; return what was said up to there."""
        end = time.monotonic() + DEADLINE_S
        while text not in self._said:
            assert select.select([self._master], [], [], max(0, end - time.monotonic()))[0], f"no {text!r} in {self._said!r}"
            self._said += os.read(self._master, 4096).decode()
        before, _, self._said = self._said.partition(text)
        return before + text

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def close(self) -> None:
        os.close(self._master)
        os.waitpid(self._pid, 0)


class TestTerminalAgent:
    @pytest.fixture
    def terminal(self, lab: Lab, work: Vm, personal: Vm) -> Iterator[Terminal]:
        terminal = Terminal(lab)
        yield terminal
        terminal.close()

    @pytest.mark.other_release
    def test_yes_lets_the_files_go(self, terminal: Terminal, work: Vm, personal: Vm) -> None:
        copying = sending(work, "personal")
        question = terminal.wait_for("[y/N]")
        assert "work" in question and "personal" in question and "KiB" in question
        terminal.type("y\n")
        assert ended(copying)[0] == 0
        terminal.wait_for("delivered")
        assert list(receive(personal)) == ["letter.txt"]

    @pytest.mark.parametrize("typed", ["\n", "n\n", "yea\n", "\x04"])
    def test_anything_else_is_a_no(self, terminal: Terminal, work: Vm, typed: str) -> None:
        copying = sending(work, "personal")
        terminal.wait_for("[y/N]")
        terminal.type(typed)
        status, said = ended(copying)
        assert status == 3 and "refused by dom0" in said

    def test_what_is_typed_before_the_question_does_not_count(self, terminal: Terminal, work: Vm) -> None:
        terminal.type("y\ny\n")
        copying = sending(work, "personal")
        terminal.wait_for("[y/N]")
        assert ended(copying)[0] == 3, "no answer in time is a no"


class TestRefused:
    def test_no_agent_is_a_no(self, work: Vm, personal: Vm) -> None:
        status, said = ended(sending(work, "personal"))
        assert status == 3 and "refused by dom0" in said

    def test_the_person_says_no_and_the_pendrive_is_given_back(self, lab: Lab, work: Vm, personal: Vm) -> None:
        with Person(lab.home.agent_socket) as person:
            copying = sending(work, "personal")
            person.answer(False)
            assert ended(copying)[0] == 3
        spool_is_empty(lab)

    def test_no_answer_in_time_is_a_no(self, lab: Lab, work: Vm, personal: Vm) -> None:
        with Person(lab.home.agent_socket) as person:
            copying = sending(work, "personal")
            question = person.question()
            assert ended(copying)[0] == 3
            assert person.withdrawal() == question.id

    def test_unknown_stopped_and_own_vm_sound_the_same_to_the_vm_and_not_to_the_person(self, lab: Lab, work: Vm, personal: Vm) -> None:
        if "stopped" not in lab.succeed("qvm-ls").decode():
            lab.succeed("qvm-create", "stopped")
        heard = set()
        with Person(lab.home.agent_socket) as person:
            for target in ("nobody", "stopped", "work", "dom0"):
                work.output(PENCTL, "new")
                done = work.run(PENCTL, "send", target)
                heard.add((done.returncode, done.stdout, done.stderr))
                notice = person.notice("denied")
                assert notice.startswith("work → ") and ("runs" in notice or "itself" in notice or "dom0" in notice), notice
                work.output(PENCTL, "cancel")
            work.output(PENCTL, "new")
            denied = work.lab.popen("qvm-run", "work", PENCTL, "send", "personal")
            # A person takes longer than the VM takes to hear that they are asked.
            assert denied.stdout
            asked = denied.stdout.readline()
            person.answer(False)
            out, error = denied.communicate(timeout=DEADLINE_S)
            heard.add((denied.returncode, asked + out, error))
        assert len(heard) == 1, heard

    def test_send_without_a_pendrive_and_new_twice(self, work: Vm) -> None:
        done = work.run(PENCTL, "send", "personal")
        assert done.returncode == 1 and b"no such pendrive" in done.stderr
        work.output(PENCTL, "new")
        assert work.run(PENCTL, "new").returncode == 6

    @pytest.mark.parametrize("line", ["x" * 300, "new\x1b[2J\x07", "format c:", "send ../../etc/passwd", "send disposable"])
    def test_a_request_that_is_none_is_refused_and_escaped_in_the_log(self, lab: Lab, work: Vm, line: str) -> None:
        before = len(log(lab))
        assert write_request(work, line) == "- failed bad-request"
        entry = log(lab)[before:]
        assert "work: bad request" in entry and "\x1b" not in entry and max(map(len, entry.splitlines())) < 250
        assert work.output(PENCTL, "status") == "accepted outgoing=none incoming=none\n"

    def test_a_vm_cannot_write_the_keys_of_others_or_of_dom0(self, work: Vm, personal: Vm) -> None:
        domain = personal.record.vm.id.domain
        for path in (f"/local/domain/{domain}/device/qpen", "qubes_blocksrc", "qubes_qpen_reply", "name"):
            done = work.run("env", "XENSTORED_PATH=/dev/virtio-ports/org.qubes.xenstore", "xenstore-write", path, "x")
            assert done.returncode != 0, path
        assert work.run("env", "XENSTORED_PATH=/dev/virtio-ports/org.qubes.xenstore", "xenstore-ls", "/local/domain").returncode != 0

    def test_a_rule_denies_before_the_person_is_asked(self, lab: Lab, work: Vm, personal: Vm) -> None:
        rule(lab, "work personal deny")
        with Person(lab.home.agent_socket) as person:
            assert ended(sending(work, "personal"))[0] == 3
            assert "10-test.policy:1" in person.notice("denied")

    def test_a_rule_file_that_does_not_parse_denies_everything(self, lab: Lab, work: Vm, personal: Vm) -> None:
        rule(lab, "work personal allow\nwork personal perhaps")
        assert ended(sending(work, "personal"))[0] == 3
        assert "10-test.policy:2: a rule ends in allow, ask or deny" in log(lab)


class TestBusyReceiver:
    @pytest.fixture
    def vault(self, lab: Lab, work: Vm, personal: Vm) -> Vm:
        """A third VM; ``personal`` has a pendrive of ``work``'s already."""
        vault = lab.vm("vault")
        rule(lab, "work personal allow")
        assert ended(sending(work, "personal", "first"))[0] == 0
        assert personal.run("sh", "-c", WAIT_MOUNTED).returncode == 0
        return vault

    def test_the_person_is_asked_to_wait_and_transfers_go_in_order(self, lab: Lab, vault: Vm, work: Vm, personal: Vm) -> None:
        with Person(lab.home.agent_socket) as person:
            second = sending(vault, "personal", "second")
            assert person.answer(True).busy
            until(lambda: "asking → queued" in log(lab), "the second waits")
            third = sending(work, "personal", "third")
            assert person.answer(True).busy
            assert list(receive(personal)) == ["first"]
            assert ended(second)[0] == 0
            assert list(receive(personal)) == ["second"]
            assert ended(third)[0] == 0
            assert list(receive(personal)) == ["third"]

    def test_the_sender_can_cancel_its_wait(self, lab: Lab, vault: Vm, personal: Vm) -> None:
        with Person(lab.home.agent_socket) as person:
            waiting = vault.lab.popen("qvm-run", "vault", "sh", "-c", "echo x > f; qvm-copy-to-vm personal f & echo $!; wait $!")
            assert waiting.stdout
            pid = waiting.stdout.readline().decode().strip()
            person.answer(True)
            assert vault.run("sh", "-c", WAIT_STATUS, "sh", "outgoing=queued").returncode == 0
            vault.output("sh", "-c", "kill -INT $0", pid)
            assert ended(waiting)[0] == 130
            assert vault.output(PENCTL, "status") == "accepted outgoing=none incoming=none\n"
        assert list(receive(personal)) == ["first"]


class TestCancel:
    def test_ctrl_c_while_the_person_is_asked_takes_everything_back(self, lab: Lab, work: Vm, personal: Vm) -> None:
        with Person(lab.home.agent_socket) as person:
            copying = lab.popen("qvm-run", "work", "sh", "-c", "echo x > f; qvm-copy-to-vm personal f & echo $!; wait $!")
            assert copying.stdout
            pid = copying.stdout.readline().decode().strip()
            question = person.question()
            work.output("sh", "-c", "kill -INT $0", pid)
            assert person.withdrawal() == question.id
            assert ended(copying)[0] == 130
        spool_is_empty(lab)


class TestDeaths:
    def test_the_sender_dies_while_it_fills_the_pendrive(self, lab: Lab, work: Vm) -> None:
        work.output(PENCTL, "new")
        lab.succeed("qvm-kill", "work")
        spool_is_empty(lab)

    def test_the_sender_dies_while_the_person_is_asked(self, lab: Lab, work: Vm, personal: Vm) -> None:
        with Person(lab.home.agent_socket) as person:
            copying = sending(work, "personal")
            question = person.question()
            os.kill(qemu(work).pid, signal.SIGKILL)
            assert person.withdrawal() == question.id
        copying.communicate(timeout=DEADLINE_S)
        spool_is_empty(lab)

    def test_the_sender_dies_after_the_yes_and_the_receiver_has_the_files(self, lab: Lab, work: Vm, personal: Vm) -> None:
        with Person(lab.home.agent_socket) as person:
            copying = sending(work, "personal")
            process = qemu(work)
            question = person.question()
            os.kill(process.pid, signal.SIGSTOP)
            person.say(question, True)
            until(lambda: log(lab).rstrip().endswith("asking → leaving"), "it leaves")
            os.kill(process.pid, signal.SIGKILL)
        copying.communicate(timeout=DEADLINE_S)
        assert receive(personal) == {"letter.txt": b"Dear Bank, "}

    def test_the_receiver_dies_while_the_person_is_asked(self, lab: Lab, work: Vm, personal: Vm) -> None:
        with Person(lab.home.agent_socket) as person:
            copying = sending(work, "personal")
            question = person.question()
            lab.succeed("qvm-kill", "personal")
            assert person.withdrawal() == question.id
            assert ended(copying)[0] == 3
        assert work.output("cat", "letter.txt") == "Dear Bank, "

    def test_the_receiver_dies_before_the_pendrive_arrives_and_it_goes_home(self, lab: Lab, work: Vm, personal: Vm) -> None:
        rule(lab, "work personal allow")
        process = qemu(personal)
        os.kill(process.pid, signal.SIGSTOP)
        copying = sending(work, "personal")
        until(lambda: log(lab).rstrip().endswith("leaving → arriving"), "it is on its way")
        os.kill(process.pid, signal.SIGKILL)
        status, said = ended(copying)
        assert status == 1 and "could not take" in said, said
        spool_is_empty(lab)

    @pytest.mark.other_release
    def test_the_receiver_dies_with_the_pendrive_and_nothing_is_left(self, lab: Lab, work: Vm, personal: Vm) -> None:
        rule(lab, "work personal allow")
        assert ended(sending(work, "personal"))[0] == 0
        lab.succeed("qvm-kill", "personal")
        spool_is_empty(lab)


class TestRestartedDaemon:
    def test_a_pendrive_that_lay_clean_can_still_be_filled_and_sent(self, lab: Lab, work: Vm, personal: Vm) -> None:
        rule(lab, "work personal allow")
        work.output(PENCTL, "new")
        restart_daemon(lab)
        assert work.output(PENCTL, "status") == "accepted outgoing=clean incoming=none\n"
        assert work.output(PENCTL, "send", "personal").split()[-1] == "delivered"
        assert receive(personal) == {}

    def test_a_loaded_pendrive_can_still_be_ejected(self, lab: Lab, work: Vm, personal: Vm) -> None:
        rule(lab, "work personal allow")
        assert ended(sending(work, "personal"))[0] == 0
        restart_daemon(lab)
        assert list(receive(personal)) == ["letter.txt"]
        spool_is_empty(lab)

    @pytest.mark.other_release
    @pytest.mark.parametrize("stopped", ["work", "personal"])
    def test_a_transfer_under_way_is_finished(self, lab: Lab, work: Vm, personal: Vm, stopped: str) -> None:
        rule(lab, "work personal allow")
        held = qemu(lab.vm(stopped))
        work.output(PENCTL, "new")
        copying = lab.popen("qvm-run", "work", PENCTL, "send", "personal")
        if stopped == "personal":
            os.kill(held.pid, signal.SIGSTOP)
            until(lambda: log(lab).rstrip().endswith("arriving"), "it is on its way")
        else:
            until(lambda: "→ asking" in log(lab).rpartition("→ clean")[2], "it is sent")
        process = daemon_process(lab)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(10)
        os.kill(held.pid, signal.SIGCONT)
        lab.succeed("qfilexchg", "up")
        assert ended(copying)[0] == 0
        assert receive(personal) == {}

    def test_an_open_question_is_put_again_and_nobody_is_a_no(self, lab: Lab, work: Vm, personal: Vm) -> None:
        with Person(lab.home.agent_socket) as person:
            copying = sending(work, "personal")
            person.question()
            restart_daemon(lab)
        assert ended(copying)[0] == 3
        spool_is_empty(lab)

    def test_a_second_daemon_says_so_and_ends(self, lab: Lab, work: Vm) -> None:
        done = lab.command("qfilexchgd")
        assert done.returncode == 1 and f"runs already, as process {daemon_process(lab).pid};" in done.stderr.decode()


class TestFullDisk:
    @pytest.fixture
    def small(self, lab_of_its_own: Lab) -> Lab:
        """A home whose spool is a filesystem of 64 MiB, in a mount namespace of its daemon's and VM's own."""
        lab = lab_of_its_own
        spool = str(lab.home.spool)
        unshare = ("unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",)))
        script = 'mount -t tmpfs -o size=64m,mode=700 tmpfs "$1" && "$2/qfilexchg" up && "$2/qvm-create" work && exec "$2/qvm-start" work'
        command = [*unshare, "sh", "-c", script, "sh", spool, str(CHECKOUT / "bin")]
        subprocess.run(command, env=lab.environment, check=True, timeout=240, stdin=subprocess.DEVNULL)
        return lab

    def test_the_sender_sees_an_error_gives_up_and_everything_goes_on(self, small: Lab) -> None:
        work = small.vm("work")
        work.output("sh", "-c", "head -c 120000000 /dev/urandom > big")
        done = work.run("qvm-copy-to-vm", "personal", "big")
        assert done.returncode == 1, done
        assert b"error" in done.stderr.lower(), done.stderr
        assert work.output(PENCTL, "status") == "accepted outgoing=none incoming=none\n"
        work.output("sh", "-c", "head -c 1000000 big > small")
        assert work.run("qvm-copy-to-vm", "personal", "small").returncode == 3, "it is filled, and refused as there is no such VM"
