"""``qfilexchg-agent``: an agent in the person's session, which qfilexchgd asks."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from qfilexchg.dom0.cli.arguments import parser
from qfilexchg.dom0.consent import dialog_programs, libraries
from qfilexchg.dom0.consent.connection import connect
from qfilexchg.dom0.consent.notifications import Notifications
from qfilexchg.dom0.consent.protocol import BadMessage
from qfilexchg.dom0.consent.terminal import DAEMON_ENDED, ENDED, TerminalAgent
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.viewer import Viewers
from qfilexchg.errors import CallerError, HostError

NOTHING_TO_ASK_WITH: Final = 4
"""Exit status."""


class NoTerminal(CallerError):
    """Standard input or output is not a terminal."""

    def __str__(self) -> str:
        return "there is no terminal to ask on: start it in one, with neither input nor output redirected"


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
        "Put the questions of qfilexchgd to the person: may this VM send its files to that one? In a window of its own (GTK 3), else by "
        "yad, zenity or kdialog, else on this terminal.",
        f"Exit status: {ENDED} ended by the person, 1 failed (one line says why), 2 arguments not understood, {DAEMON_ENDED} qfilexchgd "
        f"has ended (only on a terminal: a window waits for the next), {NOTHING_TO_ASK_WITH} there is nothing to ask with.",
    )
    ways = args.add_mutually_exclusive_group()
    ways.add_argument("--tty", dest="way", action="store_const", const="tty", help="ask on this terminal")
    ways.add_argument("--by", dest="way", choices=("gtk", *(program.name for program in dialog_programs.PROGRAMS), "tty"), help="ask so")
    way = args.parse_args(arguments).way
    # Before there is a window: where no daemon can ever be, it would wait for one.
    find_daemon = partial(connect, Home.from_environment(for_everybody=True).agent_socket)
    try:
        status = _ask_in_windows(way, find_daemon)
        if status is None and way in (None, "tty") and (way or _has_terminal()):
            status = _ask_on_terminal(find_daemon)
    except BadMessage as error:
        raise Nonsense(error) from error
    except KeyboardInterrupt:
        return ENDED
    if status is None:
        wanted = way or "GTK 3 for Python (python3-gi, gir1.2-gtk-3.0), yad, zenity, kdialog"
        print(f"qfilexchg-agent: there is no display, or nothing to ask with on it: install {wanted}, or use --tty", file=sys.stderr)
        return NOTHING_TO_ASK_WITH
    return status


def _ask_in_windows(way: str | None, find_daemon: Callable[[], socket.socket]) -> int | None:
    """None where there is nothing to do it with."""
    if way == "tty" or not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return None
    libraries.find_debians()
    gtk = _gtk()
    if gtk is not None and not gtk.init_check()[0]:
        return None  # the display is gone, or not ours
    if way in (None, "gtk") and gtk is not None:
        from qfilexchg.dom0.consent.desktop import GtkAgent

        notifications = Notifications()
        try:
            return GtkAgent(find_daemon, notifications.show, Viewers().open).run()
        finally:
            notifications.close()
    if way != "gtk" and (found := dialog_programs.find(way)):
        notifications = Notifications()
        try:
            return dialog_programs.ProgramAgent(*found, find_daemon, notifications.show, Viewers().open).run()
        finally:
            notifications.close()
    return None


def _gtk() -> Any:
    """GTK 3, or None where it is not installed."""
    try:
        import gi  # type: ignore[import-not-found]

        gi.require_version("Gtk", "3.0")
        from gi.repository import Gtk  # type: ignore[import-not-found]
    except (ImportError, ValueError):
        return None
    return Gtk


def _has_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _ask_on_terminal(find_daemon: Callable[[], socket.socket]) -> int:
    if not _has_terminal():
        raise NoTerminal
    with find_daemon() as connection:
        return TerminalAgent(connection, sys.stdin.fileno(), sys.stdout.fileno()).run()
