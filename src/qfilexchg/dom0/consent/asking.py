"""An agent in a graphical session, but for its event loop and what its questions look like.

Whoever runs it hands in a connection to the daemon, says when that can be read, and calls :meth:`Asking.refresh` some times a second.
It keeps one :class:`Shown` for the question that :class:`~.dialog.Dialog` has in front, and none when there is none.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, assert_never

from qfilexchg.dom0.consent.dialog import Dialog, View
from qfilexchg.dom0.consent.protocol import (
    LINE_MAX,
    FromAgent,
    FromDaemon,
    Hello,
    Lines,
    Notice,
    Question,
    Screen,
    Welcome,
    Withdraw,
    encode,
)

REFRESH_S: Final = 0.1
CONNECT_AGAIN_S: Final = 2.0
"""Before a daemon that ended, or was not there, is looked for again."""


class Shown(Protocol):
    """A question that the person sees."""

    def update(self, view: View) -> None:
        """How it stands now."""
        ...

    def close(self) -> None:
        """It needs no answer any more."""
        ...


class Answering(Protocol):
    """What the person does to the question that is shown."""

    def answer(self, allow: bool, remember: bool = False) -> bool:
        """Returns whether it counts; the question is closed then. A yes that comes too early does not."""
        ...

    def focus(self, has: bool) -> None: ...


Show = Callable[[Question, Answering], Shown]
Tell = Callable[[str | None, str], object]
"""Shows the person a text; a later one takes the place of an earlier with the same key."""

Look = Callable[[Path], str | None]
"""Opens the screen that is served at a Unix socket; why it cannot, where it cannot."""


class DaemonEnded(Exception):
    """The connection is over. All questions are closed."""


class Asking:
    """One agent. ``kind`` is what it calls itself to the daemon."""

    def __init__(self, kind: str, show: Show, tell: Tell, look: Look, clock_s: Callable[[], float]) -> None:
        self._kind = kind
        self._show = show
        self._tell = tell
        self._look = look
        self._dialog = Dialog(clock_s)
        self._shown: tuple[Question, Shown] | None = None
        self._connection: socket.socket | None = None
        self._lines = Lines()

    @property
    def is_open(self) -> bool:
        """Whether a question is before the person."""
        return self._shown is not None

    def begin(self, connection: socket.socket) -> None:
        """Register over a new connection. Raises :exc:`DaemonEnded`."""
        self._connection, self._lines = connection, Lines()
        self._send(Hello(self._kind))

    def read(self) -> None:
        """Take in what the daemon says. Raises :exc:`DaemonEnded` and :exc:`~.protocol.BadMessage`."""
        assert self._connection
        try:
            data = self._connection.recv(LINE_MAX)
        except OSError:
            data = b""
        if not data:
            self._lost()
        for message in self._lines.feed(data):
            self._handle(message)
            self.refresh()

    def refresh(self) -> None:
        """Bring what is shown up to date."""
        self._dialog.tick()
        view = self._dialog.view
        if self._shown and (view is None or view.question != self._shown[0]):
            self._shown[1].close()
            self._shown = None
        if view is None:
            return
        if self._shown is None:
            self._shown = (view.question, self._show(view.question, _Person(self, view.question.id)))
        self._shown[1].update(view)

    def end(self) -> None:
        """Deny what is open and close the connection."""
        for answer in self._dialog.refuse_all():
            self._send(answer)
        self.refresh()
        if self._connection:
            self._connection.close()
            self._connection = None

    def answer(self, number: int, allow: bool, remember: bool) -> bool:
        """See :class:`Answering`. Raises :exc:`DaemonEnded`."""
        answer = self._dialog.answer(number, allow, remember)
        if answer is None:
            return False
        self._send(answer)
        self.refresh()
        return True

    def focus(self, number: int, has: bool) -> None:
        if self._shown and self._shown[0].id == number:
            self._dialog.focus(has)
            self.refresh()

    def _handle(self, message: FromDaemon) -> None:
        match message:
            case Welcome():
                pass
            case Question():
                if denial := self._dialog.ask(message):
                    self._send(denial)
            case Withdraw(number):
                self._dialog.withdraw(number)
            case Notice(text, transfer):
                self._tell(transfer, text)
            case Screen(vm, path):
                if why_not := self._look(Path(path)):
                    self._tell(None, f"{vm} has a document open, which is not shown: {why_not}")
            case _:
                assert_never(message)

    def _send(self, message: FromAgent) -> None:
        assert self._connection
        try:
            self._connection.sendall(encode(message))
        except OSError:
            self._lost()

    def _lost(self) -> None:
        assert self._connection
        self._connection.close()
        self._connection = None
        self._dialog.refuse_all()
        self.refresh()
        raise DaemonEnded


class _Person:
    """One question's :class:`Answering`: a click on a window that is about to close answers no other."""

    def __init__(self, asking: Asking, number: int) -> None:
        self._asking = asking
        self._number = number

    def answer(self, allow: bool, remember: bool = False) -> bool:
        return self._asking.answer(self._number, allow, remember)

    def focus(self, has: bool) -> None:
        self._asking.focus(self._number, has)
