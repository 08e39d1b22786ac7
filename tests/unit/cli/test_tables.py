from __future__ import annotations

import pytest

from qfilexchg.dom0.cli.tables import duration, since, table


def test_columns_are_as_wide_as_they_must_be_and_lines_end_with_their_last_word() -> None:
    assert table([("A", "LONG", "B"), ("wide", "x", "")]) == ["A     LONG  B", "wide  x"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (0.9, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (3601, "1 h"),
        (7500, "2 h 5 min"),
        (86399, "23 h 59 min"),
        (86400 * 4 + 3600 + 60, "4 d 1 h"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_is_not_known_is_a_dash() -> None:
    assert since(None, 10.0) == "-" and since(3.0, 10.0) == "7 s"
