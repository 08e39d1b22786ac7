"""The agent with windows of its own, by GTK 3. Imported only where that is there.

An error in it ends the process, and so every open question with a no: GTK itself would go on after one.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

from gi.repository import GLib, Gtk  # type: ignore[import-not-found]

from qfilexchg.dom0.consent.asking import CONNECT_AGAIN_S, REFRESH_S, Answering, Asking, DaemonEnded, Look, Tell
from qfilexchg.dom0.consent.connection import NoDaemon
from qfilexchg.dom0.consent.protocol import BadMessage, Question
from qfilexchg.dom0.consent.window import NoticeWindow, QuestionWindow, use_style
from qfilexchg.errors import QfilexchgError

KIND = "gtk"
_NO_KEY = ""


class GtkAgent:
    """An agent of the graphical session.

    ``connect`` makes a connection to the daemon; ``tell`` returns False where it cannot show a text; ``look`` opens a VM's screen.
    """

    def __init__(self, connect: Callable[[], socket.socket], tell: Tell, look: Look) -> None:
        self._connect = connect
        self._tell = tell
        self._asking = Asking(KIND, self._show, self._notice, look, time.monotonic)
        self._notices: dict[str, NoticeWindow] = {}
        self._held: dict[str, str] = {}
        self._failure: QfilexchgError | BadMessage | None = None

    def run(self) -> int:
        """Ask until the session ends it, or SIGTERM; return the exit status.

        Waits for a daemon that is not there. Raises what ``connect`` raises besides, and :exc:`~.protocol.BadMessage`.
        """
        sys.excepthook = _fail_closed
        use_style()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            GLib.unix_signal_add(GLib.PRIORITY_HIGH, number, self._end)
        self._begin()
        GLib.timeout_add(round(REFRESH_S * 1000), self._refresh)
        if self._failure is None:
            Gtk.main()
        if self._failure is not None:
            raise self._failure
        return 0

    def _begin(self, *_: object) -> bool:
        try:
            connection = self._connect()
            self._asking.begin(connection)
        except (NoDaemon, DaemonEnded):
            self._later()
        except QfilexchgError as error:
            self._fail(error)
        else:
            GLib.unix_fd_add_full(GLib.PRIORITY_DEFAULT, connection.fileno(), GLib.IOCondition.IN | GLib.IOCondition.HUP, self._read)
        return False

    def _read(self, *_: object) -> bool:
        try:
            self._asking.read()
        except DaemonEnded:
            self._later()
            return False
        except BadMessage as error:
            self._fail(error)
            return False
        return True

    def _later(self) -> None:
        GLib.timeout_add(round(CONNECT_AGAIN_S * 1000), self._begin)

    def _refresh(self) -> bool:
        self._asking.refresh()
        self._show_notices()
        return True

    def _show(self, question: Question, person: Answering) -> QuestionWindow:
        def answer(allow: bool, remember: bool) -> None:
            with contextlib.suppress(DaemonEnded):  # the socket's own event comes as well
                person.answer(allow, remember)

        for name, notice in list(self._notices.items()):
            notice.close()
            self._held.setdefault(name, notice.text)
        window = QuestionWindow(question, answer, person.focus)
        GLib.idle_add(window.show)
        return window

    def _notice(self, key: str | None, text: str) -> None:
        if not self._tell(key, text):
            self._held[key or _NO_KEY] = text
            self._show_notices()

    def _show_notices(self) -> None:
        """Where nobody else shows them: not while there is a question, of which one would hide a part."""
        if self._asking.is_open:
            return
        for name, text in self._held.items():
            if name not in self._notices:
                self._notices[name] = NoticeWindow(gone=functools.partial(self._notices.__delitem__, name))
            self._notices[name].show(text)
        self._held.clear()

    def _fail(self, error: QfilexchgError | BadMessage) -> None:
        self._failure = error
        Gtk.main_quit()

    def _end(self, *_: object) -> bool:
        self._asking.end()
        Gtk.main_quit()
        return False


def _fail_closed(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> Any:
    traceback.print_exception(kind, error, where)
    sys.stderr.flush()
    os._exit(1)
