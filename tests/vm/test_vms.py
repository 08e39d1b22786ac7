from __future__ import annotations

import asyncio
import os
import pty
import select
import signal
import subprocess
from pathlib import Path

import pytest

from qfilexchg.dom0.vms import template
from qfilexchg.dom0.vms.hypervisor import HypervisorError, Slot
from qfilexchg.dom0.vms.qemu import acceleration
from qfilexchg.dom0.vms.qemu.acceleration import Accelerator
from qfilexchg.dom0.vms.qemu.hypervisor import Qemu
from qfilexchg.protocol.channels import RUN_PORTS
from tests.machines import CHECKOUT
from tests.vm.lab import Lab, Vm

DEADLINE_S = 60.0


class TestRunning:
    def test_a_command_has_its_own_output_error_and_status(self, work: Vm) -> None:
        done = work.run("sh", "-c", 'echo "$0 $1"; echo oops >&2; exit 7', "a", "b c")
        assert (done.stdout, done.stderr, done.returncode) == (b"a b c\n", b"oops\n", 7)

    def test_commands_run_as_user_unless_root_is_wanted(self, work: Vm) -> None:
        assert work.output("sh", "-c", "id -un; pwd; id -Gn").split() == ["user", "/home/user", "user", "qubes"]
        assert work.output("id", "-un", user="root") == "root\n"

    def test_bytes_go_in_and_come_out_as_they_are(self, work: Vm) -> None:
        data = os.urandom(3 << 20)
        assert work.run("cat", input=data).stdout == data

    def test_output_comes_while_the_command_runs(self, work: Vm) -> None:
        running = work.lab.popen("qvm-run", work.name, "sh", "-c", "echo first; read line; echo $line")
        assert running.stdout and running.stdin
        assert running.stdout.readline() == b"first\n"
        running.stdin.write(b"second\n")
        running.stdin.flush()
        assert running.stdout.readline() == b"second\n"
        assert running.communicate(timeout=DEADLINE_S) == (b"", b"")

    def test_interrupting_it_ends_the_command_in_the_vm(self, work: Vm) -> None:
        running = work.lab.popen("qvm-run", work.name, "sh", "-c", "echo $$; exec sleep 600")
        assert running.stdout
        pid = running.stdout.readline().decode().strip()
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=DEADLINE_S)
        assert running.returncode == 130
        waiting = 'i=0; while kill -0 "$0" 2>/dev/null && [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); done; ! kill -0 "$0" 2>/dev/null'
        assert work.run("sh", "-c", waiting, pid).returncode == 0

    def test_killing_it_leaves_the_port_usable(self, work: Vm) -> None:
        for _ in range(3):
            running = work.lab.popen("qvm-run", work.name, "cat", "/dev/zero")
            assert running.stdout
            running.stdout.read(1 << 20)
            running.kill()
            running.communicate()
            assert work.output("echo", "well") == "well\n"

    def test_as_many_commands_run_at_once_as_there_are_ports(self, work: Vm) -> None:
        busy = [work.lab.popen("qvm-run", work.name, "sh", "-c", "echo; cat") for _ in RUN_PORTS]
        for running in busy:
            assert running.stdout and running.stdout.readline() == b"\n"
        refused = work.run("true")
        assert (refused.returncode, b"wait for one to end" in refused.stderr) == (125, True)
        for running in busy:
            running.communicate(timeout=DEADLINE_S)
            assert running.returncode == 0

    @pytest.mark.other_release
    def test_the_console_is_a_shell_on_a_terminal(self, work: Vm) -> None:
        pid, terminal = pty.fork()
        if pid == 0:
            os.environ.update(work.lab.environment)
            os.execv(CHECKOUT / "bin/qvm-console", ["qvm-console", work.name])
        os.write(terminal, b"tty; echo $((6*7)); exit 5\n")
        said = b""
        try:
            while select.select([terminal], [], [], DEADLINE_S)[0]:
                said += os.read(terminal, 4096)
            os.kill(pid, signal.SIGKILL)
        except OSError:  # the command has ended
            pass
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
        assert os.waitstatus_to_exitcode(status) == 5, said
        assert b"/dev/pts/" in said and b"\r\n42\r\n" in said


