"""Documents in DisposableVMs: opened, edited, returned; refused; and what is left when something dies."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from qfilexchg.dom0.vms.collection import Collection
from qfilexchg.dom0.vms.qemu.hypervisor import running
from qfilexchg.dom0.vms.savefile import current
from qfilexchg.dom0.vms.services import toolstack_lock
from qfilexchg.protocol.names import VmName
from tests.machines import EDITOR
from tests.vm.lab import Lab, Vm
from tests.vm.person import Person
from tests.vm.steps import DEADLINE_S, PENCTL, daemon_process, ended, log, qemu, restart_daemon, rule, spool_is_empty, until

XENSTORE = ("env", "XENSTORED_PATH=/dev/virtio-ports/org.qubes.xenstore")


def opening(vm: Vm, name: str, *options: str) -> subprocess.Popen[bytes]:
    """qvm-open-in-dvm under way in a VM."""
    return vm.lab.popen("qvm-run", vm.name, "qvm-open-in-dvm", *options, name)


@contextmanager
def deadline(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill a process that has not said what is waited for in time."""
    timer = threading.Timer(DEADLINE_S, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def write(vm: Vm, name: str, text: str) -> None:
    done = vm.run("sh", "-c", 'cat > "$1"', "sh", name, input=text.encode())
    assert done.returncode == 0, done.stderr


def read(vm: Vm, name: str) -> str:
    return vm.run("cat", name).stdout.decode()


def edit(vm: Vm, text: str, name: str = "letter.txt", *options: str) -> tuple[int, str, str]:
    """Open a document with ``text`` in a DisposableVM; the status, what was said, and the document afterwards."""
    write(vm, name, text)
    status, said = ended(opening(vm, name, *options))
    return status, said, read(vm, name)


def disposables(lab: Lab) -> list[Vm]:
    """The DisposableVMs that run, the oldest first."""
    found = [record.vm for record in running(lab.home).values() if re.fullmatch(r"disp\d+", record.vm.name)]
    return [Vm(lab, vm.name) for vm in sorted(found, key=lambda vm: vm.id.domain)]


def documents(lab: Lab) -> dict[str, str]:
    """The last state of each document's DisposableVM, by the daemon's log."""
    return dict(re.findall(r"(disp\d+), \w+'s document \d+: (.+)", log(lab)))


def opened(lab: Lab, count: int = 1) -> list[Vm]:
    """Wait until so many documents are open, and return the DisposableVMs that have them."""

    def are_open() -> bool:
        return sum(documents(lab).get(vm.name) == "open" for vm in disposables(lab)) == count

    until(are_open, f"{count} documents are open")
    return disposables(lab)


def nothing_is_left(lab: Lab) -> None:
    """No DisposableVM, no record of one, no file of one, no pendrive."""
    until(lambda: not disposables(lab), "no DisposableVM runs")
    until(lambda: not [vm.name for vm in Collection(lab.home.collection).list() if vm.asker], "no DisposableVM is recorded")
    until(lambda: not list((lab.home.data / "vms").glob("disp*")), "no file of a DisposableVM is left")
    spool_is_empty(lab)


def go(vm: Vm, text: str = "") -> None:
    """Let the editor that waits in a DisposableVM add ``text`` and end."""
    vm.run("sh", "-c", "cat > /tmp/go.part && mv /tmp/go.part /tmp/go", input=text.encode())


def send_raw(vm: Vm, data: bytes, target: str) -> subprocess.CompletedProcess[bytes]:
    """What a hostile VM does: put ``data`` on a pendrive and send it."""
    vm.output(PENCTL, "new", str(1 << 20))
    script = "import sys; f = open('/dev/xvdg', 'r+b', buffering=0); f.write(sys.stdin.buffer.read()); import os; os.fsync(f.fileno())"
    wait = "for i in $(seq 100); do [ -w /dev/xvdg ] && break; sleep 0.05; done"
    done = vm.run("sh", "-c", f'{wait}; exec python3 -c "$1"', "sh", script, input=data)
    assert done.returncode == 0, done.stderr
    return vm.run(PENCTL, "send", *target.split())


def stage(vm: Vm, seq: int) -> str:
    """What dom0 tells a VM of its document."""
    return vm.run(*XENSTORE, "xenstore-read", f"qubes_documents/{seq}").stdout.decode().strip()


def header(size_bytes: int, name: bytes) -> bytes:
    return struct.pack("<Q1016s", size_bytes, name)


@pytest.fixture(scope="module", autouse=True)
def _savefile(lab: Lab) -> None:
    lab.vm("work")
    lab.succeed("qvm-create-default-dvm", "--default-template", EDITOR)


@pytest.fixture(autouse=True)
def _tidy(lab: Lab) -> Iterator[None]:
    """Each test begins without rules, pendrives and DisposableVMs, and leaves none."""
    rule(lab, "# none")
    yield
    rule(lab, "# none")
    for vm in disposables(lab):
        lab.command("qvm-kill", vm.name)
    if lab.command("qvm-run", "work", "true").returncode == 0:
        lab.command("qvm-run", "work", PENCTL, "cancel")
        lab.command("qvm-run", "work", "umount", "/mnt/incoming")
    nothing_is_left(lab)


class TestRoundTrip:
    @pytest.mark.other_release
    def test_an_edit_comes_back_whole_and_the_vm_is_gone(self, lab: Lab, work: Vm) -> None:
        status, said, text = edit(work, "append\n")
        assert (status, bool(re.fullmatch(r"append\nedited in disp\d+\n", text))) == (0, True), (said, text)
        assert re.search(r"handed to dom0\n.*returned: letter.txt now has the changes of disp\d+\n", said, re.DOTALL), said
        nothing_is_left(lab)
        assert work.output("ls", "-A", ".dvm") == "seq\n"

    @pytest.mark.parametrize("first_line", ["nothing", "same"])
    def test_what_is_closed_as_it_came_is_left_alone(self, lab: Lab, work: Vm, first_line: str) -> None:
        write(work, "letter.txt", f"{first_line}\n")
        before = work.output("stat", "-c", "%i %Y %Z", "letter.txt")
        status, said = ended(opening(work, "letter.txt"))
        assert status == 0 and "was not changed" in said, said
        assert work.output("stat", "-c", "%i %Y %Z", "letter.txt") == before

    def test_an_emptied_document_is_a_changed_one(self, work: Vm) -> None:
        status, said, text = edit(work, "empty\n")
        assert (status, text) == (0, ""), said

    def test_an_editor_that_goes_into_the_background_is_waited_for(self, work: Vm) -> None:
        status, said, text = edit(work, "fork\n")
        assert (status, text) == (0, "fork\nedited later\n"), said

    def test_an_edit_of_the_same_size_by_another_inode_is_seen(self, work: Vm) -> None:
        status, said, text = edit(work, "replace\nold\n")
        assert (status, text) == (0, "replace\nnew\n"), said

    def test_view_only_brings_nothing_back_and_the_daemon_refuses_it_too(self, lab: Lab, work: Vm) -> None:
        write(work, "letter.txt", "wait\n")
        looking = opening(work, "letter.txt", "--view-only")
        (vm,) = opened(lab)
        assert vm.output("stat", "-c", "%a", "/tmp/letter.txt") == "400\n"
        seq = int(vm.output(*XENSTORE, "xenstore-read", "qubes_transaction_seq"))
        done = send_raw(vm, header(4, b"letter.txt") + b"evil", f"work {seq}")
        assert done.returncode == 3, done
        vm.output(PENCTL, "cancel")
        vm.output("chmod", "600", "/tmp/letter.txt")
        go(vm, "more\n")
        status, said = ended(looking)
        assert (status, read(work, "letter.txt")) == (0, "wait\n"), said

    @pytest.mark.parametrize(
        "name", ["two words.txt", "写真 и письмо.txt", "-rf", "$(reboot);'\"%f.txt", "a" * 251 + ".txt", "no extension"]
    )
    def test_any_name_is_opened_and_comes_back(self, work: Vm, name: str) -> None:
        write(work, f"./{name}", "append\n")
        status, said = ended(opening(work, f"./{name}"))
        assert status == 0 and "edited in disp" in read(work, f"./{name}"), said
        work.output("rm", "--", name)

    def test_a_document_larger_than_the_disposablevms_memory(self, work: Vm) -> None:
        work.output("sh", "-c", "(echo append; head -c 300M /dev/urandom; echo) > big.txt; sha256sum < big.txt > big.sum")
        status, said = ended(opening(work, "big.txt"))
        assert status == 0, said
        assert work.output("sh", "-c", f"head -c {(300 << 20) + 8} big.txt | sha256sum -c big.sum; tail -n 1 big.txt | cut -c 1-9") == (
            "-: OK\nedited in\n"
        )
        work.output("rm", "big.txt", "big.sum")

    def test_the_files_mode_is_kept_and_a_links_target_is_what_changes(self, work: Vm) -> None:
        prepare = "mkdir -p real; printf 'append\\n' > real/letter.txt; chmod 0640 real/letter.txt; ln -sf real/letter.txt link.txt"
        work.output("sh", "-c", prepare)
        status, said = ended(opening(work, "link.txt"))
        assert status == 0, said
        assert work.output("sh", "-c", "stat -c '%F %a %U' real/letter.txt; readlink link.txt; tail -n 1 link.txt | cut -c 1-9") == (
            "regular file 640 user\nreal/letter.txt\nedited in\n"
        )

    def test_two_documents_at_once_do_not_mix_up(self, lab: Lab, work: Vm) -> None:
        processes = []
        for number in range(2):
            write(work, f"{number}.txt", "wait\n")
            processes.append(opening(work, f"{number}.txt"))
            opened(lab, number + 1)
        for vm in reversed(disposables(lab)):
            go(vm, vm.output("sh", "-c", "ls /tmp/*.txt"))
        assert [ended(process)[0] for process in processes] == [0, 0]
        assert [read(work, f"{number}.txt") for number in range(2)] == ["wait\n/tmp/0.txt\n", "wait\n/tmp/1.txt\n"]

    def test_eight_at_once_all_work_and_a_ninth_is_refused(self, lab: Lab, work: Vm) -> None:
        for number in range(9):
            write(work, f"many{number}.txt", "wait\n")
        for number in range(8):
            assert work.run("qvm-open-in-dvm", "--no-wait", f"many{number}.txt").returncode == 0
        opened(lab, 8)
        done = work.run("qvm-open-in-dvm", "many8.txt")
        assert done.returncode == 1 and b"as many DisposableVMs run as it allows" in done.stderr, done
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda vm: go(vm, vm.output("hostname")), disposables(lab)))
        nothing_is_left(lab)
        for number in range(8):
            until(partial(self._is_back, work, f"many{number}.txt"), f"document {number} is back")

    def _is_back(self, work: Vm, name: str) -> bool:
        return re.fullmatch(r"wait\ndisp\d+\n", read(work, name)) is not None

    def test_no_program_for_the_type_is_said_and_the_vm_ends(self, lab: Lab, work: Vm) -> None:
        status, said, _ = edit(work, "\x89PNG\r\n", "picture.png")
        assert status == 8 and "no program" in said, said
        nothing_is_left(lab)

    def test_ctrl_c_destroys_the_vm_and_leaves_the_file(self, lab: Lab, work: Vm) -> None:
        write(work, "letter.txt", "forever\n")
        before = work.output("ls", "-A", ".dvm")
        process = lab.popen("qvm-run", "work", "sh", "-c", "qvm-open-in-dvm letter.txt & echo $!; wait $!")
        assert process.stdout
        pid = process.stdout.readline().decode().strip()
        opened(lab)
        work.output("sh", "-c", "kill -INT $0", pid)
        assert ended(process)[0] == 130
        nothing_is_left(lab)
        assert (work.output("ls", "-A", ".dvm"), read(work, "letter.txt")) == (before, "forever\n")

    @pytest.mark.other_release
    def test_a_shutdown_of_the_disposablevm_returns_the_edit(self, lab: Lab, work: Vm) -> None:
        write(work, "letter.txt", "forever\n")
        process = opening(work, "letter.txt")
        (vm,) = opened(lab)
        vm.output("sh", "-c", "echo by hand >> /tmp/letter.txt")
        lab.command("qvm-shutdown", vm.name)
        status, said = ended(process)
        assert (status, read(work, "letter.txt")) == (0, "forever\nby hand\n"), said

    def test_the_question_names_a_disposablevm_when_a_rule_asks(self, lab: Lab, work: Vm) -> None:
        rule(lab, "work disposable ask")
        write(work, "letter.txt", "append\n")
        with Person(lab.home.agent_socket) as person:
            process = opening(work, "letter.txt")
            assert person.answer(False).target is None
            assert ended(process)[0] == 3
        assert read(work, "letter.txt") == "append\n"


