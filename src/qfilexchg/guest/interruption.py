"""Signals that end a command, heeded at checkpoints only.

A copy must give its pendrive back however it ends, so a signal may not break off a half-sent request or a half-made mount. The
handlers only note that the person wants to stop; :meth:`Interruption.check` and every wait raise :exc:`Cancelled` then. It is
raised once: what follows is the clean-up, which is short and bounded.

A command that reports to a program has no terminal that could be closed. The end of that program is noticed instead: nobody reads
the pipe any more.
"""

from __future__ import annotations

import os
import select

from qfilexchg.errors import CallerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Sequence
    from typing import Self
else:
    import _signal as signal  # the same calls, without the enums: those cost more than all else here

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Cancelled(CallerError):
    """The person, or whoever may signal this process, wants it to stop."""

    def __str__(self) -> str:
        return "cancelled"


class Interruption:
    """Notes the signals while it is entered. One at a time in a process: signals have one handler each.

    ``listener`` is a pipe whose reader's end counts as a signal.
    """

    def __init__(self, listener: int | None = None) -> None:
        self.wanted = False
        self._listener = listener
        self._heeding = True

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._handlers = [(number, signal.signal(number, self._note)) for number in _SIGNALS]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers:
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._reader)
        os.close(self._writer)

    def _note(self, _number: int, _frame: object) -> None:
        self.wanted = True

    def check(self) -> None:
        """Raise :exc:`Cancelled` if a signal came and none was heeded yet."""
        if self._heeding and (self.wanted or self._is_alone()):
            self._heeding = False
            raise Cancelled

    def shield(self) -> None:
        """Heed no signal from here on: the clean-up begins."""
        self._heeding = False

    def unshield(self) -> None:
        """Heed signals again, and one that came meanwhile: there was nothing to clean up."""
        self._heeding = True

    def dismiss(self) -> None:
        """From here on go on without the listener."""
        self._listener = None

    def wait(self, descriptors: Sequence[int], timeout_s: float, events: int = select.POLLIN) -> bool:
        """Wait until a descriptor shows one of ``events`` or an error; False after ``timeout_s`` seconds. Raises :exc:`Cancelled`."""
        self.check()
        poll = select.poll()
        for descriptor in descriptors:
            poll.register(descriptor, events)
        if self._heeding:
            poll.register(self._reader, select.POLLIN)
            if self._listener is not None:
                poll.register(self._listener, 0)
        ready = poll.poll(max(0.0, timeout_s) * 1000)
        self.check()
        return bool(ready)

    def _is_alone(self) -> bool:
        """Whether there was a listener, and is no more: the one thing that poll tells without being asked (POLLERR)."""
        if self._listener is None:
            return False
        poll = select.poll()
        poll.register(self._listener, 0)
        return bool(poll.poll(0))
