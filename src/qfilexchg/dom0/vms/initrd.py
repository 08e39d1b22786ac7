"""The VMs' initrd: busybox, a few modules and ``image/init``, as a cpio archive.

The format is "newc" (Documentation/driver-api/early-userspace/buffer-format.rst). Neither the archive nor the modules in it are
compressed: unpacking costs emulated time, reading does not. Owners, times and numbers are fixed, so the same input gives the same bytes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from qfilexchg.dom0 import programs
from qfilexchg.dom0.vms import kernel, packed

PLATFORMS = {"qemu": ("virtio_pci", "virtio_blk", "virtio_console", "virtio-rng"), "xen": ("xen-blkfront",)}
"""What reaches the outside there: a VM's disks, and on QEMU its channels and its randomness. ``image/init`` knows where it is."""

COMMON = ("ext4", "overlay", "vfat", "nls_cp437", "nls_ascii", "nls_utf8")
"""What every VM needs: its root disk, its volatile layer, and pendrives without a wait for modprobe."""

FOLDERS = ("bin", "dev", "modules", "proc", "sys", "system", "template", "volatile")
_PROGRAM_DEADLINE_S = 60.0


def build(root: Path, init: bytes) -> bytes:
    """Return the initrd of VMs for the unpacked system ``root``, which holds one kernel's modules and a static busybox.

    Raises what :func:`load_order` and :func:`~qfilexchg.dom0.vms.packed.unpack` raise.
    """
    return archive(root, init, FOLDERS, {platform: (*own, *COMMON) for platform, own in PLATFORMS.items()})


def build_probe(root: Path) -> bytes:
    """Return an initrd that does nothing but power off."""
    return archive(root, b"#!/bin/busybox sh\nexec /bin/busybox poweroff -f\n", ("bin",), {})


def archive(root: Path, init: bytes, folders: Iterable[str], lists: Mapping[str, Iterable[str]]) -> bytes:
    """Return an initrd that starts ``init``, with empty ``folders`` and the busybox of ``root``.

    Each name of ``lists`` becomes a file in ``modules/``: the file names of these modules and of all they need, in the order in which
    they are to be loaded. What is part of the kernel is left out.
    """
    with tempfile.TemporaryDirectory(prefix="qfilexchg-initrd-") as name:
        tree = Path(name)
        for folder in folders:
            (tree / folder).mkdir()
            (tree / folder).chmod(0o755)  # whatever the umask
        _write(tree / "init", 0o755, init)
        _write(tree / "bin/busybox", 0o755, (root / "bin/busybox").read_bytes())
        for list_name, wanted in lists.items():
            modules = {f"{module.name.partition('.ko')[0]}.ko": module for module in load_order(root, wanted)}
            for file_name, module in modules.items():
                _write(tree / "modules" / file_name, 0o644, packed.unpack(module.read_bytes(), f"the module {module.name}"))
            _write(tree / "modules" / list_name, 0o644, "".join(f"{file_name}\n" for file_name in modules).encode())
        return _cpio(tree)


def load_order(root: Path, wanted: Iterable[str]) -> list[Path]:
    """Return the files of the ``wanted`` modules and all they need, each after what it needs itself, as modprobe(8) says.

    Raises :exc:`~qfilexchg.dom0.programs.ProgramFailed` where the kernel of ``root`` has no such module.
    """
    release = kernel.release(root)
    order: dict[Path, None] = {}
    for module in wanted:
        # Without the settings in /etc/modprobe.d, which are for a system that has started.
        command = ("modprobe", "-C", os.devnull, "-d", str(root), "-S", release, "--show-depends", "--", module)
        for line in programs.output(*command, deadline_s=_PROGRAM_DEADLINE_S).decode("utf-8").splitlines():
            what, file, *_ = line.split()  # options may follow: modprobe takes them from the host's kernel command line, too
            if what == "insmod":  # else "builtin": part of the kernel
                order.setdefault(Path(file))
    return list(order)


def _write(file: Path, mode: int, content: bytes) -> None:
    file.write_bytes(content)
    file.chmod(mode)


def _cpio(tree: Path) -> bytes:
    """Return an archive of ``tree``, all of it owned by root and of no time."""
    paths = sorted(tree.rglob("*"))
    for path in paths:
        os.utime(path, (0, 0))
    names = "".join(f"{path.relative_to(tree)}\0" for path in paths)
    options = ("--create", "--quiet", "--null", "--format=newc", "--owner=+0:+0", "--reproducible", f"--directory={tree}")
    return programs.output("cpio", *options, deadline_s=_PROGRAM_DEADLINE_S, input=names.encode())
