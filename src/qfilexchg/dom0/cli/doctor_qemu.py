"""What ``qfilexchg doctor`` looks at where VMs run by QEMU."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from qfilexchg.dom0.cli.findings import Check, Verdict
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import template
from qfilexchg.dom0.vms.qemu import acceleration


def checks(home: Home) -> Iterator[Check]:
    """May take the seconds of a probe of KVM."""
    try:
        found = template.current(home)
    except template.TemplateMissing:
        yield Check("acceleration", Verdict.NOTE, "not known before there is a template, whose kernel proves it")
        return
    choice = asyncio.run(acceleration.choose(home, found))
    fast = choice.accelerator is acceleration.Accelerator.KVM
    yield Check("acceleration", Verdict.GOOD if fast else Verdict.NOTE, f"{'KVM' if fast else 'TCG (emulation, slower)'}: {choice.why}")
