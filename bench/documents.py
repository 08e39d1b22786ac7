#!/usr/bin/env python3
"""How long a document takes to be open in a DisposableVM, and to come back; beside the same with a VM that is booted for it.

    bench/documents.py [--rounds N]

Uses a home of its own, with the template from the cache. Every ratio is taken in this one run, but those to the run before, whose
medians are kept in the cache. *Cold* is a DisposableVM that is booted: until it answers, and until the program has been started
with the document. The request is `send disposable`, when the document is on its pendrive; the command is what is typed in the asking VM.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import tempfile
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

from stand import DEADLINE_S, command, heading, logged_at, row, run, stand

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import restoring, savefile, saving, services
from qfilexchg.dom0.vms.collection import SAVED_VM, Collection, Kind, Label, Vm
from qfilexchg.dom0.vms.hypervisor import Slot
from qfilexchg.dom0.vms.qemu.hypervisor import running
from qfilexchg.dom0.vms.qemu.toolstack import QemuToolstack
from qfilexchg.dom0.vms.savefile import Savefile
from qfilexchg.dom0.vms.toolstack import or_end
from qfilexchg.protocol import dvm_header, keys
from qfilexchg.xenstore.client import Store

MEMORY_MIB = 256
MANY = 8
EDITOR = b"""#!/bin/sh
set -e
mkdir -p ~/.local/share/applications ~/.config
printf '#!/bin/sh\\nread what < "$1"; case $what in wait) exec sleep 100000 ;; esac; echo edited >> "$1"\\n' > ~/editor
chmod +x ~/editor
printf '[Desktop Entry]\\nType=Application\\nName=Editor\\nExec=/home/user/editor %%f\\nMimeType=text/plain;\\n' \\
    > ~/.local/share/applications/editor.desktop
printf '[Default Applications]\\ntext/plain=editor.desktop\\n' > ~/.config/mimeapps.list
"""


class Asker:
    """A shell in the asking VM that begins a command when it is told to."""

    def __init__(self, script: str) -> None:
        argv = command("qvm-run", "work", "sh", "-c", f"echo ready; read go; {script}")
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._process.stdout and self._process.stdin
        self._process.stdout.readline()

    def begin(self) -> float:
        """When it began, on the host's clock."""
        assert self._process.stdin
        now = time.time()
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()
        return now

    def end(self) -> float:
        """When it ended."""
        self._process.communicate(timeout=DEADLINE_S)
        if self._process.returncode:
            raise SystemExit(f"the command in the VM ended with status {self._process.returncode}")
        return time.time()


def edit(home: Home) -> dict[str, float]:
    """One round trip of an edit."""
    asker = Asker("echo edit > letter.txt; qvm-open-in-dvm letter.txt")
    began = asker.begin()
    ended = asker.end()
    return {
        "asked_s": logged_at(home, "asking → restoring") - began,
        "started_s": logged_at(home, ": open") - began,
        "returned_s": logged_at(home, "loaded → detaching") - began,
        "round_trip_s": ended - began,
    }


async def restore(home: Home) -> float:
    """Seconds from the start of a restore until the VM runs."""
    collection, toolstack = Collection(home.collection), QemuToolstack(home)
    made_of = await toolstack.basis(MEMORY_MIB)
    saved = savefile.current(home)
    began = time.monotonic()
    saved.check(made_of.stamp)
    restored = await restoring.restore(home, collection, toolstack, saved, made_of, Label.RED)
    await toolstack.wake(restored)
    took_s = time.monotonic() - began
    await restoring.end(home, collection, toolstack, restored)
    return took_s


async def boot(home: Home) -> tuple[float, float]:
    """Seconds until a DisposableVM that is booted answers, and until it has started a program with its document."""
    toolstack = QemuToolstack(home)
    made_of = await toolstack.basis(MEMORY_MIB)
    document = home.data / "document"
    document.write_bytes(dvm_header.encode("letter.txt", 5) + b"edit\n")
    with document.open("r+b") as file:
        file.truncate(1 << 20)
    with tempfile.TemporaryDirectory(dir=home.data) as folder:
        saved = Savefile(Path(folder))
        await saving.make_disk(saved.disk)
        home.vm(SAVED_VM).mkdir(parents=True, exist_ok=True)
        vm = Vm(SAVED_VM, uuid.uuid4(), Kind.DISPOSABLE, Label.RED, MEMORY_MIB, datetime.now(UTC))
        order = {keys.RESTORE_COMPLETE: "True", keys.BLOCK_SOURCE: "work", keys.TRANSACTION_SEQ: "1", keys.VIEW_ONLY: "1"}
        began = time.monotonic()
        async with services.toolstack_turn(home):
            booted = await toolstack.start(vm, saved.disk, made_of, order, save_to=saved)
        async with or_end(toolstack, booted), await Store.connect(home.store_socket) as store:
            await toolstack.wait_for_hello(booted)
            answered_s = time.monotonic() - began
            request = keys.absolute(booted.id.domain, keys.REQUEST)
            await store.watch(request, "")
            await store.events.get()
            await toolstack.hypervisor.attach(booted.id, Slot.INCOMING, document)
            # Its first request says that the program has been started.
            async with asyncio.timeout(DEADLINE_S):
                await store.events.get()
            started_s = time.monotonic() - began
            await toolstack.end(booted)
    return answered_s, started_s