class TestOriginal:
    def change(self, lab: Lab, work: Vm, *command: str) -> tuple[int, str]:
        """Open a document, do something to the original, and let the edit come back."""
        write(work, "letter.txt", "wait\n")
        process = opening(work, "letter.txt")
        (vm,) = opened(lab)
        work.output(*command)
        go(vm, "edited there\n")
        return ended(process)

    def beside(self, work: Vm) -> str:
        return work.output("sh", "-c", "cat letter.txt\\ \\(edited\\ in\\ disp*; rm letter.txt\\ \\(edited\\ in\\ disp*")

    def test_one_that_changed_meanwhile_is_kept_and_the_edit_is_beside_it(self, lab: Lab, work: Vm) -> None:
        status, said = self.change(lab, work, "sh", "-c", "echo edited here >> letter.txt")
        assert status == 7 and "(edited in disp" in said, said
        assert (read(work, "letter.txt"), self.beside(work)) == ("wait\nedited here\n", "wait\nedited there\n")

    def test_one_that_was_removed_stays_so_and_the_edit_is_there(self, lab: Lab, work: Vm) -> None:
        status, said = self.change(lab, work, "rm", "letter.txt")
        assert status == 7, said
        assert self.beside(work) == "wait\nedited there\n"
        assert work.run("test", "-e", "letter.txt").returncode == 1

    def test_one_in_a_folder_that_cannot_be_written_leaves_the_edit_in_the_home(self, lab: Lab, work: Vm) -> None:
        work.output("sh", "-c", "mkdir -p ro; printf 'append\\n' > ro/fixed.txt; chmod 0555 ro")
        status, said = ended(opening(work, "ro/fixed.txt"))
        assert status == 7 and "fixed.txt (edited in disp" in said, said
        assert "edited in disp" in work.output("sh", "-c", "cat ~/fixed.txt\\ \\(edited\\ in\\ disp*; rm ~/fixed.txt\\ *")
        assert work.output("sh", "-c", "ls -A ro; cat ro/fixed.txt; chmod 0755 ro; rm -r ro") == "fixed.txt\nappend\n"

    def test_an_edit_that_waits_for_the_place_of_another_pendrive_says_so(self, lab: Lab, work: Vm, personal: Vm) -> None:
        rule(lab, "personal work allow")
        write(personal, "other.txt", "x")
        assert personal.run("qvm-copy-to-vm", "work", "other.txt").returncode == 0
        until(lambda: work.run("mountpoint", "-q", "/mnt/incoming").returncode == 0, "it is mounted")
        write(work, "letter.txt", "append\n")
        process = opening(work, "letter.txt")
        assert process.stderr
        with deadline(process):
            assert any(b"unmount /mnt/incoming: the document waits for that" in line for line in process.stderr)
        work.output("umount", "/mnt/incoming")
        status, said = ended(process)
        assert status == 0 and "edited in disp" in read(work, "letter.txt"), said

    def test_other_accounts_are_told_that_their_documents_would_not_come_back(self, work: Vm) -> None:
        done = work.run("qvm-open-in-dvm", "/etc/hostname", user="root")
        assert done.returncode == 4 and b"only documents of the account user can come back" in done.stderr, done


