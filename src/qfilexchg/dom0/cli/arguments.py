"""What the commands' argument parsers share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

from qfilexchg.errors import CallerError
from qfilexchg.protocol.names import VmName

T = TypeVar("T")

STATUSES = "Exit status: 0 done, 1 failed (one line says why), 2 arguments not understood, 130 interrupted."


def parser(name: str, description: str, statuses: str = STATUSES) -> argparse.ArgumentParser:
    """A parser whose help ends with the exit statuses."""
    return argparse.ArgumentParser(prog=name, description=description, epilog=statuses)


def checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """``parse`` as argparse wants it: its :exc:`CallerError` becomes a usage error with the same words."""

    def check(text: str) -> T:
        try:
            return parse(text)
        except CallerError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return check


vm_name = checked(VmName.parse)
