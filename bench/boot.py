#!/usr/bin/env python3
"""How long a VM takes from ``qvm-start`` until it answers, and what it costs the host.

    bench/boot.py [--rounds N]

Uses a home of its own, with the template from the cache. Processor seconds are QEMU's own until the VM answered: unlike the time
on the clock they hardly change when the host is busy. Memory is what this VM alone takes (Pss), and its share of it that is
QEMU's and not the guest's.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path

from stand import heading, row, stand

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import services
from qfilexchg.dom0.vms.collection import Label
from qfilexchg.dom0.vms.machines import Machines
from qfilexchg.dom0.vms.qemu.hypervisor import running
from qfilexchg.protocol.names import VmName

MEMORY_MIB = 512


@dataclass(frozen=True, slots=True)
class Round:
    wall_s: float
    processor_s: float
    memory_mib: float
    guest_mib: float


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> tuple[float, float]:
    """The process's proportional share of memory, and the part in its largest mapping, which is the guest's."""
    shares: list[int] = []
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        if line.startswith("Pss:"):
            shares.append(int(line.split()[1]))
    return sum(shares) / 1024, max(shares) / 1024


async def one_round(home: Home, machines: Machines, name: VmName) -> Round:
    began = time.monotonic()
    await machines.start(name, lambda _: None)
    wall_s = time.monotonic() - began
    process = running(home)[name].process
    assert process
    processor_s = processor_seconds(process.pid)
    memory, guest = memory_mib(process.pid)
    await machines.kill(name)
    return Round(wall_s, processor_s, memory, guest)


async def measure(home: Home, rounds: int) -> list[Round]:
    machines = Machines(home)
    name = VmName.parse("bench")
    await machines.create(name, Label.GRAY, MEMORY_MIB)
    try:
        with services.toolstack_lock(home):
            services.start(home)
        return [await one_round(home, machines, name) for _ in range(rounds)]
    finally:
        await machines.down(lambda _: None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    rounds = parser.parse_args().rounds
    with stand() as home:
        results = asyncio.run(measure(home, rounds))
    heading(f"cold boot to an answer, {rounds} rounds, guest memory {MEMORY_MIB} MiB")
    row("time", [found.wall_s for found in results])
    row("QEMU's processor time", [found.processor_s for found in results])
    row("memory of the host", [found.memory_mib for found in results], "MiB")
    row("  of it the guest's", [found.guest_mib for found in results], "MiB")


if __name__ == "__main__":
    main()
