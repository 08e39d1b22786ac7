"""Who may send to whom: rules that the person writes, in files of lines ``SOURCE TARGET allow|ask|deny``.

SOURCE is a VM's name, or ``*`` for every VM. TARGET is a VM's name, ``*`` for every VM that runs, or ``disposable`` for a new
DisposableVM, which ``*`` does not include: whoever opens all doors of a VM has not yet said that it may start others. ``#``
begins a comment. The first rule that matches decides, over all files, and the rules of ``default.policy`` come last.

Everything that goes wrong is a denial: while one file cannot be read or understood, nothing is allowed, for the rule in it that
is not understood may be the one that forbids. The files are read again for each decision, so a change holds from then on.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from qfilexchg.errors import CallerError
from qfilexchg.protocol.names import DISPOSABLE, BadName, VmName

SYSTEM_FOLDER = Path("/etc/qfilexchg/policy.d")
DEFAULT_ORIGIN = "default.policy"

FILE_MAX = 256 << 10
"""Bytes of one file. Some thousand rules; more is not a policy but an accident."""
FILES_MAX = 256


class Action(enum.Enum):
    """What a rule says."""

    ALLOW = "allow"
    ASK = "ask"
    DENY = "deny"


class Word(enum.Enum):
    """What a rule can say in the place of a name."""

    ANY = "*"
    DISPOSABLE = DISPOSABLE


@dataclass(frozen=True, slots=True)
class Rule:
    """One line. ``origin`` is the file it stands in, for the person who asks why."""

    source: VmName | Word
    target: VmName | Word
    action: Action
    origin: str
    line: int

    def matches(self, source: VmName, target: VmName | None) -> bool:
        """Whether this rule speaks of a transfer from ``source`` to ``target``; None is a new DisposableVM."""
        if self.source is not Word.ANY and self.source != source:
            return False
        if target is None or self.target is Word.DISPOSABLE:
            return target is None and self.target is Word.DISPOSABLE
        return self.target is Word.ANY or self.target == target

    def __str__(self) -> str:
        def word(name: VmName | Word) -> str:
            return name.value if isinstance(name, Word) else name

        return f"{word(self.source)} {word(self.target)} {self.action.value} ({self.origin}:{self.line})"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rules say of one transfer, and why. ``rule`` is None where no rule could be asked."""

    action: Action
    reason: str
    rule: Rule | None


@dataclass(frozen=True, slots=True)
class Policy:
    """All rules in their order. While ``fault`` names something that is wrong with them, everything is denied."""

    rules: tuple[Rule, ...]
    fault: str | None = None

    def decide(self, source: VmName, target: VmName | None) -> Verdict:
        """What holds for a transfer from ``source`` to ``target``; None is a new DisposableVM."""
        if self.fault is not None:
            return Verdict(Action.DENY, f"nothing is allowed while the policy is broken: {self.fault}", None)
        for rule in self.rules:
            if rule.matches(source, target):
                return Verdict(rule.action, f"rule {rule}", rule)
        return Verdict(Action.DENY, "no rule speaks of it", None)


class BadPolicy(CallerError):
    """A policy file that cannot be read or understood. ``line`` is 0 where it is the file as a whole."""

    def __init__(self, origin: str, line: int, why: str) -> None:
        super().__init__(origin, line, why)
        self.origin = origin
        self.line = line
        self.why = why

    def __str__(self) -> str:
        return f"{self.origin}:{self.line}: {self.why}" if self.line else f"{self.origin}: {self.why}"


def parse(text: str, origin: str) -> tuple[Rule, ...]:
    """The rules in ``text``, in order, or :exc:`BadPolicy`."""
    return tuple(_rules(text, origin))


def _rules(text: str, origin: str) -> Iterator[Rule]:
    for number, line in enumerate(text.split("\n"), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 3:
            raise BadPolicy(origin, number, f"a rule has three words, SOURCE TARGET allow|ask|deny, and not {len(words)}")
        try:
            source = _party(words[0])
            target = _party(words[1])
        except BadName as error:
            raise BadPolicy(origin, number, str(error)) from None
        if source is Word.DISPOSABLE:
            raise BadPolicy(origin, number, "disposable is a word for a TARGET, a DisposableVM that is yet to be made, and no SOURCE")
        try:
            action = Action(words[2])
        except ValueError:
            raise BadPolicy(origin, number, f"a rule ends in allow, ask or deny, and not in {words[2][:64]!a}") from None
        yield Rule(source, target, action, origin, number)


def _party(word: str) -> VmName | Word:
    try:
        return Word(word)
    except ValueError:
        return VmName.parse(word)


def default_rules() -> tuple[Rule, ...]:
    """The rules that are shipped, which hold where no other does."""
    return parse(resources.files(__package__).joinpath(DEFAULT_ORIGIN).read_text(encoding="utf-8"), DEFAULT_ORIGIN)


def load(folders: Iterable[Path]) -> Policy:
    """The policy of all ``*.policy`` files in ``folders``, each folder's in the order of their names, and the default rules.

    A folder that does not exist has no rules. Hidden files are passed over: editors leave theirs so. Never raises for what is
    in the files or for their being unreadable: the policy has a ``fault`` then.
    """
    try:
        rules = [rule for folder in folders for path in _files(folder) for rule in parse(read(path), str(path))]
    except BadPolicy as error:
        return Policy((), str(error))
    return Policy((*rules, *default_rules()))


def _files(folder: Path) -> Sequence[Path]:
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix == ".policy" and not path.name.startswith("."))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise BadPolicy(str(folder), 0, f"cannot be listed ({error.strerror})") from error
    if len(files) > FILES_MAX:
        raise BadPolicy(str(folder), 0, f"has more than {FILES_MAX} policy files: join them")
    return files


def read(path: Path) -> str:
    """The text of a policy file, or :exc:`BadPolicy`."""
    try:
        with open(path, "rb", opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BadPolicy(str(path), 0, "is not a file")
            data = file.read(FILE_MAX + 1)
    except OSError as error:
        raise BadPolicy(str(path), 0, f"cannot be read ({error.strerror})") from error
    if len(data) > FILE_MAX:
        raise BadPolicy(str(path), 0, f"is longer than {FILE_MAX} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadPolicy(str(path), data[: error.start].count(b"\n") + 1, "is not UTF-8") from None


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a named pipe must not hold the daemon until somebody writes to it
