"""A Linux kernel for direct boot: the ELF file that is packed in a ``vmlinuz``.

QEMU starts an ELF kernel through its PVH entry (Xen's boot ABI, docs/misc/pvh.pandoc), which spares the guest from unpacking
itself: under emulation 0.6 s of 3 s. The place of the packed kernel is in the boot protocol's header
(Documentation/arch/x86/boot.rst, "payload_offset").
"""

from __future__ import annotations

import struct
from pathlib import Path

from qfilexchg.dom0.vms import packed
from qfilexchg.errors import HostError

_SETUP_SECTORS = 0x1F1
_MAGIC = 0x202
_PAYLOAD = 0x248
_SECTOR_BYTES = 512
_HEADER_BYTES = _PAYLOAD + 8


class KernelUnusable(HostError):
    """A file is not the kernel image that it should be. ``why`` not."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"the template's kernel cannot be used: {self.why}"


def image(root: Path) -> Path:
    """Return the packed kernel of the unpacked system ``root``. Raises :exc:`KernelUnusable` unless there is exactly one."""
    found = sorted((root / "boot").glob("vmlinuz-*"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise KernelUnusable(f"there must be one, and there is {names}: add no package of another kernel")
    return found[0]


def release(root: Path) -> str:
    """Return the release of the kernel of ``root``, by which its modules are found. Raises :exc:`KernelUnusable`."""
    return image(root).name.removeprefix("vmlinuz-")


def unpack(vmlinuz: bytes) -> bytes:
    """Return the ELF kernel in ``vmlinuz``.

    Raises :exc:`KernelUnusable`, and what :func:`qfilexchg.dom0.vms.packed.unpack` raises.
    """
    if len(vmlinuz) < _HEADER_BYTES or vmlinuz[_MAGIC : _MAGIC + 4] != b"HdrS":
        raise KernelUnusable("it has no header of the Linux boot protocol")
    start = ((vmlinuz[_SETUP_SECTORS] or 4) + 1) * _SECTOR_BYTES
    offset, length = struct.unpack_from("<II", vmlinuz, _PAYLOAD)
    payload = vmlinuz[start + offset : start + offset + length]
    # The kernel's build appends the length of the whole, except where gzip has done so itself.
    stream = payload if payload.startswith(packed.GZIP) else payload[:-4]
    kernel = packed.unpack(stream, "the template's kernel")
    if not kernel.startswith(packed.ELF) or len(kernel) != int.from_bytes(payload[-4:], "little"):
        raise KernelUnusable("it does not unpack to an ELF file of the length it states")
    return kernel
