"""Who may do what with a key.

A key's permissions are written ``LETTER DOMAIN`` for each entry: ``n0``, ``r5``. The first names the owner, who may do everything,
and its letter says what everyone may do who is not named in a later entry. dom0 may do everything.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass

from qfilexchg.protocol.names import DOMAIN_ID_MAX
from qfilexchg.xenstore.errors import Invalid

_ENTRY = re.compile(r"([nrwb])([0-9]{1,5})")


class Access(enum.Enum):
    """What a request needs; the value holds the letters that grant it."""

    READ = "rb"
    WRITE = "wb"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks: a domain, and the domain for which it also stands (SET_TARGET), if any."""

    domain: int
    target: int | None = None

    @property
    def privileged(self) -> bool:
        return self.domain == 0

    def includes(self, domain: int) -> bool:
        return domain in (self.domain, self.target)


@dataclass(frozen=True, slots=True)
class Permissions:
    """The permissions of one key: the owner, what others may, and what named domains may instead."""

    owner: int
    others: str
    named: tuple[tuple[str, int], ...] = ()

    @classmethod
    def parse(cls, entries: Sequence[str]) -> Permissions:
        """Raises :exc:`Invalid` for no entry, an unknown letter, or a number that is not a domain's."""
        parsed = []
        for entry in entries:
            match = _ENTRY.fullmatch(entry)
            if match is None or int(match[2]) > DOMAIN_ID_MAX:
                raise Invalid(entry)
            parsed.append((match[1], int(match[2])))
        if not parsed:
            raise Invalid("permissions without an owner")
        (others, owner), *named = parsed
        return cls(owner, others, tuple(named))

    def entries(self) -> list[str]:
        return [f"{self.others}{self.owner}", *(f"{letter}{domain}" for letter, domain in self.named)]

    def __len__(self) -> int:
        return 1 + len(self.named)

    def allow(self, who: Identity, access: Access) -> bool:
        if who.privileged or who.includes(self.owner):
            return True
        letters = [letter for letter, domain in self.named if who.includes(domain)] or [self.others]
        return any(letter in access.value for letter in letters)

    def owned_by(self, who: Identity) -> bool:
        return who.privileged or who.includes(self.owner)

    def inherited_by(self, who: Identity) -> Permissions:
        """Of a key that ``who`` makes below one with these: the same, but a VM owns what it makes."""
        return self if who.privileged else Permissions(who.domain, self.others, self.named)

    def without(self, domain: int) -> Permissions:
        """The same, but nothing is said of ``domain`` any more, unless it is the owner."""
        return Permissions(self.owner, self.others, tuple(entry for entry in self.named if entry[1] != domain))
