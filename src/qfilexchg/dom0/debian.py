"""A Debian system as the image of a disk, made without root.

mmdebstrap makes a tar archive in whatever way the host allows, and fakeroot gives the files of the disk their owners.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from qfilexchg.dom0.programs import find_program, run_in_sight

SUITE = "bookworm"
_BUILD_DEADLINE_S = 1800.0
_run = partial(run_in_sight, deadline_s=_BUILD_DEADLINE_S)


@dataclass(frozen=True, slots=True)
class Root:
    """An unpacked system: its files in ``folder``, and how large they are; ``owners`` is fakeroot's record of whose they are."""

    folder: Path
    owners: Path
    size_bytes: int


def install(workshop: Path, packages: Sequence[str], hooks: Mapping[str, Path], environment: Mapping[str, str]) -> Root:
    """Install ``packages``, names or files, and all they need, into ``workshop``, an empty folder that others may look into.

    ``hooks`` are programs, by the stage of mmdebstrap at which they are called with the root's folder. mmdebstrap's own progress
    goes to standard error. Raises :exc:`~qfilexchg.dom0.programs.ProgramFailed`.
    """
    archive, root = workshop / "root.tar", Root(workshop / "root", workshop / "owners", 0)
    include = [f"--include={package}" for package in packages]
    called = [f"--{stage}-hook={program}" for stage, program in hooks.items()]
    _run("mmdebstrap", "--variant=minbase", *include, *called, SUITE, str(archive), env=environment)
    root.folder.mkdir()
    _run("fakeroot", "-s", str(root.owners), "--", "tar", "-C", str(root.folder), "-xf", str(archive))
    size_bytes = archive.stat().st_size
    archive.unlink()
    return Root(root.folder, root.owners, size_bytes)


def make_disk(root: Root, image: Path, size_bytes: int, options: Sequence[str]) -> None:
    """Make ``image``, an ext4 disk without a partition table that holds ``root``."""
    # A fixed block size, as mke2fs would choose by the size alone.
    ext4 = (find_program("mke2fs"), "-q", "-t", "ext4", "-b", "4096", "-m", "0", *options, "-d", str(root.folder))
    _run("fakeroot", "-i", str(root.owners), "--", *ext4, str(image), f"{size_bytes >> 10}k")
