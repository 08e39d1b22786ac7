"""The template: a Debian system that all VMs boot from, read-only.

Its recipe is the folder ``image/``: which packages, which units stay off, what is laid over the root, the initrd's first program;
and the Debian package of the VM side. With a desktop the folder ``desktop/`` is laid over that one: a file there takes the place of
one of the same name. A template is cached under the hash of all of these (:mod:`qfilexchg.dom0.cache`) and never changes, so VMs
that run keep theirs when another one is built. A home points to its template by a link.

No root is needed (:mod:`qfilexchg.dom0.debian`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qfilexchg.dom0 import cache, debian
from qfilexchg.dom0.debian import Release
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.programs import run_in_sight
from qfilexchg.dom0.vms import initrd, kernel, packed
from qfilexchg.errors import CallerError, HostError

RECIPE = Path(__file__).with_name("image")
DESKTOP_RECIPE = Path(__file__).with_name("desktop")
INSTALLED_PACKAGE = Path("/usr/share/qfilexchg/qfilexchg-vm.deb")
_CHECKOUT = Path(__file__).resolve().parents[4]
_PACKAGE_BUILDER = _CHECKOUT / "packaging/build-vm-deb"

SPARE_BYTES = 64 << 20
SPARE_PART = 16
"""Room in the root disk beyond its files: ext4's own tables, and for them one byte for each so many of the files. It stays a hole."""
_PACKAGE_DEADLINE_S = 300.0
MEMORY_MIN_MIB = 192
"""Less does not start the template's kernel and systemd."""
DESKTOP_MEMORY_MIN_MIB = 512
"""Less leaves a desktop no room for a document's program."""


class TemplateMissing(HostError):
    """There is no template yet, or its cache has been deleted."""

    def __str__(self) -> str:
        return "there is no template: build it by 'qvm-template build'"


class PackageMissing(HostError):
    """The Debian package of the VM side is not here."""

    def __str__(self) -> str:
        return f"the VM side's Debian package is missing: neither {INSTALLED_PACKAGE} nor {_PACKAGE_BUILDER} exists"


class BadTemplate(CallerError):
    """A folder that holds no template."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder

    def __str__(self) -> str:
        return f"{self.folder} holds no template: name a folder that 'qvm-template build' has printed"


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

    @property
    def has_desktop(self) -> bool:
        """Whether its VMs have a screen, where the platform can give them one."""
        return self._desktop.exists()

    def mark_desktop(self) -> None:
        """It is being made, and its VMs will have a screen."""
        self._desktop.touch()

    @property
    def _desktop(self) -> Path:
        return self.folder / "desktop"

    @property
    def memory_min_mib(self) -> int:
        """What a VM of it needs at least."""
        return DESKTOP_MEMORY_MIN_MIB if self.has_desktop else MEMORY_MIN_MIB

    def mark_used(self) -> None:
        """Keep it from being deleted as one that nobody uses. One that is not ours to change is in no cache."""
        with contextlib.suppress(OSError):
            os.utime(self.folder)


def current(home: Home) -> Template:
    """The template of ``home``'s VMs. Raises :exc:`TemplateMissing`."""
    try:
        folder = home.template.resolve(strict=True)
    except FileNotFoundError:
        raise TemplateMissing from None
    return Template(folder)


def existing(folder: Path) -> Template:
    """The template in ``folder``. Raises :exc:`BadTemplate`."""
    found = Template(folder.resolve())
    if not all(file.exists() for file in (found.root, found.kernel, found.initrd)):
        raise BadTemplate(folder)
    return found


def recipe_hash(release: Release, recipe: Path, package: Path, over: Path | None = None) -> str:
    """What names a template: everything that its content follows from, but for the Debian mirror's present state.

    ``over`` is the recipe that is laid over ``recipe``.
    """
    code = [Path(__file__), *(Path(module.__file__ or "") for module in (initrd, kernel, packed, debian))]
    laid_over = [(f"{DESKTOP_RECIPE.name}/{name}", file) for name, file in cache.tree(over)] if over else []
    return cache.content_hash([*cache.tree(recipe), *laid_over, *((file.name, file) for file in (*code, package))], release.value)


