"""Virtual pendrives: sparse image files with an empty vfat filesystem, made in a private spool and deleted after one use.

An image is new for each transfer: its unwritten parts are holes, which read as zeros, so nothing of an earlier one can be in it.
dom0 writes the empty filesystem and from then on never looks at the content: a VM may have put anything there. How much was
written is learnt from the blocks that the host's filesystem has allocated.

An image is named by its id, which is ours and random; no VM has a say in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from qfilexchg.dom0.programs import run
from qfilexchg.errors import HostError, InternalError
from qfilexchg.protocol.names import VOLUME_LABEL_MAX

SIZE_MIN_BYTES = 1 << 20
SIZE_STEP_BYTES = 1 << 20
"""Images are whole MiB, so that no hypervisor has to round and every structure in them is aligned."""

FORMAT_DEADLINE_S = 30
"""64 GiB take 0.1 s on an idle disk."""

_FAT32_MIN_BYTES = 34 << 20
"""With clusters of one sector, the least that holds the 65525 clusters by which FAT32 is known (Microsoft's FAT specification)."""
_CLUSTERS_WANTED = 1 << 17
_SECTOR_BYTES = 512
_CLUSTER_SECTORS_MAX = 64
"""32 KiB, the largest cluster that every system reads."""


class PendriveFailed(HostError):
    """The host's filesystem would not do what it was asked with an image."""

    def __init__(self, what: str, path: Path, why: str) -> None:
        super().__init__(what, path, why)
        self.what = what
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"cannot {self.what} {self.path}: {self.why}"


class BadPendriveId(InternalError):
    """An id that :func:`new_id` did not make."""


def new_id() -> str:
    """An id for one pendrive, never used before."""
    return secrets.token_hex(8)


def image_path(spool: Path, pendrive_id: str) -> Path:
    """Where the image of a pendrive lies."""
    if not pendrive_id or not set(pendrive_id) <= set("0123456789abcdef"):
        raise BadPendriveId(f"{pendrive_id[:64]!a} is not the id of a pendrive")
    return spool / f"{pendrive_id}.img"


async def create(spool: Path, pendrive_id: str, size_bytes: int, label: str) -> Path:
    """Make an image of at least ``size_bytes`` and return its path.

    The size is rounded up to whole MiB; ``label`` is cut to what FAT holds. Raises :exc:`PendriveFailed` or an error of
    :func:`~qfilexchg.dom0.programs.run`; then, or when it is cancelled, no image is left.
    """
    size_bytes = max(SIZE_MIN_BYTES, -(-size_bytes // SIZE_STEP_BYTES) * SIZE_STEP_BYTES)
    path = image_path(spool, pendrive_id)
    _make_private(spool)
    with _doing(f"make a pendrive of {size_bytes} bytes", path):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with _doing(f"make a pendrive of {size_bytes} bytes", path), os.fdopen(file, "wb") as image:
            image.truncate(size_bytes)
        name = ("-i", secrets.token_hex(4), "-n", label[:VOLUME_LABEL_MAX])
        await run("mkfs.fat", *_layout(size_bytes), *name, "--", str(path), deadline_s=FORMAT_DEADLINE_S)
    except BaseException:
        _remove(path)
        raise
    return path


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _layout(size_bytes: int) -> list[str]:
    """How mkfs.fat is to lay out an image of this size.

    FAT32 where it is possible, since FAT16 ends at 512 names in the first folder; the small ones below get more room for names.
    Clusters as large as leaves FAT32 well above its least count: the two tables, which are all that formatting writes, stay below
    1 MiB up to 4 GiB (1 GiB: 8 ms, and 16 ms with the program's own choice). No partition table: it would show the VM a second disk.
    """
    if size_bytes < _FAT32_MIN_BYTES:
        return ["--mbr=n", "-r", "2048"]
    sectors = 1
    while sectors < _CLUSTER_SECTORS_MAX and size_bytes // (2 * sectors * _SECTOR_BYTES) >= _CLUSTERS_WANTED:
        sectors *= 2
    return ["--mbr=n", "-F", "32", "-s", str(sectors)]


def allocated_bytes(path: Path) -> int:
    """What the image takes on the host's disk. Right after :func:`create` this is the baseline for :func:`used_bytes`."""
    with _doing("measure the pendrive", path):
        return path.stat().st_blocks * 512


def used_bytes(path: Path, baseline_bytes: int) -> int:
    """How much a VM has written, in whole blocks of the host's filesystem; ``baseline_bytes`` is what the empty image took.

    It is for the person's eye: what a VM wrote and then deleted may still count, and what fits into blocks of the empty
    filesystem does not.
    """
    return max(0, allocated_bytes(path) - baseline_bytes)


async def delete(path: Path) -> None:
    """Delete an image. One that does not exist is a success. To free tens of gigabytes takes a while; nobody else waits."""
    with _doing("delete the pendrive", path):
        await asyncio.to_thread(path.unlink, missing_ok=True)


async def keep(path: Path, folder: Path) -> Path:
    """Move an image, holes and all, into ``folder`` on the same filesystem, and return its new path.

    One that was moved there before is a success. If it raises, nothing has moved.
    """
    _make_private(folder)
    kept = folder / path.name
    with _doing(f"move the pendrive to {kept} from", path):
        try:
            await asyncio.to_thread(path.rename, kept)
        except FileNotFoundError:
            await asyncio.to_thread(kept.stat)
    return kept


def _make_private(folder: Path) -> None:
    """Make ``folder`` if it is missing; refuse one that is not ours alone, as others could read or exchange the images in it."""
    with _doing("make the folder", folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise PendriveFailed("put pendrives into", folder, "it is not a folder of this user alone; chown it and chmod it to 0700")


@contextlib.contextmanager
def _doing(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PendriveFailed(what, path, error.strerror or str(error)) from error
