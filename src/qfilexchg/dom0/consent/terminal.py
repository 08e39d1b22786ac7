"""An agent that puts qfilexchgd's questions to the person on a terminal, one at a time.

Only a line ``y`` or ``yes`` that was typed after its question had been shown is a yes: whatever was typed before, for another
question or another program, is thrown away as the question appears. Everything else is a no: any other line, none in time,
Ctrl-C, the end of the input, the end of this program.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, assert_never

from qfilexchg.dom0.consent.protocol import (
    LINE_MAX,
    Answer,
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
from qfilexchg.dom0.consent.wording import explanation, headline, printable

ENDED: Final = 0
"""Exit status: by the person."""
DAEMON_ENDED: Final = 3

YES: Final = frozenset((b"y", b"yes"))
_SEND_WITHIN_S: Final = 10
_TYPED_MAX: Final = 4096
"""Bytes of the longest line that the kernel's line editor hands over (termios(3))."""


@dataclass(frozen=True, slots=True)
class _Open:
    """A question that waits for its answer until ``until_s`` on the agent's clock."""

    question: Question
    until_s: float


class TerminalAgent:
    """An agent on one terminal. :meth:`run` serves until an end comes."""

    def __init__(
        self, connection: socket.socket, terminal_in: int, terminal_out: int, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._connection = connection
        self._in = terminal_in
        self._out = terminal_out
        self._clock_s = clock_s
        self._lines = Lines()
        self._open: list[_Open] = []
        """The first one is on the screen."""

    def run(self) -> int:
        """Ask until the person or the daemon ends it; return the exit status. Raises :exc:`~qfilexchg.dom0.consent.protocol.BadMessage`."""
        self._connection.settimeout(_SEND_WITHIN_S)
        try:
            self._send(Hello("tty"))
            while (status := self._step()) is None:
                pass
        except (KeyboardInterrupt, termios.error):  # the latter: the terminal has hung up
            return self._refuse_all()
        except OSError:
            return self._daemon_ended()
        return status

    def _step(self) -> int | None:
        """Wait for one thing to happen, and see to it. After each the terminal is looked at anew: its input may be gone."""
        if self._open and self._clock_s() >= self._open[0].until_s:
            self._expire()
            return None
        patience_s = max(0.0, self._open[0].until_s - self._clock_s()) if self._open else None
        ready, _, _ = select.select([self._connection.fileno(), self._in], [], [], patience_s)
        if self._connection.fileno() in ready:
            data = self._connection.recv(LINE_MAX)
            if not data:
                return self._daemon_ended()
            for message in self._lines.feed(data):
                self._handle(message)
        elif ready:
            return self._typed()
        return None

    def _handle(self, message: FromDaemon) -> None:
        match message:
            case Welcome():
                self._say("Waiting for questions of qfilexchgd. Ctrl-C ends this; a question that is open then is refused.\n")
            case Question():
                self._open.append(_Open(message, self._clock_s() + message.deadline_s))
                if len(self._open) == 1:
                    self._show()
            case Withdraw(number):
                self._withdraw(number)
            case Notice(text):
                self._say(f"\n* {printable(text)}\n" if self._open else f"* {printable(text)}\n")
                self._prompt()
            case Screen(vm, path):
                self._say(f"* {vm} shows its document on the screen that is served by VNC at the Unix socket {printable(path)}\n")
                self._prompt()
            case _:
                assert_never(message)

    def _show(self) -> None:
        """Put the first open question on the screen, if there is one whose time is not over."""
        while self._open and self._open[0].until_s <= self._clock_s():
            del self._open[0]
        if not self._open:
            return
        question, seconds = self._open[0].question, round(self._open[0].until_s - self._clock_s())
        self._say("\a\n" + "\n".join((headline(question), *explanation(question), f"No answer within {seconds} s means no.")) + "\n")
        termios.tcdrain(self._out)
        termios.tcflush(self._in, termios.TCIFLUSH)
        self._prompt()

    def _prompt(self) -> None:
        if self._open:
            self._say(f"Allow {self._open[0].question.source} this? [y/N] ")

    def _typed(self) -> int | None:
        try:
            line = os.read(self._in, _TYPED_MAX)
        except OSError:  # EIO: the terminal has hung up
            line = b""
        if not line:
            return self._refuse_all()
        if self._open:
            question = self._open.pop(0).question
            allow = line.endswith(b"\n") and line.strip().lower() in YES
            self._send(Answer(question.id, allow))
            self._say("Allowed.\n" if allow else "Refused.\n")
            self._show()
        return None

    def _withdraw(self, number: int) -> None:
        for place, waiting in enumerate(self._open):
            if waiting.question.id == number:
                if place == 0:
                    in_time = waiting.until_s - self._clock_s() > 1
                    self._next("\nThe question is withdrawn.\n" if in_time else "\nNo answer in time: refused.\n")
                else:
                    del self._open[place]
                return

    def _expire(self) -> None:
        """The daemon's own clock refuses it; here it only must not be answered any more."""
        self._next("\nNo answer in time: refused.\n")

    def _next(self, farewell: str) -> None:
        self._say(farewell)
        del self._open[0]
        self._show()

    def _refuse_all(self) -> int:
        with contextlib.suppress(OSError):  # the daemon takes our end for a no as well
            for waiting in self._open:
                self._send(Answer(waiting.question.id, False))
        self._say("\nRefused; no more questions are asked here.\n" if self._open else "\nNo more questions are asked here.\n")
        return ENDED

    def _daemon_ended(self) -> int:
        self._say("\nqfilexchgd has ended the connection: nothing is asked here any more.\n")
        return DAEMON_ENDED

    def _send(self, message: FromAgent) -> None:
        self._connection.sendall(encode(message))

    def _say(self, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        with contextlib.suppress(OSError):  # it has hung up: its input has ended then, too
            while data:
                data = data[os.write(self._out, data) :]
