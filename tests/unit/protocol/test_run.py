from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfilexchg.protocol.run import (
    EXIT,
    FRAME_MAX,
    NONCE_BYTES,
    PAYLOAD_MAX,
    PREAMBLE,
    START,
    STDIN,
    STDOUT,
    BadFrame,
    CommandTooLong,
    Decoder,
    HelloSeeker,
    Start,
    frame,
    hello,
)

NONCE = bytes(range(1, NONCE_BYTES + 1))
kinds = st.integers(1, 255)
frames = st.lists(st.tuples(kinds, st.binary(max_size=300)), max_size=8)
words = st.binary(max_size=20).filter(lambda word: b"\0" not in word)


def decoded(stream: bytes, piece: int) -> list[tuple[int, bytes]]:
    decoder = Decoder()
    return [found for at in range(0, len(stream), piece) for found in decoder.feed(stream[at : at + piece])]


@given(frames, st.integers(1, 40), st.integers(0, 5))
def test_frames_survive_any_cutting_and_any_zeros_between_them(sent: list[tuple[int, bytes]], piece: int, zeros: int) -> None:
    stream = b"".join(bytes(zeros) + frame(kind, payload) for kind, payload in sent)
    assert decoded(stream, piece) == sent


def test_a_frame_of_the_greatest_length_is_taken() -> None:
    assert decoded(frame(STDOUT, b"x" * PAYLOAD_MAX), 1000) == [(STDOUT, b"x" * PAYLOAD_MAX)]


@pytest.mark.parametrize("length", [PAYLOAD_MAX + 1, 65535])
def test_a_longer_frame_is_refused_and_a_session_can_begin_after_it(length: int) -> None:
    decoder = Decoder()
    with pytest.raises(BadFrame):
        list(decoder.feed(bytes((STDOUT,)) + length.to_bytes(2, "big") + b"rest"))
    start = Start(NONCE, "user", [b"true"])
    assert list(decoder.feed(start.encode())) == [(START, start.encode()[len(PREAMBLE) + 3 :])]


@given(frames, st.integers(0, 2500))
def test_a_start_is_understood_wherever_an_earlier_session_broke_off(sent: list[tuple[int, bytes]], cut: int) -> None:
    decoder = Decoder()
    list(decoder.feed(b"".join(frame(kind, payload) for kind, payload in sent)[:cut]))
    start = Start(NONCE, "user", [b"true"]).encode()
    assert [*decoder.feed(start)][-1] == (START, start[len(PREAMBLE) + 3 :])


@given(st.lists(words), st.one_of(st.none(), st.tuples(st.integers(1, 999), st.integers(1, 999))))
def test_a_start_arrives_as_it_was_meant(argv: list[bytes], window: tuple[int, int] | None) -> None:
    start = Start(NONCE, "user", argv, window)
    ((kind, payload),) = Decoder().feed(start.encode())
    found = Start.parse(payload)
    assert (kind, found.nonce, found.user, list(found.argv), found.window) == (START, NONCE, "user", argv, window)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        NONCE,
        NONCE + b"user\0",
        NONCE + b"user\0a\0b\0",
        NONCE + b"\xff\0" + b"1\0" * 2,
        NONCE + b"user\0" + b"1\0" * 2 + b"no end",
        b"user\0" + b"0\0" * 2,
    ],
)
def test_a_start_that_makes_no_sense_is_refused(payload: bytes) -> None:
    with pytest.raises(BadFrame):
        Start.parse(payload)


def test_a_command_that_is_too_long_is_refused_by_the_host() -> None:
    with pytest.raises(CommandTooLong):
        Start(NONCE, "user", [b"x" * FRAME_MAX]).encode()


@given(st.binary(max_size=200), st.binary(max_size=50), st.integers(1, 60))
def test_the_hello_is_found_after_whatever_came_before(before: bytes, after: bytes, piece: int) -> None:
    seeker = HelloSeeker(NONCE)
    stream = before + hello(NONCE) + after
    rest = b""
    for at in range(0, len(stream), piece):
        found = seeker.feed(stream[at : at + piece])
        if found is not None:
            rest = found + stream[at + piece :]
            break
    assert rest == after


def test_another_sessions_hello_is_passed_over() -> None:
    seeker = HelloSeeker(NONCE)
    assert seeker.feed(hello(bytes(NONCE_BYTES)) + frame(EXIT, b"\0")) is None
    assert seeker.feed(hello(NONCE) + frame(STDIN)) == frame(STDIN)
