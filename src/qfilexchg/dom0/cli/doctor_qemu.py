"""What ``qfilexchg doctor`` looks at where VMs run by QEMU."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from qfilexchg.dom0 import viewer
from qfilexchg.dom0.cli.findings import Check, Verdict
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import template
from qfilexchg.dom0.vms.qemu import acceleration


def _viewer() -> Check:
    if path := viewer.program():
        return Check("screens", Verdict.GOOD, f"shown by {path}")
    return Check("screens", Verdict.NOTE, f"nobody sees those of VMs: install the Debian package {viewer.PACKAGE}")


def checks(home: Home) -> Iterator[Check]:
    """May take the seconds of a probe of KVM."""
    try:
        found = template.current(home)
    except template.TemplateMissing:
        yield Check("acceleration", Verdict.NOTE, "not known before there is a template, whose kernel proves it")
        return
    choice = asyncio.run(acceleration.choose(home, found))
    fast = choice.accelerator is acceleration.Accelerator.KVM
    if found.has_desktop:
        yield _viewer()
    yield Check("acceleration", Verdict.GOOD if fast else Verdict.NOTE, f"{'KVM' if fast else 'TCG (emulation, slower)'}: {choice.why}")
