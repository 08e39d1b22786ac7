"""Which question is shown and what can be answered, by a clock of the test's own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfilexchg.dom0.consent.dialog import FOCUS_S, WAITING_MAX, Dialog, View
from qfilexchg.dom0.consent.protocol import Answer, Kind, Question
from qfilexchg.protocol.names import VmName


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def dialog(clock: Clock) -> Dialog:
    return Dialog(clock)


def test_nothing_is_shown_before_anything_is_asked(dialog: Dialog) -> None:
    assert dialog.view is None
    assert dialog.answer(7, False) is None


def test_a_question_is_shown_with_the_time_that_is_left(dialog: Dialog, clock: Clock, question: Question) -> None:
    assert dialog.ask(question) is None
    assert dialog.view == View(question, can_allow=False, left_s=30, left=1.0, waiting=0)
    clock.now_s += 7.5
    assert dialog.view == View(question, can_allow=False, left_s=23, left=0.75, waiting=0)


class TestAllow:
    def test_it_takes_a_second_of_focus(self, dialog: Dialog, clock: Clock, question: Question) -> None:
        dialog.ask(question)
        clock.now_s += 10
        assert dialog.answer(7, True) is None
        dialog.focus(True)
        clock.now_s += FOCUS_S - 0.001
        assert dialog.answer(7, True) is None
        dialog.focus(True)  # said again; it changes nothing
        clock.now_s += 0.002
        assert dialog.view and dialog.view.can_allow
        assert dialog.answer(7, True) == Answer(7, True)
        assert dialog.view is None

    def test_the_second_begins_again_when_the_focus_returns(self, dialog: Dialog, clock: Clock, question: Question) -> None:
        dialog.ask(question)
        dialog.focus(True)
        clock.now_s += 0.9
        dialog.focus(False)
        dialog.focus(True)
        clock.now_s += 0.9
        assert dialog.answer(7, True) is None
        clock.now_s += 0.2
        assert dialog.answer(7, True) == Answer(7, True)

    def test_without_the_focus_it_never_counts(self, dialog: Dialog, clock: Clock, question: Question) -> None:
        dialog.ask(question)
        dialog.focus(True)
        clock.now_s += 5
        dialog.focus(False)
        assert dialog.answer(7, True) is None

    def test_the_second_begins_again_for_the_next_question(self, dialog: Dialog, clock: Clock, question: Question) -> None:
        dialog.ask(question)
        dialog.ask(replace(question, id=8))
        dialog.focus(True)
        clock.now_s += 2
        assert dialog.answer(7, True)
        dialog.focus(True)
        assert dialog.answer(8, True) is None

    def test_after_the_time_is_over_it_does_not_count(self, dialog: Dialog, clock: Clock, question: Question) -> None:
        dialog.ask(question)
        dialog.focus(True)
        clock.now_s += question.deadline_s
        assert dialog.answer(7, True) is None
        assert dialog.view is None


class TestDeny:
    def test_it_counts_at_once(self, dialog: Dialog, question: Question) -> None:
        dialog.ask(question)
        assert dialog.answer(7, False) == Answer(7, False)

    def test_an_answer_to_another_question_than_the_one_that_is_shown_does_not_count(self, dialog: Dialog, question: Question) -> None:
        dialog.ask(question)
        dialog.ask(replace(question, id=8))
        assert dialog.answer(8, False) is None
        dialog.withdraw(7)
        assert dialog.answer(7, False) is None
        assert dialog.answer(8, False) == Answer(8, False)


@pytest.mark.parametrize(
    ("can_remember", "allow", "remember", "answer"),
    [
        (True, True, True, Answer(7, True, remember=True)),
        (False, True, True, Answer(7, True)),
        (True, True, False, Answer(7, True)),
        (True, False, True, Answer(7, False)),
    ],
)
def test_only_a_yes_is_remembered_and_only_where_it_can_be(
    dialog: Dialog, clock: Clock, question: Question, can_remember: bool, allow: bool, remember: bool, answer: Answer
) -> None:
    dialog.ask(replace(question, can_remember=can_remember))
    dialog.focus(True)
    clock.now_s += FOCUS_S
    assert dialog.answer(7, allow, remember) == answer


class TestQueue:
    def test_questions_are_shown_in_their_order(self, dialog: Dialog, question: Question) -> None:
        for number in (3, 1, 2):
            dialog.ask(replace(question, id=number))
        shown = []
        while view := dialog.view:
            shown.append((view.question.id, view.waiting))
            dialog.answer(view.question.id, False)
        assert shown == [(3, 2), (1, 1), (2, 0)]

    def test_a_vm_with_too_many_waiting_is_denied_and_another_is_not(self, dialog: Dialog, question: Question) -> None:
        for number in range(1 + WAITING_MAX):
            assert dialog.ask(replace(question, id=number)) is None
        assert dialog.ask(replace(question, id=100)) == Answer(100, False)
        assert dialog.ask(replace(question, id=101, source=VmName.parse("vault"))) is None
        dialog.withdraw(2)
        assert dialog.ask(replace(question, id=102)) is None

    def test_time_runs_while_a_question_waits(self, dialog: Dialog, clock: Clock, question: Question) -> None:
        dialog.ask(question)
        dialog.ask(replace(question, id=8, deadline_s=5))
        dialog.ask(replace(question, id=9, deadline_s=25))
        clock.now_s += 10
        dialog.tick()
        assert dialog.view and dialog.view.waiting == 1
        dialog.withdraw(7)
        assert dialog.view and dialog.view.question.id == 9 and dialog.view.left_s == 15

    def test_a_question_that_waits_can_be_withdrawn_without_a_change_of_what_is_shown(
        self, dialog: Dialog, clock: Clock, question: Question
    ) -> None:
        dialog.ask(question)
        dialog.ask(replace(question, id=8))
        dialog.focus(True)
        clock.now_s += FOCUS_S
        dialog.withdraw(8)
        dialog.withdraw(100)
        assert dialog.answer(7, True) == Answer(7, True)

    def test_all_can_be_refused(self, dialog: Dialog, question: Question) -> None:
        dialog.ask(question)
        dialog.ask(replace(question, id=8))
        assert dialog.refuse_all() == [Answer(7, False), Answer(8, False)]
        assert dialog.view is None


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 60)),
        st.tuples(st.just("focus"), st.booleans()),
        st.tuples(st.just("wait"), st.floats(0, 5)),
        st.tuples(st.just("withdraw"), st.integers(0, 9)),
        st.tuples(st.just("allow"), st.booleans()),
    ),
    max_size=60,
)


@given(STEPS)
def test_whatever_happens_a_yes_needs_a_second_with_the_same_question_in_focus(steps: list[tuple[str, float]]) -> None:
    clock = Clock()
    dialog = Dialog(clock)
    asked = 0
    seen: tuple[int, float] | None = None  # since when which question is in focus without a break
    for what, value in steps:
        match what:
            case "ask":
                dialog.ask(Question(id=asked, kind=Kind.COPY, source=VmName("work"), target=None, size_bytes=1, deadline_s=int(value)))
                asked += 1
            case "focus":
                dialog.focus(bool(value))
                if not value:
                    seen = None
                elif dialog.view and seen is None:
                    seen = (dialog.view.question.id, clock.now_s)
            case "wait":
                clock.now_s += value
            case "withdraw":
                dialog.withdraw(int(value))
            case "allow" if dialog.view:
                number = dialog.view.question.id
                if dialog.answer(number, True):
                    assert seen is not None and seen[0] == number and clock.now_s - seen[1] >= FOCUS_S
        dialog.tick()
        if seen and (dialog.view is None or dialog.view.question.id != seen[0]):
            seen = None
