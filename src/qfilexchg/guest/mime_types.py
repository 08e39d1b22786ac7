"""The type of a file, and what else a file of that type is.

A type comes from the file's name, by the database of shared-mime-info. Where the name says nothing, or not enough, it comes from
the first bytes: the handful of formats that people send each other, else whether it looks like text. The database's own
tables of contents are not read: they are large, and a document mostly has a name that says what it is.

A name and its content are the sender's. A wrong type costs no more than the wrong program in a VM that is thrown away.
"""

from __future__ import annotations

import os

from qfilexchg.guest import key_file
from qfilexchg.guest.globs import Globs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Final, Self

TEXT: Final = "text/plain"
BYTES: Final = "application/octet-stream"

_HEAD_BYTES: Final = 4096
_MAGIC: Final = (
    (b"%PDF-", "application/pdf"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"PK\x03\x04", "application/zip"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "application/x-ole-storage"),
    (b"{\\rtf", "application/rtf"),
    (b"\xff\xfe", TEXT),  # UTF-16, which is full of NULs
    (b"\xfe\xff", TEXT),
)
_CONTROLS: Final = frozenset(range(32)) - frozenset(b"\b\t\n\f\r\x1b")
"""Bytes that text of any encoding hardly has; an escape begins a colour in a log."""
_NO_CONTROLS: Final = bytes(byte for byte in range(256) if byte not in _CONTROLS)
_CONTROLS_SHARE: Final = 50
"""One in so many bytes of a text may be a control character all the same."""

_OFFICE: Final = "application/vnd.openxmlformats-officedocument"
_OPEN: Final = "application/vnd.oasis.opendocument"
_USUAL: Final = (
    ("text/plain", "txt log"),
    ("text/markdown", "md"),
    ("text/csv", "csv"),
    ("text/html", "html htm"),
    ("application/pdf", "pdf"),
    ("image/png", "png"),
    ("image/jpeg", "jpg jpeg"),
    ("image/gif", "gif"),
    ("image/svg+xml", "svg"),
    (f"{_OPEN}.text", "odt"),
    (f"{_OPEN}.spreadsheet", "ods"),
    (f"{_OPEN}.presentation", "odp"),
    (f"{_OFFICE}.wordprocessingml.document", "docx"),
    (f"{_OFFICE}.spreadsheetml.sheet", "xlsx"),
    (f"{_OFFICE}.presentationml.presentation", "pptx"),
    ("application/msword", "doc"),
    ("application/vnd.ms-excel", "xls"),
    ("application/vnd.ms-powerpoint", "ppt"),
    ("application/zip", "zip"),
)
"""Types and the endings of their names, for a VM that has no shared-mime-info."""


class MimeTypes:
    """The database: patterns of names, other names of types, and which type is a special case of which."""

    __slots__ = ("_aliases", "_globs", "_parents")

    def __init__(self, globs: Globs, aliases: dict[str, str], parents: dict[str, list[str]]) -> None:
        self._globs: Final = globs
        self._aliases: Final = aliases
        self._parents: Final = parents

    @classmethod
    def load(cls, folders: Sequence[str]) -> Self:
        """Read ``mime/`` in each of ``folders``, the one with the highest precedence first."""
        aliases: dict[str, str] = {}
        parents: dict[str, list[str]] = {}
        for folder in folders:
            for alias, mime_type in _pairs(f"{folder}/mime/aliases"):
                aliases.setdefault(alias, mime_type)
            for child, parent in _pairs(f"{folder}/mime/subclasses"):
                parents.setdefault(child, []).append(parent)
        globs = Globs(key_file.read(f"{folder}/mime/globs2") for folder in folders)
        return cls(globs or _usual_globs(), aliases, parents)

    def canonical(self, mime_type: str) -> str:
        """The one name of a type that has several."""
        return self._aliases.get(mime_type, mime_type)

    def ancestry(self, mime_type: str) -> Iterator[str]:
        """The type, and then all that it is a special case of, nearest first, each once."""
        line = [self.canonical(mime_type)]
        for known in line:  # which grows meanwhile
            yield known
            parents = [self.canonical(parent) for parent in self._parents.get(known, ())]
            if known.startswith("text/"):
                parents.append(TEXT)
            line += [parent for parent in dict.fromkeys(parents) if parent not in line]
        if not line[0].startswith("inode/") and BYTES not in line:
            yield BYTES

    def of_file(self, path: str) -> str:
        """The type of the file ``path``. It never raises: a file that cannot be read, and whose name says nothing, is just bytes."""
        names = self._globs.types(os.path.basename(path))
        if len(names) == 1:
            return names[0]
        content = of_content(_head(path))
        return self._choose(names, content) if names else content

    def _choose(self, names: Sequence[str], content: str) -> str:
        """Which of the types that the name allows the content makes likely."""
        lines = {name: set(self.ancestry(name)) for name in names}
        if content != BYTES:
            for name, line in lines.items():
                if content in line:
                    return name
        return next((name for name, line in lines.items() if TEXT not in line), names[0])


def of_content(head: bytes | None) -> str:
    """The type of a file that begins with these bytes; None for a file that cannot be read, an empty one is an empty text."""
    if head is None:
        return BYTES
    for magic, mime_type in _MAGIC:
        if head.startswith(magic):
            return mime_type
    controls = head.translate(None, _NO_CONTROLS)
    # That it be valid UTF-8 is not asked for: text in an older encoding is not, and should open too.
    return TEXT if 0 not in controls and len(controls) * _CONTROLS_SHARE <= len(head) else BYTES


def _head(path: str) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError):  # ValueError: no file can have such a name
        return None
    try:
        return os.read(descriptor, _HEAD_BYTES)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _pairs(path: str) -> Iterator[tuple[str, str]]:
    for line in key_file.read(path).split("\n"):
        words = line.split()
        if len(words) == 2:
            yield words[0], words[1]


def _usual_globs() -> Globs:
    return Globs(["\n".join(f"50:{mime_type}:*.{ending}" for mime_type, endings in _USUAL for ending in endings.split())])
