"""What this computer runs VMs by.

The code for QEMU is not everywhere: Debian's package is for Xen and comes without it. Where it is missing, a computer that is not Xen's
dom0 has no platform at all, and every command says so.
"""

from __future__ import annotations

import enum
from pathlib import Path

from qfilexchg.errors import HostError

CAPABILITIES = Path("/proc/xen/capabilities")
HYPERVISOR = Path("/sys/hypervisor/type")
QEMU_CODE = Path(__file__).with_name("vms") / "qemu/__init__.py"
"""A file, as Python may leave its cache in the folder of code that is gone."""


class Platform(enum.Enum):
    """Each has its modules below ``vms``."""

    XEN = "Xen"
    """The computer is Xen's dom0: xl, the genuine xenstored, root."""
    QEMU = "QEMU"
    """Any other: a process a VM, a store of ours, the rights of whoever starts them."""


class NotDom0(HostError):
    """This installation is for Xen alone, and the computer is not Xen's dom0, although it may run ``under_xen``."""

    def __init__(self, *, under_xen: bool) -> None:
        super().__init__(under_xen)
        self.under_xen = under_xen

    def __str__(self) -> str:
        if self.under_xen:
            return (
                f"this computer runs under Xen, but is not its dom0, as {CAPABILITIES} does not say control_d: if it should be dom0, run "
                "'systemctl start xen'; if it is a VM, install qfilexchg-vm here instead"
            )
        return (
            "this computer does not run Xen: run 'apt install xen-system-amd64' if that is missing, and reboot into Xen; "
            f"'cat {CAPABILITIES}' then says control_d"
        )


def here(capabilities: Path = CAPABILITIES, qemu_code: Path = QEMU_CODE, hypervisor: Path = HYPERVISOR) -> Platform:
    """The platform of this computer. A domU, which has the file ``capabilities`` too, is no dom0. Raises :exc:`NotDom0`."""
    if "control_d" in _read(capabilities):
        return Platform.XEN
    if not qemu_code.exists():
        raise NotDom0(under_xen=_read(hypervisor).strip() == "xen")
    return Platform.QEMU


def _read(file: Path) -> str:
    """What the kernel says in ``file``, nothing where it is missing."""
    try:
        return file.read_text(encoding="ascii")
    except OSError:
        return ""
