"""A Debian system as the image of a disk, made without root.

mmdebstrap makes a tar archive in whatever way the host allows, and fakeroot gives the files of the disk their owners. Packages come
from the mirrors of the host's own apt, through its proxies. What the host knows of them does not get into a disk.
"""

from __future__ import annotations

import enum
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from qfilexchg.dom0.programs import ProgramFailed, ProgramMissing, find_program, output, run_in_sight
from qfilexchg.errors import HostError

_BUILD_DEADLINE_S = 1800.0
_APT_DEADLINE_S = 60.0
_POCKETS = ("", "-updates", "-security")
_SCHEMES = ("http://", "https://", "tor+http://", "tor+https://", "mirror+http://", "mirror+https://", "mirror+file:")
"""Of mirrors that are likely to have every release, and that apt reaches from outside of the new system."""
_PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*[a-z0-9+.]")
"""Debian Policy, 5.6.1. To apt a hyphen at the end means that the package is to be removed."""
_FETCHING = ("acquire::http::", "acquire::https::", "acquire::forceipv", "acquire::check-valid-until", "acquire::retries")
"""Settings that say how to reach a mirror, and what it may be."""
_OF_THE_HOST = ("etc/apt/apt.conf.d/99mmdebstrap", "etc/apt/sources.list", "etc/hostname", "etc/resolv.conf")
"""Files in which mmdebstrap tells a new system of the host: its proxies, its mirrors, its name and its name servers."""
_FIELDS = ("CREATED_BY", "ORIGIN", "COMPONENT", "CODENAME", "REPO_URI")
_run = partial(run_in_sight, deadline_s=_BUILD_DEADLINE_S)


class Release(enum.Enum):
    """The releases of Debian that systems are made of, the oldest first; the value is the code name."""

    BOOKWORM = "bookworm"
    TRIXIE = "trixie"


class InstallFailed(HostError):
    """Debian's packages could not be installed from ``mirrors``, or from mmdebstrap's own. mmdebstrap has said why."""

    def __init__(self, release: Release, mirrors: Sequence[str]) -> None:
        super().__init__(release, mirrors)
        self.release = release
        self.mirrors = mirrors

    def __str__(self) -> str:
        mirrors = ", ".join(sorted({line.split()[1] for line in self.mirrors})) or "mmdebstrap's own"
        return (
            f"Debian {self.release.value} could not be installed, and nothing was changed: mmdebstrap's lines above say why, for example "
            f"that a mirror cannot be reached or that Debian has no such package. The mirrors: {mirrors}"
        )


@dataclass(frozen=True, slots=True)
class Root:
    """An unpacked system: its files in ``folder``, and how large they are; ``owners`` is fakeroot's record of whose they are."""

    folder: Path
    owners: Path
    size_bytes: int


def host_release() -> Release:
    """Return the release that the host runs, or the newest known one on any other host."""
    try:
        return release_of(platform.freedesktop_os_release())
    except OSError:
        return release_of({})


def release_of(os_release: Mapping[str, str]) -> Release:
    """Return the release that ``os_release`` (os-release(5)) names, or the newest known one where it names another system."""
    for release in Release:
        if os_release.get("ID") == "debian" and os_release.get("VERSION_CODENAME") == release.value:
            return release
    return list(Release)[-1]


def install(workshop: Path, release: Release, packages: Sequence[str], hooks: Mapping[str, Path], environment: Mapping[str, str]) -> Root:
    """Install ``packages``, names or files, and all they need, into ``workshop``, an empty folder that others may look into.

    ``hooks`` are programs, by the stage of mmdebstrap at which they are called with the root's folder. mmdebstrap's own progress
    goes to standard error. Raises :exc:`InstallFailed`, :exc:`~qfilexchg.dom0.programs.ProgramMissing` or
    :exc:`~qfilexchg.dom0.programs.ProgramFailed`.
    """
    archive, root = workshop / "root.tar", Root(workshop / "root", workshop / "owners", 0)
    called = [f"--{stage}-hook={program}" for stage, program in hooks.items()]
    # Before the other hooks, which may put files of their own there.
    forget = f"--customize-hook=cd \"$1\" && rm -f {' '.join(_OF_THE_HOST)}"
    pack(archive, release, packages, forget, *called, environment=environment)
    root.folder.mkdir()
    _run("fakeroot", "-s", str(root.owners), "--", "tar", "-C", str(root.folder), "-xf", str(archive))
    size_bytes = archive.stat().st_size
    archive.unlink()
    return Root(root.folder, root.owners, size_bytes)


