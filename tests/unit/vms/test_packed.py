from __future__ import annotations

import gzip
import lzma
import subprocess

import pytest

from qfilexchg.dom0.programs import ProgramFailed
from qfilexchg.dom0.vms.packed import PackingUnknown, unpack

CONTENT = b"\x7fELF" + bytes(range(256)) * 4000


def by(*argv: str) -> bytes:
    return subprocess.run(argv, input=CONTENT, stdout=subprocess.PIPE, check=True).stdout


@pytest.mark.parametrize(
    "packed",
    [
        pytest.param(lambda: CONTENT, id="not packed"),
        pytest.param(lambda: gzip.compress(CONTENT), id="gzip"),
        pytest.param(lambda: lzma.compress(CONTENT), id="xz"),
        pytest.param(lambda: by("zstd", "-q", "--ultra", "-22", "-c"), id="zstd"),
        pytest.param(lambda: by("lz4", "-l", "-c"), id="LZ4 as of kernels"),
        pytest.param(lambda: by("lz4", "-c"), id="LZ4"),
    ],
)
def test_whatever_way_debian_packs_it_in_it_is_unpacked(packed: object) -> None:
    assert callable(packed)
    assert unpack(packed(), "it") == CONTENT


def test_an_unknown_packing_is_named_with_its_first_bytes() -> None:
    with pytest.raises(PackingUnknown, match=r"the module x\.ko\.bz2 is packed in an unknown way .*42 5a 68 39.*gzip, xz, zstd, lz4, none"):
        unpack(b"BZh9abcdefgh", "the module x.ko.bz2")


def test_what_is_broken_is_said_by_the_program_that_finds_it_so() -> None:
    with pytest.raises(ProgramFailed, match="xz -dc failed"):
        unpack(lzma.compress(CONTENT)[:-20], "it")
