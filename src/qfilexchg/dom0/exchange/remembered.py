"""The rules that the person made by choosing *always* in a question: ``20-remembered.policy`` of the home's rules.

It is a file of rules as any other, which the person may edit: only whole lines are added and removed here, and the file is replaced
in one step. The daemon adds to it and ``qfilexchg policy`` removes from it, so both hold a lock on the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Final

from qfilexchg.dom0.exchange import policy
from qfilexchg.dom0.exchange.policy import Action, BadPolicy, Rule, Word
from qfilexchg.errors import CallerError, HostError
from qfilexchg.protocol.names import VmName

FILE: Final = "20-remembered.policy"

_HEAD: Final = """\
# What you answered with "Always". 'qfilexchg policy' lists all rules; 'qfilexchg policy forget SOURCE TARGET' removes one of these.
"""


class NotRemembered(CallerError):
    """There is no such rule in the file."""

    def __init__(self, source: VmName, target: VmName | Word) -> None:
        super().__init__(source, target)
        self.source = source
        self.target = target

    def __str__(self) -> str:
        target = self.target.value if isinstance(self.target, Word) else self.target
        return f"no answer is remembered for {self.source} {target}: 'qfilexchg policy' lists those that are"


class NotWritten(HostError):
    """The file cannot be replaced; it is as it was."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"{self.path} cannot be written: {self.why}"


def would_hold(folder: Path, asked_by: Rule | None) -> bool:
    """Whether a rule added here comes before the one that says to ask: one that the person put before it goes on asking."""
    if asked_by is None:
        return False
    if asked_by.origin == policy.DEFAULT_ORIGIN:
        return True
    origin = Path(asked_by.origin)
    return origin.parent == folder and origin.name > FILE


def remember(folder: Path, source: VmName, target: VmName | None, day: date) -> None:
    """Let ``source`` send to ``target`` from now on, unless that stands there already; None is a new DisposableVM.

    Raises :exc:`~.policy.BadPolicy` where the file is no policy, and :exc:`NotWritten`.
    """
    party = Word.DISPOSABLE if target is None else target
    word = party.value if isinstance(party, Word) else party

    def add(lines: list[str]) -> list[str]:
        if any(_is(line, source, party) for line in lines):
            return lines
        return [*(lines or [_HEAD]), f"{source}  {word}  allow  # {day.isoformat()}\n"]

    _replace(folder, add)


def forget(folder: Path, source: VmName, target: VmName | Word) -> None:
    """Undo :func:`remember`. Raises :exc:`NotRemembered`, :exc:`~.policy.BadPolicy` and :exc:`NotWritten`."""

    def remove(lines: list[str]) -> list[str]:
        kept = [line for line in lines if not _is(line, source, target)]
        if kept == lines:
            raise NotRemembered(source, target)
        return kept

    _replace(folder, remove)


def _is(line: str, source: VmName, target: VmName | Word) -> bool:
    return any((rule.source, rule.target, rule.action) == (source, target, Action.ALLOW) for rule in policy.parse(line, FILE))


def _replace(folder: Path, change: Callable[[list[str]], list[str]]) -> None:
    path = folder / FILE
    try:
        with _lock(folder):
            text = policy.read(path) if path.exists() else ""
            if text and not text.endswith("\n"):
                text += "\n"
            policy.parse(text, str(path))
            changed = "".join(change(text.splitlines(keepends=True)))
            if len(changed.encode()) > policy.FILE_MAX:
                raise BadPolicy(str(path), 0, f"would be longer than {policy.FILE_MAX} bytes: remove what is not needed any more")
            if changed != text:
                _write(path, changed)
    except OSError as error:
        raise NotWritten(path, error.strerror or str(error)) from error


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, text: str) -> None:
    """A hidden file, which the policy passes over, takes the place of the old one once it is on the disk."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        aside = Path(file.name)
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            if path.exists():
                aside.chmod(path.stat().st_mode & 0o777)
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