class TestIdentity:
    @pytest.mark.other_release
    def test_two_from_one_savefile_are_two_vms(self, lab: Lab, work: Vm) -> None:
        for number in range(2):
            write(work, f"{number}.txt", "forever\n")
            assert work.run("qvm-open-in-dvm", "--no-wait", f"{number}.txt").returncode == 0
        script = "hostname; cat /etc/machine-id /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -An -tx1; date +%s"
        first, second = (vm.output("sh", "-c", script).splitlines() for vm in opened(lab, 2))
        assert [first[0], second[0]] == [vm.name for vm in disposables(lab)]
        assert not set(first[:-1]) & set(second[:-1])
        assert abs(int(first[-1]) - time.time()) < 10 and abs(int(second[-1]) - time.time()) < 10

    def test_it_has_no_network_and_nothing_of_its_asker(self, lab: Lab, work: Vm) -> None:
        write(work, "letter.txt", "forever\n")
        work.output("qvm-open-in-dvm", "--no-wait", "letter.txt")
        (vm,) = opened(lab)
        look = "ls /sys/class/net; ls ~; cat /etc/this_is_dvm; ls /tmp | grep -v ^systemd"
        assert vm.output("sh", "-c", look) == "lo\neditor\nletter.txt\n"
        row = next(line for line in lab.succeed("qvm-ls").decode().splitlines() if line.startswith(vm.name))
        assert {"DisposableVM", "work", "blue"} <= set(row.split()), row

    def test_nothing_of_it_is_left_on_the_host_while_it_runs_but_an_open_file(self, lab: Lab, work: Vm) -> None:
        write(work, "letter.txt", "forever\n")
        work.output("qvm-open-in-dvm", "--no-wait", "letter.txt")
        (vm,) = opened(lab)
        spool_is_empty(lab)
        assert not list(lab.home.vm(vm.name).glob("*.img"))
        process = qemu(vm)
        os.kill(process.pid, signal.SIGKILL)
        nothing_is_left(lab)


