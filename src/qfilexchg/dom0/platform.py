"""What this computer runs VMs by."""

from __future__ import annotations

import enum
from pathlib import Path

CAPABILITIES = Path("/proc/xen/capabilities")


class Platform(enum.Enum):
    """Each has its modules below ``vms``."""

    XEN = "Xen"
    """The computer is Xen's dom0: xl, the genuine xenstored, root."""
    QEMU = "QEMU"
    """Any other: a process a VM, a store of ours, the rights of whoever starts them."""


def here(capabilities: Path = CAPABILITIES) -> Platform:
    """The platform of this computer. A domU, which has the file too, is no dom0."""
    try:
        controls = "control_d" in capabilities.read_text(encoding="ascii")
    except OSError:
        controls = False
    return Platform.XEN if controls else Platform.QEMU
