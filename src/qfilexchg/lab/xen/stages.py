"""How the Xen machine comes to be: its disk, then a dom0 that has booted, then one with qfilexchg, its VMs and its savefile.

Each is cached under the hash of what it is made of, so that a changed package costs only the last step. What differs from one
machine to the next comes to dom0 as a second disk, the *parcel*: the Debian packages, the template, and what DisposableVMs are
prepared with.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from qfilexchg.dom0 import cache, programs
from qfilexchg.dom0.cache import Say
from qfilexchg.dom0.debian import Release
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import recipe
from qfilexchg.dom0.vms.template import Contents
from qfilexchg.errors import CallerError
from qfilexchg.lab.xen import disk, machine
from qfilexchg.lab.xen.disk import Disk
from qfilexchg.lab.xen.machine import Machine, Stage

_CHECKOUT = Path(__file__).resolve().parents[4]
_PACKAGE_BUILDER = _CHECKOUT / "packaging/build-debs"
_SOURCES = (_CHECKOUT / "packaging", *(_CHECKOUT / "src/qfilexchg" / room for room in ("dom0", "guest", "protocol", "xenstore")))
_SETUP = Path(__file__).with_name("setup")
_PARCEL_BYTES = 1 << 30
_PACKAGES_DEADLINE_S = 300.0
_SETUP_DEADLINE_S = 1200.0
KEPT = 2
"""Of each stage, some gigabytes: one for the tests and one to work in, which differ in their editor, or two of either."""
SETTLE_S = 3.0
"""Before a machine is saved, for what its start has left to do: what is done then, no run does again."""


class SourcesChanged(CallerError):
    """The packages were built of other sources than those by which the machine would be found again."""

    def __str__(self) -> str:
        return "the sources were changed while the packages were built: try again"


@dataclass(frozen=True, slots=True)
class Ready:
    """All that a run goes on from."""

    disk: Disk
    parcel: Path
    stage: Stage


def build(home: Home, release: Release, editor: Path, say: Say) -> Ready:
    """Make the machine, or find it in the cache. Its dom0 and its VMs are of this release; ``editor`` prepares its DisposableVMs.

    Raises a HostError.

    It is found by the sources of the packages, as building those takes longer than starting it. Documentation is not counted.
    """
    home.make()
    found = disk.build(home, release, say)
    empty, booted = _booted(home, found, say)
    code = [("editor", editor), ("stages", Path(__file__)), ("setup", _SETUP), ("booted", booted.state)]

    def content() -> str:
        sources = [(f"{tree.name}/{name}", file) for tree in _SOURCES for name, file in cache.tree(tree) if file.suffix != ".pyc"]
        return cache.content_hash([*sources, *code])

    wanted = content()

    def make(folder: Path) -> None:
        _make_parcel(home, folder / "parcel", release, editor, say)
        if content() != wanted:
            raise SourcesChanged
        say("installing qfilexchg in dom0, and starting its VMs (about two minutes)")
        asyncio.run(_set_up(home, found, folder / "parcel", booted, Stage(folder)))

    ready = cache.made(home.cache / "xen" / "ready" / wanted, make, say, keep=KEPT)
    os.utime(empty.parent)
    return Ready(found, ready / "parcel", Stage(ready))


def _booted(home: Home, found: Disk, say: Say) -> tuple[Path, Stage]:
    """A machine whose dom0 has just booted, with an empty parcel."""
    qemu = Path(programs.find_program(machine.PROGRAM))
    status = qemu.stat()
    wanted = cache.content_hash([("machine", Path(machine.__file__)), ("disk", found.initrd)])
    name = f"{wanted}-{found.folder.name[:16]}-{status.st_size}-{status.st_mtime_ns}"

    def make(folder: Path) -> None:
        with (folder / "parcel").open("xb") as parcel:
            parcel.truncate(_PARCEL_BYTES)
        say("booting Xen and its dom0 (less than a minute)")
        asyncio.run(_boot(home, found, folder / "parcel", Stage(folder)))

    folder = cache.made(home.cache / "xen" / "booted" / name, make, say, keep=KEPT)
    return folder / "parcel", Stage(folder)


@contextlib.asynccontextmanager
async def _workshop(home: Home, stage: Stage) -> AsyncIterator[Machine]:
    """A machine that is to be saved as ``stage``, in whose folder it is: nothing of it is left but what was, also if we are killed."""
    scratch = partial(tempfile.TemporaryDirectory, prefix="qx-")
    with scratch(dir=stage.folder) as name, scratch(dir=home.run) as sockets:
        fresh = Machine(Path(name), Path(sockets))
        try:
            yield fresh
        finally:
            await fresh.end()


async def _boot(home: Home, found: Disk, parcel: Path, stage: Stage) -> None:
    async with _workshop(home, stage) as fresh:
        await fresh.boot(found, parcel)
        await fresh.command(["sync"])
        await asyncio.sleep(SETTLE_S)
        await fresh.save(stage)


async def _set_up(home: Home, found: Disk, parcel: Path, booted: Stage, stage: Stage) -> None:
    async with _workshop(home, stage) as fresh:
        await fresh.restore(found, parcel, booted, to_save=True)
        await fresh.command(["date", "--set", f"@{time.time():.0f}"])
        await fresh.command(["sh", "-c", _SETUP.read_text(encoding="ascii")], _SETUP_DEADLINE_S)
        await asyncio.sleep(SETTLE_S)
        await fresh.save(stage)


def _make_parcel(home: Home, image: Path, release: Release, editor: Path, say: Say) -> None:
    with tempfile.TemporaryDirectory(prefix="parcel-", dir=image.parent) as name:
        packed = Path(name)
        (packed / "packages").mkdir()
        (packed / "template").mkdir()
        say("building the packages")
        programs.run_in_sight(str(_PACKAGE_BUILDER), str(packed / "packages"), deadline_s=_PACKAGES_DEADLINE_S)
        booted = recipe.make(home, Contents(release), say)
        for file in (booted.kernel, booted.initrd, booted.root, booted.about):
            os.link(file, packed / "template" / file.name)
        shutil.copyfile(editor, packed / "editor")
        options = ("-q", "-t", "ext4", "-b", "4096", "-m", "0", "-O", "^has_journal", "-E", "root_owner=0:0")
        size = f"{_PARCEL_BYTES >> 10}k"
        programs.run_in_sight("mke2fs", *options, "-d", str(packed), str(image), size, deadline_s=_PACKAGES_DEADLINE_S)