class TestRefused:
    def test_a_disposablevm_returns_only_its_own_document_to_its_own_asker(self, lab: Lab, work: Vm, personal: Vm) -> None:
        rule(lab, "* * allow")
        write(work, "letter.txt", "wait\n")
        process = opening(work, "letter.txt")
        (vm,) = opened(lab)
        seq = int(vm.output(*XENSTORE, "xenstore-read", "qubes_transaction_seq"))
        evil = header(4, b"letter.txt") + b"evil"
        assert send_raw(vm, evil, "personal").returncode == 3
        for target in (f"work {seq + 1}", "work", f"personal {seq}", f"disposable {seq}", "dom0 1"):
            assert vm.run(PENCTL, "send", *target.split()).returncode == 3, target
        vm.output(PENCTL, "cancel")
        go(vm, "edited\n")
        assert (ended(process)[0], read(work, "letter.txt")) == (0, "wait\nedited\n")
        assert personal.run("mountpoint", "-q", "/mnt/incoming").returncode != 0

    def test_nobody_sends_to_a_disposablevm(self, lab: Lab, work: Vm, personal: Vm) -> None:
        rule(lab, "* * allow")
        write(work, "letter.txt", "forever\n")
        work.output("qvm-open-in-dvm", "--no-wait", "letter.txt")
        (vm,) = opened(lab)
        personal.output(PENCTL, "new")
        assert personal.run(PENCTL, "send", vm.name).returncode == 3
        personal.output(PENCTL, "cancel")

    def test_a_return_counts_once(self, lab: Lab, work: Vm) -> None:
        write(work, "letter.txt", "wait\n")
        process = opening(work, "letter.txt")
        (vm,) = opened(lab)
        seq = int(vm.output(*XENSTORE, "xenstore-read", "qubes_transaction_seq"))
        body = b"from another program"
        vm.output(PENCTL, "new")
        script = f"{PENCTL} send work {seq} & {PENCTL} send work {seq} & wait"
        script = f"for i in $(seq 100); do [ -w /dev/xvdg ] && break; sleep 0.05; done; cat > /dev/xvdg; sync; {script}"
        vm.run("sh", "-c", script, input=header(len(body), b"letter.txt") + body)
        assert (ended(process)[0], read(work, "letter.txt")) == (0, body.decode())
        assert log(lab).count(f"{vm.name} → work: held → arriving") == 1

    def test_an_appvm_cannot_have_itself_killed_nor_return_documents(self, lab: Lab, work: Vm, personal: Vm) -> None:
        assert work.run(PENCTL, "killme").returncode == 3
        rule(lab, "* * allow")
        assert send_raw(personal, header(4, b"letter.txt") + b"evil", "work 1").returncode == 3
        personal.output(PENCTL, "cancel")

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(header(1 << 40, b"letter.txt"), id="a size beyond the pendrive"),
            pytest.param(struct.pack("<Q", 1) + b"x" * 1016, id="a name without an end"),
            pytest.param(header(1, b"../../etc/passwd"), id="a name with a path"),
            pytest.param(header(1, b".."), id="a folder's name"),
            pytest.param(header(1, b"\xff\xfe"), id="a name that is not UTF-8"),
            pytest.param(b"", id="nothing at all"),
        ],
    )
    def test_a_header_that_lies_is_no_document(self, lab: Lab, work: Vm, data: bytes) -> None:
        assert send_raw(work, data, "disposable 4711").returncode == 0
        until(lambda: stage(work, 4711).startswith("ended") and "bad-document" in stage(work, 4711), "it is refused")
        nothing_is_left(lab)

    def test_a_hostile_disposablevms_return_without_a_document_changes_nothing(self, lab: Lab, work: Vm) -> None:
        write(work, "letter.txt", "forever\n")
        process = opening(work, "letter.txt")
        (vm,) = opened(lab)
        seq = int(vm.output(*XENSTORE, "xenstore-read", "qubes_transaction_seq"))
        vm.output(PENCTL, "new")
        lab.popen("qvm-run", vm.name, PENCTL, "send", "work", str(seq)).communicate(timeout=DEADLINE_S)
        status, said = ended(process)
        assert status == 1 and "letter.txt is as it was; what came back cannot be used: there is no document on the pendrive" in said, said
        assert read(work, "letter.txt") == "forever\n"
        nothing_is_left(lab)

    def test_a_hostile_disposablevms_return_of_another_document_replaces_nothing(self, lab: Lab, work: Vm) -> None:
        write(work, "letter.txt", "forever\n")
        process = opening(work, "letter.txt")
        (vm,) = opened(lab)
        seq = int(vm.output(*XENSTORE, "xenstore-read", "qubes_transaction_seq"))
        send_raw(vm, header(4, b"other.txt") + b"evil", f"work {seq}")
        status, said = ended(process)
        assert status == 7 and "it came back under another name" in said, said
        assert read(work, "letter.txt") == "forever\n"
        assert work.output("sh", "-c", "cat letter.txt\\ \\(edited\\ in\\ disp*; rm letter.txt\\ \\(edited\\ in\\ disp*") == "evil"


