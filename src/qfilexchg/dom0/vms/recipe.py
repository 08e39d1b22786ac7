"""How a template is made: by the recipe in the folder ``image/``, and the Debian package of the VM side.

The recipe says which packages there are, which units stay off, what is laid over the root, and the initrd's first program. With a
desktop the folder ``desktop/`` is laid over that one: a file there takes the place of one of the same name. A template is cached under
the hash of all of these (:mod:`qfilexchg.dom0.cache`). What Debian's mirrors have today is not part of the hash, so an update makes
another template of the same name, with a number.

No root is needed (:mod:`qfilexchg.dom0.debian`).
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from qfilexchg.dom0 import cache, debian
from qfilexchg.dom0.cache import Say
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.programs import run_in_sight
from qfilexchg.dom0.vms import initrd, kernel, packed, template
from qfilexchg.dom0.vms.template import Contents, Template
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


class PackageMissing(HostError):
    """The Debian package of the VM side is not here."""

    def __str__(self) -> str:
        return f"the VM side's Debian package is missing: neither {INSTALLED_PACKAGE} nor {_PACKAGE_BUILDER} exists"


class ContentsUnknown(CallerError):
    """A template that says nothing of what is in it, so that it cannot be made anew."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder

    def __str__(self) -> str:
        return f"the template {self.folder} does not say what is in it: 'qvm-template build' makes one that does"


def recipe_hash(contents: Contents, recipe: Path, package: Path, over: Path | None = None) -> str:
    """What names a template: everything that its content follows from, but for the Debian mirror's present state.

    ``over`` is the recipe that is laid over ``recipe``.
    """
    code = [Path(__file__), *(Path(module.__file__ or "") for module in (initrd, kernel, packed, debian))]
    laid_over = [(f"{DESKTOP_RECIPE.name}/{name}", file) for name, file in cache.tree(over)] if over else []
    files = [*cache.tree(recipe), *laid_over, *((file.name, file) for file in (*code, package))]
    return cache.content_hash(files, contents.release.value, *contents.packages)


def build(home: Home, contents: Contents, say: Say) -> Template:
    """Make a template, or find it in the cache, and let ``home``'s VMs boot from it."""
    found = make(home, contents, say)
    template.use(home, found)
    return found


def update(home: Home, old: Template, say: Say) -> Template:
    """Make ``old`` anew, of Debian's packages of today, in its place. Raises :exc:`ContentsUnknown`."""
    return _replace(home, old, _contents(old), say, anew=True)


def install(home: Home, old: Template, packages: Iterable[str], say: Say) -> Template:
    """Make one in the place of ``old`` that has these of Debian's packages too. Raises :exc:`ContentsUnknown`."""
    contents = _contents(old)
    wanted = Contents(contents.release, contents.desktop, tuple(sorted({*contents.packages, *packages})))
    return _replace(home, old, wanted, say, anew=False)


def _contents(of: Template) -> Contents:
    if of.contents is None:
        raise ContentsUnknown(of.folder)
    return of.contents


def _replace(home: Home, old: Template, contents: Contents, say: Say, *, anew: bool) -> Template:
    of_its_own = bool(_contents(old).packages)
    new = make(home, contents, say, anew=anew)
    if new != old:
        template.replace(home, old, new)
        if anew or of_its_own:  # else somebody may well ask for it again
            template.discard(home, old, say)
    return new


def make(home: Home, contents: Contents, say: Say, *, anew: bool = False) -> Template:
    """Make a template of these ``contents``, or find it in the cache, unless it is to be made ``anew``.

    ``say`` gets a line at each step; mmdebstrap's own progress goes to standard error. Another build of the same cache is waited for.
    """
    home.make()
    with tempfile.TemporaryDirectory(prefix="qfilexchg-template-", dir="/var/tmp") as name:
        workshop = Path(name)
        # mmdebstrap's users of a foreign namespace look into it, and it holds nothing that is private.
        workshop.chmod(0o755)
        package = _vm_package(workshop, say)
        over = DESKTOP_RECIPE if contents.desktop else None
        folder = template.images(home) / recipe_hash(contents, RECIPE, package, over)

        def fill(aside: Path) -> None:
            _build(Template(aside), contents, over, workshop, package, say)

        return Template(cache.made(folder, fill, say, anew=anew, kept=template.kept(home.cache)))


def _vm_package(workshop: Path, say: Say) -> Path:
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


def _build(made: Template, contents: Contents, over: Path | None, workshop: Path, package: Path, say: Say) -> None:
    recipe = workshop / "recipe"
    shutil.copytree(RECIPE, recipe, copy_function=shutil.copyfile)
    if over:
        shutil.copytree(over, recipe, copy_function=shutil.copyfile, dirs_exist_ok=True)
    (recipe / "hook").chmod(0o755)
    hook = recipe / "hook"
    begun_s = time.time()
    say(f"installing Debian {contents.release.value} and the VM side ({'two minutes' if over else 'about a minute'})")
    root = debian.install(
        workshop,
        contents.release,
        [*(recipe / "packages").read_text(encoding="ascii").split(), *contents.packages, str(package)],
        {"setup": hook, "customize": hook},
        # The kernel's package makes no initrd: that of VMs is ours.
        {"QFILEXCHG_RECIPE": str(recipe), "QFILEXCHG_VM_DEB": str(package), "INITRD": "No"},
    )
    say("making the root disk")
    # No journal: nobody ever writes to it.
    size_bytes = root.size_bytes + root.size_bytes // SPARE_PART + SPARE_BYTES
    debian.make_disk(root, made.root, size_bytes, ("-O", "^has_journal,^resize_inode"))

    say("preparing the kernel and its initrd")
    (vmlinuz,) = (root.folder / "boot").glob("vmlinuz-*")
    made.kernel.write_bytes(kernel.unpack(vmlinuz.read_bytes()))
    made.initrd.write_bytes(initrd.build(root.folder, (recipe / "init").read_bytes()))
    made.probe.write_bytes(initrd.build_probe(root.folder))
    made.versions.write_text(debian.versions(root), encoding="ascii")
    made.describe(contents, begun_s)
    for file in made.folder.iterdir():
        file.chmod(0o444)
