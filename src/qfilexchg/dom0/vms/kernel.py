"""A Linux kernel for direct boot: the ELF file that is packed in a Debian ``vmlinuz``.

QEMU starts an ELF kernel through its PVH entry (Xen's boot ABI, docs/misc/pvh.pandoc), which spares the guest from unpacking
itself: under emulation 0.6 s of 3 s. The place of the packed kernel is in the boot protocol's header
(Documentation/arch/x86/boot.rst, "payload_offset"); Debian packs its cloud kernel in LZ4's legacy frame, and the other by XZ.
"""

from __future__ import annotations

import lzma
import struct

_SETUP_SECTORS = 0x1F1
_MAGIC = 0x202
_PAYLOAD = 0x248
_SECTOR_BYTES = 512

_LZ4_LEGACY = bytes.fromhex("02214c18")
_LZ4_BLOCK_BYTES = 8 << 20
_XZ = b"\xfd7zXZ\0"
_ELF = b"\x7fELF"


class NotPacked(ValueError):
    """The file is no kernel image of the one kind that is understood; it can still be booted as it is."""


def unpack(vmlinuz: bytes) -> bytes:
    """The ELF kernel in ``vmlinuz``. Raises :exc:`NotPacked`."""
    if vmlinuz[_MAGIC : _MAGIC + 4] != b"HdrS":
        raise NotPacked("no Linux boot protocol header")
    start = ((vmlinuz[_SETUP_SECTORS] or 4) + 1) * _SECTOR_BYTES
    offset, length = struct.unpack_from("<II", vmlinuz, _PAYLOAD)
    payload = vmlinuz[start + offset : start + offset + length]
    # The last four bytes are the length of the whole, put there by the kernel's build.
    if payload.startswith(_LZ4_LEGACY):
        kernel = _lz4_legacy(memoryview(payload)[len(_LZ4_LEGACY) : -4])
    elif payload.startswith(_XZ):
        kernel = _xz(payload[:-4])
    else:
        raise NotPacked("the kernel is packed neither with LZ4 nor with XZ")
    if not kernel.startswith(_ELF) or len(kernel) != int.from_bytes(payload[-4:], "little"):
        raise NotPacked("the kernel does not unpack to an ELF file of the length it states")
    return kernel


def _xz(stream: bytes) -> bytes:
    try:
        return lzma.decompress(stream, lzma.FORMAT_XZ)
    except lzma.LZMAError as error:
        raise NotPacked(f"its XZ stream is broken ({error})") from error


def _lz4_legacy(blocks: memoryview) -> bytes:
    kernel = bytearray()
    while blocks:
        size = int.from_bytes(blocks[:4], "little")
        kernel += lz4_block(blocks[4 : 4 + size])
        blocks = blocks[4 + size :]
    return bytes(kernel)


def lz4_block(block: memoryview) -> bytes:
    """Unpack one LZ4 block (lz4_Block_format.md). Raises :exc:`NotPacked`."""
    out = bytearray()
    at, end = 0, len(block)
    try:
        while at < end:
            token = block[at]
            at += 1
            literals = token >> 4
            if literals == 15:
                literals, at = _lengthened(block, literals, at)
            out += block[at : at + literals]
            at += literals
            if at >= end:
                break
            distance = block[at] | block[at + 1] << 8
            at += 2
            match = token & 15
            if match == 15:
                match, at = _lengthened(block, match, at)
            match += 4
            start = len(out) - distance
            if distance == 0 or start < 0:
                raise NotPacked("an LZ4 match points outside of its block")
            if distance >= match:
                out += out[start : start + match]
            else:  # the match runs into itself: a repetition
                out += (out[start:] * (match // distance + 1))[:match]
            if len(out) > _LZ4_BLOCK_BYTES:
                raise NotPacked("an LZ4 block unpacks to more than its 8 MiB")
    except IndexError:
        raise NotPacked("an LZ4 block ends too early") from None
    return bytes(out)


def _lengthened(block: memoryview, length: int, at: int) -> tuple[int, int]:
    while True:
        more = block[at]
        at += 1
        length += more
        if more != 255:
            return length, at