class TestDeaths:
    def held_while_leaving(self, lab: Lab, work: Vm) -> tuple[subprocess.Popen[bytes], int]:
        """A document on its way out of a stopped ``work``; its process and that of work's QEMU."""
        write(work, "letter.txt", "append\n")
        with toolstack_lock(lab.home):  # no DisposableVM can be made
            process = opening(work, "letter.txt")
            until(lambda: log(lab).rstrip().endswith("asking → restoring"), "it is wanted")
            pid = qemu(work).pid
            os.kill(pid, signal.SIGSTOP)
        until(lambda: "restoring → leaving" in log(lab).rpartition("asking → restoring")[2], "it is on its way")
        return process, pid

    def test_killed_before_it_has_the_document(self, lab: Lab, work: Vm) -> None:
        process, pid = self.held_while_leaving(lab, work)
        (vm,) = disposables(lab)
        lab.succeed("qvm-kill", vm.name)
        os.kill(pid, signal.SIGCONT)
        status, said = ended(process)
        assert (status, read(work, "letter.txt")) == (1, "append\n"), said
        nothing_is_left(lab)

    def test_killed_while_it_is_being_given_the_document(self, lab: Lab, work: Vm) -> None:
        process, pid = self.held_while_leaving(lab, work)
        (vm,) = disposables(lab)
        own = qemu(vm)
        os.kill(own.pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGCONT)
        until(lambda: log(lab).rstrip().endswith("leaving → arriving"), "it arrives")
        os.kill(own.pid, signal.SIGKILL)
        status, said = ended(process)
        assert (status, read(work, "letter.txt")) == (1, "append\n"), said
        nothing_is_left(lab)

    def test_killed_while_the_document_is_open(self, lab: Lab, work: Vm) -> None:
        write(work, "letter.txt", "forever\n")
        process = opening(work, "letter.txt")
        (vm,) = opened(lab)
        lab.succeed("qvm-kill", vm.name)
        status, said = ended(process)
        assert status == 9 and "ended before the document was closed" in said, said
        assert read(work, "letter.txt") == "forever\n"
        nothing_is_left(lab)

    def test_killed_while_it_writes_its_return(self, lab: Lab, work: Vm) -> None:
        write(work, "letter.txt", "wait\n")
        process = opening(work, "letter.txt")
        (vm,) = opened(lab)
        own = qemu(vm)
        go(vm, "x" * 40_000_000)
        until(lambda: f"{vm.name} → ·: giving → clean" in log(lab), "it writes")
        os.kill(own.pid, signal.SIGKILL)
        assert (ended(process)[0], read(work, "letter.txt")) == (9, "wait\n")
        nothing_is_left(lab)

    def test_the_asker_is_killed_while_the_document_is_open(self, lab: Lab, work: Vm) -> None:
        write(work, "letter.txt", "forever\n")
        work.output("qvm-open-in-dvm", "--no-wait", "letter.txt")
        opened(lab)
        lab.succeed("qvm-kill", "work")
        nothing_is_left(lab)

    def test_the_asker_is_killed_before_its_document_has_left(self, lab: Lab, work: Vm) -> None:
        process, pid = self.held_while_leaving(lab, work)
        os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=DEADLINE_S)
        nothing_is_left(lab)

    def test_the_asker_is_killed_while_a_return_waits_for_it_and_dom0_keeps_the_edit(self, lab: Lab, work: Vm, personal: Vm) -> None:
        rule(lab, "personal work allow")
        write(personal, "other.txt", "x")
        assert personal.run("qvm-copy-to-vm", "work", "other.txt").returncode == 0
        write(work, "letter.txt", "append\n")
        before = len(log(lab))
        work.output("qvm-open-in-dvm", "--no-wait", "letter.txt")
        until(lambda: "withdrawing → held" in log(lab)[before:], "it waits")
        with Person(lab.home.agent_socket) as person:
            lab.succeed("qvm-kill", "work")
            kept = Path(person.notice("kept as").rpartition("kept as ")[2])
        assert kept.read_bytes()[1024:].startswith(b"append\nedited in disp")
        kept.unlink()


