"""What a person sees while a copy runs: on a terminal one line that is drawn over and over, elsewhere one line at the end.

Each stage has a word besides its sentence, for programs that show the same in their own way (:mod:`qfilexchg.guest.report`).
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final, TextIO

    from qfilexchg.guest.survey import Problem

REDRAW_S: Final = 0.2
"""Seconds between two drawings. Often enough to look alive, seldom enough to cost nothing."""
_WARM_UP_S: Final = 2.0
"""Seconds of copying before the time left is guessed."""
_ERASE_REST: Final = "\x1b[K"


class Progress:
    """Draws to ``stream``. A stream that cannot be written any more is ignored: the copy goes on."""

    listener: int | None = None
    """A pipe without whose reader there is no sense in going on; see Interruption."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._live = stream.isatty()
        self._drawn_at = float("-inf")
        self._line = False
        self.begin(0, 0)

    def begin(self, total_bytes: int, total_files: int) -> None:
        """The copy begins."""
        self._total_bytes = total_bytes
        self._total_files = total_files
        self._bytes = 0
        self._files = 0
        self._began_at = self._clock()

    def advance(self, size_bytes: int) -> None:
        """So many more bytes were copied."""
        self._bytes += size_bytes
        self._draw()

    def file_done(self) -> None:
        """One more file was copied."""
        self._files += 1
        self._draw()

    def state(self, stage: str, text: str) -> None:
        """What happens now, in a word for programs and a few for people; shown on a terminal alone."""
        if self._live:
            self._show(text)

    def milestone(self, stage: str, text: str, after_s: float | None = None) -> None:
        """A stage that leaves a line, with the seconds that it took to come there."""
        self.say(text if after_s is None else f"{after_s:6.1f} s  {text}")

    def problems(self, problems: Sequence[Problem], *, left_out: bool) -> None:
        """What cannot be sent as it is."""
        self.say("Left out:" if left_out else "These cannot be sent:")
        for problem in problems:
            self.say(f"  {printable(problem.source)}: {problem.why}")

    def fail(self, command: str, error: Exception, status: int) -> int:
        """``command`` ends with ``error``; returns its exit ``status``."""
        self.say(f"{command}: {error}")
        return status

    def done(self) -> int:
        """The command ends well, and its last milestone said how; returns its exit status."""
        return 0

    def say(self, text: str) -> None:
        """A line that stays."""
        self._write(f"\r{_ERASE_REST}{text}\n" if self._line else f"{text}\n")
        self._line = False

    def _draw(self) -> None:
        now = self._clock()
        if self._live and now - self._drawn_at >= REDRAW_S:
            self._drawn_at = now
            self._show(self._summary(now))

    def _summary(self, now: float) -> str:
        percent = 100 * self._bytes // self._total_bytes if self._total_bytes else 100
        parts = [
            f"{percent:3}%",
            f"{size(self._bytes)} of {size(self._total_bytes)}",
            f"{self._files} of {self._total_files} files",
        ]
        if (left_s := self._left_s(now)) is not None:
            parts.append(f"{duration(left_s)} left")
        return "  ".join(parts)

    def _left_s(self, now: float) -> float | None:
        elapsed = now - self._began_at
        if elapsed < _WARM_UP_S or not self._bytes:
            return None
        return elapsed * (self._total_bytes - self._bytes) / self._bytes

    def _show(self, text: str) -> None:
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except OSError:
            columns = 80
        self._line = True
        self._write(f"\r{text[: columns - 1]}{_ERASE_REST}")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._live = False


def size(size_bytes: int) -> str:
    """A number of bytes as a person reads it."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    amount = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB"):
        amount /= 1024
        if amount < 1023.95:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1024:.1f} TiB"


def duration(seconds: float) -> str:
    """A time as a person reads it."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"


def printable(text: str) -> str:
    """A path, fit for a terminal: nothing in it can move the cursor or hide a letter."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
