"""For the inside of a sending VM: print, as JSON, how long each part of a copy takes.

The first argument is what to do: ``send TARGET MIB`` fills a pendrive with so much and sends it; ``copy MIB`` writes the same file to one
pendrive by dd and by qvm-copy-to-vm's own code, in turn.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

sys.path.insert(0, "/usr/lib/qubes/python")

from qfilexchg.guest.copy_to_vm import Order, plan
from qfilexchg.guest.interruption import Interruption
from qfilexchg.guest.outgoing import Outgoing
from qfilexchg.guest.progress import Progress
from qfilexchg.guest.request import Exchange
from qfilexchg.guest.slot import OUTGOING
from qfilexchg.protocol.names import VmName
from qfilexchg.xenstore.blocking import Store

PENDRIVE_BYTES = 1 << 30
MIB = os.urandom(1 << 20)
ROUNDS = 3


def fill(mib: int) -> None:
    with open(f"{OUTGOING.folder}/filling", "wb") as file:
        for _ in range(mib):
            file.write(MIB)


def send(outgoing: Outgoing, interruption: Interruption, target: VmName, mib: int) -> dict[str, float]:
    start = time.monotonic()
    outgoing.get(PENDRIVE_BYTES)
    OUTGOING.wait_present(interruption)
    usable = time.monotonic()
    OUTGOING.mount()
    fill(mib)
    OUTGOING.sync()
    OUTGOING.unmount()
    filled = time.monotonic()
    outgoing.send(target)
    return {"new_s": usable - start, "fill_s": filled - usable, "send_s": time.monotonic() - filled}


def copy(outgoing: Outgoing, interruption: Interruption, mib: int) -> dict[str, list[float]]:
    """Both ways read the same file, which is in the VM's memory by then, and end when it is on the disk."""
    with open("source", "wb") as file:
        for _ in range(mib):
            file.write(MIB)
    outgoing.get(PENDRIVE_BYTES)
    OUTGOING.wait_present(interruption)
    OUTGOING.mount()
    took: dict[str, list[float]] = {"dd_s": [], "copy_s": []}
    for _ in range(ROUNDS):
        start = time.monotonic()
        command = ("dd", "if=source", f"of={OUTGOING.folder}/dd", "bs=1M", "conv=fsync", "status=none")
        subprocess.run(command, check=True)
        took["dd_s"].append(time.monotonic() - start)
        os.unlink(f"{OUTGOING.folder}/dd")
        OUTGOING.sync()
        start = time.monotonic()
        order = Order(VmName.parse("nobody"), ["source"], skip=False, archive=False)
        plan(order, OUTGOING.folder, interruption.check).load(OUTGOING.folder, Progress(sys.stderr), interruption)
        OUTGOING.sync()
        took["copy_s"].append(time.monotonic() - start)
        os.unlink(f"{OUTGOING.folder}/source")
        OUTGOING.sync()
    OUTGOING.unmount()
    outgoing.give_back()
    os.unlink("source")
    return took


def main() -> None:
    with Interruption() as interruption, Store.open() as store:
        outgoing = Outgoing(Exchange(store, interruption))
        match sys.argv[1:]:
            case ["send", target, mib]:
                print(json.dumps(send(outgoing, interruption, VmName.parse(target), int(mib))))
            case ["copy", mib]:
                print(json.dumps(copy(outgoing, interruption, int(mib))))


main()
