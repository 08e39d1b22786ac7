"""What tests on real VMs do and wait for, in the words of a test."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable

from qfilexchg.dom0.vms.processes import Process
from tests.vm.lab import Lab, Vm

DEADLINE_S = 90.0
PENCTL = "/usr/lib/qubes/qubes_penctl"


def until(condition: Callable[[], object], what: str) -> None:
    """Return when ``condition`` holds. For what only a look can tell: a file that is gone, a line in a log."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(0.05)


def rule(lab: Lab, text: str) -> None:
    (lab.home.policy / "10-test.policy").write_text(f"{text}\n")


def spool_is_empty(lab: Lab) -> None:
    until(lambda: not list(lab.home.spool.iterdir()), "the spool is empty")


def log(lab: Lab) -> str:
    return (lab.home.log / "qfilexchgd.log").read_text()


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    out, error = process.communicate(timeout=DEADLINE_S)
    return process.returncode, (out + error).decode()


def write_request(vm: Vm, line: str) -> str:
    """Write a request as any program in the VM could, and return dom0's reply once it has taken it."""
    port = "/dev/virtio-ports/org.qubes.xenstore"
    script = """
        export XENSTORED_PATH=$2
        xenstore-write device/qpen "$1" || exit 1
        for i in $(seq 100); do [ -z "$(xenstore-read device/qpen)" ] && break; sleep 0.1; done
        sleep 0.3; xenstore-read qubes_qpen_reply"""
    return vm.output("sh", "-c", script, "sh", line, port).strip()


def qemu(vm: Vm) -> Process:
    process = vm.record.process
    assert process
    return process


def daemon_process(lab: Lab) -> Process:
    process = Process.load(lab.home.run / "qfilexchgd.process")
    assert process
    return process


def restart_daemon(lab: Lab) -> None:
    """Kill the daemon, as when it crashes, and start another."""
    process = daemon_process(lab)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(10)
    lab.succeed("qfilexchg", "up")
