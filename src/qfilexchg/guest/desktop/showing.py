"""What a window shows of a VM tool that runs, and when. Pure: lines of its report come in (:mod:`qfilexchg.guest.report`), and a
:class:`View` is to be seen at any time. :mod:`.sending` and :mod:`.opening` have the words for the two tools.

The tool does the work and has the last word: what it has not told has not happened. A person may cancel at every stage. Once a document
is open in its DisposableVM, the window keeps out of the way until there is something that they must know.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Final

from qfilexchg.guest import outcome
from qfilexchg.guest.progress import duration, printable, size

NAME_MAX: Final = 60
"""Letters of a file's name that are shown; a name of 255 would be a wall of text."""
NOTES_MAX: Final = 20
"""The latest ones. Keeps a tool that runs for days from filling the window."""
STDERR_MAX: Final = 2000
"""Letters of what a tool wrote elsewhere than in its report, from the end: it is a defect's."""
END_S: Final = 5.0
"""Seconds after which an end that surprises nobody needs no window any more: one that was cancelled, a document that is closed."""


class End(Enum):
    """How it ended."""

    GOOD = "as it should"
    PARTLY = "with something that the person must look at"
    NO = "nothing came of it, and nothing is broken"
    BAD = "something failed"


Ends = Mapping[int, tuple[End, str]]
"""For each exit status of a tool what it means, and its heading with a place for each name."""


@dataclass(frozen=True, slots=True)
class View:
    """What is to be seen now."""

    heading: str
    text: str = ""
    """What happens now, or why it ended so."""
    working: bool = True
    """Whether something is under way that the person waits for."""
    fraction: float | None = None
    """How much of it is copied; None where nothing can be counted."""
    counts: str = ""
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    """What cannot be held or was left out, a line each."""
    cancel: str = ""
    """The word on the button that ends it; empty where it cannot be ended any more."""
    confirming: bool = False
    """Whether it takes one more press of that button, and anything else means no."""
    can_leave: bool = False
    """Whether nothing is missed if the window goes."""
    offers: tuple[str, ...] = ()
    """Options of the tool with which it may be tried again."""
    end: End | None = None
    aside: bool = False
    """Whether the window should keep out of the way."""
    stays: bool = False
    """Whether a window that the person closes only goes out of the way: what becomes of it must be told."""
    closes_s: float | None = None
    """Seconds after which the window goes by itself."""


