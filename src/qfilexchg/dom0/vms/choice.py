"""The toolstack of a home's platform. The other platform's modules are not even imported: what they need may be missing."""

from __future__ import annotations

from typing import assert_never

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.platform import Platform
from qfilexchg.dom0.vms.toolstack import Toolstack


def toolstack(home: Home) -> Toolstack:
    """The toolstack for the VMs of ``home``, which has been made."""
    match home.platform:
        case Platform.QEMU:
            from qfilexchg.dom0.vms.qemu.toolstack import QemuToolstack

            return QemuToolstack(home)
        case Platform.XEN:
            from qfilexchg.dom0.vms.xen.toolstack import XenToolstack

            return XenToolstack(home)
        case _:
            assert_never(home.platform)
