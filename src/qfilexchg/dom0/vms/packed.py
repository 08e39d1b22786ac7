"""Kernels and modules as Debian packs them: not at all, or by gzip, xz, zstd or LZ4. Debian's own programs unpack them."""

from __future__ import annotations

from qfilexchg.dom0 import programs
from qfilexchg.errors import HostError

GZIP = b"\x1f\x8b"
ELF = b"\x7fELF"
_UNPACKERS = {
    GZIP: "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x02\x21\x4c\x18": "lz4",  # the legacy frame, which kernels are packed in
    b"\x04\x22\x4d\x18": "lz4",
}
UNPACKERS = tuple(dict.fromkeys(_UNPACKERS.values()))
_DEADLINE_S = 60.0


class PackingUnknown(HostError):
    """``what`` is packed in none of the known ways; ``beginning`` are its first bytes."""

    def __init__(self, what: str, beginning: bytes) -> None:
        super().__init__(what, beginning)
        self.what = what
        self.beginning = beginning

    def __str__(self) -> str:
        known = ", ".join((*UNPACKERS, "none"))
        return f"{self.what} is packed in an unknown way (it begins with the bytes {self.beginning.hex(' ')}); the known ways are {known}"


def unpack(data: bytes, what: str) -> bytes:
    """Return the ELF file in ``data``, which an error calls ``what``.

    Raises :exc:`PackingUnknown`, and what :func:`qfilexchg.dom0.programs.output` raises where ``data`` is broken.
    """
    if data.startswith(ELF):
        return data
    for beginning, program in _UNPACKERS.items():
        if data.startswith(beginning):
            return programs.output(program, "-dc", deadline_s=_DEADLINE_S, input=data)
    raise PackingUnknown(what, data[:6])