class Showing:
    """One run of a tool. ``names`` are those in its headings, fit to be shown."""

    tool: ClassVar[str]
    doing: ClassVar[str]
    """The heading while it runs."""
    ends: ClassVar[Ends]

    def __init__(self, **names: str) -> None:
        self._names = names
        self._stage = ""
        self._text = ""
        self._counted: tuple[int, int, int, int, float | None] | None = None
        self._notes: list[str] = []
        self._problems: list[str] = []
        self._left_out = False
        self._cancelling = False
        self._too_late = False
        self._confirming = False
        self._told_end: tuple[int, str] | None = None
        self._status: int | None = None
        self._why = ""

    @property
    def handed_over(self) -> bool:
        """Whether the pendrive has left this VM."""
        return self._stage in ("delivered", "open", "returning", "returned", "blocked", "not-placed", "unchanged", "replaced")

    @property
    def status(self) -> int | None:
        """The tool's exit status, once it has ended."""
        return self._status

    @property
    def view(self) -> View:
        if self._status is not None:
            return self._end()
        copying = self._stage == "copying"
        return View(
            heading=self._heading(),
            text="Cancelling…" if self._cancelling else self._now(),
            working=self._working(),
            fraction=_fraction(self._counted) if copying else None,
            counts=_counts(self._counted) if self._counted and (copying or self._stage == "writing-out") else "",
            notes=tuple(self._notes),
            cancel="" if self._cancelling or self._too_late else self._cancel_word(),
            confirming=self._confirming,
            can_leave=self._too_late,
            aside=self._aside(),
            stays=self._stays(),
        )

    def hear(self, line: str) -> None:
        """A line of the report. One that is not understood is passed over: the tool may be newer than this."""
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            return
        match told:
            case {"stage": str(stage), "text": str(text)}:
                self._enter(stage, printable(text))
            case {"bytes": int(done), "of_bytes": int(of), "files": int(files), "of_files": int(of_files), "left_s": left_s}:
                self._counted = (done, of, files, of_files, left_s if isinstance(left_s, float | int) else None)
            case {"problem": str(source), "why": str(why), "left_out": bool(left_out)}:
                self._problems.append(f"{printable(source)}: {printable(why)}")
                self._left_out = left_out
            case {"more_problems": int(more)}:
                self._problems.append(f"and {more} more")
            case {"note": str(note)}:
                self._notes = [*self._notes, printable(note)][-NOTES_MAX:]
            case {"end": int(status), "text": str(why)}:
                self._told_end = (status, printable(why))

    def ended(self, status: int | None, said: str) -> None:
        """The tool is gone: its exit status, None for a signal, and what it wrote elsewhere than in the report."""
        if self._told_end:
            self._status, self._why = self._told_end
            return
        if self._cancelling and not self._stage:  # before it was ready to hear of it, so before it had asked for anything
            self._status = outcome.CANCELLED
            return
        self._status = outcome.BROKEN if status in (None, outcome.DONE) else status
        how = "was ended by a signal" if status is None else f"ended with status {status}"
        said = "".join(letter if letter == "\n" else printable(letter) for letter in said.strip()[-STDERR_MAX:])
        self._why = f"{self.tool} {how}, and did not say why{f':{chr(10)}{said}' if said else '.'}"

    def not_started(self, why: str) -> None:
        """There is no such tool, or it cannot be run."""
        self._status = outcome.BROKEN
        self._why = f"{self.tool} could not be started: {printable(why)}"

    def cancel(self) -> bool:
        """The person wants it to end. Whether the tool is to be told so."""
        if self._cancelling or self._too_late or self._status is not None:
            return False
        self._cancelling = True
        return True

    def keep(self) -> None:
        """The person was asked whether it is really to end, and it is not."""
        self._confirming = False

    def _enter(self, stage: str, text: str) -> None:
        self._stage = stage
        self._text = text
        self._confirming = False
        if stage == "too-late":
            self._cancelling, self._too_late = False, True

    def _end(self) -> View:
        assert self._status is not None
        end, heading = self.ends.get(self._status, self.ends[outcome.BROKEN])
        return View(
            heading=self._filled(heading),
            text=self._sentence(self._why),
            working=False,
            notes=tuple(self._notes),
            can_leave=True,
            end=end,
            closes_s=END_S if self._status == outcome.CANCELLED and not self._notes else None,
        )

    def _sentence(self, text: str) -> str:
        """A tool's message as a sentence of its own; what begins with a name keeps its letters."""
        return text if text.startswith(self._begins_with_a_name()) else text[:1].upper() + text[1:]

    def _begins_with_a_name(self) -> tuple[str, ...]:
        return ("/",)

    def _heading(self) -> str:
        return self._filled(self.doing)

    def _filled(self, heading: str) -> str:
        return heading.format(**self._names)

    def _now(self) -> str:
        return self._text or "Starting…"

    def _cancel_word(self) -> str:
        return "Cancel"

    def _working(self) -> bool:
        return True

    def _aside(self) -> bool:
        return False

    def _stays(self) -> bool:
        return False


class Refused(Showing):
    """Something that was not even begun."""

    ends: ClassVar[Ends] = {outcome.BROKEN: (End.NO, "This cannot be done")}

    def __init__(self, why: str) -> None:
        super().__init__()
        self._status, self._why = outcome.BROKEN, why


def things(paths: Sequence[str]) -> str:
    """What these paths are, in a few words."""
    if len(paths) != 1:
        return f"{len(paths)} files and folders"
    return short(printable(os.path.basename(os.path.abspath(paths[0])) or "/"))


def short(name: str) -> str:
    """A name's beginning and end, if it is longer than :data:`NAME_MAX`."""
    return name if len(name) <= NAME_MAX else f"{name[: NAME_MAX * 2 // 3]}…{name[-NAME_MAX // 3 + 1 :]}"


def _fraction(counted: tuple[int, int, int, int, float | None] | None) -> float | None:
    if not counted:
        return None
    done, of, files, of_files, _ = counted
    if of:
        return min(1.0, done / of)
    return min(1.0, files / of_files) if of_files else None


def _counts(counted: tuple[int, int, int, int, float | None]) -> str:
    done, of, files, of_files, left_s = counted
    parts = [f"{size(done)} of {size(of)}"]
    if of_files != 1:
        parts.append(f"{files} of {of_files} files")
    if left_s is not None:
        parts.append(f"{duration(left_s)} left")
    return " · ".join(parts)
