from __future__ import annotations

import gzip
import lzma
import struct
import subprocess
from pathlib import Path

import pytest

from qfilexchg.dom0.vms import kernel
from qfilexchg.dom0.vms.kernel import KernelUnusable, unpack
from qfilexchg.dom0.vms.packed import PackingUnknown

ELF = b"\x7fELF and more" + bytes(1000)
LENGTH = len(ELF).to_bytes(4, "little")


def image(payload: bytes, *, setup_sectors: int = 1) -> bytes:
    """A kernel image as the boot protocol lays it out."""
    header = bytearray((setup_sectors + 1) * 512)
    header[0x1F1] = setup_sectors
    header[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", header, 0x248, 16, len(payload))
    return bytes(header) + bytes(16) + payload + b"what follows"


@pytest.mark.parametrize("setup_sectors", [1, 4, 39])
def test_the_kernel_in_an_image_is_found(setup_sectors: int) -> None:
    assert unpack(image(ELF + LENGTH, setup_sectors=setup_sectors)) == ELF


@pytest.mark.parametrize("program", [("xz", "-c", "--check=crc32"), ("zstd", "-q", "-c"), ("lz4", "-l", "-c")], ids=lambda argv: argv[0])
def test_a_kernel_is_unpacked_whose_length_its_build_has_appended(program: tuple[str, ...]) -> None:
    packed = subprocess.run(program, input=ELF, stdout=subprocess.PIPE, check=True).stdout
    assert unpack(image(packed + LENGTH)) == ELF


def test_the_length_of_one_that_gzip_has_packed_is_in_its_own_trailer() -> None:
    assert unpack(image(gzip.compress(ELF))) == ELF


@pytest.mark.parametrize(
    "vmlinuz",
    [b"", bytes(2048), image(lzma.compress(b"no ELF") + bytes((6, 0, 0, 0))), image(ELF + bytes((5, 0, 0, 0)))],
    ids=["empty", "zeros", "no ELF", "wrong length"],
)
def test_what_is_no_kernel_is_refused(vmlinuz: bytes) -> None:
    with pytest.raises(KernelUnusable):
        unpack(vmlinuz)


def test_a_kernel_that_is_packed_in_an_unknown_way_is_named() -> None:
    with pytest.raises(PackingUnknown, match="the template's kernel is packed in an unknown way"):
        unpack(image(b"LRZI" + bytes(100)))


@pytest.mark.parametrize(("names", "said"), [((), "there is none"), (("vmlinuz-6.1", "vmlinuz-6.2"), "there is vmlinuz-6.1, vmlinuz-6.2")])
def test_a_system_has_one_kernel(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    (tmp_path / "boot").mkdir()
    for name in names:
        (tmp_path / "boot" / name).touch()
    with pytest.raises(KernelUnusable, match=f"{said}: add no package of another kernel"):
        kernel.release(tmp_path)
