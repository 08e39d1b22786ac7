"""``qfilexchg-agent``: an agent in the person's session, which qfilexchgd asks."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from qfilexchg.dom0.cli.arguments import parser
from qfilexchg.dom0.consent.protocol import BadMessage
from qfilexchg.dom0.consent.terminal import DAEMON_ENDED, ENDED, TerminalAgent
from qfilexchg.dom0.home import Home
from qfilexchg.errors import CallerError, HostError


class NoTerminal(CallerError):
    """Standard input or output is not a terminal."""

    def __str__(self) -> str:
        return "there is no terminal to ask on: start it in one, with neither input nor output redirected"


class NotAllowed(HostError):
    """On Xen the daemon is root's, and asks the members of a group."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"this user may not open {self.path}: on Xen, 'adduser USER qfilexchg' lets USER be asked, from the next login on"


class NoDaemon(HostError):
    """Nobody listens at the daemon's socket."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"qfilexchgd cannot be reached at {self.path} ({self.why}): start it by 'qfilexchg up', or with a VM by 'qvm-start'"


class Nonsense(HostError):
    """qfilexchgd said what is no message."""

    def __init__(self, message: BadMessage) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return f"qfilexchgd's message is {self.message}; check that it and this program have the same version"


def main(arguments: Sequence[str]) -> int:
    """``qfilexchg-agent``."""
    args = parser(
        "qfilexchg-agent",
        "Put the questions of qfilexchgd to the person at this terminal: may this VM send its files to that one?",
        f"Exit status: {ENDED} ended by the person, 1 failed (one line says why), 2 arguments not understood, "
        f"{DAEMON_ENDED} qfilexchgd has ended.",
    )
    args.add_argument("--tty", action="store_true", required=True, help="ask on this terminal")
    args.parse_args(arguments)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise NoTerminal
    try:
        with _connect(Home.from_environment(for_everybody=True).agent_socket) as connection:
            return TerminalAgent(connection, sys.stdin.fileno(), sys.stdout.fileno()).run()
    except BadMessage as error:
        raise Nonsense(error) from error
    except KeyboardInterrupt:
        return ENDED


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except PermissionError as error:
        connection.close()
        raise NotAllowed(path) from error
    except OSError as error:
        connection.close()
        raise NoDaemon(path, error.strerror or str(error)) from error
    return connection
