"""What the commands' argument parsers share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

from qfilexchg.dom0.debian import Release, host_release
from qfilexchg.errors import CallerError
from qfilexchg.protocol.names import VmName

T = TypeVar("T")

STATUSES = "Exit status: 0 done, 1 failed (one line says why), 2 arguments not understood, 130 interrupted."


def parser(name: str, description: str, statuses: str = STATUSES) -> argparse.ArgumentParser:
    """A parser whose help ends with the exit statuses."""
    return argparse.ArgumentParser(prog=name, description=description, epilog=statuses)


def add_release(args: argparse.ArgumentParser, of_what: str) -> None:
    """Add ``--release``, the release of Debian ``of_what``."""
    own = host_release()
    args.add_argument(
        "--release",
        type=release,
        default=own,
        metavar="RELEASE",
        help=f"the release of Debian {of_what}: {_RELEASES} (default: {own.value})",
    )


def checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """``parse`` as argparse wants it: its :exc:`CallerError` becomes a usage error with the same words."""

    def check(text: str) -> T:
        try:
            return parse(text)
        except CallerError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return check


def release(word: str) -> Release:
    """Return the release of Debian with this code name, as a type for argparse."""
    try:
        return Release(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word[:16]!a} is no release of Debian that can be built: name {_RELEASES}") from None


vm_name = checked(VmName.parse)
_RELEASES = " or ".join(release.value for release in Release)
