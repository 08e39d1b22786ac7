"""What a VM tool does, told to a program that shows it: one JSON object a line, in ASCII. PROTOCOL.md has the lines.

The texts are those that a person at a terminal reads, and the words beside them are for the program alone. Nothing in a text can move
a cursor or hide a letter.
"""

from __future__ import annotations

import json
import time

from qfilexchg.guest.progress import REDRAW_S, Progress, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final, TextIO

    from qfilexchg.guest.survey import Problem

PROBLEMS_MAX: Final = 1000
"""Problems that are told one by one. More than anybody reads; the rest is a number."""


class Report(Progress):
    """Tells ``stream``. There must be somebody who reads it: see :attr:`listener`."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream, clock)
        self._live = True
        self._counted = True
        try:
            self.listener = stream.fileno()
        except (OSError, ValueError):  # it is no file
            self.listener = None

    def begin(self, total_bytes: int, total_files: int) -> None:
        super().begin(total_bytes, total_files)
        self._counted = False

    def state(self, stage: str, text: str) -> None:
        self._count_rest()
        self._tell(stage=stage, text=printable(text))

    def milestone(self, stage: str, text: str, after_s: float | None = None) -> None:
        self.state(stage, text)

    def say(self, text: str) -> None:
        self._tell(note=printable(text))

    def problems(self, problems: Sequence[Problem], *, left_out: bool) -> None:
        for problem in problems[:PROBLEMS_MAX]:
            self._tell(problem=printable(problem.source), why=printable(problem.why), left_out=left_out)
        if len(problems) > PROBLEMS_MAX:
            self._tell(more_problems=len(problems) - PROBLEMS_MAX, left_out=left_out)

    def fail(self, command: str, error: Exception, status: int) -> int:
        self._tell(end=status, text=printable(str(error)))
        return status

    def done(self) -> int:
        self._tell(end=0, text="")
        return 0

    def _draw(self) -> None:
        now = self._clock()
        self._counted = False
        if now - self._drawn_at >= REDRAW_S:
            self._drawn_at = now
            self._count(now)

    def _count_rest(self) -> None:
        """The last pieces of a copy come faster than they are told."""
        if not self._counted:
            self._count(self._clock())

    def _count(self, now: float) -> None:
        self._counted = True
        self._tell(bytes=self._bytes, of_bytes=self._total_bytes, files=self._files, of_files=self._total_files, left_s=self._left_s(now))

    def _tell(self, **fields: object) -> None:
        self._write(f"{json.dumps(fields)}\n")
