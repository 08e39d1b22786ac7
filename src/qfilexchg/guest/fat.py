"""What the pendrive's filesystem can hold: FAT with long names, as Linux mounts it with ``utf8``.

Names are UTF-16 of at most 255 units, and two names of one folder differ in more than their case. Some names that Linux would
write are refused all the same, because another system could not read them: those that DOS kept for devices, and those that
end with a dot, which FAT drops in silence. (Microsoft, *FAT32 File System Specification*, 1.03, pages 22 to 32.)
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

NAME_UNITS_MAX: Final = 255
PATH_BYTES_MAX: Final = 4095
"""What Linux takes as one path, its NUL excluded."""
FILE_BYTES_MAX: Final = 2**32 - 1
FOLDER_SLOTS_MAX: Final = 65536
"""A folder takes at most 2 MiB, in slots of 32 bytes."""
SLOT_BYTES: Final = 32
_SLOT_UNITS: Final = 13
"""UTF-16 units of a long name that one slot holds; one more slot holds the short name."""

EARLIEST_S: Final = 315532800
"""1980-01-01 00:00:00 UTC, in seconds of Unix time."""
LATEST_S: Final = 4354819198
"""2107-12-31 23:59:58 UTC."""

_FORBIDDEN: Final = frozenset('"*/:<>?\\|')
_DEVICES: Final = frozenset(("CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in range(1, 10))))

_MIB: Final = 1 << 20
PENDRIVE_BYTES: Final = 1 << 30
"""The usual pendrive, since 2010."""
_CLUSTER_BYTES: Final = 32768
"""The most that a file's last byte may cost. Larger pendrives have such clusters; a sparse one costs dom0 no more for that."""


def name_problem(name: str) -> str | None:
    """Why ``name`` cannot stand on a pendrive, or None. Undecodable bytes are surrogates, as :func:`os.fsdecode` makes them."""
    try:
        units = _units(name)
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    if units > NAME_UNITS_MAX:
        return f"its name is longer than {NAME_UNITS_MAX} characters"
    if bad := sorted(_FORBIDDEN.intersection(name)):
        return f"its name has {' '.join(bad)}"
    if any(character < " " for character in name):
        return "its name has a control character"
    if name[-1] in " .":
        return "its name ends with a blank" if name[-1] == " " else "its name ends with a dot"
    if name.split(".", 1)[0].rstrip(" ").upper() in _DEVICES:
        return "its name means a device to other systems"
    return None


def folded(name: str) -> str:
    """What two names have in common when FAT takes them for one."""
    if name.isascii():
        return name.upper()
    # FAT's table maps one UTF-16 unit to one: no letter grows, as ß would.
    return "".join(upper if len(upper := letter.upper()) == 1 else letter for letter in name)


def looks_short(name: str) -> bool:
    """Whether ``name`` could be the short name that FAT makes up for a longer one, as PROGRA~1 is.

    Such names are written first: FAT then makes up others.
    """
    return "~" in name and len(name) <= 12


def slots(name: str) -> int:
    """The directory slots that ``name`` takes; the caller has seen that it has no problem."""
    return 1 + -(-_units(name) // _SLOT_UNITS)


def clamped_s(seconds: float) -> float:
    """The nearest time that FAT can hold."""
    return min(max(seconds, EARLIEST_S), LATEST_S)


def pendrive_bytes(file_sizes: Iterable[int], folder_slots: Iterable[int]) -> int:
    """The size of a pendrive that surely holds files of these sizes, in folders of so many slots; never below the usual one."""
    clusters = sum(-(-size // _CLUSTER_BYTES) for size in file_sizes)
    clusters += sum(max(1, -(-slots * SLOT_BYTES // _CLUSTER_BYTES)) for slots in folder_slots)
    content = clusters * _CLUSTER_BYTES
    # The tables take a four-thousandth of the larger pendrives and 2 MiB of the small; this is more than twice that.
    needed = content + content // 256 + 4 * _MIB
    return max(PENDRIVE_BYTES, -(-needed // _MIB) * _MIB)


def _units(name: str) -> int:
    return len(name) if name.isascii() else len(name.encode("utf-16-le")) // 2
