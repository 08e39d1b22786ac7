"""The xl configuration of a VM, built from data and never pasted together (xl.cfg(5), xl-disk-configuration(5)).

What the VM has is all here: the template's root disk, read-only and shared by all VMs, a disk of its own, a console. It has no
network and no display. Pendrives are attached while it runs.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from qfilexchg.dom0.vms.collection import Kind
from qfilexchg.dom0.vms.hypervisor import HypervisorError
from qfilexchg.dom0.vms.template import Template
from qfilexchg.protocol.names import VmName

Setting = str | int | Sequence[str]

ROOT, PRIVATE, VOLATILE = "xvda", "xvdb", "xvdc"
"""The disks that a VM starts with: the template's root, an AppVM's ``/home``, all that a DisposableVM writes."""

BLOCK_SCRIPT = Path(__file__).with_name("block")
"""What libxl runs in dom0 to put a loop device under a file."""

_KERNEL_ARGUMENTS = (
    # The console is the way to the run agent, so nobody else is to speak or to log in there.
    *("root=/dev/xvda", "ro", "console=hvc0", "quiet", "loglevel=3", "systemd.show_status=0", "systemd.getty_auto=0"),
    # Self-tests and a wait, each of which costs time at every start.
    *("cryptomgr.notests", "rcupdate.rcu_expedited=1", "audit=0"),
)
_ENDS = ("on_poweroff", "on_reboot", "on_watchdog", "on_crash", "on_soft_reset")
"""However a VM ends, it is destroyed: nothing of it is kept, and none starts again unasked."""
_FORBIDDEN = frozenset("\"'\\")


class GuestType(enum.Enum):
    """How Xen runs a VM; the value is xl's word."""

    PVH = "pvh"
    """By the processor's own virtualisation."""
    PV = "pv"
    """Without."""


class NotPlain(HypervisorError):
    """A text that cannot stand in a configuration, where it would have to be quoted."""

    def __init__(self, text: str) -> None:
        super().__init__("xl takes only paths of printable ASCII without quotes and backslashes, and not this one", text)


@dataclass(frozen=True, slots=True)
class Machine:
    """What distinguishes one VM from another."""

    name: VmName
    uuid: UUID
    kind: Kind
    memory_mib: int
    processors: int
    disk: Path
    """The VM's own: an AppVM's private one; a DisposableVM's volatile one."""
    template: Template
    type: GuestType


def settings(machine: Machine) -> Mapping[str, Setting]:
    """The configuration of a VM, to be started or to be restored."""
    own = VOLATILE if machine.kind is Kind.DISPOSABLE else PRIVATE
    return {
        "name": machine.name,
        "uuid": str(machine.uuid),
        "type": machine.type.value,
        "kernel": str(machine.template.kernel),
        "ramdisk": str(machine.template.initrd),
        "cmdline": " ".join((*_KERNEL_ARGUMENTS, f"systemd.hostname={machine.name}")),
        "memory": machine.memory_mib,
        "maxmem": machine.memory_mib,
        "vcpus": machine.processors,
        "disk": (disk(ROOT, machine.template.root, writable=False), disk(own, machine.disk, writable=True)),
        "vif": (),
        **dict.fromkeys(_ENDS, "destroy"),
    }


def disk(name: str, image: Path, *, writable: bool) -> str:
    """A disk for xl: a raw file, whatever it holds. Raises :exc:`NotPlain`."""
    return f"format=raw,vdev={name},access={'rw' if writable else 'ro'},script={BLOCK_SCRIPT},target={_plain(str(image))}"


def fingerprint(template: Template, type: GuestType, memory_mib: int, processors: int) -> str:
    """Changes with anything of a DisposableVM's hardware: a saved VM fits only the machine that it was saved on."""
    nobody = VmName.parse("any")
    machine = Machine(nobody, UUID(int=0), Kind.DISPOSABLE, memory_mib, processors, Path("disk"), template, type)
    return hashlib.sha256(serialise(settings(machine)).encode("ascii")).hexdigest()


def serialise(settings: Mapping[str, Setting]) -> str:
    """A configuration file. Raises :exc:`NotPlain` for what would have to be quoted."""
    return "".join(f"{name} = {_value(setting)}\n" for name, setting in settings.items())


def _value(setting: Setting) -> str:
    match setting:
        case int():
            return str(setting)
        case str():
            return f'"{_plain(setting)}"'
        case _:
            return f"[{', '.join(map(_value, setting))}]"


def _plain(text: str) -> str:
    if not text.isascii() or not text.isprintable() or not _FORBIDDEN.isdisjoint(text):
        raise NotPlain(text)
    return text
