"""Two sides of a console, and what a VM's kernel and a daemon in between do to it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfilexchg.protocol.console import GRANT, GRANT_BYTES, RESET, WINDOW_BYTES, Line
from qfilexchg.protocol.run import NONCE_BYTES, PREAMBLE, START, Decoder, Start

ODD = st.binary() | st.text("\x00\x0f\x10ORGP").map(str.encode)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[start:end] for start, end in pairwise(places)]


@given(st.lists(ODD), st.lists(st.integers(0, 1000)))
def test_every_byte_arrives_however_it_is_cut(pieces: list[bytes], at: list[int]) -> None:
    ours, theirs = Line(), Line()
    wire = b"".join(map(ours.encode, pieces))
    assert b"\x0f" not in wire
    received = [theirs.decode(part) for part in cut(wire, at)]
    assert b"".join(data for _, data in received) == b"".join(pieces)
    assert not any(begins for begins, _ in received)


@given(ODD, ODD, st.lists(st.integers(0, 1000)))
def test_a_start_is_heard_after_anything(before: bytes, words: bytes, at: list[int]) -> None:
    start = Start(bytes(NONCE_BYTES), "user", [words.replace(b"\0", b"")]).encode()
    wire = before + Line().encode(start)
    theirs = Line()
    heard = b""
    begun = 0
    for part in cut(wire, at):
        begins, data = theirs.decode(part)
        begun += begins
        heard = data if begins else heard + data
    assert begun >= 1
    ((kind, payload),) = Decoder().feed(heard)
    assert (kind, payload) == (START, start[len(PREAMBLE) + 3 :])


def test_the_preamble_is_not_sent() -> None:
    assert Line().encode(PREAMBLE + b"start") == RESET + b"start"


class TestRoom:
    @pytest.fixture
    def line(self) -> Line:
        line = Line()
        line.encode(b"x" * (WINDOW_BYTES - 10))
        return line

    def test_it_is_used_up_by_what_is_on_the_way(self, line: Line) -> None:
        assert line.room_bytes == 10

    def test_it_grows_with_what_the_other_side_has_taken(self, line: Line) -> None:
        assert line.decode(b"x" + GRANT[:1]) == (False, b"x")
        assert line.decode(GRANT[1:] + GRANT + b"y") == (False, b"y")
        assert line.room_bytes == 2 * GRANT_BYTES + 10

    def test_grants_that_nothing_was_sent_for_give_no_more_than_all(self) -> None:
        line = Line()
        line.decode(GRANT * 3)
        assert line.room_bytes == WINDOW_BYTES

    @pytest.mark.parametrize("whose", ["ours", "theirs"])
    def test_a_session_begins_with_all_of_it(self, line: Line, whose: str) -> None:
        if whose == "ours":
            line.encode(PREAMBLE)
        else:
            assert line.decode(GRANT + b"old" + RESET + b"new") == (True, b"new")
        assert line.room_bytes == WINDOW_BYTES

    def test_each_piece_that_was_taken_is_granted_once(self) -> None:
        line = Line()
        assert line.grants() == b""
        line.decode(bytes(2 * GRANT_BYTES - 1))
        assert line.grants() == GRANT
        line.decode(b"x")
        assert (line.grants(), line.grants()) == (GRANT, b"")
