"""The template: a Debian system that all VMs boot from, read-only.

Its recipe is the folder ``image/``: which packages, which units stay off, what is laid over the root, the initrd's first program;
and the Debian package of the VM side. A template is cached under the hash of all of these, is built aside and renamed into place,
and never changes afterwards, so VMs that run keep theirs when another one is built. A home points to its template by a link.

No root is needed: mmdebstrap makes a tar archive in whatever way the host allows, and fakeroot gives the files of the disk
their owners.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.programs import find_program, run_in_sight
from qfilexchg.dom0.vms import initrd, kernel
from qfilexchg.errors import HostError

SUITE = "bookworm"
RECIPE = Path(__file__).with_name("image")
INSTALLED_PACKAGE = Path("/usr/share/qfilexchg/qfilexchg-vm.deb")
_CHECKOUT = Path(__file__).resolve().parents[4]
_PACKAGE_BUILDER = _CHECKOUT / "packaging/build-vm-deb"

SPARE_BYTES = 64 << 20
"""Room in the root disk beyond its files: ext4's own tables. It stays a hole."""
KEEP_UNUSED_S = 14 * 86400
"""Half a gigabyte each; after a fortnight, building one again costs less than keeping it."""
_BUILD_DEADLINE_S = 1800.0
_run = partial(run_in_sight, deadline_s=_BUILD_DEADLINE_S)


class TemplateMissing(HostError):
    """There is no template yet, or its cache has been deleted."""

    def __str__(self) -> str:
        return "there is no template: build it by 'qvm-template build'"


class PackageMissing(HostError):
    """The Debian package of the VM side is not here."""

    def __str__(self) -> str:
        return f"the VM side's Debian package is missing: neither {INSTALLED_PACKAGE} nor {_PACKAGE_BUILDER} exists"


@dataclass(frozen=True, slots=True)
class Template:
    """What a VM boots from. ``folder``'s name is the hash of the recipe."""

    folder: Path

    @property
    def kernel(self) -> Path:
        return self.folder / "kernel"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd"

    @property
    def probe(self) -> Path:
        """An initrd that powers off: the tiny guest by which KVM is proved."""
        return self.folder / "probe"

    @property
    def root(self) -> Path:
        """The root disk, ext4 without a partition table."""
        return self.folder / "root.img"


def current(home: Home) -> Template:
    """The template of ``home``'s VMs. Raises :exc:`TemplateMissing`."""
    try:
        folder = home.template.resolve(strict=True)
    except FileNotFoundError:
        raise TemplateMissing from None
    return Template(folder)


def recipe_hash(recipe: Path, package: Path) -> str:
    """What names a template: everything that its content follows from, but for the Debian mirror's present state."""
    digest = hashlib.sha256()
    code = (Path(module.__file__ or "") for module in (initrd, kernel))
    files = [(str(file.relative_to(recipe)), file) for file in sorted(recipe.rglob("*")) if file.is_file()]
    files += [(file.name, file) for file in (*code, package)]
    for name, file in files:
        content = file.read_bytes()
        digest.update(f"{len(name)} {name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def build(home: Home, say: Callable[[str], None]) -> Template:
    """Make the template that the recipe describes, or find it in the cache, and make it ``home``'s own.

    ``say`` gets a line at each step; mmdebstrap's own progress goes to standard error. Another build of the same cache is waited for.
    """
    home.make()
    images = home.cache / "images"
    images.mkdir(exist_ok=True)
    with _locked(images / ".lock", say), tempfile.TemporaryDirectory(prefix="qfilexchg-template-", dir="/var/tmp") as name:
        workshop = Path(name)
        # mmdebstrap's users of a foreign namespace look into it, and it holds nothing that is private.
        workshop.chmod(0o755)
        package = _vm_package(workshop, say)
        folder = images / recipe_hash(RECIPE, package)
        if not folder.exists():
            aside = images / f".{folder.name}.building"
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            _build(Template(aside), workshop, package, say)
            aside.rename(folder)
        os.utime(folder)
        prune(images)
    use(home, Template(folder))
    return Template(folder)


def use(home: Home, template: Template) -> None:
    """Let ``home``'s VMs boot from ``template`` from now on."""
    fresh = home.template.with_name(f".template.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(template.folder)
    fresh.rename(home.template)


def prune(images: Path) -> None:
    """Delete templates that nobody has asked for in a long time. A VM that runs from one keeps its open disk."""
    for folder in images.glob("[0-9a-f]*"):
        if folder.stat().st_mtime < time.time() - KEEP_UNUSED_S:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build is under way; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _vm_package(workshop: Path, say: Callable[[str], None]) -> Path:
    """The package, in ``workshop``: where this program is installed it came along, in a checkout it is built."""
    package = workshop / "qfilexchg-vm.deb"
    if _PACKAGE_BUILDER.exists():
        say("building the VM side's package")
        output = workshop / "package"
        output.mkdir()
        _run(str(_PACKAGE_BUILDER), str(output))
        (built,) = output.glob("qfilexchg-vm_*.deb")
        built.rename(package)
    elif INSTALLED_PACKAGE.exists():
        shutil.copyfile(INSTALLED_PACKAGE, package)
    else:
        raise PackageMissing
    package.chmod(0o644)
    return package


def _build(template: Template, workshop: Path, package: Path, say: Callable[[str], None]) -> None:
    recipe = workshop / "recipe"
    shutil.copytree(RECIPE, recipe, copy_function=shutil.copyfile)
    (recipe / "hook").chmod(0o755)
    archive, root, owners = workshop / "root.tar", workshop / "root", workshop / "owners"
    wanted = (recipe / "packages").read_text(encoding="ascii").split()

    say(f"installing Debian {SUITE} and the VM side (about a minute)")
    hook = str(recipe / "hook")
    include = [f"--include={','.join(wanted)}", f"--include={package}"]
    _run(
        *("mmdebstrap", "--variant=minbase", *include, f"--setup-hook={hook}", f"--customize-hook={hook}", SUITE, str(archive)),
        env={"QFILEXCHG_RECIPE": str(recipe), "QFILEXCHG_VM_DEB": str(package)},
    )
    say("making the root disk")
    root.mkdir()
    _run("fakeroot", "-s", str(owners), "--", "tar", "-C", str(root), "-xf", str(archive))
    size_bytes = archive.stat().st_size + SPARE_BYTES
    archive.unlink()
    # No journal: nobody ever writes to it. A fixed block size, as mke2fs would choose by the size alone.
    ext4 = (find_program("mke2fs"), "-q", "-t", "ext4", "-b", "4096", "-m", "0", "-O", "^has_journal,^resize_inode", "-d", str(root))
    _run("fakeroot", "-i", str(owners), "--", *ext4, str(template.root), f"{size_bytes >> 10}k")

    say("preparing the kernel and its initrd")
    (vmlinuz,) = (root / "boot").glob("vmlinuz-*")
    packed = vmlinuz.read_bytes()
    try:
        template.kernel.write_bytes(kernel.unpack(packed))
    except kernel.NotPacked as why:
        say(f"VMs will start about a second slower: {why}")
        template.kernel.write_bytes(packed)
    template.initrd.write_bytes(initrd.build(root, (recipe / "init").read_bytes()))
    template.probe.write_bytes(initrd.build_probe(root))
    for file in template.folder.iterdir():
        file.chmod(0o444)