def pack(archive: Path, release: Release, packages: Sequence[str], *options: str, environment: Mapping[str, str] | None = None) -> None:
    """Make ``archive``, a tar file of a system with ``packages`` and all they need. It knows the host's mirrors and proxies.

    ``options`` are further ones of mmdebstrap. Raises :exc:`InstallFailed`, :exc:`~qfilexchg.dom0.programs.ProgramMissing` or, when it
    takes too long, :exc:`~qfilexchg.dom0.programs.ProgramFailed`.
    """
    include = [f"--include={package}" for package in packages]
    settings = archive.with_suffix(".conf")
    settings.write_text("".join(f"{line}\n" for line in fetching()), encoding="utf-8")
    if os.geteuid() == 0:  # else mmdebstrap reads it as another user
        settings.chmod(0o600)
    lines = mirror_lines(release)
    command = ("mmdebstrap", "--variant=minbase", *include, f"--aptopt={settings}", *options, release.value, str(archive), *lines)
    try:
        _run(*command, env=environment)
    except ProgramFailed as error:
        if error.status is None:  # it was killed, which it cannot have said
            raise
        raise InstallFailed(release, lines) from error
    settings.unlink()


def versions(root: Root) -> str:
    """Return the packages in ``root``, a line each with its version."""
    shown = "${Package} ${Version}\\n"
    return output("dpkg-query", f"--admindir={root.folder}/var/lib/dpkg", "--show", "-f", shown, deadline_s=_APT_DEADLINE_S).decode("ascii")


def make_disk(root: Root, image: Path, size_bytes: int, options: Sequence[str]) -> None:
    """Make ``image``, an ext4 disk without a partition table that holds ``root``."""
    # A fixed block size, as mke2fs would choose by the size alone.
    ext4 = (find_program("mke2fs"), "-q", "-t", "ext4", "-b", "4096", "-m", "0", *options, "-d", str(root.folder))
    _run("fakeroot", "-i", str(root.owners), "--", *ext4, str(image), f"{size_bytes >> 10}k")


def mirror_lines(release: Release) -> list[str]:
    """Return the lines for sources.list that give ``release`` by the host's mirrors, or none: then mmdebstrap's own are used."""
    shown = "\t".join(f"$({field})" for field in _FIELDS)
    return list(mirrors(_apt("apt-get", "indextargets", "--format", shown), release))


def mirrors(targets: str, release: Release) -> Iterator[str]:
    """Yield a line for each of the host's mirrors in ``targets``, as apt-get(8) lists them: fields in this module's order, by tabs.

    A mirror on the network is taken to have every release, so the host's own is replaced by ``release``. What is not Debian's own is
    left out. Nothing is yielded where the host has no mirror of the release itself, or none of its security updates.
    """
    suites = {f"{known.value}{pocket}": pocket for known in Release for pocket in _POCKETS}
    found = {}
    for line in targets.splitlines():
        match line.split("\t"):
            case ["Packages", "Debian", "main", codename, uri] if codename in suites and uri.startswith(_SCHEMES):
                found[f"deb {uri} {release.value}{suites[codename]} main"] = suites[codename]
    if {"", "-security"} <= set(found.values()):
        yield from found


def fetching() -> list[str]:
    """Return the host's settings of apt that say how to reach a mirror."""
    return list(reaching(_apt("apt-config", "dump", "Acquire")))


def reaching(settings: str) -> Iterator[str]:
    """Yield those of the host's ``settings``, as apt-config(8) dumps them, that say how to reach a mirror."""
    yield from (line for line in settings.splitlines() if line.lower().startswith(_FETCHING))


def package_name(word: str) -> str:
    """Return ``word`` if it can be the name of a package. Raises :exc:`ValueError`."""
    if not _PACKAGE_NAME.fullmatch(word):
        raise ValueError(f"{word[:64]!a} is not the name of a Debian package")
    return word


def _apt(*command: str) -> str:
    """Return what apt says, nothing where there is none."""
    try:
        return output(*command, deadline_s=_APT_DEADLINE_S).decode("utf-8", "replace")
    except ProgramMissing:
        return ""
