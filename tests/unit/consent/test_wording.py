"""The words of a question."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfilexchg.dom0.consent.protocol import NUMBER_MAX, Kind, Question
from qfilexchg.dom0.consent.wording import allow_word, always, details, explanation, heading, headline, human_size, printable


def test_a_copy_names_both_vms_with_their_colours_and_the_size(question: Question) -> None:
    assert headline(question) == "work → personal: hand over 1.00 MiB?"
    assert explanation(question) == ["work (green) asks to give personal its pendrive with 1.00 MiB of files."]


def test_a_busy_receiver_is_said(question: Question) -> None:
    assert "personal still has another pendrive" in explanation(replace(question, busy=True))[1]


def test_a_wait_says_that_the_rules_have_allowed_the_rest(question: Question) -> None:
    waiting = replace(question, kind=Kind.WAIT, busy=True)
    assert headline(waiting) == "work → personal: wait to hand over 1.00 MiB?"
    assert "by your rules" in explanation(waiting)[0]
    assert "shall this one wait" in explanation(waiting)[1]


def test_a_new_disposable_vm_has_no_name_yet(question: Question) -> None:
    disposable = replace(question, target=None)
    assert headline(disposable) == "work → a new DisposableVM: open a document of 1.00 MiB in it?"
    assert explanation(disposable) == [
        "work (green) asks for a new DisposableVM to open a document of 1.00 MiB in. What is changed in it comes back to work (green)."
    ]


def test_a_window_asks_in_one_sentence_and_says_what_happens(question: Question) -> None:
    assert heading(question) == "Let work copy files to personal?"
    assert details(question) == [
        ("Size", "1.00 MiB on a virtual pendrive."),
        ("A copy", "The files stay where they are, too."),
        ("Then", "They appear there as a volume called work, until it is ejected."),
    ]
    assert (allow_word(question), always(question)) == ("Allow", "Always allow this, for these two VMs")


def test_a_window_says_that_a_receiver_is_busy(question: Question) -> None:
    assert "another pendrive" in dict(details(replace(question, busy=True)))["Busy"]
    waiting = replace(question, kind=Kind.WAIT, busy=True)
    assert heading(waiting) == "personal is busy. Let work wait for it?"
    assert {"Rules", "Busy"} < set(dict(details(waiting)))
    assert allow_word(waiting) == "Wait"


def test_a_window_says_what_becomes_of_a_document(question: Question) -> None:
    disposable = replace(question, target=None)
    assert heading(disposable) == "Let work open a document in a new DisposableVM?"
    assert "comes back" in dict(details(disposable))["A copy"]
    assert always(disposable) == "Always allow this, for all its documents"


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "0.98 KiB"),
        (1024, "1.00 KiB"),
        (10 * 1024, "10.0 KiB"),
        (64 << 20, "64.0 MiB"),
        (1023 << 20, "1.00 GiB"),
        (1 << 30, "1.00 GiB"),
        (900 << 20, "900 MiB"),
        (NUMBER_MAX, "8.00 PiB"),
    ],
)
def test_sizes_have_three_digits_that_matter(size_bytes: int, text: str) -> None:
    assert human_size(size_bytes) == text


@given(st.integers(0, NUMBER_MAX))
def test_every_size_is_short_and_right(size_bytes: int) -> None:
    number, unit = human_size(size_bytes).split(" ")
    scale = 1024 ** ["byte", "KiB", "MiB", "GiB", "TiB", "PiB"].index(unit.removesuffix("s"))
    assert len(number) <= 4
    assert abs(float(number) * scale - size_bytes) <= size_bytes * 0.006


@given(st.text())
def test_whatever_is_shown_moves_no_cursor(text: str) -> None:
    assert printable(text).isprintable()


@pytest.mark.parametrize("text", ["größer", "файл", "写真"])
def test_letters_of_any_language_are_shown_as_they_are(text: str) -> None:
    assert printable(text) == text