class TestRestartedDaemon:
    def kill_daemon(self, lab: Lab) -> None:
        process = daemon_process(lab)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(10)

    def test_while_a_disposablevm_is_being_made(self, lab: Lab, work: Vm) -> None:
        write(work, "letter.txt", "append\n")
        with toolstack_lock(lab.home):
            process = opening(work, "letter.txt")
            until(lambda: log(lab).rstrip().endswith("asking → restoring"), "it is wanted")
            self.kill_daemon(lab)
        lab.succeed("qfilexchg", "up")
        status, said = ended(process)
        assert status == 0 and "edited in disp" in read(work, "letter.txt"), said
        nothing_is_left(lab)

    def test_while_the_document_is_on_its_way(self, lab: Lab, work: Vm) -> None:
        process, pid = TestDeaths().held_while_leaving(lab, work)
        (vm,) = disposables(lab)
        own = qemu(vm)
        os.kill(own.pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGCONT)
        until(lambda: log(lab).rstrip().endswith("leaving → arriving"), "it arrives")
        self.kill_daemon(lab)
        os.kill(own.pid, signal.SIGCONT)
        lab.succeed("qfilexchg", "up")
        status, said = ended(process)
        assert status == 0 and "edited in disp" in read(work, "letter.txt"), said
        nothing_is_left(lab)

    @pytest.mark.other_release
    def test_while_it_is_open(self, lab: Lab, work: Vm) -> None:
        write(work, "letter.txt", "wait\n")
        process = opening(work, "letter.txt")
        (vm,) = opened(lab)
        restart_daemon(lab)
        go(vm, "after the restart\n")
        status, said = ended(process)
        assert (status, read(work, "letter.txt")) == (0, "wait\nafter the restart\n"), said
        nothing_is_left(lab)

    def test_while_it_is_open_and_its_vm_dies_meanwhile(self, lab: Lab, work: Vm) -> None:
        write(work, "letter.txt", "forever\n")
        process = opening(work, "letter.txt")
        (vm,) = opened(lab)
        self.kill_daemon(lab)
        own = qemu(vm)
        os.kill(own.pid, signal.SIGKILL)
        assert own.wait(10)
        lab.succeed("qfilexchg", "up")
        assert ended(process)[0] == 9
        nothing_is_left(lab)

    def test_while_a_disposablevm_writes_its_return(self, lab: Lab, work: Vm) -> None:
        write(work, "letter.txt", "wait\n")
        process = opening(work, "letter.txt")
        (vm,) = opened(lab)
        go(vm, "x" * 40_000_000)
        until(lambda: f"{vm.name} → ·: giving → clean" in log(lab), "it writes")
        restart_daemon(lab)
        status, said = ended(process)
        assert status == 0, said
        assert work.output("sh", "-c", "wc -c < letter.txt; rm letter.txt") == "40000005\n"
        nothing_is_left(lab)

    def test_while_a_disposablevm_is_given_the_pendrive_for_its_return(self, lab: Lab, work: Vm) -> None:
        write(work, "letter.txt", "wait\n")
        process = opening(work, "letter.txt")
        (vm,) = opened(lab)
        own = qemu(vm)
        go(vm, "edited\n")
        until(lambda: f"{vm.name} → ·: creating → giving" in log(lab), "it is being attached")
        os.kill(own.pid, signal.SIGSTOP)
        self.kill_daemon(lab)
        os.kill(own.pid, signal.SIGCONT)
        lab.succeed("qfilexchg", "up")
        status, said = ended(process)
        assert (status, read(work, "letter.txt")) == (0, "wait\nedited\n"), said
        nothing_is_left(lab)

    def test_while_a_return_waits_for_its_receiver(self, lab: Lab, work: Vm, personal: Vm) -> None:
        rule(lab, "personal work allow")
        write(personal, "other.txt", "x")
        assert personal.run("qvm-copy-to-vm", "work", "other.txt").returncode == 0
        write(work, "letter.txt", "append\n")
        before = len(log(lab))
        process = opening(work, "letter.txt")
        until(lambda: "withdrawing → held" in log(lab)[before:], "it waits")
        restart_daemon(lab)
        work.output("umount", "/mnt/incoming")
        status, said = ended(process)
        assert status == 0 and "edited in disp" in read(work, "letter.txt"), said
        nothing_is_left(lab)


