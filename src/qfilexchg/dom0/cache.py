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
from collections.abc import Set as AbstractSet
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


def made(
    folder: Path,
    make: Callable[[Path], None],
    say: Say,
    *,
    anew: bool = False,
    keep: int | None = None,
    kept: Callable[[], AbstractSet[Path]] = frozenset,
) -> Path:
    """Return ``folder``, which ``make`` fills where it is not there yet. ``say`` is told when another build has to be waited for.

    With ``anew`` it is made again, beside the last one, under its name and the next number: ``made`` returns the last one then, and
    from then on. ``keep`` is how many of those beside it, the last used ones, are kept at most. What ``kept`` returns always is.

    What ``make`` raises is raised; nothing is left then but a folder aside, which the next build of anything beside it removes.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent / ".lock", say):
        folder = _last(folder)
        if anew and folder.exists():
            folder = folder.with_name(f"{folder.stem}.{_number(folder) + 1}")
        if not folder.exists():
            for left in folder.parent.glob(_aside("*")):
                shutil.rmtree(left, ignore_errors=True)
            aside = folder.with_name(_aside(folder.name))
            aside.mkdir()
            make(aside)
            aside.rename(folder)
        os.utime(folder)
        prune(folder.parent, keep, kept())
    return folder


def _last(folder: Path) -> Path:
    """Return the last that was made under this name, or the name itself."""
    return max(folder.parent.glob(f"{folder.name}.[0-9]*"), key=_number, default=folder)


def _number(folder: Path) -> int:
    return int(folder.suffix.removeprefix(".") or 1)


def _aside(name: str) -> str:
    return f".{name}.building"


def remove(folder: Path, say: Say) -> None:
    """Delete a folder that nothing needs any more. Whoever has a file of it open keeps that."""
    with locked(folder.parent / ".lock", say):
        shutil.rmtree(folder, ignore_errors=True)


def prune(folders: Path, keep: int | None = None, kept: AbstractSet[Path] = frozenset()) -> None:
    """Delete what nobody has asked for in a long time, and what exceeds ``keep``, except those in ``kept``."""
    used = sorted(((folder.stat().st_mtime, folder) for folder in folders.glob("[0-9a-f]*")), reverse=True)
    for number, (time_s, folder) in enumerate(used):
        if folder not in kept and (time_s < time.time() - KEEP_UNUSED_S or (keep is not None and number >= keep)):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(path: Path, say: Say) -> Iterator[None]:
    """Held while something is built. ``say`` is told when it has to be waited for."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build is under way; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
