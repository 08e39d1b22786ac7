"""The files in which desktops keep settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfilexchg.guest import key_file


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("[One]\nkey=value\n[Two]\nkey=other\n", {"One": {"key": "value"}, "Two": {"key": "other"}}),
        ("[One]\n key = two words \r\n", {"One": {"key": "two words"}}),
        ("[One]\nkey=a=b\nName[de]=Grüße\n", {"One": {"key": "a=b", "Name[de]": "Grüße"}}),
        ("[One]\n# key=value\n\nnonsense\n", {"One": {}}),
        ("[One]\nkey=1\n[Two]\n[One]\nkey=2\nmore=3\n", {"One": {"key": "2", "more": "3"}, "Two": {}}),
        ("stray=1\n[One]\n[Damaged\nkey=1\n", {"One": {}}),
        ("[One]\nkey=1\x002\n\0\0\0\0=\n", {"One": {}}),
        ("[One]\nkey=one\x0bline\u2028only\n", {"One": {"key": "one\x0bline\u2028only"}}),
    ],
)
def test_groups_hold_the_last_value_of_each_key(text: str, found: dict[str, dict[str, str]]) -> None:
    assert key_file.groups(text) == found


@given(st.text())
def test_no_text_is_too_damaged_to_be_read(text: str) -> None:
    key_file.groups(text)
    key_file.items(text)
    key_file.unescaped(text)


def test_a_file_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert key_file.read(str(tmp_path / "missing")) == ""
    assert key_file.read(str(tmp_path)) == ""


def test_bytes_that_are_no_utf8_do_not_hide_the_rest(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"caf\xe9\r\n")
    assert key_file.read(str(tmp_path / "file")) == "caf\udce9\r\n"


@pytest.mark.parametrize(("value", "found"), [("", []), ("a", ["a"]), ("a;b;", ["a", "b"]), (" a ;; b", ["a", "b"])])
def test_items_stand_between_semicolons(value: str, found: list[str]) -> None:
    assert key_file.items(value) == found


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        (r"a\sb\nc\td\re", "a b\nc\td\re"),
        (r"a\\b", r"a\b"),
        (r"\\n", r"\n"),
        (r"\\\n", "\\\n"),
        (r"\\\\", r"\\"),
        (r"\"%f\"", r"\"%f\""),
        ("end\\", "end\\"),
    ],
)
def test_escapes_are_undone_and_unknown_ones_stay(value: str, text: str) -> None:
    assert key_file.unescaped(value) == text


@given(st.text())
def test_an_escaped_text_comes_back(text: str) -> None:
    assert key_file.unescaped(text.replace("\\", "\\\\").replace("\n", "\\n")) == text
