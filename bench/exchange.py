#!/usr/bin/env python3
"""How long the steps of a copy between two VMs take, and whether that depends on how much is copied.

    bench/exchange.py [--rounds N]

Uses a home of its own, with the template from the cache. Every ratio is taken in this one run. *Plain hot-plug* is the same disk
attached by QMP alone, until the VM's udev has named it: what no exchange on this hypervisor can do without.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import time
from pathlib import Path

from stand import DEADLINE_S, command, heading, logged_at, row, run, stand

from qfilexchg.dom0.exchange import pendrives
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.hypervisor import Slot
from qfilexchg.dom0.vms.qemu.hypervisor import Qemu, running
from qfilexchg.protocol.names import VmName

SENDER_PROGRAM = Path(__file__).with_name("exchange_sender.py").read_bytes()
SMALL_MIB, LARGE_MIB, COPY_MIB = 1, 900, 150

WAIT_FOR_MOUNT = """
import select
print("watching", flush=True)
with open("/proc/self/mountinfo") as table:
    poll = select.poll()
    poll.register(table, select.POLLPRI | select.POLLERR)
    while "/mnt/incoming" not in table.read():
        poll.poll(60000)
        table.seek(0)
print("mounted", flush=True)
"""
WAIT_FOR_DISK = """
import os, sys
sys.path.insert(0, "/usr/lib/qubes/python")
from qfilexchg.guest.interruption import Interruption
from qfilexchg.guest.slot import OUTGOING
print("watching", flush=True)
with Interruption() as interruption:
    OUTGOING.wait_present(interruption)
print("there", flush=True)
"""


def in_vm(vm: str, program: bytes, *arguments: str) -> bytes:
    """Run a Python program in a VM and return its output."""
    return run("qvm-run", vm, "python3", "-IS", "-", *arguments, input=program)


class Watcher:
    """A program in a VM that prints a line when it begins to watch, and another when what it watches for is there."""

    def __init__(self, vm: str, program: str) -> None:
        argv = command("qvm-run", vm, "python3", "-IS", "-c", program)
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self._line()

    def _line(self) -> None:
        assert self._process.stdout
        if not self._process.stdout.readline():
            raise SystemExit("the VM's watcher ended")

    def seen_at(self) -> float:
        """Wait for the second line; when it came, on the host's clock."""
        self._line()
        now = time.time()
        self._process.communicate(timeout=DEADLINE_S)
        return now


def hand_over(home: Home, mib: int) -> dict[str, float]:
    watcher = Watcher("personal", WAIT_FOR_MOUNT)
    times: dict[str, float] = json.loads(in_vm("work", SENDER_PROGRAM, "send", "personal", str(mib)))
    times["hand_over_s"] = watcher.seen_at() - logged_at(home, "→ leaving")
    run("qvm-run", "personal", "umount", "/mnt/incoming")
    end = time.monotonic() + DEADLINE_S
    while any(home.spool.iterdir()):
        if time.monotonic() > end:
            raise SystemExit("the pendrive was not deleted")
        time.sleep(0.02)
    return times


def plain_hot_plug(home: Home) -> float:
    """Seconds from QMP's first command until the VM has named the disk."""
    hypervisor = Qemu(home)
    vm = running(home)[VmName.parse("work")].vm.id
    watcher = Watcher("work", WAIT_FOR_DISK)

    async def plug() -> tuple[float, float]:
        image = await pendrives.create(home.data / "bench", pendrives.new_id(), 1 << 30, "bench")
        start = time.time()
        await hypervisor.attach(vm, Slot.OUTGOING, image)
        seen = await asyncio.to_thread(watcher.seen_at)
        await hypervisor.detach(vm, Slot.OUTGOING)
        image.unlink()
        return start, seen

    start, seen = asyncio.run(plug())
    return seen - start


def memory_mib(home: Home) -> float:
    """The proportional share of memory of one VM's process, on average."""
    shares = []
    for found in running(home).values():
        assert found.process
        rollup = Path(f"/proc/{found.process.pid}/smaps_rollup").read_text(encoding="ascii")
        shares.append(int(re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)[1]) / 1024)  # type: ignore[index]
    return statistics.mean(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    rounds = parser.parse_args().rounds
    with stand("work", "personal") as home:
        (home.policy / "bench.policy").write_text("work personal allow\n")
        memory = memory_mib(home)
        plugs = [plain_hot_plug(home) for _ in range(rounds)]
        pairs = [(hand_over(home, SMALL_MIB), hand_over(home, LARGE_MIB)) for _ in range(rounds)]
        copied = json.loads(in_vm("work", SENDER_PROGRAM, "copy", str(COPY_MIB)))
    small, large = ([pair[side] for pair in pairs] for side in (0, 1))
    heading(f"{rounds} rounds")
    row("plain hot-plug to a named disk", plugs)
    row("'new' to a usable /dev/xvdg", [each["new_s"] for each in small], of=statistics.median(plugs))
    row(f"allow to mounted on /mnt/incoming, {SMALL_MIB} MiB", [each["hand_over_s"] for each in small])
    hand_over_s = statistics.median([each["hand_over_s"] for each in small])
    row(f"allow to mounted on /mnt/incoming, {LARGE_MIB} MiB", [each["hand_over_s"] for each in large], of=hand_over_s)
    row(f"dd of {COPY_MIB} MiB to the pendrive", copied["dd_s"])
    row(f"qvm-copy-to-vm's copy of {COPY_MIB} MiB", copied["copy_s"], of=statistics.median(copied["dd_s"]))
    row("host memory of a VM", [memory], "MiB")
    print("Ratios: new / hot-plug; 900 MiB / 1 MiB; copy / dd.")


if __name__ == "__main__":
    main()
