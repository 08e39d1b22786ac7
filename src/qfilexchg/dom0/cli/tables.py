"""How the commands show what they know to a person: tables, moments and how long something has been so."""

from __future__ import annotations

import time
from collections.abc import Sequence

NOTHING = "-"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, whose columns are as wide as they must be. The first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def duration(seconds: float) -> str:
    """Two units at most, rounded down: 7 s, 3 min 20 s, 2 h 5 min, 4 d 1 h."""
    left = max(0, int(seconds))
    parts = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count} {unit}")
        elif parts:
            break
    return " ".join(parts[:2]) or "0 s"


def since(then_s: float | None, now_s: float) -> str:
    """For how long, where that is known."""
    return NOTHING if then_s is None else duration(now_s - then_s)


def moment(time_s: float) -> str:
    """A time of the epoch on this computer's clock."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_s))


def time_of_day(time_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(time_s))
