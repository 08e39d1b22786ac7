"""The VMs' initrd: busybox, a few modules and ``image/init``, as a cpio archive.

The format is "newc" (Documentation/driver-api/early-userspace/buffer-format.rst), not compressed: unpacking costs emulated time,
reading does not. Owners, times and numbers are fixed, so the same input gives the same bytes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

PLATFORMS = {"qemu": ("virtio_pci", "virtio_blk", "virtio_console", "virtio-rng"), "xen": ("xen-blkfront",)}
"""What reaches the outside there: a VM's disks, and on QEMU its channels and its randomness. ``image/init`` knows where it is."""

COMMON = ("overlay", "vfat", "nls_cp437", "nls_ascii", "nls_utf8")
"""What every VM needs: its volatile layer, and pendrives without a wait for modprobe."""

PERHAPS = ("crc32c_generic", "ext4")
"""What it needs too, and one kernel has as modules while it is part of the other."""

FOLDERS = ("bin", "dev", "modules", "proc", "sys", "system", "template", "volatile")


def build(root: Path, init: bytes) -> bytes:
    """The initrd for the unpacked root filesystem ``root``, which holds one kernel's modules and a static busybox."""
    (release,) = (root / "lib/modules").iterdir()
    modules_dep = (release / "modules.dep").read_text(encoding="utf-8")
    files = {"init": (0o755, init), "bin/busybox": (0o755, (root / "bin/busybox").read_bytes())}
    perhaps = [name for name in PERHAPS if f"/{name}.ko:" in modules_dep]
    for platform, own in PLATFORMS.items():
        modules = load_order(modules_dep, (*own, *perhaps, *COMMON))
        files |= {f"modules/{Path(module).name}": (0o644, (release / module).read_bytes()) for module in modules}
        files[f"modules/{platform}"] = (0o644, "".join(f"{Path(module).name}\n" for module in modules).encode())
    return cpio(FOLDERS, files)


def build_probe(root: Path) -> bytes:
    """An initrd that does nothing but power off."""
    init = b"#!/bin/busybox sh\nexec /bin/busybox poweroff -f\n"
    return cpio(("bin",), {"init": (0o755, init), "bin/busybox": (0o755, (root / "bin/busybox").read_bytes())})


def load_order(modules_dep: str, wanted: Iterable[str]) -> list[str]:
    """Paths of the ``wanted`` modules and all they need, each after what it needs itself (modules.dep(5))."""
    needs = {}
    for line in modules_dep.splitlines():
        module, _, dependencies = line.partition(":")
        needs[module] = dependencies.split()
    by_name = {Path(module).name.removesuffix(".ko").replace("-", "_"): module for module in needs}
    order: dict[str, None] = {}

    def add(module: str) -> None:
        # depmod lists everything a module needs, the deepest last.
        for dependency in reversed(needs[module]):
            order.setdefault(dependency)
        order.setdefault(module)

    for name in wanted:
        add(by_name[name.replace("-", "_")])
    return list(order)


def cpio(folders: Iterable[str], files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """An archive of ``folders`` and of ``files`` (path → permissions, content), all owned by root."""
    archive = bytearray()
    entries = [(name, stat.S_IFDIR | 0o755, b"") for name in folders]
    entries += [(name, stat.S_IFREG | mode, content) for name, (mode, content) in files.items()]
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        path = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (number, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(path), 0)
        archive += b"070701" + b"".join(b"%08x" % field for field in fields) + path
        archive += bytes(-len(archive) % 4)
        archive += content
        archive += bytes(-len(archive) % 4)
    return bytes(archive)
