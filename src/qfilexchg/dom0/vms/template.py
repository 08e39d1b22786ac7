"""The template: a Debian system that VMs boot from, read-only.

A template is a folder of the cache and never changes, so VMs that run keep theirs when another one is built
(:mod:`qfilexchg.dom0.vms.recipe`). A home points to its templates by links: one for VMs that name no release, and one for each release
of Debian. The cache knows the homes that have such links, so that no template goes that one of them boots from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from dataclasses import dataclass
from dataclasses import replace as replaced
from pathlib import Path

from qfilexchg.dom0 import cache
from qfilexchg.dom0.debian import Release, package_name
from qfilexchg.dom0.home import Home
from qfilexchg.errors import CallerError, HostError

MEMORY_MIN_MIB = 192
"""Less does not start the template's kernel and systemd."""
DESKTOP_MEMORY_MIN_MIB = 512
"""Less leaves a desktop no room for a document's program."""
STALE_DAYS = 30
"""Older than this, a template lacks security updates that are known to everybody."""
_DAY_S = 86400


class TemplateMissing(HostError):
    """There is no template yet, none of ``release``, or its cache has been deleted."""

    def __init__(self, release: Release | None = None) -> None:
        super().__init__(release)
        self.release = release

    def __str__(self) -> str:
        if self.release is None:
            return "there is no template: build it by 'qvm-template build'"
        return f"there is no template of Debian {self.release.value}: build it by 'qvm-template build --release {self.release.value}'"


class BadTemplate(CallerError):
    """A folder that holds no template."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder

    def __str__(self) -> str:
        return f"{self.folder} holds no template: name a folder that 'qvm-template build' has printed"


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a template: a release of Debian, with a desktop or without, and the ``packages`` that the person has added."""

    release: Release
    desktop: bool = False
    packages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Template:
    """What a VM boots from."""

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
    def about(self) -> Path:
        """What is in it and when it was made. One that was copied by hand may lack it."""
        return self.folder / "about.json"

    @property
    def versions(self) -> Path:
        """The packages in it with their versions, as dpkg-query lists them."""
        return self.folder / "versions"

    def describe(self, contents: Contents, made_s: float) -> None:
        """Write down what is in it, and when Debian's packages were fetched (seconds of the epoch)."""
        about = {"release": contents.release.value, "desktop": contents.desktop, "packages": contents.packages, "made_s": int(made_s)}
        self.about.write_text(json.dumps(about), encoding="ascii")

    def _described(self) -> tuple[Contents, int] | None:
        """Return what :meth:`describe` has written. Whoever copied a template here may have written anything else."""
        try:
            about = json.loads(self.about.read_text(encoding="ascii"))
            release, desktop, packages, made_s = (about[key] for key in ("release", "desktop", "packages", "made_s"))
            if not (isinstance(desktop, bool) and isinstance(packages, list) and isinstance(made_s, int)):
                return None
            return Contents(Release(release), desktop, tuple(package_name(word) for word in packages)), made_s
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def contents(self) -> Contents | None:
        """None where that is not written down."""
        described = self._described()
        return described[0] if described else None

    @property
    def made_s(self) -> float:
        """When Debian's packages were fetched, in seconds of the epoch; 0 where nothing tells."""
        if described := self._described():
            return described[1]
        try:
            return self.root.stat().st_mtime
        except OSError:
            return 0

    def package_versions(self) -> dict[str, str]:
        """Return the versions of the packages in it, by name; nothing where that is not written down."""
        try:
            lines = self.versions.read_text(encoding="ascii").splitlines()
        except (OSError, ValueError):
            return {}
        return {name: version for name, _, version in (line.partition(" ") for line in lines)}

    def stale(self, now_s: float) -> str | None:
        """Return a sentence for the person if it is older than :data:`STALE_DAYS`."""
        days = int((now_s - self.made_s) // _DAY_S)
        if days <= STALE_DAYS:
            return None
        name, cure = (f" of Debian {self.contents.release.value}", "update") if self.contents else ("", "build")
        return f"the template{name} is {days} days old and lacks Debian's security updates since: 'qvm-template {cure}' makes a new one"

    @property
    def has_desktop(self) -> bool:
        """Whether its VMs have a screen, where the platform can give them one."""
        return self.contents is not None and self.contents.desktop

    @property
    def memory_min_mib(self) -> int:
        """What a VM of it needs at least."""
        return DESKTOP_MEMORY_MIN_MIB if self.has_desktop else MEMORY_MIN_MIB

    def mark_used(self) -> None:
        """Keep it from being deleted as one that nobody uses. One that is not ours to change is in no cache."""
        with contextlib.suppress(OSError):
            os.utime(self.folder)


def current(home: Home, release: Release | None = None) -> Template:
    """Return the template of ``home``'s VMs, or that of its VMs of this ``release``. Raises :exc:`TemplateMissing`."""
    try:
        return Template(_link(home, release).resolve(strict=True))
    except OSError:
        raise TemplateMissing(release) from None


def used(home: Home) -> dict[Path, list[Release | None]]:
    """Return the folders of ``home``'s templates, each with the releases that it stands for; None: for VMs that name none."""
    found: dict[Path, list[Release | None]] = {}
    for release in (None, *Release):
        with contextlib.suppress(TemplateMissing):
            found.setdefault(current(home, release).folder, []).append(release)
    return found


def existing(folder: Path) -> Template:
    """Return the template in ``folder``. Raises :exc:`BadTemplate`."""
    found = Template(folder.resolve())
    if not all(file.exists() for file in (found.root, found.kernel, found.initrd)):
        raise BadTemplate(folder)
    return found


def use(home: Home, template: Template) -> None:
    """Let ``home``'s VMs boot from ``template`` from now on, those that name no release and those that name its own."""
    template.mark_used()
    _point(home, None, template)
    if template.contents:
        _point(home, template.contents.release, template)


def replace(home: Home, old: Template, new: Template) -> None:
    """Let VMs that boot from ``old`` boot from ``new`` at their next start."""
    for release in used(home).get(old.folder, ()):
        _point(home, release, new)


def discard(home: Home, old: Template, say: cache.Say) -> None:
    """Delete a template of the cache, unless some home's VMs boot from it. A VM that runs keeps the files that it has open."""
    if old.folder.parent == images(home) and old.folder not in kept(home):
        cache.remove(old.folder, say)


def images(home: Home) -> Path:
    """Return the folder of the cache in which templates are, without links, as those that are used are named."""
    return (home.cache / "images").resolve()


def kept(home: Home) -> set[Path]:
    """Return the templates that some home with the cache of ``home`` boots from."""
    folders: set[Path] = set()
    for mark in _homes(home).glob("[0-9a-f]*"):
        try:
            data, marked_s = mark.readlink(), mark.lstat().st_mtime
        except FileNotFoundError:  # forgotten by somebody else
            continue
        folders.update(used(replaced(home, data=data)))
        if not data.exists() and marked_s < time.time() - cache.KEEP_UNUSED_S:  # else its disk may come back
            mark.unlink(missing_ok=True)
    return folders


def _homes(home: Home) -> Path:
    """Return the folder that has a link to each home that has templates of the same cache."""
    return home.cache / "homes"


def _link(home: Home, release: Release | None) -> Path:
    return home.template if release is None else home.templates / release.value


def _point(home: Home, release: Release | None, template: Template) -> None:
    """Change a link in one step, and let the cache know of this home before."""
    mark = _homes(home) / hashlib.sha256(os.fsencode(home.data)).hexdigest()
    for link, target in ((mark, home.data), (_link(home, release), template.folder)):
        link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = link.with_name(f".{link.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.rename(link)