class TestDown:
    def test_what_was_edited_is_back_before_its_vm_ends(self, lab_of_its_own: Lab) -> None:
        lab = lab_of_its_own
        work = lab.vm("work")
        lab.succeed("qvm-create-default-dvm", "--default-template", EDITOR)
        write(work, "letter.txt", "forever\n")
        work.output("qvm-open-in-dvm", "--no-wait", "letter.txt")
        (vm,) = opened(lab)
        vm.output("sh", "-c", "echo by hand >> /tmp/letter.txt")
        lab.down()
        assert not list(lab.home.kept.iterdir()) and not list(lab.home.spool.iterdir())
        assert read(lab.vm("work"), "letter.txt") == "forever\nby hand\n"


class TestSavefile:
    def spoil(self, lab: Lab, how: str) -> None:
        saved = current(lab.home)
        match how:
            case "stale":
                made = json.loads(saved.made.read_text())
                made["stamp"]["QEMU"] = "another"
                saved.made.write_text(json.dumps(made))
            case "truncated state":
                os.truncate(saved.state, 1000)
            case "truncated memory":
                os.truncate(saved.memory, 1 << 20)
            case "missing":
                lab.home.current_savefile.unlink()

    @pytest.mark.parametrize("how", ["stale", "truncated state", "truncated memory", "missing"])
    def test_one_that_cannot_be_used_is_made_again_and_the_document_opens(self, lab: Lab, work: Vm, how: str) -> None:
        before = current(lab.home).folder
        self.spoil(lab, how)
        with Person(lab.home.agent_socket) as person:
            write(work, "letter.txt", "append\n")
            process = opening(work, "letter.txt")
            person.notice("savefile")
            status, said = ended(process)
        assert current(lab.home).folder != before
        if how == "missing":  # and with it the script that chose the editor
            assert status == 8, said
            lab.succeed("qvm-create-default-dvm", "--default-template", EDITOR)
        else:
            assert status == 0 and "edited in disp" in read(work, "letter.txt"), said
            assert not before.exists()

    def test_one_that_cannot_be_made_says_why_and_leaves_the_document_alone(self, lab: Lab, work: Vm) -> None:
        saved = current(lab.home)
        script = saved.script.read_bytes()
        self.spoil(lab, "stale")
        saved.script.write_bytes(b"#!/bin/sh\nexit 7\n")
        write(work, "letter.txt", "append\n")
        with Person(lab.home.agent_socket) as person:
            process = opening(work, "letter.txt")
            assert "the script ended with status 7" in person.notice("could not be made")
            status, said = ended(process)
        assert status == 1 and read(work, "letter.txt") == "append\n", said
        assert current(lab.home) == saved
        saved.script.write_bytes(script)
        assert edit(work, "append\n")[0] == 0
        nothing_is_left(lab)

    def test_a_script_that_fails_is_said_to_the_person_and_changes_nothing(self, lab: Lab, tmp_path: Path) -> None:
        before = current(lab.home).folder
        script = tmp_path / "script"
        script.write_text("#!/bin/sh\nexit 3\n")
        done = lab.command("qvm-create-default-dvm", "--default-template", script)
        assert done.returncode == 1 and b"the script ended with status 3" in done.stderr, done.stderr
        assert current(lab.home).folder == before

    def test_a_program_that_hands_over_to_one_of_the_savefile_loses_no_edit(self, lab: Lab, work: Vm, tmp_path: Path) -> None:
        server = "while [ ! -e /tmp/handed-over ]; do sleep 0.1; done; sleep 1; echo edited by the server >> $(cat /tmp/handed-over)"
        script = tmp_path / "script"
        script.write_text(EDITOR.read_text() + f"\nsetsid sh -c '{server}' > /dev/null 2>&1 < /dev/null &\n")
        lab.succeed("qvm-create-default-dvm", "--default-template", script)
        try:
            status, said, text = edit(work, "hand-over\n")
            assert (status, text) == (0, "hand-over\nedited by the server\n"), said
        finally:
            lab.succeed("qvm-create-default-dvm", "--default-template", EDITOR)

    @pytest.mark.other_release
    def test_qubes_restore_makes_one_by_hand(self, lab: Lab) -> None:
        name = lab.succeed("qubes_restore", lab.home.current_savefile, "--asker", "work").decode().strip()
        vm = Vm(lab, VmName.parse(name))
        until(lambda: vm.run("hostname").stdout.decode().strip(), "it answers")
        assert "blue" in next(line for line in lab.succeed("qvm-ls").decode().splitlines() if line.startswith(name))
        lab.succeed("qvm-kill", name)
        assert name not in lab.succeed("qvm-ls").decode()


