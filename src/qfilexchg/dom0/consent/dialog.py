"""Which question is before the person, what they may answer now, and what becomes of the others. Pure: its clock is handed in.

One question is shown at a time, in the order in which they came; at most :data:`WAITING_MAX` of one VM wait behind it, and more are
denied at once, so that no VM can keep a person busy. A question's time runs while it waits, as it does for the daemon.

*Allow* can be answered only once the question has had the focus for :data:`FOCUS_S` without a break, so that what was meant for
another window is no yes. *Deny* can be answered at any time. What shows the question (a window, a program that asks) calls
:meth:`~Dialog.focus` as its focus comes and goes, and :meth:`~Dialog.tick` now and then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Final

from qfilexchg.dom0.consent.protocol import Answer, Question

FOCUS_S: Final = 1.0
"""Longer than a person needs to finish a word or a click that was meant for what they had before them."""
WAITING_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class View:
    """What is to be seen now. ``left`` is the part of its time that the question still has, from 1 down to 0."""

    question: Question
    can_allow: bool
    left_s: int
    left: float
    waiting: int


@dataclass(frozen=True, slots=True)
class _Asked:
    question: Question
    until_s: float


class Dialog:
    """The questions of one agent."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._asked: list[_Asked] = []
        """The first one is shown."""
        self._focused_since_s: float | None = None

    @property
    def view(self) -> View | None:
        """The question that is shown, as it stands now; None where there is none."""
        if not self._asked:
            return None
        question, left_s = self._asked[0].question, max(0.0, self._asked[0].until_s - self._clock_s())
        return View(question, self._can_allow(), ceil(left_s), left_s / max(1, question.deadline_s), len(self._asked) - 1)

    def ask(self, question: Question) -> Answer | None:
        """Take a question in. Returns its denial where too many of this VM wait already."""
        waiting = sum(asked.question.source == question.source for asked in self._asked[1:])
        if waiting >= WAITING_MAX:
            return Answer(question.id, False)
        self._asked.append(_Asked(question, self._clock_s() + question.deadline_s))
        return None

    def withdraw(self, number: int) -> None:
        """The daemon has taken a question back, or refused it because its time was over."""
        self._keep(lambda asked: asked.question.id != number)

    def tick(self) -> None:
        """Drop the questions whose time is over. The daemon's own clock denies them; here they only must not be answered any more."""
        self._keep(lambda asked: asked.until_s > self._clock_s())

    def focus(self, has: bool) -> None:
        """What shows the question has got the focus, or lost it."""
        if not has or not self._asked:
            self._focused_since_s = None
        elif self._focused_since_s is None:
            self._focused_since_s = self._clock_s()

    def answer(self, number: int, allow: bool, remember: bool = False) -> Answer | None:
        """The person's answer to the question that was shown as ``number``, to be sent; None if it does not count.

        It does not where another question has taken its place, or its time is over, or a yes comes before it can be given.
        """
        self.tick()
        if not self._asked or self._asked[0].question.id != number or (allow and not self._can_allow()):
            return None
        question = self._asked[0].question
        self.withdraw(number)
        return Answer(number, allow, remember=allow and remember and question.can_remember)

    def refuse_all(self) -> list[Answer]:
        """Denials of all that is open: nobody can answer any more."""
        answers = [Answer(asked.question.id, False) for asked in self._asked]
        self._keep(lambda _: False)
        return answers

    def _can_allow(self) -> bool:
        return self._focused_since_s is not None and self._clock_s() - self._focused_since_s >= FOCUS_S

    def _keep(self, wanted: Callable[[_Asked], bool]) -> None:
        shown = self._asked[:1]
        self._asked = [asked for asked in self._asked if wanted(asked)]
        if self._asked[:1] != shown:
            self._focused_since_s = None