def build(home: Home, say: Callable[[str], None], *, release: Release | None = None, desktop: bool = False) -> Template:
    """Make the template that the recipe describes, and make it ``home``'s own."""
    found = make(home, say, release=release, desktop=desktop)
    use(home, found)
    return found


def make(home: Home, say: Callable[[str], None], *, release: Release | None = None, desktop: bool = False) -> Template:
    """Make the template that the recipe describes, or find it in the cache.

    It is of the host's own ``release`` of Debian unless another is named. ``say`` gets a line at each step; mmdebstrap's own progress
    goes to standard error. Another build of the same cache is waited for.
    """
    home.make()
    with tempfile.TemporaryDirectory(prefix="qfilexchg-template-", dir="/var/tmp") as name:
        workshop = Path(name)
        # mmdebstrap's users of a foreign namespace look into it, and it holds nothing that is private.
        workshop.chmod(0o755)
        package = _vm_package(workshop, say)
        over = DESKTOP_RECIPE if desktop else None
        wanted = release or debian.host_release()
        folder = home.cache / "images" / recipe_hash(wanted, RECIPE, package, over)
        return Template(cache.made(folder, lambda aside: _build(Template(aside), wanted, over, workshop, package, say), say))


def use(home: Home, template: Template) -> None:
    """Let ``home``'s VMs boot from ``template`` from now on."""
    fresh = home.template.with_name(f".template.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(template.folder)
    fresh.rename(home.template)


def _vm_package(workshop: Path, say: Callable[[str], None]) -> Path:
    """The package, in ``workshop``: where this program is installed it came along, in a checkout it is built."""
    package = workshop / "qfilexchg-vm.deb"
    if _PACKAGE_BUILDER.exists():
        say("building the VM side's package")
        output = workshop / "package"
        output.mkdir()
        run_in_sight(str(_PACKAGE_BUILDER), str(output), deadline_s=_PACKAGE_DEADLINE_S)
        (built,) = output.glob("qfilexchg-vm_*.deb")
        built.rename(package)
    elif INSTALLED_PACKAGE.exists():
        shutil.copyfile(INSTALLED_PACKAGE, package)
    else:
        raise PackageMissing
    package.chmod(0o644)
    return package


def _build(template: Template, release: Release, over: Path | None, workshop: Path, package: Path, say: Callable[[str], None]) -> None:
    recipe = workshop / "recipe"
    shutil.copytree(RECIPE, recipe, copy_function=shutil.copyfile)
    if over:
        shutil.copytree(over, recipe, copy_function=shutil.copyfile, dirs_exist_ok=True)
    (recipe / "hook").chmod(0o755)
    hook = recipe / "hook"
    say(f"installing Debian {release.value} and the VM side ({'two minutes' if over else 'about a minute'})")
    root = debian.install(
        workshop,
        release,
        [*(recipe / "packages").read_text(encoding="ascii").split(), str(package)],
        {"setup": hook, "customize": hook},
        # The kernel's package makes no initrd: that of VMs is ours.
        {"QFILEXCHG_RECIPE": str(recipe), "QFILEXCHG_VM_DEB": str(package), "INITRD": "No"},
    )
    say("making the root disk")
    # No journal: nobody ever writes to it.
    size_bytes = root.size_bytes + root.size_bytes // SPARE_PART + SPARE_BYTES
    debian.make_disk(root, template.root, size_bytes, ("-O", "^has_journal,^resize_inode"))

    say("preparing the kernel and its initrd")
    (vmlinuz,) = (root.folder / "boot").glob("vmlinuz-*")
    template.kernel.write_bytes(kernel.unpack(vmlinuz.read_bytes()))
    template.initrd.write_bytes(initrd.build(root.folder, (recipe / "init").read_bytes()))
    template.probe.write_bytes(initrd.build_probe(root.folder))
    if over:
        template.mark_desktop()
    for file in template.folder.iterdir():
        file.chmod(0o444)
