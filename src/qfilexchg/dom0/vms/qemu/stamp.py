"""By what a savefile is made on QEMU: a saved state fits only the machine that it was saved on, and the QEMU that wrote it."""

from __future__ import annotations

from pathlib import Path

from qfilexchg.dom0.programs import find_program
from qfilexchg.dom0.vms import savefile
from qfilexchg.dom0.vms.qemu import command, launch
from qfilexchg.dom0.vms.qemu.acceleration import Accelerator
from qfilexchg.dom0.vms.template import Template

_ACCELERATOR = "accelerator"


def stamp(template: Template, accelerator: Accelerator, memory_mib: int) -> savefile.Stamp:
    """By what a savefile that is made now on this host is made."""
    program = Path(find_program(command.PROGRAM)).resolve()
    return {
        "format": savefile.FORMAT,
        "template": f"{template.folder.name} {savefile.identity(template.root)}",
        "QEMU": f"{program} {savefile.identity(program)}",
        "machine": command.fingerprint(template, accelerator, memory_mib, launch.processors()),
        _ACCELERATOR: accelerator.value,
        "processor": savefile.processor(Path("/proc/cpuinfo").read_text(encoding="utf-8")),
        "number of processors": launch.processors(),
        "memory size": memory_mib,
    }


def accelerator(stamp: savefile.Stamp) -> Accelerator:
    """The one that the stamp names."""
    return Accelerator(stamp[_ACCELERATOR])
