"""Folders that are made once: each is named by the hash of all that its content follows from, so it never changes.

A folder is built aside and renamed into place. Whoever wants one that another process is just making waits for it. What nobody has
asked for in a long time is deleted.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

KEEP_UNUSED_S = 14 * 86400
"""Some gigabytes in all; after a fortnight, building again costs less than keeping."""

Say = Callable[[str], None]


def content_hash(files: Iterable[tuple[str, Path]], *words: str) -> str:
    """The hash of ``words`` and of ``files``, each under the name that is given with it."""
    digest = hashlib.sha256("".join(f"{len(word)} {word}\n" for word in words).encode())
    for name, file in files:
        content = file.read_bytes()
        digest.update(f"{len(name)} {name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def tree(folder: Path) -> list[tuple[str, Path]]:
    """Every file below ``folder``, with its path there, in one order."""
    return [(str(file.relative_to(folder)), file) for file in sorted(folder.rglob("*")) if file.is_file()]


def made(folder: Path, make: Callable[[Path], None], say: Say, *, keep: int | None = None) -> Path:
    """``folder``, which ``make`` fills where it is not there yet. ``say`` is told when another build has to be waited for.

    ``keep`` is how many of those beside it, the last used ones, are kept at most.

    What ``make`` raises is raised; nothing is left then but a folder aside, which the next build of anything beside it removes.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / ".lock", say):
        if not folder.exists():
            for left in folder.parent.glob(_aside("*")):
                shutil.rmtree(left, ignore_errors=True)
            aside = folder.with_name(_aside(folder.name))
            aside.mkdir()
            make(aside)
            aside.rename(folder)
        os.utime(folder)
        prune(folder.parent, keep)
    return folder


def _aside(name: str) -> str:
    return f".{name}.building"


def prune(folders: Path, keep: int | None = None) -> None:
    """Delete what nobody has asked for in a long time, and what exceeds ``keep``. Whoever has a file of it open keeps that."""
    used = sorted(((folder.stat().st_mtime, folder) for folder in folders.glob("[0-9a-f]*")), reverse=True)
    for number, (time_s, folder) in enumerate(used):
        if time_s < time.time() - KEEP_UNUSED_S or (keep is not None and number >= keep):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(path: Path, say: Say) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build is under way; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
