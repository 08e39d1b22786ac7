#!/usr/bin/env python3
"""What an exchange on genuine Xen takes beside the plain commands that it must wait for: xl, and mkfs.fat for a new pendrive.

    bench/xen.py [--rounds N]

On the Xen machine (``qfilexchg-lab xen``), which is built if it is not there. Every ratio is taken in this one run. *Stock* is the same
attachment with Xen's own hotplug script instead of ours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

from stand import heading, row

from qfilexchg.dom0.debian import host_release
from qfilexchg.dom0.home import Home
from qfilexchg.lab.xen import runs
from qfilexchg.protocol.names import VmName

DRIVER = Path(__file__).with_name("xen_dom0.py")


async def measure(home: Home, rounds: int) -> dict[str, list[float]]:
    ready = await asyncio.to_thread(runs.build, home, host_release(), print)
    with tempfile.TemporaryDirectory(prefix="qx-") as folder:
        own = Home.from_environment({"QFILEXCHG_HOME": folder})
        own.make()
        begun = time.monotonic()
        machine = await runs.up(own, VmName.parse("bench"), ready)
        try:
            up_s = time.monotonic() - begun
            await machine.command(["sh", "-c", "echo 'work personal allow' > /var/lib/qfilexchg/policy.d/10-bench.policy"])
            said = await machine.command(["python3", "-IS", "-c", DRIVER.read_text(encoding="utf-8"), str(rounds)], rounds * 300)
        finally:
            await runs.down(machine)
    times: dict[str, list[float]] = json.loads(said)
    return {"up": [up_s], **times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    times = asyncio.run(measure(Home.from_environment(), options.rounds))
    for ours in ("xl", "stock"):
        times[f"{ours} hand-over"] = [off + on for off, on in zip(times[f"{ours} detach"], times[f"{ours} attach"], strict=True)]
    times["mkfs.fat, xl attach"] = [make + on for make, on in zip(times["mkfs.fat"], times["xl attach"], strict=True)]
    heading(f"Xen, {options.rounds} rounds; the machine was up after {times['up'][0]:.2f} s")
    for what, plain in (("new", "mkfs.fat, xl attach"), ("hand-over", "xl hand-over"), ("DisposableVM", "xl restore")):
        row(f"{plain}, alone", times[plain])
        row(what, times[what], of=statistics.median(times[plain]))
    row("stock attach", times["stock attach"], of=statistics.median(times["xl attach"]))
    row("stock hand-over", times["stock hand-over"], of=statistics.median(times["xl hand-over"]))
    print("A ratio is that to the plain commands that must be waited for; the goal is at most 1.18, so that 15 % of the time is ours.")


if __name__ == "__main__":
    main()
