"""What stands before a document on its pendrive: the ``dvm_header`` of 2010, 1024 bytes, with the body right behind it.

The size of the body as an unsigned 64-bit little-endian number, then the document's base name, ended by a NUL and padded with
zeros. There is no filesystem. Both sides read headers that another VM wrote, so whatever is not as it must be is refused; only
what follows the NUL is passed over, as the tools of 2010 may leave there what was in their memory.
"""

from __future__ import annotations

from qfilexchg.errors import CallerError, VmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

HEADER_BYTES: Final = 1024
NAME_MAX: Final = 1015
"""Bytes of a name that the header has room for, beside the NUL."""
FILE_NAME_MAX: Final = 255
"""Bytes of a name that a file can have, on any filesystem of Linux. Stops a name that nobody could write from getting that far."""

_SIZE_BYTES = 8


class BadDocumentName(CallerError):
    """A name under which a document cannot be sent. ``why`` is a fixed phrase."""

    def __init__(self, why: str, name: str) -> None:
        super().__init__(why, name)
        self.why = why
        self.name = name

    def __str__(self) -> str:
        return f"the document's name cannot be sent: {self.why}; rename it, and try again"


class BadHeader(VmError):
    """A header that is none. ``why`` is a fixed phrase of ours."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"there is no document on the pendrive: {self.why}"


class Header:
    """What a header says, checked: ``name`` can be a file's in any folder."""

    __slots__ = ("name", "size_bytes")

    def __init__(self, name: str, size_bytes: int) -> None:
        self.name: Final = name
        self.size_bytes: Final = size_bytes
        """Bytes of the body."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Header) and (self.name, self.size_bytes) == (other.name, other.size_bytes)

    def __hash__(self) -> int:
        return hash((self.name, self.size_bytes))

    def __repr__(self) -> str:
        return f"Header({self.name!a}, {self.size_bytes})"


def encode(name: str, size_bytes: int) -> bytes:
    """The header of a document called ``name`` with a body of ``size_bytes``. Raises :exc:`BadDocumentName`."""
    try:
        text = name.encode()
    except UnicodeEncodeError:
        raise BadDocumentName("it is not UTF-8", name) from None
    why = "it has a NUL" if b"\0" in text else _problem(text)
    if why:
        raise BadDocumentName(why, name)
    return size_bytes.to_bytes(_SIZE_BYTES, "little") + text.ljust(HEADER_BYTES - _SIZE_BYTES, b"\0")


def parse(data: bytes, device_bytes: int) -> Header:
    """The header that ``data`` begins with, on a device of ``device_bytes``. Raises :exc:`BadHeader`."""
    if len(data) < HEADER_BYTES or device_bytes < HEADER_BYTES:
        raise BadHeader("it is shorter than a header")
    size_bytes = int.from_bytes(data[:_SIZE_BYTES], "little")
    if size_bytes > device_bytes - HEADER_BYTES:
        raise BadHeader("the size is larger than the pendrive")
    text, ended, _ = data[_SIZE_BYTES:HEADER_BYTES].partition(b"\0")
    if not ended:
        raise BadHeader("the name does not end")
    if why := _problem(text):
        raise BadHeader(f"its name cannot be: {why}")
    try:
        return Header(text.decode(), size_bytes)
    except UnicodeDecodeError:
        raise BadHeader("its name cannot be: it is not UTF-8") from None


def _problem(name: bytes) -> str:
    """Why no file can have this name; empty if one can."""
    if not name:
        return "it is empty"
    if name in (b".", b".."):
        return "it is that of a folder"
    if b"/" in name:
        return "it has a slash"
    return f"it has more than {FILE_NAME_MAX} bytes" if len(name) > FILE_NAME_MAX else ""
