"""``qvm-create``, ``qvm-start``, ``qvm-shutdown``, ``qvm-kill``, ``qvm-remove``, ``qvm-ls``."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from qfilexchg.dom0 import configuration, viewer
from qfilexchg.dom0.cli.arguments import parser, release, vm_name
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.collection import Label
from qfilexchg.dom0.vms.machines import SHUTDOWN_DEADLINE_S, Machines, NotRunning
from qfilexchg.dom0.vms.template import MEMORY_MIN_MIB
from qfilexchg.protocol.names import VmName

MEMORY_MAX_MIB = 1 << 20


def _machines() -> Machines:
    return Machines(Home.from_environment())


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _memory(text: str) -> int:
    if not text.isdecimal() or not MEMORY_MIN_MIB <= int(text) <= MEMORY_MAX_MIB:
        raise argparse.ArgumentTypeError(f"{text[:16]!a} is not a number of MiB from {MEMORY_MIN_MIB} to {MEMORY_MAX_MIB}")
    return int(text)


def create(arguments: Sequence[str]) -> int:
    """``qvm-create``."""
    args = parser("qvm-create", "Make a new VM from the template, with an empty home of its own.")
    args.add_argument("name", type=vm_name, metavar="NAME")
    colours = [label.value for label in Label]
    args.add_argument("--label", choices=colours, default=Label.RED.value, metavar="COLOUR", help=f"{', '.join(colours)} (default: red)")
    what = "let it boot from the template of this release of Debian, whichever the other VMs boot from ('qvm-template build --release')"
    args.add_argument("--release", type=release, metavar="RELEASE", help=what)
    args.add_argument("--memory", type=_memory, metavar="MB", help="memory in MiB (default: vm_memory_mb of the settings)")
    options = args.parse_args(arguments)
    home = Home.from_environment()
    memory_mib = options.memory or configuration.load((configuration.SYSTEM_FILE, home.configuration)).vm_memory_mb
    asyncio.run(Machines(home).create(options.name, Label(options.label), memory_mib, options.release))
    return 0


def start(arguments: Sequence[str]) -> int:
    """``qvm-start``."""
    args = parser("qvm-start", "Start a VM and return when it is ready. The daemons are started too where they do not run.")
    what = "open its screen in a window, also if it runs already; for VMs of a template with a desktop ('qvm-template build --desktop')"
    args.add_argument("--screen", action="store_true", help=what)
    args.add_argument("name", type=vm_name, metavar="NAME")
    options = args.parse_args(arguments)
    asyncio.run(_start_with_screen(_machines(), options.name) if options.screen else _start(_machines(), options.name))
    return 0


async def _start(machines: Machines, name: VmName) -> None:
    await machines.start(name, _say)


async def _start_with_screen(machines: Machines, name: VmName) -> None:
    try:
        socket = await machines.screen(name)
    except NotRunning:
        machines.require_screen(name)
        await machines.start(name, _say)
        socket = await machines.screen(name)
    viewer.show(socket)


def shutdown(arguments: Sequence[str]) -> int:
    """``qvm-shutdown``."""
    args = parser("qvm-shutdown", "Shut a VM down in good order and return when it has ended.")
    args.add_argument("name", type=vm_name, metavar="NAME")
    wait = f"give up after so long (default: {SHUTDOWN_DEADLINE_S:g})"
    args.add_argument("--timeout", type=float, default=SHUTDOWN_DEADLINE_S, metavar="SECONDS", help=wait)
    options = args.parse_args(arguments)
    asyncio.run(_machines().shutdown(options.name, options.timeout))
    return 0


def kill(arguments: Sequence[str]) -> int:
    """``qvm-kill``."""
    args = parser("qvm-kill", "End a VM at once, as by pulling its plug.")
    args.add_argument("name", type=vm_name, metavar="NAME")
    name = args.parse_args(arguments).name
    asyncio.run(_machines().kill(name))
    return 0


def remove(arguments: Sequence[str]) -> int:
    """``qvm-remove``."""
    args = parser("qvm-remove", "Delete a VM that does not run, with everything in its home.")
    args.add_argument("name", type=vm_name, metavar="NAME")
    name = args.parse_args(arguments).name
    asyncio.run(_machines().remove(name))
    return 0


def ls(arguments: Sequence[str]) -> int:
    """``qvm-ls``."""
    what = "List the VMs. FOR tells which VM asked for a DisposableVM; (preloaded) is one that waits for a document."
    parser("qvm-ls", what).parse_args(arguments)
    machines = _machines()
    running = asyncio.run(machines.running())
    rows = [("NAME", "STATE", "DOMAIN", "LABEL", "MEMORY", "TYPE", "FOR")]
    for vm in machines.collection.list():
        found = running.get(vm.name)
        state, domain = ("running", str(int(found.id.domain))) if found else ("halted", "-")
        asker = "(preloaded)" if vm.preloaded else vm.asker or ""
        rows.append((vm.name, state, domain, vm.label.value, f"{vm.memory_mib} MiB", vm.kind.value, asker))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0
