"""A person in dom0 who is asked, played over the agent protocol. How its lines get to the daemon and back is the tier's."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self

from qfilexchg.dom0.consent.protocol import Answer, FromDaemon, Hello, Notice, Question, Withdraw, encode, parse_from_daemon

DEADLINE_S = 60.0


class Channel(Protocol):
    """A connection to the agents' socket."""

    def line(self) -> bytes:
        """The next line with its newline, waited for."""
        ...

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...


class Person:
    """An agent. A context; it is gone at its end."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.notices: list[str] = []

    def __enter__(self) -> Self:
        self._channel.write(encode(Hello("test")))
        self._hear()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._channel.close()

    def question(self) -> Question:
        """Wait to be asked."""
        message = self._hear()
        assert isinstance(message, Question), message
        return message

    def answer(self, allow: bool) -> Question:
        """Wait to be asked, and answer."""
        question = self.question()
        self.say(question, allow)
        return question

    def say(self, question: Question, allow: bool) -> None:
        """Answer a question that was asked before."""
        self._channel.write(encode(Answer(question.id, allow)))

    def withdrawal(self) -> int:
        """Wait until a question is taken back."""
        message = self._hear()
        assert isinstance(message, Withdraw), message
        return message.question

    def notice(self, part: str) -> str:
        """Wait for a notice with ``part`` in it."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            message = self._next()
            if isinstance(message, Notice) and part in message.text:
                return message.text
        raise AssertionError(f"no notice has {part!r}: {self.notices}")

    def _hear(self) -> FromDaemon:
        while isinstance(message := self._next(), Notice):
            pass
        return message

    def _next(self) -> FromDaemon:
        message = parse_from_daemon(self._channel.line())
        if isinstance(message, Notice):
            self.notices.append(message.text)
        return message
