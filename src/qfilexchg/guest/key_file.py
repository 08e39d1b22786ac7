"""Reads the files in which desktops keep settings: groups of keys, as in ``*.desktop``, ``mimeapps.list`` and ``mimeinfo.cache``.

The format is that of the Desktop Entry Specification 1.5, sections 3 and 4. Whoever installs programs writes these files, so
they are trusted, but may be damaged or gone: what cannot be read is passed over.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_BLANKS: Final = " \t\r"
_ESCAPES: Final = {"s": " ", "n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def read(path: str) -> str:
    """The text of a file, or "" if there is none. Bytes that are no UTF-8 are surrogates, as :func:`os.fsdecode` makes them."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read()
    except OSError:
        return ""


def groups(text: str) -> dict[str, dict[str, str]]:
    """The values of each key of each group. Of a key that comes twice the last counts; a group that comes twice is one."""
    found: dict[str, dict[str, str]] = {}
    group: dict[str, str] = {}
    for line in text.split("\n"):
        line = line.strip(_BLANKS)
        if line.startswith("["):
            # What stands under a damaged header belongs to no group.
            group = found.setdefault(line[1:-1], {}) if line.endswith("]") else {}
        elif "=" in line and "\0" not in line and not line.startswith("#"):  # after a crash, a file may be full of NULs
            key, _, value = line.partition("=")
            group[key.rstrip(_BLANKS)] = value.lstrip(_BLANKS)
    return found


def items(value: str) -> list[str]:
    """The items of a list. Types and the names of desktop entries need no escapes, so there are none."""
    return [item for part in value.split(";") if (item := part.strip(_BLANKS))]


def unescaped(value: str) -> str:
    """A value of the kind *string*. A backslash before any other character stays."""
    first, *rest = value.split("\\")
    if not rest:
        return value
    text = first
    pieces = iter(rest)
    for piece in pieces:
        if not piece:  # two backslashes, or one at the very end
            text += "\\" + next(pieces, "")
        else:
            text += _ESCAPES.get(piece[0], "\\" + piece[0]) + piece[1:]
    return text
