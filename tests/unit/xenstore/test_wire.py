"""Packets, whole and byte by byte."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfilexchg.xenstore import wire
from qfilexchg.xenstore.errors import Invalid
from qfilexchg.xenstore.wire import HEADER_SIZE, PAYLOAD_MAX, Malformed, Op, Packet, Parser

WORDS = st.integers(0, 0xFFFF_FFFF)
PACKETS = st.builds(Packet, WORDS, st.binary(max_size=PAYLOAD_MAX) | st.binary(max_size=8), WORDS, WORDS)


def parsed(*pieces: bytes) -> list[Packet]:
    parser = Parser()
    packets = []
    for piece in pieces:
        parser.feed(piece)
        while (packet := parser.next_packet()) is not None:
            packets.append(packet)
    return packets


def test_a_packet_is_four_words_and_its_payload() -> None:
    assert Packet(Op.READ, b"/a\0", 7, 9).encode() == struct.pack("=IIII", 2, 7, 9, 3) + b"/a\0"


@given(st.lists(PACKETS, max_size=5))
def test_every_packet_comes_out_as_it_went_in_whole_and_byte_by_byte(packets: list[Packet]) -> None:
    stream = b"".join(packet.encode() for packet in packets)
    assert parsed(stream) == packets
    assert parsed(*(stream[at : at + 1] for at in range(len(stream)))) == packets


@given(st.lists(PACKETS, max_size=4), st.data())
def test_every_packet_comes_out_wherever_the_stream_is_cut(packets: list[Packet], data: st.DataObject) -> None:
    stream = b"".join(packet.encode() for packet in packets)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert parsed(*pieces) == packets


@pytest.mark.parametrize("size", [PAYLOAD_MAX + 1, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_a_payload_too_long_is_refused_from_its_header_on_and_for_good(size: int) -> None:
    parser = Parser()
    parser.feed(struct.pack("=IIII", Op.READ, 0, 0, size)[:-1])
    assert parser.next_packet() is None
    parser.feed(struct.pack("=IIII", Op.READ, 0, 0, size)[-1:])
    for _ in range(2):
        with pytest.raises(Malformed, match=str(size)):
            parser.next_packet()
        parser.feed(Packet(Op.READ, b"/\0").encode())


def test_the_longest_payload_is_taken() -> None:
    longest = Packet(Op.WRITE, b"x" * PAYLOAD_MAX)
    assert parsed(longest.encode()) == [longest]


@given(st.binary(max_size=200))
def test_hostile_bytes_give_packets_or_a_refusal_and_nothing_else(data: bytes) -> None:
    parser = Parser()
    parser.feed(data)
    taken = 0
    try:
        while (packet := parser.next_packet()) is not None:
            taken += HEADER_SIZE + len(packet.payload)
            assert data.startswith(packet.encode(), taken - HEADER_SIZE - len(packet.payload))
    except Malformed:
        pass
    assert taken + len(parser) == len(data)


def test_answers_carry_the_ids_of_their_request() -> None:
    request = Packet(Op.READ, b"/a\0", 7, 9)
    assert request.reply(b"x") == Packet(Op.READ, b"x", 7, 9)
    assert request.error("ENOENT") == Packet(Op.ERROR, b"ENOENT\0", 7, 9)


def test_packets_are_equal_by_what_they_say() -> None:
    assert len({Packet(1, b"a", 2, 3), Packet(1, b"a", 2, 3), Packet(1, b"b", 2, 3)}) == 2
    assert Packet(1) != (1, b"", 0, 0)
    assert repr(Packet(1, b"a", 2, 3)) == "Packet(op=1, payload=b'a', req_id=2, tx_id=3)"


@given(st.lists(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])), min_size=1))
def test_strings_come_out_as_they_went_in(strings: list[str]) -> None:
    assert wire.split(wire.join(strings)) == strings


@given(st.binary(max_size=20).map(lambda data: data + b"\0"))
def test_bytes_that_are_no_text_survive(payload: bytes) -> None:
    assert wire.join(wire.split(payload)) == payload


@pytest.mark.parametrize("payload", [b"", b"a", b"a\0b"])
def test_strings_that_do_not_end_are_refused(payload: bytes) -> None:
    with pytest.raises(Invalid):
        wire.split(payload)


def test_a_nul_inside_a_string_is_refused() -> None:
    with pytest.raises(Invalid):
        wire.join(["a", "b\0c"])
