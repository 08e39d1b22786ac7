"""What a pendrive's filesystem can hold."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfilexchg.guest import fat

NAMES = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=120)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("report.pdf", None),
        (".hidden", None),
        ("two words and a ~", None),
        ("Grüße", None),
        ("写真 2024.jpg", None),
        ("🐧" * 127, None),
        ("x" * 255, None),
        ("consul.txt", None),
        ("COM0", None),
        ("del\x7fete", None),
        ("x" * 256, "its name is longer than 255 characters"),
        ("🐧" * 128, "its name is longer than 255 characters"),
        ("what?", "its name has ?"),
        ('a:b|"c"', 'its name has " : |'),
        ("back\\slash", "its name has \\"),
        ("line\nbreak", "its name has a control character"),
        ("blank ", "its name ends with a blank"),
        ("dot.", "its name ends with a dot"),
        ("con", "its name means a device to other systems"),
        ("Nul.tar.gz", "its name means a device to other systems"),
        ("LPT9 .txt", "its name means a device to other systems"),
        (os.fsdecode(b"caf\xe9"), "its name is not UTF-8"),
    ],
)
def test_a_name_can_stand_on_a_pendrive_or_it_is_said_why_not(name: str, why: str | None) -> None:
    assert fat.name_problem(name) == why


@given(NAMES)
def test_every_name_gets_a_verdict_and_a_good_one_fits_into_its_slots(name: str) -> None:
    if fat.name_problem(name) is None:
        assert 2 <= fat.slots(name) <= 21
        assert 13 * (fat.slots(name) - 1) >= len(name.encode("utf-16-le")) // 2


@given(NAMES)
def test_a_name_and_its_simple_upper_case_are_one(name: str) -> None:
    upper = "".join(letter.upper() if len(letter.upper()) == 1 else letter for letter in name)
    assert fat.folded(name) == fat.folded(upper)


@pytest.mark.parametrize(("one", "other", "same"), [("ä", "Ä", True), ("ß", "SS", False), ("a", "A", True), ("a", "b", False)])
def test_names_are_one_when_only_their_case_differs(one: str, other: str, same: bool) -> None:
    assert (fat.folded(one) == fat.folded(other)) is same


@pytest.mark.parametrize(
    ("seconds", "held"), [(0, 315532800), (315532800, 315532800), (1.7e9, 1.7e9), (4354819198, 4354819198), (5e9, 4354819198)]
)
def test_a_time_is_kept_or_the_nearest_taken(seconds: float, held: float) -> None:
    assert fat.clamped_s(seconds) == held


class TestPendriveBytes:
    def test_little_fits_onto_the_usual_one(self) -> None:
        assert fat.pendrive_bytes([], [1]) == fat.PENDRIVE_BYTES
        assert fat.pendrive_bytes([900 << 20], [3]) == fat.PENDRIVE_BYTES

    def test_each_small_file_takes_a_cluster(self) -> None:
        assert fat.pendrive_bytes([1] * 100_000, [2]) > 100_000 * 32768

    def test_folders_take_clusters_too(self) -> None:
        assert fat.pendrive_bytes([], [2] * 100_000) > 100_000 * 32768

    @given(st.lists(st.integers(0, 2**32 - 1), max_size=40))
    def test_it_is_larger_than_what_it_holds_and_never_by_much(self, sizes: list[int]) -> None:
        size = fat.pendrive_bytes(sizes, [2])
        assert sum(sizes) < size <= max(fat.PENDRIVE_BYTES, sum(sizes) * 1.02 + len(sizes) * 32768 + (8 << 20))


@pytest.mark.parametrize(
    ("name", "short"), [("PROGRA~1", True), ("report~2.pdf", True), ("Program Files", False), ("a very long~name", False)]
)
def test_names_that_look_like_made_up_ones_are_known(name: str, short: bool) -> None:
    assert fat.looks_short(name) is short
