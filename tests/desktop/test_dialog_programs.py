"""The agent with yad and zenity instead of GTK, with real keys. (kdialog is played in the unit tests: it brings half of KDE.)"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import count

import pytest

from qfilexchg.dom0.consent.dialog import FOCUS_S
from qfilexchg.dom0.consent.protocol import Answer, Withdraw
from tests.desktop.conftest import Start
from tests.desktop.desk import Desk, until
from tests.desktop.test_window import HEADING, QUESTION

PROGRAMS = pytest.mark.parametrize("program", ["yad", "zenity"])


def is_shown(desk: Desk) -> bool:
    return any(widget.name.startswith(HEADING) for widget in desk.look())


def presses_allow(desk: Desk) -> None:
    """By the mouse; by the keyboard where a program does not tell where its buttons are, as those of GTK 4 do not."""
    allow = desk.sees("Allow", "push button")
    if allow.place[:2] != (0, 0):
        desk.click(allow)
    else:
        desk.press("Tab")
        desk.sees("Allow", "push button", "FOCUSED")
        desk.press("space")


@PROGRAMS
def test_enter_and_escape_are_no(desk: Desk, start: Start, program: str) -> None:
    agent = start("--by", program)
    assert agent.kind == program
    for number, key in enumerate(("Return", "Escape")):
        agent.say(replace(QUESTION, id=number))
        desk.sees("Deny", "push button", "FOCUSED")
        if key == "Return":
            desk.picture(f"20-{program}")
        desk.press(key)
        assert agent.hears() == Answer(number, False)


@PROGRAMS
def test_a_click_on_allow_is_a_yes_but_not_in_the_first_second(desk: Desk, start: Start, program: str) -> None:
    agent = start("--by", program)
    for number in count():
        began_s = time.monotonic()
        agent.say(replace(QUESTION, id=number))
        desk.sees("Deny", "push button", "FOCUSED")
        presses_allow(desk)
        answer = agent.hears()
        if time.monotonic() - began_s < FOCUS_S:  # else this machine is too slow for a person's second: that was no test
            break
    assert answer == Answer(number, False)
    agent.say(replace(QUESTION, id=1000))
    desk.sees("Deny", "push button", "FOCUSED")
    desk.waits(FOCUS_S)
    presses_allow(desk)
    assert agent.hears() == Answer(1000, True)


@PROGRAMS
def test_a_withdrawn_question_closes_and_time_runs_out(desk: Desk, start: Start, program: str) -> None:
    agent = start("--by", program)
    agent.say(QUESTION)
    until(lambda: is_shown(desk), "the question")
    agent.say(Withdraw(1))
    until(lambda: not is_shown(desk), "no question")
    agent.say(replace(QUESTION, id=2, deadline_s=4))
    until(lambda: is_shown(desk), "the question")
    until(lambda: not is_shown(desk), "no question")


@PROGRAMS
def test_names_are_not_markup(desk: Desk, start: Start, program: str) -> None:
    agent = start("--by", program)
    agent.say(replace(QUESTION, source_label="a_b"))
    until(lambda: any("work (a_b)  →  personal (blue)" in widget.name for widget in desk.look()), "both names as they are")
