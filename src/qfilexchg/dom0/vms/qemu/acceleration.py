"""Whether VMs run on the processor's own virtualisation (KVM) or are emulated (TCG).

``/dev/kvm`` alone proves nothing: it can open where a guest hangs in it for ever. So KVM is used only where the processor has
the feature, the device opens, and a tiny guest has said its word within a few seconds. The proof holds for one boot of the host.
"""

from __future__ import annotations

import enum
import json
import os
from dataclasses import dataclass
from pathlib import Path

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.programs import ProgramFailed, run
from qfilexchg.dom0.vms.processes import boot_id
from qfilexchg.dom0.vms.template import Template

KVM_DEVICE = Path("/dev/kvm")
PROBE_DEADLINE_S = 5.0


class Accelerator(enum.Enum):
    """How QEMU runs a guest."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True)
class Choice:
    """What is used and why, for a person."""

    accelerator: Accelerator
    why: str


def _cpuinfo() -> str:
    return Path("/proc/cpuinfo").read_text(encoding="utf-8")


def has_virtualisation(cpuinfo: str) -> bool:
    """Whether the first processor of /proc/cpuinfo has Intel's (vmx) or AMD's (svm) virtualisation."""
    for line in cpuinfo.splitlines():
        name, _, flags = line.partition(":")
        if name.strip() == "flags":
            return bool({"vmx", "svm"} & set(flags.split()))
    return False


async def choose(home: Home, template: Template) -> Choice:
    """The accelerator that works on this host, now. The first call after a boot may take :data:`PROBE_DEADLINE_S`."""
    if not has_virtualisation(_cpuinfo()):
        return Choice(Accelerator.TCG, "the processor shows no virtualisation (neither vmx nor svm in /proc/cpuinfo)")
    try:
        os.close(os.open(KVM_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return Choice(Accelerator.TCG, f"{KVM_DEVICE} does not open ({error.strerror}); members of the group kvm may open it")
    file = home.cache / "acceleration.json"
    choice = _remembered(file)
    if choice is None:
        choice = await _prove(template)
        aside = file.with_name(f".{file.name}.{os.getpid()}")
        aside.write_text(json.dumps({"boot": boot_id(), "accelerator": choice.accelerator.value, "why": choice.why}), encoding="utf-8")
        aside.rename(file)
    return choice


def _remembered(file: Path) -> Choice | None:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        return Choice(Accelerator(known["accelerator"]), str(known["why"])) if known["boot"] == boot_id() else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


async def _prove(template: Template) -> Choice:
    try:
        await run_probe(template, Accelerator.KVM, deadline_s=PROBE_DEADLINE_S)
    except ProgramFailed as failure:
        return Choice(Accelerator.TCG, f"a tiny guest did not run under KVM: {failure.how}")
    return Choice(Accelerator.KVM, f"a tiny guest ran under KVM within {PROBE_DEADLINE_S:g} s")


async def run_probe(template: Template, accelerator: Accelerator, *, deadline_s: float) -> None:
    """Run the template's kernel with an initrd that powers off at once. Raises :exc:`ProgramFailed` if that is not done in time."""
    machine = ("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", "q35", "-m", "256M")
    guest = ("-kernel", str(template.kernel), "-initrd", str(template.probe), "-append", "quiet panic=-1")
    cpu = "host" if accelerator is Accelerator.KVM else "max"
    await run("qemu-system-x86_64", *machine, "-accel", accelerator.value, "-cpu", cpu, *guest, deadline_s=deadline_s)
