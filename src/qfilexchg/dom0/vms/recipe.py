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
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from pathlib import Path

from qfilexchg.dom0 import cache, debian
from qfilexchg.dom0.cache import Say
from qfilexchg.dom0.debian import Release
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.programs import run_in_sight
from qfilexchg.dom0.vms import initrd, kernel, packed, services, template
from qfilexchg.dom0.vms.template import Contents, Template, TemplateMissing
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
_WORKSHOPS = Path("/var/tmp")  # noqa: S108  a folder of a name that nobody can foresee is made in it


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


class NotAdded(CallerError):
    """A package that nobody has added to the template."""

    def __init__(self, package: str) -> None:
        super().__init__(package)
        self.package = package

    def __str__(self) -> str:
        return f"{self.package} was not added to the template: 'qvm-template list' shows what was"


class BuildFailed(HostError):
    """The host could not store what was built. ``why`` is its word."""

    def __init__(self, folder: Path, why: str) -> None:
        super().__init__(folder, why)
        self.folder = folder
        self.why = why

    def __str__(self) -> str:
        where = f"{_WORKSHOPS} and {self.folder}"
        return f"the template could not be built, and nothing was changed: {self.why}; see that there is room in {where}"


def recipe_hash(contents: Contents, recipe: Path, package: Path, over: Path | None = None) -> str:
    """Return the name of a template: a hash of everything that it follows from, except what Debian's mirrors have at the moment.

    ``over`` is the recipe that is laid over ``recipe``.
    """
    code = [Path(__file__), *(Path(module.__file__ or "") for module in (initrd, kernel, packed, debian))]
    laid_over = [(f"{DESKTOP_RECIPE.name}/{name}", file) for name, file in cache.tree(over)] if over else []
    files = [*cache.tree(recipe), *laid_over, *((file.name, file) for file in (*code, package))]
    return cache.content_hash(files, contents.release.value, *contents.packages)


def build(home: Home, release: Release, say: Say, *, desktop: bool = False) -> Template:
    """Make a template, or find it in the cache, and let ``home``'s VMs boot from it. It has what was added to the last of its release."""
    with _turn(home, say):
        try:
            before = template.current(home, release).contents
        except TemplateMissing:
            before = None
        found = make(home, Contents(release, desktop, before.packages if before else ()), say)
        template.use(home, found)
        return found


def update(home: Home, say: Say) -> Iterator[tuple[Template, list[str]]]:
    """Make each of ``home``'s templates anew, of the packages that Debian has now. Yield each when it is in its place, with what changed.

    Raises :exc:`~qfilexchg.dom0.vms.template.TemplateMissing` or :exc:`ContentsUnknown`.
    """
    with _turn(home, say):
        template.current(home)
        for old in map(Template, template.used(home)):
            versions = old.package_versions()
            new = _replace(home, old, _contents(old), say, anew=True)
            yield new, changes(versions, new.package_versions())


def change(home: Home, release: Release | None, add: AbstractSet[str], remove: AbstractSet[str], say: Say) -> Template:
    """Add Debian packages to the template of ``release``, or of VMs that name none, and remove some that were added.

    Raises :exc:`NotAdded`, :exc:`~qfilexchg.dom0.vms.template.TemplateMissing` or :exc:`ContentsUnknown`.
    """
    with _turn(home, say):
        old = template.current(home, release)
        contents = _contents(old)
        if unknown := sorted(remove - set(contents.packages)):
            raise NotAdded(unknown[0])
        packages = tuple(sorted({*contents.packages, *add} - remove))
        return _replace(home, old, Contents(contents.release, contents.desktop, packages), say)


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return a line for each package that is in one of them alone, as a kernel's update is, or has another version in ``new``."""
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return [f"{name}: {old.get(name, 'new')} → {new.get(name, 'gone')}" for name in names] or ["no package has changed"]


def _turn(home: Home, say: Say) -> AbstractContextManager[None]:
    """Held while a home's templates are changed, so that of two commands the second begins with what the first has made."""
    home.make()
    return cache.locked(home.data / "templates.lock", say)


def _contents(of: Template) -> Contents:
    if of.contents is None:
        raise ContentsUnknown(of.folder)
    return of.contents


def _replace(home: Home, old: Template, contents: Contents, say: Say, *, anew: bool = False) -> Template:
    worthless = anew or bool(_contents(old).packages)  # else somebody may well ask for it again
    new = make(home, contents, say, anew=anew)
    if new != old:
        with services.toolstack_lock(home):  # no VM is between having found its template and having opened it
            template.replace(home, old, new)
            if worthless:
                template.discard(home, old, say)
    return new


def make(home: Home, contents: Contents, say: Say, *, anew: bool = False) -> Template:
    """Make a template of these ``contents``, or find it in the cache, unless it is to be made ``anew``.

    ``say`` gets a line at each step; mmdebstrap's own progress goes to standard error. Another build of the same cache is waited for.
    Raises :exc:`PackageMissing`, :exc:`BuildFailed` and what :func:`qfilexchg.dom0.debian.install` raises.
    """
    home.make()
    try:
        with tempfile.TemporaryDirectory(prefix="qfilexchg-template-", dir=_WORKSHOPS) as name:
            workshop = Path(name)
            # mmdebstrap's users of a foreign namespace look into it, and it holds nothing that is private.
            workshop.chmod(0o755)
            package = _vm_package(workshop, say)
            over = DESKTOP_RECIPE if contents.desktop else None
            folder = template.images(home) / recipe_hash(contents, RECIPE, package, over)

            def fill(aside: Path) -> None:
                _build(Template(aside), contents, over, workshop, package, say)

            return Template(cache.made(folder, fill, say, anew=anew, kept=lambda: template.kept(home)))
    except OSError as error:
        raise BuildFailed(home.cache, error.strerror or str(error)) from error


def _vm_package(workshop: Path, say: Say) -> Path:
    """Put the package into ``workshop``: where this program is installed it came along, in a checkout it is built."""
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
    hook = recipe / "hook"
    hook.chmod(0o755)
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
    made.kernel.write_bytes(kernel.unpack(kernel.image(root.folder).read_bytes()))
    made.initrd.write_bytes(initrd.build(root.folder, (recipe / "init").read_bytes()))
    made.probe.write_bytes(initrd.build_probe(root.folder))
    made.versions.write_text(debian.versions(root), encoding="ascii")
    made.describe(contents, begun_s)
    for file in made.folder.iterdir():
        file.chmod(0o444)
