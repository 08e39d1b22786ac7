"""VM names, domain ids and volume labels: one parser each."""

from __future__ import annotations

from qfilexchg.errors import CallerError

NAME_MAX = 64
DOMAIN_ID_MAX = 0x7FEF
"""Highest id of a real domain: Xen keeps 0x7FF0 and above for itself (xen/include/public/xen.h, DOMID_FIRST_RESERVED)."""

_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_DIGITS = frozenset("0123456789")
_NAME_CHARACTERS = _LETTERS | _DIGITS | frozenset("_-")

DOM0 = "dom0"
DISPOSABLE = "disposable"
"""The destination word that asks for a new DisposableVM; no VM can be called so."""

VOLUME_LABEL_MAX = 11
"""Characters in a FAT volume label."""


class BadName(CallerError):
    """A text that is not a VM name."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return (
            f"{self.text[: NAME_MAX + 1]!a} is not a VM name: use 1 to {NAME_MAX} of the characters A-Z a-z 0-9 _ -, "
            "beginning with a letter"
        )


class BadDomainId(CallerError):
    """A text that is not a domain id."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"{self.text[:16]!a} is not a domain id: use a decimal number from 0 to {DOMAIN_ID_MAX}"


class VmName(str):
    """A well-formed VM name. Only ``parse`` makes one, so whoever holds one need not check or escape it."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> VmName:
        """Return ``text`` as a name, or raise :exc:`BadName`.

        The characters are those that the tools of 2010 let through. A name begins with a letter, so that no program takes it
        for an option.
        """
        if not 1 <= len(text) <= NAME_MAX or text[0] not in _LETTERS or not _NAME_CHARACTERS.issuperset(text):
            raise BadName(text)
        return cls(text)

    @property
    def volume_label(self) -> str:
        """The FAT label of a pendrive that this VM sends: its name, cut to the 11 characters that FAT has."""
        return self[:VOLUME_LABEL_MAX]


class DomainId(int):
    """The number by which Xen and xenstore know a running VM. Reused: only with the VM's UUID does it name a VM."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> DomainId:
        """Return the id written as ``text``, or raise :exc:`BadDomainId`. Signs, blanks and leading zeros are refused."""
        if not 1 <= len(text) <= 5 or not _DIGITS.issuperset(text) or (text[0] == "0" and text != "0") or int(text) > DOMAIN_ID_MAX:
            raise BadDomainId(text)
        return cls(text)
