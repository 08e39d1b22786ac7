"""The agent's window under a real window manager, with real keys and a real mouse. Of each state there is a picture in .ci/out/desktop."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from subprocess import PIPE, run

import pytest

from qfilexchg.dom0.consent.dialog import FOCUS_S
from qfilexchg.dom0.consent.protocol import Answer, Kind, Notice, Question, Withdraw
from qfilexchg.protocol.names import VmName
from tests.desktop.conftest import Start
from tests.desktop.desk import DEADLINE_S, PYTHON, TOP, Desk, Widget, until

QUESTION = Question(
    id=1,
    kind=Kind.COPY,
    source=VmName.parse("work"),
    source_label="green",
    target=VmName.parse("personal"),
    target_label="blue",
    size_bytes=67345678,
    can_remember=True,
    deadline_s=60,
)
HEADING = "Let work copy files to personal?"
ALWAYS = "Always allow this, for these two VMs"
LONG = replace(QUESTION, source=VmName.parse("w" * 64), target=VmName.parse("a-b_c-d" * 9 + "e"))


def allow(desk: Desk) -> Widget:
    """The button, once it can be pressed."""
    return desk.sees("Allow", "push button", "SENSITIVE")


def can_allow(desk: Desk) -> bool:
    return "SENSITIVE" in desk.sees("Allow", "push button").states


class TestAnswers:
    def test_a_click_on_allow(self, desk: Desk, start: Start) -> None:
        agent = start()
        agent.say(QUESTION)
        desk.sees("Deny", "push button", "FOCUSED", "IS_DEFAULT")
        desk.picture("1-not-yet")
        button = allow(desk)
        desk.picture("2-ready")
        desk.click(button)
        assert agent.hears() == Answer(1, True)
        desk.does_not_see(HEADING)

    def test_a_click_on_deny(self, desk: Desk, start: Start) -> None:
        agent = start()
        agent.say(QUESTION)
        desk.click(desk.sees("Deny", "push button", "FOCUSED"))
        assert agent.hears() == Answer(1, False)
        desk.does_not_see(HEADING)

    @pytest.mark.parametrize("key", ["Return", "KP_Enter", "Escape", "space", "alt+d", "alt+F4"])
    def test_a_key_denies(self, desk: Desk, start: Start, key: str) -> None:
        agent = start()
        agent.say(QUESTION)
        desk.sees("Deny", "push button", "FOCUSED")
        desk.press(key)
        assert agent.hears() == Answer(1, False)

    @pytest.mark.parametrize("key", ["Return", "Escape"])
    def test_after_the_delay_it_still_does(self, desk: Desk, start: Start, key: str) -> None:
        agent = start()
        agent.say(QUESTION)
        allow(desk)
        desk.press(key)
        assert agent.hears() == Answer(1, False)

    def test_enter_denies_wherever_the_keyboard_is(self, desk: Desk, start: Start) -> None:
        agent = start()
        agent.say(QUESTION)
        allow(desk)
        desk.press("shift+Tab")
        desk.sees("Allow", "push button", "FOCUSED")
        desk.press("Return")
        assert agent.hears() == Answer(1, False)

    def test_the_keyboard_alone_can_allow_and_choose_always(self, desk: Desk, start: Start) -> None:
        agent = start()
        agent.say(QUESTION)
        allow(desk)
        desk.press("Tab")
        desk.sees(ALWAYS, "check box", "FOCUSED")
        desk.press("space")
        desk.sees(ALWAYS, "check box", "CHECKED")
        desk.picture("3-always-by-keyboard")
        desk.press("Tab")
        desk.sees("Allow", "push button", "FOCUSED")
        desk.press("space")
        assert agent.hears() == Answer(1, True, remember=True)

    def test_a_no_with_always_chosen_is_a_plain_no(self, desk: Desk, start: Start) -> None:
        agent = start()
        agent.say(QUESTION)
        desk.click(desk.sees(ALWAYS, "check box"))
        desk.sees(ALWAYS, "check box", "CHECKED")
        desk.press("Escape")
        assert agent.hears() == Answer(1, False)

    def test_always_is_not_offered_where_the_daemon_could_not_keep_it(self, desk: Desk, start: Start) -> None:
        agent = start()
        agent.say(replace(QUESTION, can_remember=False))
        desk.sees(HEADING)
        assert ALWAYS not in desk.texts()


class TestDelay:
    def test_clicks_and_keys_before_allow_can_be_pressed_are_lost(self, desk: Desk, start: Start) -> None:
        agent = start()
        for number in count():
            began_s = time.monotonic()
            agent.say(replace(QUESTION, id=number))
            desk.sees("Deny", "push button", "FOCUSED")
            desk.click(desk.sees("Allow", "push button"))
            desk.press("alt+a")
            if time.monotonic() - began_s < FOCUS_S:
                break
            agent.say(Withdraw(number))  # too slow for a person's second: that was no test
            desk.does_not_see(HEADING)
            agent.hears_nothing(drop=True)
        allow(desk)
        assert agent.hears_nothing()
        desk.press("alt+a")
        assert agent.hears() == Answer(number, True)

    def test_it_begins_again_when_another_window_has_had_the_focus(self, desk: Desk, start: Start) -> None:
        agent = start()
        agent.say(QUESTION)
        allow(desk)
        with desk.letter():
            until(lambda: not can_allow(desk), "Allow cannot be pressed")
            desk.picture("4-focus-elsewhere")
            desk.types("yes")
            desk.press("Return", "space")
            assert agent.hears_nothing()
            began_s = time.monotonic()
            desk.click(desk.sees(HEADING, "label"))
            button = allow(desk)
            assert time.monotonic() - began_s >= FOCUS_S
        desk.click(button)
        assert agent.hears() == Answer(1, True)

    def test_it_stays_above_a_window_that_comes_later(self, desk: Desk, start: Start) -> None:
        agent = start()
        agent.say(QUESTION)
        place = desk.sees("Deny", "push button", "FOCUSED").centre
        with desk.letter():
            desk.click_at(*place)
            assert agent.hears() == Answer(1, False)

    def test_the_countdown_runs_and_its_end_closes_the_window(self, desk: Desk, start: Start) -> None:
        agent = start()
        agent.say(replace(QUESTION, deadline_s=3))
        desk.sees("No answer within 1 s means no.")
        desk.picture("5-countdown")
        desk.does_not_see(HEADING)
        assert agent.hears_nothing()


class TestSeveralQuestions:
    def test_one_window_at_a_time_and_the_next_one_begins_anew(self, desk: Desk, start: Start) -> None:
        agent = start()
        agent.say(QUESTION, replace(QUESTION, id=2, source=VmName.parse("vault"), source_label="black"))
        desk.sees("1 more question")
        assert sum(widget.role == "alert" for widget in desk.look()) == 1
        desk.picture("6-another-waits")
        button = allow(desk)
        began_s = time.monotonic()
        desk.click(button)
        assert agent.hears() == Answer(1, True)
        desk.sees("Let vault copy files to personal?", "alert", "ACTIVE")
        button = allow(desk)
        assert time.monotonic() - began_s >= FOCUS_S
        desk.click(button)
        assert agent.hears() == Answer(2, True)

    def test_a_double_click_answers_one(self, desk: Desk, start: Start) -> None:
        agent = start()
        agent.say(QUESTION, replace(QUESTION, id=2, target=None))
        desk.click_twice(allow(desk))
        assert agent.hears() == Answer(1, True)
        desk.sees("Let work open a document in a new DisposableVM?")
        allow(desk)
        assert agent.hears_nothing()

    def test_a_withdrawn_question_closes_and_the_next_one_is_shown(self, desk: Desk, start: Start) -> None:
        agent = start()
        agent.say(QUESTION, replace(QUESTION, id=2, kind=Kind.WAIT, busy=True, can_remember=False))
        desk.sees(HEADING)
        agent.say(Withdraw(1))
        desk.sees("personal is busy. Let work wait for it?")
        desk.sees("Wait", "push button", "SENSITIVE")
        desk.picture("7-busy-receiver")
        agent.say(Withdraw(2))
        until(lambda: not any(widget.role == "alert" for widget in desk.look()), "no window")
        desk.picture("8-withdrawn")
        assert agent.hears_nothing()

    def test_of_one_vm_three_may_wait(self, desk: Desk, start: Start) -> None:
        agent = start()
        agent.say(*(replace(QUESTION, id=number) for number in range(1, 6)))
        assert agent.hears() == Answer(5, False)
        desk.sees("3 more questions")

    def test_no_button_moves_when_another_question_comes(self, desk: Desk, start: Start) -> None:
        agent = start()
        agent.say(QUESTION)
        before = allow(desk).place
        agent.say(replace(QUESTION, id=2), replace(QUESTION, id=3))
        desk.sees("2 more questions")
        assert allow(desk).place == before


class TestLooks:
    def test_a_new_disposable_vm(self, desk: Desk, start: Start) -> None:
        agent = start()
        agent.say(replace(QUESTION, target=None, target_label=None, can_remember=True))
        desk.sees("Let work open a document in a new DisposableVM?")
        desk.sees("Undone by: qfilexchg policy forget work disposable")
        allow(desk)
        desk.picture("9-disposable")

    def test_names_of_64_characters(self, desk: Desk, start: Start) -> None:
        agent = start()
        agent.say(LONG)
        desk.sees(LONG.source)
        allow(desk)
        desk.picture("10-long-names")

    @pytest.mark.parametrize("question", [QUESTION, LONG], ids=["short", "long"])
    def test_dark_and_at_200_percent_the_answers_are_on_the_screen(self, desk: Desk, start: Start, question: Question) -> None:
        agent = start(GDK_DPI_SCALE="2", GTK_THEME="Adwaita:dark")
        agent.say(question)
        x, y, width, height = allow(desk).place
        assert x + width < 1280 and y + height < 800
        desk.picture(f"11-dark-200-percent-{'long' if question is LONG else 'short'}")
        desk.click(desk.sees("Deny", "push button"))
        assert agent.hears() == Answer(1, False)

    def test_at_200_percent_type_is_twice_as_large(self, desk: Desk, start: Start) -> None:
        heights = []
        for scale in ("1", "2"):
            agent = start(GDK_DPI_SCALE=scale)
            agent.say(QUESTION)
            heights.append(desk.sees("Size", "label").place[3])
            agent.say(Withdraw(1))
            desk.does_not_see("Size")
        assert heights[1] > 1.8 * heights[0]

    @pytest.mark.parametrize(("theme", "is_dark"), [("Adwaita", False), ("Adwaita:dark", True)])
    def test_it_is_as_dark_as_the_desktop(self, desk: Desk, start: Start, theme: str, is_dark: bool) -> None:
        start(GTK_THEME=theme).say(QUESTION)
        allow(desk)
        ground = next(colour for colour in desk.colours() if any(colour))  # the desk itself is black
        assert (max(ground) < 0x80) is is_dark

    def test_assistive_technology_is_told_of_everything(self, desk: Desk, start: Start) -> None:
        start().say(QUESTION)
        desk.sees(HEADING, "alert", "ACTIVE")
        assert {"work, green", "to", "personal, blue", "Time left to answer", ALWAYS} <= set(desk.texts())
        assert desk.sees("Allow", "push button").description == HEADING
        assert "Enter and Escape" in desk.sees("Deny", "push button").description
        assert not [w for w in desk.look() if w.role in ("push button", "check box", "progress bar") and not w.name]

    def test_a_name_is_neither_markup_nor_style_nor_a_mnemonic(self, desk: Desk) -> None:
        """No such name gets through the protocol. Were there one, the window would still show it as it is."""
        name, other = "<b>_work</b> &amp;", "\u05e2\u05d1\u05d5\u05d3\u05d4 \u0645\u0644\u0641"
        script = Path(__file__).with_name("raw_names.py")
        told = run(
            [PYTHON, str(script), name, other, str(desk.picture_path("12-markup-and-right-to-left"))],
            env=desk.environment | {"PYTHONPATH": str(TOP / "src")},
            stdout=PIPE,
            text=True,
            timeout=DEADLINE_S,
            check=True,
        ).stdout
        assert f"Let {name} copy files to {other}?" in told.splitlines()
        assert {name, other} <= set(told.splitlines())


class TestEnds:
    @pytest.mark.parametrize("source", ["<b>work</b>", "\u202ework", "w" * 65])
    def test_a_question_with_a_name_that_is_none_is_not_shown_and_ends_the_agent(self, desk: Desk, start: Start, source: str) -> None:
        agent = start()
        agent.say(replace(QUESTION, source=VmName(source)))
        assert agent.is_gone()
        assert agent.process.wait(DEADLINE_S) == 1

    def test_the_end_of_the_session_denies_what_is_open(self, desk: Desk, start: Start) -> None:
        agent = start()
        agent.say(QUESTION)
        desk.sees(HEADING)
        agent.process.send_signal(signal.SIGTERM)
        assert agent.hears() == Answer(1, False)
        assert agent.process.wait(DEADLINE_S) == 0

    def test_it_outlives_the_daemon_and_registers_with_the_next(self, desk: Desk, start: Start) -> None:
        agent = start()
        agent.say(QUESTION)
        desk.sees(HEADING)
        agent.restart_daemon()
        desk.does_not_see(HEADING)
        agent.say(replace(QUESTION, id=1))
        desk.click(allow(desk))
        assert agent.hears() == Answer(1, True)


def test_a_notice_shows_in_the_corner_after_the_question_as_plain_text(desk: Desk, start: Start) -> None:
    agent = start()
    agent.say(QUESTION, Notice("work \u2192 personal: half", "aa"), Notice("work \u2192 personal: <b>delivered</b> \u202e", "aa"))
    text = "work \u2192 personal: <b>delivered</b> \\u202e"
    desk.sees("Deny", "push button", "FOCUSED")
    assert text not in desk.texts()
    desk.press("Escape")
    desk.sees(text)
    assert "work \u2192 personal: half" not in desk.texts()
    desk.picture("13-notice")
