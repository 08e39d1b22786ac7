"""The command lines of the VM tools. argparse would cost more at start-up than all else that a tool imports."""

from __future__ import annotations

from qfilexchg.guest.outcome import Usage
from qfilexchg.guest.progress import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import Final

REPORT: Final = "--report=json"
"""Of the commands that a window can run; see :mod:`qfilexchg.guest.report`."""


def split(arguments: Sequence[str], known: Collection[str], command: str) -> tuple[list[str], set[str]] | None:
    """The words and the options of a command line; None if it asks for help. After ``--`` all are words.

    Raises :exc:`Usage` for an option that is not one of ``known``.
    """
    words: list[str] = []
    options: set[str] = set()
    rest = iter(arguments)
    for word in rest:
        if word == "--":
            words += rest
        elif word in ("-h", "--help"):
            return None
        elif word in known:
            options.add(word)
        elif word.startswith("-") and word != "-":
            raise Usage(f"there is no option {printable(word)}", command)
        else:
            words.append(word)
    return words, options
