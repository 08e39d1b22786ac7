"""The header before a document: what is written is read, and whatever else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfilexchg.protocol.dvm_header import HEADER_BYTES, NAME_MAX, BadDocumentName, BadHeader, Header, encode, parse

names = (
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)
    .filter(lambda name: name not in (".", ".."))
    .filter(lambda name: len(name.encode()) <= 255)
)


def raw(name: bytes, size_bytes: int = 0) -> bytes:
    return size_bytes.to_bytes(8, "little") + name.ljust(1016, b"\0")


@given(names, st.integers(0, 2**63))
def test_what_is_written_is_read(name: str, size_bytes: int) -> None:
    data = encode(name, size_bytes)
    assert len(data) == HEADER_BYTES
    assert parse(data, HEADER_BYTES + size_bytes) == Header(name, size_bytes)
    assert hash(parse(data + b"body", HEADER_BYTES + size_bytes)) == hash(Header(name, size_bytes))


def test_it_stands_as_in_2010() -> None:
    assert encode("a.txt", 258) == b"\x02\x01\0\0\0\0\0\0a.txt" + bytes(1011)


@given(st.binary(max_size=1100), st.integers(0, 2**65))
def test_whatever_comes_is_a_header_or_refused(data: bytes, device_bytes: int) -> None:
    try:
        header = parse(data, device_bytes)
    except BadHeader as error:
        assert str(error).startswith("there is no document on the pendrive: ")
    else:
        assert header.size_bytes <= device_bytes - HEADER_BYTES
        assert parse(encode(header.name, header.size_bytes), device_bytes) == header


@pytest.mark.parametrize("name", [b"a", b"-rf", "写真.jpg".encode(), b" ", b"a\nb", b"n" * 255])
def test_any_name_that_a_file_can_have_is_one(name: bytes) -> None:
    assert parse(raw(name), 1 << 20).name.encode() == name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (b"", "it is empty"),
        (b".", "that of a folder"),
        (b"..", "that of a folder"),
        (b"../x", "a slash"),
        (b"/etc/passwd", "a slash"),
        (b"n" * 256, "more than 255 bytes"),
        (b"n" * NAME_MAX, "more than 255 bytes"),
        (b"n" * (NAME_MAX + 1), "does not end"),
        (b"\xff", "not UTF-8"),
        (b"\xed\xa0\x80", "not UTF-8"),
    ],
)
def test_a_name_that_no_file_can_have_is_refused(name: bytes, why: str) -> None:
    with pytest.raises(BadHeader, match=why):
        parse(raw(name), 1 << 20)


def test_what_follows_the_name_is_passed_over() -> None:
    assert parse(raw(b"a\0left in memory/\xff"), 1 << 20).name == "a"


@pytest.mark.parametrize(("size_bytes", "device_bytes"), [(1, 1024), (1 << 20, 1 << 20), (2**64 - 1, 1 << 30)])
def test_a_size_beyond_the_pendrive_is_refused(size_bytes: int, device_bytes: int) -> None:
    with pytest.raises(BadHeader, match="larger than the pendrive"):
        parse(raw(b"a", size_bytes), device_bytes)


@pytest.mark.parametrize(("data", "device_bytes"), [(b"", 1 << 20), (raw(b"a")[:-1], 1 << 20), (raw(b"a"), 1023)])
def test_half_a_header_is_refused(data: bytes, device_bytes: int) -> None:
    with pytest.raises(BadHeader, match="shorter than a header"):
        parse(data, device_bytes)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "n" * 256, "写" * 86, "\udcff"])
def test_a_document_of_such_a_name_is_not_sent(name: str) -> None:
    with pytest.raises(BadDocumentName) as caught:
        encode(name, 1)
    assert "rename it, and try again" in str(caught.value)


def test_a_header_shows_its_name_escaped() -> None:
    assert repr(Header("a\x1b", 1)) == "Header('a\\x1b', 1)"