class TestCopying:
    def test_a_tree_arrives_byte_for_byte_and_comes_back(self, work: Vm, tmp_path: Path) -> None:
        tree = tmp_path / "with blank é"
        (tree / "deep/er").mkdir(parents=True)
        (tree / "deep/er/data").write_bytes(os.urandom(2 << 20))
        (tree / "empty").touch()
        (tmp_path / "-option").write_bytes(b"dash")
        work.copy_in([tree, tmp_path / "-option"])
        out = tmp_path / "out"
        out.mkdir()
        try:
            work.lab.succeed("qvm-copy-out", work.name, "with blank é/deep/er/data", "with blank é", "./-option", cwd=out)
            assert (out / "data").read_bytes() == (tree / "deep/er/data").read_bytes()
            assert (out / "-option").read_bytes() == b"dash"
            assert (out / "with blank é.tar").read_bytes()[257:262] == b"ustar"
            assert sorted(path.name for path in out.iterdir()) == ["-option", "data", "with blank é.tar"]
        finally:
            work.output("rm", "-r", "--", "with blank é", "-option")

    def test_nothing_is_overwritten_on_either_side(self, work: Vm, tmp_path: Path) -> None:
        file = tmp_path / "file"
        file.write_bytes(b"first")
        work.copy_in([file])
        try:
            file.write_bytes(b"second")
            assert work.lab.command("qvm-copy-in", work.name, file).returncode == 1
            assert work.output("cat", "file") == "first"
            refused = work.lab.command("qvm-copy-out", work.name, "file", cwd=tmp_path)
            assert (refused.returncode, b"exists already" in refused.stderr, file.read_bytes()) == (1, True, b"second")
        finally:
            work.output("rm", "file")

    def test_what_is_not_there_leaves_nothing_behind(self, work: Vm, tmp_path: Path) -> None:
        refused = work.lab.command("qvm-copy-out", work.name, "nosuch", cwd=tmp_path)
        assert (refused.returncode, b"No such file" in refused.stderr, list(tmp_path.iterdir())) == (1, True, [])
        assert work.lab.command("qvm-copy-in", work.name, tmp_path / "nosuch").returncode == 1


class TestTheMachine:
    def test_it_has_no_network(self, work: Vm) -> None:
        assert work.output("ls", "/sys/class/net") == "lo\n"

    def test_stock_xenstore_programs_work_on_its_serial_port(self, work: Vm) -> None:
        port = ("env", "XENSTORED_PATH=/dev/virtio-ports/org.qubes.xenstore")
        domain = str(int(work.record.vm.id.domain))
        assert work.output(*port, "xenstore-read", "name") == f"{work.name}\n"
        assert f"(n0,r{domain})" in work.output(*port, "xenstore-ls", "-p", f"/local/domain/{domain}")
        for command in (("xenstore-write", "name", "other"), ("xenstore-write", "new", "key"), ("xenstore-read", "/local/domain/0/name")):
            assert work.run(*port, *command).returncode != 0
        assert work.output(*port, "xenstore-read", "name") == f"{work.name}\n"

    def test_its_own_store_ports_may_be_opened_by_user_and_its_disks_not(self, work: Vm) -> None:
        assert work.run("sh", "-c", "exec 3<>/dev/virtio-ports/org.qubes.xenstore.1").returncode == 0
        assert work.run("sh", "-c", "exec 3<>/dev/vda").returncode != 0

    @pytest.mark.other_release
    def test_home_is_kept_and_the_rest_is_not(self, fresh_vm: Vm) -> None:
        fresh_vm.output("sh", "-c", "echo kept > /home/user/file")
        fresh_vm.output("sh", "-c", "echo lost > /etc/file", user="root")
        domain = fresh_vm.record.vm.id.domain
        fresh_vm.lab.succeed("qvm-shutdown", fresh_vm.name)
        assert not fresh_vm.runs
        fresh_vm.lab.succeed("qvm-start", fresh_vm.name)
        assert fresh_vm.output("cat", "/home/user/file") == "kept\n"
        assert fresh_vm.run("test", "-e", "/etc/file").returncode == 1
        assert fresh_vm.record.vm.id.domain > domain

    def test_it_is_listed_and_cannot_be_started_twice_or_removed_while_it_runs(self, work: Vm) -> None:
        domain = str(int(work.record.vm.id.domain))
        rows = [line.split() for line in work.lab.succeed("qvm-ls").decode().splitlines()]
        assert ["work", "running", domain, "blue", "512", "MiB", "AppVM"] in rows
        for command in ("qvm-start", "qvm-remove"):
            refused = work.lab.command(command, work.name)
            assert (refused.returncode, refused.stderr) == (1, f"{command}: work runs already: 'qvm-shutdown work' ends it\n".encode())

    def test_killed_or_gone_by_itself_it_leaves_nothing_and_starts_again(self, fresh_vm: Vm) -> None:
        lab = fresh_vm.lab
        for end in (("qvm-kill", fresh_vm.name), ("qvm-run", "--user", "root", fresh_vm.name, "poweroff", "-f")):
            record = fresh_vm.record
            lab.command(*end)
            assert record.process and record.process.wait(DEADLINE_S)
            lab.succeed("qvm-start", fresh_vm.name)
            assert not lab.home.domain(record.vm.id.domain).exists()
            keys = lab.environment | {"XENSTORED_PATH": str(lab.home.store_socket)}
            assert str(int(record.vm.id.domain)) not in _directory(keys, "/local/domain")

    def test_one_that_cannot_boot_is_reported_with_its_last_words_and_leaves_nothing(self, lab: Lab) -> None:
        lab.succeed("qvm-create", "broken")
        try:
            with (lab.home.data / "vms/broken/private.img").open("r+b") as disk:
                disk.truncate(0)
                disk.truncate(1 << 20)
            failed = lab.command("qvm-start", "broken")
            assert failed.returncode == 1
            assert b"broken ended before it was ready" in failed.stderr
            assert "broken" not in {line.split()[0] for line in lab.succeed("qvm-ls").decode().splitlines() if "running" in line}
        finally:
            lab.succeed("qvm-remove", "broken")


