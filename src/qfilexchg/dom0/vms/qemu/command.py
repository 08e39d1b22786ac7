"""The QEMU command line of a VM, as pure data, and the names by which its parts are found again over QMP.

What the VM has is all here: one read-only disk shared by all VMs, a private disk, byte channels to the store and for ``qvm-run``,
two empty PCIe ports for pendrives, randomness, a clock. It has no network, no USB, no firmware devices beyond what a kernel needs to
start. Of a template with a desktop it has a screen besides: memory that is shown (bochs-display, which is nothing of an old PC's VGA),
a keyboard and a tablet, served by VNC at a Unix socket in the VM's run folder.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.hypervisor import Slot
from qfilexchg.dom0.vms.qemu.acceleration import Accelerator
from qfilexchg.dom0.vms.qemu.channels import run_socket
from qfilexchg.dom0.vms.template import Template
from qfilexchg.protocol.channels import RUN_PORTS, STORE_PORTS
from qfilexchg.protocol.names import DomainId, VmName

PROGRAM = "qemu-system-x86_64"
CONSOLE = "console"
"""The chardev that keeps the end of what the VM's kernel says: a ring, as a file would let the VM fill the host's disk."""
_CONSOLE_BYTES = 64 << 10
_TCG_CACHE_MIB = 64
"""QEMU's memory for translated code, up to a gigabyte by default. 128 starts a VM hardly faster and takes 60 MiB more of the host's
memory; 32 starts it a tenth slower."""
_TCG_CACHE_RESTORED_MIB = 34
"""The same of a restored VM, which starts no system: one document takes 33. With 32 the cache overflows once on the way, and a document
is open a quarter later; with 64 an idle VM takes a little more."""

_TCG_CACHE_DESKTOP_MIB = 256
"""Of a VM with a screen, restored or not. With 128 it overflows three times while the VM starts, and work in it takes a tenth longer."""

SCREEN_PIXELS = (1024, 768)
_SCREEN_MEMORY_MIB = 8

_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

_KERNEL_ARGUMENTS = (
    *("root=/dev/vda", "ro", "console=ttyS0", "quiet", "systemd.show_status=0"),
    # Probes and self-tests of a PC that this is not; each costs emulated time at every start.
    *("i8042.noaux", "i8042.nokbd", "no_timer_check", "tsc=reliable", "cryptomgr.notests", "rcupdate.rcu_expedited=1", "audit=0"),
)
_RESTORE = ("-incoming", "defer")
"""Wait for a saved state, with the VM stopped. Its kernel is in its memory, and needs to be loaded by nobody."""
_TCG_KERNEL_ARGUMENTS = ("mitigations=off",)
"""An emulated processor does not speculate."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What distinguishes one run of a VM from another."""

    name: VmName
    uuid: UUID
    domain: DomainId
    memory_mib: int
    processors: int
    disk: Path
    """The VM's own: an AppVM's ``/home``; all that a DisposableVM writes."""
    template: Template
    accelerator: Accelerator
    memory: MemoryFile | None = None


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """The memory of a DisposableVM, in a file: written to while a savefile is made, and then the same for all that are restored."""

    file: Path
    restored: bool
    """The VM goes on where the savefile was made. The file is mapped copy-on-write: what a VM writes is its own, and never in the file."""


def qmp_socket(home: Home, domain: DomainId) -> Path:
    return home.domain(domain) / "qmp"


def screen_socket(home: Home, domain: DomainId) -> Path:
    """Where the VM's display is served, if it has one. Whoever can enter the folder may look and type."""
    return home.domain(domain) / "screen"


def command(machine: Machine, home: Home) -> list[str]:
    """The arguments of :data:`PROGRAM`, without its name."""
    tcg = machine.accelerator is Accelerator.TCG
    restored = machine.memory is not None and machine.memory.restored
    desktop = machine.template.has_desktop
    cache_mib = _TCG_CACHE_DESKTOP_MIB if desktop else _TCG_CACHE_RESTORED_MIB if restored else _TCG_CACHE_MIB
    accel = f"tcg,thread=multi,tb-size={cache_mib}" if tcg else "kvm"
    append = [*_KERNEL_ARGUMENTS, *(_TCG_KERNEL_ARGUMENTS if tcg else ()), f"systemd.hostname={machine.name}"]
    return [
        *("-no-user-config", "-nodefaults", "-no-reboot", "-sandbox", _SANDBOX),
        *(_screen(machine.domain, home) if desktop else ("-display", "none")),
        *("-name", f"guest={machine.name},process=qemu-{machine.name[:10]}", "-uuid", str(machine.uuid)),
        *("-machine", "q35,vmport=off,smbus=off,sata=off,i8042=off,graphics=off,usb=off,hpet=off"),
        *("-accel", accel, "-cpu", "max" if tcg else "host", "-smp", str(machine.processors), "-m", f"{machine.memory_mib}M"),
        *("-rtc", "base=utc", "-device", "vmgenid,guid=auto", "-device", "virtio-rng-pci"),
        *(_memory(machine) if machine.memory else ()),
        *(_RESTORE if restored else ("-kernel", str(machine.template.kernel), "-initrd", str(machine.template.initrd))),
        *(() if restored else ("-append", " ".join(append))),
        *("-chardev", f"ringbuf,id={CONSOLE},size={_CONSOLE_BYTES}", "-serial", f"chardev:{CONSOLE}"),
        *("-chardev", f"socket,id=qmp,path={_escaped(qmp_socket(home, machine.domain))},server=on,wait=off", "-mon", "qmp,mode=control"),
        *_disk("root", machine.template.root, read_only=True),
        *_disk("volatile" if machine.memory else "private", machine.disk, read_only=False),
        *_channels(machine.domain, home),
        *(word for slot in Slot for word in ("-device", _pendrive_port(slot))),
    ]


