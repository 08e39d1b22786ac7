"""One request to dom0 and its replies, as every VM tool makes them.

The key ``device/qpen`` holds one request at a time, and the key for replies one reply, so an exchange

* writes only when the key is empty, in a transaction: no other tool's untaken request is lost;
* knows its replies by the request's id, and passes over all others;
* writes the request again after a silence, as either side may have missed an event or been restarted. dom0 answers an id that
  it knows with the last reply it gave, and never carries it out twice. So each answer is also a sign that dom0 lives, and a
  request may wait for hours in a queue while no silence lasts long;
* takes its request back when it gives up, so that nobody carries it out later.
"""

from __future__ import annotations

import os
import time

from qfilexchg.errors import HostError
from qfilexchg.protocol.keys import REPLY, REQUEST
from qfilexchg.protocol.qpen import FINAL_STATES, BadReply, Reply, Request, parse_reply
from qfilexchg.xenstore.errors import Again, NoEntry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Final, Protocol

    class Store(Protocol):
        """What an exchange needs of a connection to the store."""

        def read(self, path: str, tx: int = 0) -> bytes: ...
        def write(self, path: str, value: bytes, tx: int = 0) -> None: ...
        def transaction_start(self) -> int: ...
        def transaction_end(self, tx: int, *, commit: bool = True) -> None: ...
        def watch(self, path: str, token: str) -> None: ...
        def unwatch(self, path: str, token: str) -> None: ...
        def next_event(self, timeout_s: float | None) -> tuple[str, str] | None: ...
        def fileno(self) -> int: ...

    class Waiter(Protocol):
        """See :class:`qfilexchg.guest.interruption.Interruption`."""

        def wait(self, descriptors: Sequence[int], timeout_s: float) -> bool: ...


REPEAT_S: Final = 5.0
"""Seconds of silence after which a request is written again."""
GIVE_UP_S: Final = 60.0
"""Seconds of silence after which dom0 is taken to be absent. Leaves time for a restart of qfilexchgd on a busy host."""
PAUSES_S: Final = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Seconds between two attempts at what must succeed one day; the last one for ever."""


class NoAnswer(HostError):
    """dom0 was silent for too long."""

    def __init__(self, silence_s: float) -> None:
        super().__init__(silence_s)
        self.silence_s = silence_s

    def __str__(self) -> str:
        return f"dom0 has not answered for {self.silence_s:.0f} s: check there that qfilexchgd runs, and try again"


def fresh_id() -> str:
    """An id that no other request of this VM has had."""
    return os.urandom(8).hex()


def pauses(*first_s: float) -> Iterator[float]:
    """Seconds to wait after each attempt: ``first_s``, and then :data:`PAUSES_S`."""
    yield from first_s
    yield from PAUSES_S
    while True:
        yield PAUSES_S[-1]


def ignore_state(_reply: Reply) -> None:
    """For callers who only want the last reply."""


class Exchange:
    """Carries out requests, one at a time, over a connection of its caller's."""

    def __init__(self, store: Store, waiter: Waiter, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._waiter = waiter
        self._clock = clock
        self.taken = False
        """Whether dom0 may have taken the last request."""

    def carry_out(self, request: Request, on_state: Callable[[Reply], None] = ignore_state, *, give_up_s: float = GIVE_UP_S) -> Reply:
        """Make ``request`` and return its last reply; ``on_state`` hears of each other one before.

        To learn the last reply to an earlier request, carry it out again with the same id. Raises :exc:`NoAnswer` after
        ``give_up_s`` seconds of silence, and whatever the wait raises; :attr:`taken` then tells whether dom0 has taken the
        request. If it has not, it never will.
        """
        text = request.encode()
        self.taken = True  # until all that is written is known to be taken back
        writes = 0
        for key in (REPLY, REQUEST):
            self._store.watch(key, request.request_id)
        try:
            heard_at = due_at = self._clock()
            known: Reply | None = None
            while True:
                now = self._clock()
                if now - heard_at >= give_up_s:
                    raise NoAnswer(now - heard_at)
                wake_at = heard_at + give_up_s
                if now >= due_at and self._replace(b"", text):
                    writes += 1
                    due_at = now + REPEAT_S
                if now < due_at:
                    wake_at = min(wake_at, due_at)
                reply = self._last_reply() if REPLY in self._changed(wake_at - now) else None
                if reply is None or reply.request_id != request.request_id:
                    continue
                if _is_final(request, reply):
                    return reply
                heard_at = self._clock()
                due_at = heard_at + REPEAT_S
                if reply != known:
                    known = reply
                    on_state(reply)
        except BaseException:
            self.taken = writes - self._replace(text, b"") > 0
            raise
        finally:
            for key in (REPLY, REQUEST):
                self._store.unwatch(key, request.request_id)

    def _changed(self, timeout_s: float) -> set[str]:
        """The keys that may have changed, after a wait for the first; empty after ``timeout_s`` seconds."""
        changed = self._events()
        if not changed and self._waiter.wait((self._store.fileno(),), timeout_s):
            changed = self._events()
        return changed

    def _events(self) -> set[str]:
        paths: set[str] = set()
        while event := self._store.next_event(0):
            paths.add(event[0])
        return paths

    def _last_reply(self) -> Reply | None:
        try:
            return parse_reply(self._store.read(REPLY))
        except (NoEntry, BadReply):
            return None

    def _replace(self, expected: bytes, value: bytes) -> bool:
        """Write ``value`` to the request key if it holds ``expected``; False also where dom0 has not made the key."""
        while True:
            tx = self._store.transaction_start()
            try:
                matches = self._store.read(REQUEST, tx) == expected
                if matches:
                    self._store.write(REQUEST, value, tx)
            except NoEntry:
                matches = False
            try:
                self._store.transaction_end(tx, commit=matches)
            except Again:
                continue  # another tool of this VM, or dom0, got its turn; so this ends
            return matches


def _is_final(request: Request, reply: Reply) -> bool:
    return reply.state in FINAL_STATES or request.verb == "status"
