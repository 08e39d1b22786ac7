"""Watches: who is told of a change to which key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from qfilexchg.xenstore import paths

Owner = TypeVar("Owner")


@dataclass(frozen=True, slots=True)
class Watch(Generic[Owner]):
    """One watch. ``asked`` is the path as its owner wrote it, relative or not; events are told in the same manner."""

    owner: Owner
    path: str
    asked: str
    token: bytes

    def told(self, path: str) -> str:
        """How the owner is told of a change to ``path``, which is the watched one or lies below it."""
        if self.asked == self.path:
            return path
        return path[len(self.path) - len(self.asked) :]


@dataclass(slots=True)
class Watches(Generic[Owner]):
    """All watches, found by path."""

    _by_path: dict[str, list[Watch[Owner]]] = field(default_factory=dict)

    def add(self, watch: Watch[Owner]) -> None:
        self._by_path.setdefault(watch.path, []).append(watch)

    def remove(self, watch: Watch[Owner]) -> None:
        here = self._by_path[watch.path]
        here.remove(watch)
        if not here:
            del self._by_path[watch.path]

    def hearing(self, path: str, *, exactly: bool = False) -> Iterator[Watch[Owner]]:
        """The watches on ``path`` and, unless ``exactly``, on what lies above it; the nearest first."""
        here: str | None = path
        while here is not None:
            yield from self._by_path.get(here, ())
            here = None if exactly else paths.parent(here)