def many(home: Home) -> tuple[float, list[float]]:
    """Seconds until eight documents are open, and the private memory of each DisposableVM in MiB."""
    script = f"for i in $(seq {MANY}); do echo wait > $i.txt; qvm-open-in-dvm --no-wait $i.txt || exit 1; done"
    asker = Asker(script)
    began = asker.begin()
    asker.end()
    end = time.monotonic() + DEADLINE_S
    while (home.log / "qfilexchgd.log").read_text(encoding="utf-8").count(": open") - many_before(home) < MANY:
        if time.monotonic() > end:
            raise SystemExit("not all documents were opened")
        time.sleep(0.05)
    took_s = time.time() - began
    time.sleep(5)  # until they are idle
    sizes = []
    for name, record in running(home).items():
        if record.process and name.startswith("disp"):
            sizes.append(private_mib(record.process.pid))
            run("qvm-kill", name)
    return took_s, sizes


def many_before(home: Home) -> int:
    """How many documents were opened, and returned or closed, before the eight."""
    return (home.log / "qfilexchgd.log").read_text(encoding="utf-8").count(": returning")


def private_mib(pid: int) -> float:
    """What a process has for itself alone: what it wrote. Pages of the savefile that it only reads are the page cache's."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return int(re.findall(r"^Private_Dirty:\s+(\d+)", rollup, re.MULTILINE)[0]) / 1024


def kept_medians(results: dict[str, float]) -> dict[str, float]:
    """The medians of the run before; ``results`` take their place."""
    file = Path(Home.from_environment().cache) / "bench-documents.json"
    try:
        before: dict[str, float] = json.loads(file.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        before = {}
    file.write_text(json.dumps(results), encoding="ascii")
    return before


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    rounds = parser.parse_args().rounds
    with stand("work") as home:
        script = home.data / "editor"
        script.write_bytes(EDITOR)
        run("qvm-create-default-dvm", "--default-template", str(script))
        edit(home)  # the first one finds nothing of the asking VM's side in memory
        boots = [asyncio.run(boot(home)) for _ in range(rounds)]
        restores = [asyncio.run(restore(home)) for _ in range(rounds)]
        edits = [edit(home) for _ in range(rounds)]
        all_s, sizes = many(home)
        home.configuration.write_text("preload = 1\n")
        run("qfilexchg", "restart")
        preloaded = []
        for _ in range(rounds):
            wait_until_preloaded(home)
            preloaded.append(edit(home))
    answered = statistics.median(boot[0] for boot in boots)
    program = statistics.median(boot[1] for boot in boots)
    cold = program + statistics.median(each["asked_s"] for each in edits)
    columns = {
        "cold: boot to an answer": [boot[0] for boot in boots],
        "cold: boot to the program started": [boot[1] for boot in boots],
        "restore to running": restores,
        "request to the program started": [each["started_s"] - each["asked_s"] for each in edits],
        "command to the program started": [each["started_s"] for each in edits],
        "the same, preloaded": [each["started_s"] for each in preloaded],
        "the round trip of an edit": [each["round_trip_s"] for each in edits],
    }
    before = kept_medians({title: statistics.median(values) for title, values in columns.items()})
    heading(f"{rounds} rounds, guest memory {MEMORY_MIB} MiB")
    for title, values in columns.items():
        of = {"cold": None, "restore": answered, "request": program}.get(title.partition(" ")[0].rstrip(":"), cold)
        row(title, values, of=of)
    row(f"{MANY} documents until all are open", [all_s])
    row("private memory of an idle DisposableVM", sizes, "MiB")
    print("Ratios: of a restore to the cold boot to an answer; of the request to that to the program; of the rest to asking and that.")
    for title, values in columns.items():
        if title in before:
            print(f"  to the run before: {title}: {statistics.median(values) / before[title]:.2f}")


def wait_until_preloaded(home: Home) -> None:
    end = time.monotonic() + DEADLINE_S
    while not any(vm.preloaded for vm in Collection(home.collection).list()):
        if time.monotonic() > end:
            raise SystemExit("no DisposableVM was preloaded")
        time.sleep(0.05)
    time.sleep(1)  # until it is complete, and the host at rest


if __name__ == "__main__":
    main()