def fingerprint(template: Template, accelerator: Accelerator, memory_mib: int, processors: int) -> str:
    """Changes with anything of a DisposableVM's hardware: a saved state fits only the machine that it was saved on."""
    memory = MemoryFile(Path("memory"), restored=False)
    machine = Machine(VmName.parse("any"), UUID(int=0), DomainId(1), memory_mib, processors, Path("disk"), template, accelerator, memory)
    words = command(machine, Home(Path("data"), Path("run"), Path("cache")))
    return hashlib.sha256("\0".join(words).encode()).hexdigest()


def _memory(machine: Machine) -> tuple[str, ...]:
    assert machine.memory is not None
    backing = {
        "qom-type": "memory-backend-file",
        "id": "memory",
        "size": machine.memory_mib << 20,
        "mem-path": str(machine.memory.file),
        "share": not machine.memory.restored,
    }
    return ("-object", json.dumps(backing), "-machine", "memory-backend=memory")


def _screen(domain: DomainId, home: Home) -> list[str]:
    width, height = SCREEN_PIXELS
    devices = (f"bochs-display,vgamem={_SCREEN_MEMORY_MIB}M,xres={width},yres={height}", "virtio-keyboard-pci", "virtio-tablet-pci")
    # Two may look at once, so that one who lost the window gets another. Who looks cannot switch the VM off.
    served = f"vnc=unix:{_escaped(screen_socket(home, domain))},share=force-shared,power-control=off"
    return ["-display", served, *(word for device in devices for word in ("-device", device))]


def _escaped(path: Path) -> str:
    """QEMU splits option values at commas; two stand for one."""
    return str(path).replace(",", ",,")


def _disk(serial: str, path: Path, *, read_only: bool) -> tuple[str, ...]:
    """A virtio disk that the VM's initrd finds by ``serial``."""
    file: dict[str, object] = {"driver": "file", "filename": str(path), "discard": "unmap"}
    node = {"driver": "raw", "node-name": serial, "read-only": read_only, "discard": "unmap", "file": file}
    # The default would stop the VM, with nobody to tell, when the host's disk is full.
    device = {"driver": "virtio-blk-pci", "drive": serial, "serial": serial, "werror": "report", "rerror": "report"}
    return ("-blockdev", json.dumps(node), "-device", json.dumps(device))


def _channels(domain: DomainId, home: Home) -> list[str]:
    ports = []
    for number, name in enumerate(STORE_PORTS):
        ports.append((f"store{number}", name, f"path={_escaped(home.store_domain_socket(domain))}"))
    for number, name in enumerate(RUN_PORTS):
        ports.append((f"run{number}", name, f"path={_escaped(run_socket(home.domain(domain), number))},server=on,wait=off"))
    # Port 0 is kept for a console by virtio-serial itself.
    words = ["-device", f"virtio-serial-pci,id=channels,max_ports={len(ports) + 1}"]
    for chardev, name, address in ports:
        words += ["-chardev", f"socket,id={chardev},{address}", "-device", f"virtserialport,bus=channels.0,chardev={chardev},name={name}"]
    return words


def _pendrive_port(slot: Slot) -> str:
    number = list(Slot).index(slot) + 1
    return f"pcie-root-port,id={pendrive_bus(slot)},chassis={number},slot={number}"


def pendrive_bus(slot: Slot) -> str:
    """The PCIe port that is kept for a slot."""
    return f"pen-{slot.value}"


def pendrive_disk(slot: Slot) -> str:
    """The id of a slot's disk while there is one."""
    return f"disk-{slot.value}"


def pendrive_node(slot: Slot) -> str:
    """The block node of a slot's image while there is one."""
    return f"image-{slot.value}"


def pendrive_file_node(slot: Slot) -> str:
    return f"file-{slot.value}"