@contextmanager
def configured(lab: Lab, line: str) -> Iterator[None]:
    """Another setting, and a daemon that knows it."""
    settings = lab.home.configuration.read_text()
    lab.home.configuration.write_text(f"{settings}{line}\n")
    lab.succeed("qfilexchg", "restart")
    try:
        yield
    finally:
        lab.home.configuration.write_text(settings)
        lab.succeed("qfilexchg", "restart")


class TestLimits:
    def test_a_document_that_is_open_for_too_long_is_ended(self, lab: Lab, work: Vm) -> None:
        with configured(lab, "document_timeout_s = 3"):
            status, said, text = edit(work, "forever\n")
        assert (status, text) == (9, "forever\n"), said

    def test_an_edit_that_dom0_makes_no_pendrive_for_is_kept_until_it_does(self, lab: Lab, work: Vm) -> None:
        write(work, "letter.txt", "wait\n")
        process = opening(work, "letter.txt")
        (vm,) = opened(lab)
        journal = ("journalctl", "--unit", "qubes-dvm", "--output", "cat", "--no-pager")
        with configured(lab, f"pendrive_size_bytes = {1 << 20}\npendrive_max_bytes = {1 << 20}"):
            go(vm, "x" * 2_000_000)
            until(lambda: "is tried again: no room" in vm.output(*journal, user="root"), "it has been refused")
        status, said = ended(process)
        assert status == 0, said
        assert work.output("sh", "-c", "wc -c < letter.txt; rm letter.txt") == "2000005\n"
        nothing_is_left(lab)

    def test_a_host_without_the_memory_says_so_and_makes_none(self, lab: Lab, work: Vm) -> None:
        with configured(lab, f"disposable_memory_mb = {1 << 20}"):
            write(work, "letter.txt", "append\n")
            with Person(lab.home.agent_socket) as person:
                process = opening(work, "letter.txt")
                assert "MiB of memory" in person.notice("needs")
                status, said = ended(process)
        assert status == 1 and "memory" in said and read(work, "letter.txt") == "append\n", said


class TestPreloaded:
    @pytest.fixture
    def preloading(self, lab: Lab) -> Iterator[Lab]:
        with configured(lab, "preload = 1"):
            yield lab

    def waiting(self, lab: Lab) -> str:
        """The name of the VM that waits ready."""

        def complete() -> list[str]:
            return [vm.name for vm in Collection(lab.home.collection).list() if vm.preloaded and f"{vm.name} is preloaded" in log(lab)]

        until(complete, "one is preloaded")
        (name,) = complete()
        return name

    def test_one_waits_is_used_once_and_another_takes_its_place(self, preloading: Lab, work: Vm) -> None:
        first = self.waiting(preloading)
        status, said, text = edit(work, "append\n")
        assert (status, text) == (0, f"append\nedited in {first}\n"), said
        second = self.waiting(preloading)
        assert second != first
        status, said, text = edit(work, "append\n")
        assert (status, text) == (0, f"append\nedited in {second}\n"), said

    def test_a_stale_one_is_discarded(self, preloading: Lab, work: Vm) -> None:
        first = self.waiting(preloading)
        preloading.succeed("qvm-create-default-dvm", "--default-template", EDITOR)
        status, said, text = edit(work, "append\n")
        assert status == 0 and f"edited in {first}\n" not in text, said
        until(lambda: first not in preloading.succeed("qvm-ls").decode(), "the stale one is gone")
