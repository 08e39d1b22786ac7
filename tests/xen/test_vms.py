"""The commands for VMs on Xen, as a person types them in dom0."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from tests.xen.dom0 import HOME, Dom0
from tests.xen.running import DEADLINE_S
from tests.xen.vm import XenVm


def rows(dom0: Dom0) -> dict[str, list[str]]:
    """What qvm-ls says of each VM."""
    return {line.split()[0]: line.split()[1:] for line in dom0.output("qvm-ls").splitlines()}


class TestRunning:
    def test_bytes_go_in_and_come_out_as_they_are_and_so_does_the_status(self, dom0: Dom0) -> None:
        data = os.urandom(100_000)
        done = dom0.run("qvm-run", "--user", "root", "work", "sh", "-c", 'cat; id -un >&2; exit "$0"', "7", input=data)
        assert (done.stdout == data, done.stderr, done.returncode) == (True, b"root\n", 7)

    def test_two_at_once_take_turns_and_an_interrupted_one_ends_in_the_vm(self, dom0: Dom0, work: XenVm) -> None:
        first = dom0.popen("sh", "-c", "echo $$; exec qvm-run work sh -c 'echo $$; exec sleep 600'")
        process, in_the_vm = first.line().decode().strip(), first.line().decode().strip()
        second = dom0.popen("qvm-run", "work", "sh", "-c", 'while kill -0 "$0" 2> /dev/null; do sleep 0.1; done; id -un', in_the_vm)
        dom0.until("[ $(pgrep -cf 'bin/qvm-run wor[k]') -ge 2 ]")
        dom0.output("kill", "-INT", process)
        assert first.wait().returncode == 130
        done = second.wait()
        assert (done.stdout, done.returncode) == (b"user\n", 0), second.said

    def test_one_that_cannot_have_the_console_in_time_says_why(self, dom0: Dom0, work: XenVm) -> None:
        with_console = work.popen("sh", "-c", "echo; cat")
        with_console.line()
        done = dom0.run("qvm-run", "work", "true")
        assert (done.returncode, b"another command runs in this VM" in done.stderr) == (125, True), done
        with_console.wait()

    def test_the_console_is_a_shell_on_a_terminal(self, dom0: Dom0) -> None:
        shell = dom0.popen("qvm-console", "work", window=(24, 80))
        shell.write(b"tty; stty size; echo $((6*7)); exit 5\n")
        done = shell.wait()
        assert done.returncode == 5, shell.said
        assert b"/dev/pts/" in done.stdout and b"24 80\r\n42\r\n" in done.stdout


def test_files_are_copied_in_and_out_byte_for_byte(dom0: Dom0) -> None:
    make = "mkdir -p 'a b/é' out && head -c 100k /dev/urandom > 'a b/é/data' && echo dash > ./-option && sha256sum < 'a b/é/data'"
    expected = dom0.sh(f"cd /srv && {make}")
    dom0.sh("cd /srv && qvm-copy-in work 'a b' ./-option")
    dom0.sh("cd /srv/out && qvm-copy-out work 'a b/é/data' 'a b' ./-option")
    assert dom0.sh("cd /srv/out && sha256sum < data && tar -xOf 'a b.tar' './a b/é/data' | sha256sum && cat ./-option") == (
        f"{expected}{expected}dash\n"
    )
    refused = dom0.run("sh", "-c", "cd /srv/out && qvm-copy-out work ./-option")
    assert (refused.returncode, b"exists already" in refused.stderr) == (1, True)


def test_a_vm_is_made_started_shut_down_killed_and_removed(dom0: Dom0) -> None:
    dom0.output("qvm-create", "fresh", "--label", "orange", "--memory", "192")
    assert rows(dom0)["fresh"] == ["halted", "-", "orange", "192", "MiB", "AppVM"]
    halted = dom0.run("qvm-run", "fresh", "true")
    assert (halted.returncode, halted.stderr) == (125, b"qvm-run: fresh does not run: 'qvm-start fresh' starts it\n")

    fresh = XenVm(dom0, "fresh")
    fresh.start()
    assert rows(dom0)["fresh"] == ["running", fresh.domain, "orange", "192", "MiB", "AppVM"]
    with ThreadPoolExecutor() as pool:
        for refused in pool.map(lambda command: dom0.run(command, "fresh"), ("qvm-start", "qvm-remove")):
            assert (refused.returncode, b"fresh runs already: 'qvm-shutdown fresh' ends it" in refused.stderr) == (1, True), refused
    fresh.sh("echo kept > /home/user/file; echo lost > /etc/file", user="root")
    dom0.output("qvm-shutdown", "fresh")
    dom0.until("! xl domid fresh 2> /dev/null")

    fresh.start()
    assert fresh.output("cat", "/home/user/file") == "kept\n"
    assert fresh.run("test", "-e", "/etc/file").returncode == 1
    dom0.output("qvm-kill", "fresh")
    dom0.until("! xl domid fresh 2> /dev/null")
    dom0.output("qvm-remove", "fresh")
    assert dom0.run("test", "-e", f"{HOME}/vms/fresh").returncode == 1
    assert "fresh" not in rows(dom0)
    dom0.until("! losetup -a | grep -q fresh && ! xenstore-ls -f | grep -q fresh")


def test_one_that_cannot_boot_is_reported_with_its_last_words_and_leaves_nothing(dom0: Dom0) -> None:
    dom0.output("qvm-create", "broken", "--memory", "192")
    dom0.sh(f"truncate --size=0 {HOME}/vms/broken/private.img && truncate --size=1M {HOME}/vms/broken/private.img")
    failed = dom0.run("qvm-start", "broken", deadline_s=2 * DEADLINE_S)
    assert (failed.returncode, b"broken ended before it was ready" in failed.stderr) == (1, True), failed
    dom0.until("! xl domid broken 2> /dev/null && ! losetup -a | grep -q broken")
    assert rows(dom0)["broken"][0] == "halted"
