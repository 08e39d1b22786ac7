"""``qfilexchg history``: what became of the transfers of the past.

It reads the journal itself and changes nothing there, so it works whether qfilexchgd runs or not, for whoever may read the
journal: the person whose home it is, and on Xen root.
"""

from __future__ import annotations

import argparse
import json as json_format
import re
import sys
import time
from datetime import datetime
from typing import Final

from qfilexchg.dom0.cli.arguments import checked
from qfilexchg.dom0.cli.tables import NOTHING, moment, table
from qfilexchg.dom0.consent.wording import human_size, printable
from qfilexchg.dom0.exchange import status
from qfilexchg.dom0.exchange.journal import HISTORY_MAX, read_history
from qfilexchg.dom0.home import Home
from qfilexchg.errors import CallerError

LAST: Final = 20
"""How many are shown where nothing is said of it."""
_UNITS: Final = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_BACK: Final = re.compile(r"([0-9]{1,6})(s|min|h|d)")


class NoMoment(CallerError):
    """A text that is no time of the past."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"{self.text[:40]!a} is not a time: use 90s, 30min, 2h or 7d for so long ago, or 2026-11-25 or '2026-11-25 14:00'"


class NoNumber(CallerError):
    """A text that is not a number of outcomes."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"{self.text[:16]!a} is not a number from 1 to {HISTORY_MAX}"


def parse_since(text: str) -> float:
    """The time that a person means, in seconds since the epoch. Raises :exc:`NoMoment`."""
    if back := _BACK.fullmatch(text):
        return time.time() - int(back[1]) * _UNITS[back[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise NoMoment(text) from None


def parse_number(text: str) -> int:
    """How many outcomes a person wants. Raises :exc:`NoNumber`."""
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(HISTORY_MAX)) and 1 <= int(text) <= HISTORY_MAX):
        raise NoNumber(text)
    return int(text)


def add_arguments(args: argparse.ArgumentParser) -> None:
    moments = "30min, 2h, 7d: so long ago; or 2026-11-25 or '2026-11-25 14:00'"
    args.add_argument("--since", type=checked(parse_since), metavar="TIME", help=moments)
    args.add_argument("-n", type=checked(parse_number), dest="number", metavar="N", help=f"the last N (default: {LAST}, or all since TIME)")
    args.add_argument("--json", action="store_true", help="for programs: a JSON array")


def show(since_s: float | None, number: int | None, *, json: bool) -> int:
    """Print the last ``number`` outcomes since ``since_s``, the newest first."""
    limit = number or (LAST if since_s is None else HISTORY_MAX)
    outcomes = [status.outcome(noted) for noted in read_history(Home.from_environment().journal, since_s or 0, limit)]
    if json:
        json_format.dump([status.outcome_fields(outcome) for outcome in outcomes], sys.stdout, indent=1)
        print()
        return 0
    if not outcomes:
        print("Nothing was sent." if since_s is None else "Nothing was sent since then.")
        return 0
    rows = [("WHEN", "FROM", "TO", "SIZE", "OUTCOME")]
    for outcome in outcomes:
        size = human_size(outcome.used_bytes)
        rows.append((moment(outcome.time_s), outcome.sender, outcome.receiver or NOTHING, size, printable(outcome.outcome)))
    print("\n".join(table(rows)))
    return 0