def _directory(environment: dict[str, str], path: str) -> list[str]:
    listed = subprocess.run(["xenstore-list", path], env=environment, capture_output=True, check=True, text=True, timeout=DEADLINE_S)
    return listed.stdout.split()


class TestPendrives:
    @pytest.mark.other_release
    def test_a_pendrive_is_there_until_it_is_detached_and_both_may_be_repeated(self, work: Vm, tmp_path: Path) -> None:
        image = tmp_path / "image"
        _sparse(image)
        vm, hypervisor = work.record.vm.id, Qemu(work.lab.home)

        async def exchange() -> None:
            for _ in range(3):
                for _ in range(2):
                    await hypervisor.attach(vm, Slot.OUTGOING, image)
                    assert await hypervisor.attached(vm) == {Slot.OUTGOING: image}
                await asyncio.to_thread(work.output, "udevadm", "wait", "--timeout=60", "/dev/xvdg", user="root")
                await asyncio.to_thread(work.output, "dd", "if=/dev/urandom", "of=/dev/xvdg", "bs=1M", "count=1", "conv=fsync", user="root")
                for _ in range(2):
                    await hypervisor.detach(vm, Slot.OUTGOING)
                    assert await hypervisor.attached(vm) == {}

        asyncio.run(exchange())
        assert image.stat().st_blocks * 512 >= 1 << 20

    def test_a_slot_refuses_a_second_image_and_keeps_the_first(self, work: Vm, tmp_path: Path) -> None:
        first, second = tmp_path / "first", tmp_path / "second"
        _sparse(first)
        _sparse(second)
        vm, hypervisor = work.record.vm.id, Qemu(work.lab.home)

        async def exchange() -> None:
            await hypervisor.attach(vm, Slot.OUTGOING, first)
            with pytest.raises(HypervisorError, match="another image"):
                await hypervisor.attach(vm, Slot.OUTGOING, second)
            assert await hypervisor.attached(vm) == {Slot.OUTGOING: first}
            await hypervisor.detach(vm, Slot.OUTGOING)

        asyncio.run(exchange())

    def test_an_image_that_cannot_be_opened_is_attached_nowhere(self, work: Vm, tmp_path: Path) -> None:
        vm, hypervisor = work.record.vm.id, Qemu(work.lab.home)

        async def exchange() -> None:
            with pytest.raises(HypervisorError, match="cannot attach xvdg"):
                await hypervisor.attach(vm, Slot.OUTGOING, tmp_path / "nosuch")
            assert await hypervisor.attached(vm) == {}

        asyncio.run(exchange())
        assert work.runs

    def test_one_image_is_never_in_two_vms(self, work: Vm, personal: Vm, tmp_path: Path) -> None:
        image = tmp_path / "image"
        _sparse(image)
        hypervisor = Qemu(work.lab.home)

        async def exchange() -> None:
            await hypervisor.attach(work.record.vm.id, Slot.OUTGOING, image)
            with pytest.raises(HypervisorError):
                await hypervisor.attach(personal.record.vm.id, Slot.OUTGOING, image)
            assert await hypervisor.attached(personal.record.vm.id) == {}
            await hypervisor.detach(work.record.vm.id, Slot.OUTGOING)

        asyncio.run(exchange())

    def test_a_vm_that_is_gone_has_no_pendrives(self, fresh_vm: Vm, tmp_path: Path) -> None:
        image = tmp_path / "image"
        _sparse(image)
        vm, hypervisor = fresh_vm.record.vm.id, Qemu(fresh_vm.lab.home)
        asyncio.run(hypervisor.attach(vm, Slot.INCOMING, image))
        asyncio.run(hypervisor.kill(vm))
        asyncio.run(hypervisor.kill(vm))
        asyncio.run(hypervisor.detach(vm, Slot.INCOMING))
        assert asyncio.run(hypervisor.attached(vm)) == {}


def _sparse(image: Path) -> None:
    with image.open("xb") as file:
        file.truncate(64 << 20)


@pytest.mark.other_release
def test_down_leaves_no_process_and_everything_starts_again(lab_of_its_own: Lab) -> None:
    lab = lab_of_its_own
    vm = lab.vm("work")
    vm.output("sh", "-c", "echo kept > file")
    assert len(lab.processes()) >= 3, "a VM, the store and the exchange"
    lab.down()
    assert lab.processes() == []
    assert lab.vm("work").output("cat", "file") == "kept\n"


def test_the_tiny_guest_ends_by_itself(lab: Lab) -> None:
    asyncio.run(acceleration.run_probe(template.current(lab.home), Accelerator.TCG, deadline_s=DEADLINE_S))
