from __future__ import annotations

import lzma
import struct

import pytest

from qfilexchg.dom0.vms.kernel import NotPacked, lz4_block, unpack

# Hand-made after lz4_Block_format.md: token (literals, match - 4), literals, distance, ...
PLAIN = b"\x50hello"
REPEATED = b"\x1aa\x01\x00" + b"\x50-tail"
"""One literal, then a match of 14 that runs into itself, then five literals."""
LONG = b"\xf0" + bytes((255, 30)) + b"x" * (15 + 255 + 30)
APART = b"\x40abcd\x04\x00" + b"\x20!!"


@pytest.mark.parametrize(
    ("block", "content"),
    [(PLAIN, b"hello"), (REPEATED, b"a" * 15 + b"-tail"), (LONG, b"x" * 300), (APART, b"abcdabcd!!"), (b"", b"")],
)
def test_a_block_is_unpacked(block: bytes, content: bytes) -> None:
    assert lz4_block(memoryview(block)) == content


@pytest.mark.parametrize("block", [b"\x10a\x02\x00\x10b", b"\x10a\x00\x00\x10b", b"\x10a\x01", b"\xf0\xff", b"\x1fa\x01\x00\xff"])
def test_a_broken_block_is_refused(block: bytes) -> None:
    with pytest.raises(NotPacked):
        lz4_block(memoryview(block))


def image(payload: bytes, *, setup_sectors: int = 1) -> bytes:
    """A kernel image as the boot protocol lays it out."""
    header = bytearray((setup_sectors + 1) * 512)
    header[0x1F1] = setup_sectors
    header[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", header, 0x248, 16, len(payload))
    return bytes(header) + bytes(16) + payload + b"what follows"


def packed(*contents: bytes, length: int | None = None) -> bytes:
    """Payload of blocks without matches, each of less than 15 bytes."""
    blocks = b"".join((len(content) + 1).to_bytes(4, "little") + bytes((len(content) << 4,)) + content for content in contents)
    total = sum(map(len, contents)) if length is None else length
    return bytes.fromhex("02214c18") + blocks + total.to_bytes(4, "little")


@pytest.mark.parametrize("setup_sectors", [1, 4, 39])
def test_the_kernel_in_an_image_is_found(setup_sectors: int) -> None:
    assert unpack(image(packed(b"\x7fELF and", b" more"), setup_sectors=setup_sectors)) == b"\x7fELF and more"


def test_a_kernel_that_is_packed_by_xz_is_found() -> None:
    content = b"\x7fELF" + bytes(1000)
    assert unpack(image(lzma.compress(content) + len(content).to_bytes(4, "little"))) == content


@pytest.mark.parametrize(
    "vmlinuz",
    [b"", bytes(2048), image(b"\x1f\x8b gzip"), image(b"\xfd7zXZ\0broken"), image(packed(b"no ELF")), image(packed(b"\x7fELF", length=5))],
    ids=["empty", "zeros", "gzip", "broken XZ", "no ELF", "wrong length"],
)
def test_anything_else_is_left_packed(vmlinuz: bytes) -> None:
    with pytest.raises(NotPacked):
        unpack(vmlinuz)
