"""The type of a file by its name: the patterns of shared-mime-info, from its ``globs2`` files.

Nearly all patterns are a name (``makefile``) or ``*`` and an ending (``*.tar.gz``). Those are looked up, and only the few others
are tried one by one; :mod:`fnmatch` would bring :mod:`re`. Of all patterns that match, those of the greatest weight count, and of
these the longest. Case matters only to patterns with the flag ``cs``. (*Shared MIME-info Database* 0.21, section 2.)
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Final

    Token = tuple[bool, tuple[tuple[str, str], ...]] | None
    """One character: whether it must be outside of the ranges, and the ranges; None for ``*``, which is any number of any."""

_ANY: Final = (True, ())
_SPECIAL: Final = frozenset("*?[")
_FORGET: Final = "__NOGLOBS__"
"""Stands for a pattern where a type is to lose those that it has in folders of less precedence."""
_WEIGHT_DIGITS_MAX: Final = 3


class Globs:
    """All patterns. ``texts`` are ``globs2`` files, that of the folder with the highest precedence first."""

    __slots__ = ("_endings", "_folded", "_general", "_sensitive")

    def __init__(self, texts: Iterable[str]) -> None:
        self._sensitive: dict[str, list[tuple[int, int, str]]] = {}
        self._folded: dict[str, list[tuple[int, int, str]]] = {}
        self._general: list[tuple[list[Token], bool, tuple[int, int, str]]] = []
        self._endings = 0
        """The length of the longest pattern that is looked up."""
        forgotten: set[str] = set()
        for text in texts:
            forgotten |= self._read(text, frozenset(forgotten))

    def __bool__(self) -> bool:
        return bool(self._sensitive or self._folded or self._general)

    def types(self, name: str) -> list[str]:
        """The types that a file of this name may have: mostly one or none, several where the patterns cannot tell them apart."""
        folded = name.lower()
        found = [*self._looked_up(self._sensitive, name), *self._looked_up(self._folded, folded)]
        found += [glob for tokens, sensitive, glob in self._general if _matches(tokens, name if sensitive else folded)]
        best = max((glob[:2] for glob in found), default=None)
        return list(dict.fromkeys(glob[2] for glob in found if glob[:2] == best))

    def _looked_up(self, table: dict[str, list[tuple[int, int, str]]], name: str) -> list[tuple[int, int, str]]:
        found = list(table.get(name, ()))
        for length in range(min(len(name), self._endings) + 1):
            found += table.get(f"*{name[len(name) - length :]}", ())
        return found

    def _read(self, text: str, forgotten: frozenset[str]) -> set[str]:
        """Take in one file, but for the types that are ``forgotten``; which types are so in the next ones."""
        forget = set()
        sensitive_ones = set()
        for line in text.split("\n"):
            fields = line.split(":")
            if not _is_well_formed(fields):
                continue
            weight, mime_type, pattern, *flags = fields
            if pattern == _FORGET:
                forget.add(mime_type)
                continue
            sensitive = bool(flags) and "cs" in flags[0].split(",")
            if sensitive:
                sensitive_ones.add((mime_type, pattern))
            elif (mime_type, pattern) in sensitive_ones:
                continue  # written once more without its flag, for programs that know no flags
            if mime_type not in forgotten:
                self._add(pattern if sensitive else pattern.lower(), sensitive, (int(weight), len(pattern), mime_type))
        return forget

    def _add(self, pattern: str, sensitive: bool, glob: tuple[int, int, str]) -> None:
        if _SPECIAL.isdisjoint(pattern.removeprefix("*")):
            table = self._sensitive if sensitive else self._folded
            table.setdefault(pattern, []).append(glob)
            self._endings = max(self._endings, len(pattern))
        else:
            self._general.append((_tokens(pattern), sensitive, glob))


def _is_well_formed(fields: Sequence[str]) -> bool:
    if len(fields) < 3 or not ("/" in fields[1] and fields[2]):
        return False
    return fields[0].isdecimal() and len(fields[0]) <= _WEIGHT_DIGITS_MAX


def _tokens(pattern: str) -> list[Token]:
    tokens: list[Token] = []
    while pattern:
        end = pattern.find("]", 3 if pattern[1:2] in ("!", "^") else 2)  # a bracket that comes first is one of the set
        if pattern[0] == "[" and end > 0:
            tokens.append(_set(pattern[1:end]))
            pattern = pattern[end + 1 :]
            continue
        tokens.append({"*": None, "?": _ANY}.get(pattern[0], (False, ((pattern[0], pattern[0]),))))
        pattern = pattern[1:]
    return tokens


def _set(text: str) -> Token:
    outside = text[0] in "!^"
    members = text[1:] if outside else text
    ranges = []
    while members:
        last = members[2] if len(members) > 2 and members[1] == "-" else members[0]
        ranges.append((members[0], last))
        members = members[3 if len(members) > 2 and members[1] == "-" else 1 :]
    return outside, tuple(ranges)


def _matches(tokens: Sequence[Token], text: str) -> bool:
    """Whether all of ``text`` matches. Only the last ``*`` is ever tried again, so a long name takes no long time."""
    token = at = 0
    star, resume = -1, 0
    while at < len(text):
        if token < len(tokens) and tokens[token] is None:
            star, resume = token, at
            token += 1
        elif token < len(tokens) and _is_one(text[at], tokens[token]):
            token += 1
            at += 1
        elif star >= 0:
            resume += 1
            token, at = star + 1, resume
        else:
            return False
    return all(rest is None for rest in tokens[token:])


def _is_one(character: str, token: Token) -> bool:
    assert token is not None, "a star is no one character"
    outside, ranges = token
    return outside != any(first <= character <= last for first, last in ranges)
