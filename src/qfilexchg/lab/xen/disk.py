"""The disk of the Xen machine: a Debian dom0 with everything in it but qfilexchg, and what it boots from.

Its recipe is the folder ``recipe/``. It is cached under the hash of that and of the run agent, by which it takes commands.
"""

from __future__ import annotations

import gzip
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import qfilexchg
from qfilexchg.dom0 import cache, debian
from qfilexchg.dom0.cache import Say
from qfilexchg.dom0.debian import Release
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import initrd, kernel, packed

RECIPE = Path(__file__).with_name("recipe")
KEPT = 3
"""Of the disks: one for each release, and the last one of either."""
SIZE_BYTES = 6 << 30
"""Of the disk, as dom0 sees it; most of it is a hole."""
_MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "ext4")
_FOLDERS = ("bin", "dev", "modules", "proc", "sys", "system")
_SOURCE = Path(qfilexchg.__file__).parent
_AGENT = ("__init__.py", "errors.py", "protocol/*.py", "guest/__init__.py", "guest/console.py", "guest/run_agent.py")


@dataclass(frozen=True, slots=True)
class Disk:
    """A dom0 that has never been booted. ``folder``'s name is the hash of the recipe."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "root.img"

    @property
    def xen(self) -> Path:
        return self.folder / "xen"

    @property
    def kernel(self) -> Path:
        return self.folder / "kernel"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd"


def build(home: Home, release: Release, say: Say) -> Disk:
    """Make the disk of a dom0 of this release, or find it in the cache. Raises a HostError."""
    agent = [(str(file.relative_to(_SOURCE)), file) for pattern in _AGENT for file in sorted(_SOURCE.glob(pattern))]
    modules = (debian.__file__, initrd.__file__, kernel.__file__, packed.__file__)
    code = [(Path(name).name, Path(name)) for name in (__file__, *map(str, modules))]
    wanted = cache.content_hash([*cache.tree(RECIPE), *agent, *code], release.value)
    return Disk(cache.made(home.cache / "xen" / "disk" / wanted, lambda aside: _build(Disk(aside), release, agent, say), say, keep=KEPT))


def _build(disk: Disk, release: Release, agent: list[tuple[str, Path]], say: Say) -> None:
    with tempfile.TemporaryDirectory(prefix="qfilexchg-xen-", dir="/var/tmp") as name:
        workshop = Path(name)
        workshop.chmod(0o755)  # mmdebstrap's users of a foreign namespace look into it
        recipe = workshop / "recipe"
        shutil.copytree(RECIPE, recipe, copy_function=shutil.copyfile)
        (recipe / "hook").chmod(0o755)
        for path, file in agent:
            copy = workshop / "agent/qfilexchg" / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        say(f"installing Debian {release.value} and Xen for the machine's dom0 (about two minutes)")
        packages = (recipe / "packages").read_text(encoding="ascii").split()
        environment = {"QFILEXCHG_RECIPE": str(recipe), "QFILEXCHG_AGENT": str(workshop / "agent")}
        root = debian.install(workshop, release, packages, {"customize": recipe / "hook"}, environment)
        say("making its disk")
        debian.make_disk(root, disk.root, SIZE_BYTES, ("-E", "lazy_itable_init=1,nodiscard"))
        (xen,) = (root.folder / "boot").glob("xen-*-amd64.gz")
        disk.xen.write_bytes(gzip.decompress(xen.read_bytes()))
        shutil.copyfile(kernel.image(root.folder), disk.kernel)
        disk.initrd.write_bytes(initrd.archive(root.folder, (recipe / "init").read_bytes(), _FOLDERS, {"order": _MODULES}))
