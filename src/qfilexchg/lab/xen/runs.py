"""Runs of the Xen machine: each goes on from the same saved machine, under a name of its own, and shares nothing with the others."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from qfilexchg.dom0.cache import Say
from qfilexchg.dom0.debian import Release
from qfilexchg.dom0.home import Home
from qfilexchg.errors import CallerError
from qfilexchg.lab.xen import stages
from qfilexchg.lab.xen.machine import Machine
from qfilexchg.protocol.names import VmName

EDITOR = Path(__file__).parents[1] / "editor"


class NotUp(CallerError):
    """The machine does not run."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"the Xen machine {self.name} does not run: 'qfilexchg-lab xen up' starts it"


def machine(home: Home, name: VmName) -> Machine:
    """The machine of that name, whether it runs or not."""
    return Machine(home.data / "xen" / name, home.run / "xen" / name)


def running(home: Home, name: VmName) -> Machine:
    """Raises :exc:`NotUp`."""
    found = machine(home, name)
    if found.process() is None:
        raise NotUp(name)
    return found


async def up(home: Home, name: VmName, ready: stages.Ready) -> Machine:
    """Start a machine from what :func:`~qfilexchg.lab.xen.stages.build` has made; returns when dom0 answers, with its clock set."""
    started = machine(home, name)
    await down(started)
    try:
        await started.restore(ready.disk, ready.parcel, ready.stage)
        await started.command(["date", "--set", f"@{time.time():.0f}"])
    except BaseException:
        await started.end()
        raise
    return started


async def down(machine: Machine) -> None:
    """End a machine, if it runs, and remove all it has written."""
    await machine.end()
    for folder in (machine.folder, machine.run_folder):
        shutil.rmtree(folder, ignore_errors=True)


def build(home: Home, release: Release, say: Say) -> stages.Ready:
    """What a developer's own machine of this release goes on from."""
    return stages.build(home, release, EDITOR, say)
