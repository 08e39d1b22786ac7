"""dom0 as a VM sees it, and time as it passes there: a store, a daemon and a clock in one object.

Time moves only while somebody waits. What a test wants to go wrong is set beforehand: replies that are lost, a verdict, a signal
at the n-th checkpoint.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qfilexchg.guest.interruption import Cancelled
from qfilexchg.guest.slot import NoDevice
from qfilexchg.protocol.keys import REPLY, REQUEST, document
from qfilexchg.protocol.names import DISPOSABLE
from qfilexchg.protocol.qpen import FINAL_STATES, NO_ID, Reply, Request, parse_request
from qfilexchg.xenstore.errors import Again, NoEntry

if TYPE_CHECKING:
    from qfilexchg.protocol.qpen import State

STEP_S = 0.1
"""Time that dom0 takes for each of its steps."""
AT_SENDER = frozenset(("clean", "asking", "queued"))


class Destroyed(BaseException):
    """The VM is gone, in the midst of whatever it did."""


class Dom0:
    """A store with one VM, and a daemon that knows of one outgoing pendrive and one incoming."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.nodes = {REQUEST: b"", REPLY: b""}
        self.conflicts = 0  # transactions to fail
        self.serves = True
        self.lost_replies = 0  # replies to lose from now on
        self.verdict = "allow"
        self.maximum_bytes = 1 << 40
        self.detach_failures = 0
        self.arriving = 0  # requests to take the incoming pendrive away that come too early
        self.disposable = False  # whether the VM is one, with a document
        self.return_failures: list[str] = []  # what becomes of its first attempts to return the document
        self.cancel_at: int | None = None
        self.checkpoints = 0
        self.story: list[tuple[float, str | Callable[[], None]]] = []
        """What becomes of a document: seconds after the delivery, and the stage or what else happens."""

        self.pendrive = "none"
        self.incoming = "none"
        self.delivered: list[str] = []
        self.documents: set[int] = set()  # those that can still be forgotten
        self.taken: list[Request] = []
        self.writes: list[bytes] = []

        self._heeding = True
        self._watches: list[tuple[str, str]] = []
        self._events: deque[tuple[str, str]] = deque()
        self._timeline: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._transactions: dict[int, dict[str, bytes]] = {}
        self._replies: dict[str, Reply] = {}
        self._pending = NO_ID  # the request whose answer the pendrive's move brings

    # The store.

    def read(self, path: str, tx: int = 0) -> bytes:
        try:
            return self._transactions[tx].get(path, self.nodes[path]) if tx else self.nodes[path]
        except KeyError:
            raise NoEntry(path) from None

    def write(self, path: str, value: bytes, tx: int = 0) -> None:
        if tx:
            self._transactions[tx][path] = value
            return
        if path == REQUEST:
            self.writes.append(value)
            if value and self.serves:
                self.later(self._take)
        self.put(path, value)

    def transaction_start(self) -> int:
        tx = next(self._order) + 1
        self._transactions[tx] = {}
        return tx

    def transaction_end(self, tx: int, *, commit: bool = True) -> None:
        changes = self._transactions.pop(tx)
        if commit and self.conflicts:
            self.conflicts -= 1
            raise Again("transaction")
        for path, value in changes.items() if commit else ():
            self.write(path, value)

    def watch(self, path: str, token: str) -> None:
        self._watches.append((path, token))
        self._events.append((path, token))

    def unwatch(self, path: str, token: str) -> None:
        self._watches.remove((path, token))

    def next_event(self, timeout_s: float | None) -> tuple[str, str] | None:
        assert timeout_s == 0, "a tool that waits for an event alone cannot be interrupted"
        return self._events.popleft() if self._events else None

    def fileno(self) -> int:
        return -1

    def __enter__(self) -> Dom0:
        return self

    def __exit__(self, *_: object) -> None:
        assert not self._watches

    def put(self, path: str, value: bytes) -> None:
        """Set a key as dom0 does; its watches fire."""
        self.nodes[path] = value
        self._events.extend(watch for watch in self._watches if watch[0] == path)

    # Time, and the signals that come in it.

    def clock(self) -> float:
        return self.now

    def later(self, what: Callable[[], None], after_s: float = STEP_S) -> None:
        heapq.heappush(self._timeline, (self.now + after_s, next(self._order), what))

    def check(self) -> None:
        self.checkpoints += 1
        if self.checkpoints == self.cancel_at and self._heeding:
            raise Cancelled

    def shield(self) -> None:
        self._heeding = False

    def unshield(self) -> None:
        self._heeding = True

    def dismiss(self) -> None:
        pass

    def wait(self, descriptors: Sequence[int], timeout_s: float, events: int = 0) -> bool:
        self.check()
        end = max(self.now + timeout_s, math.nextafter(self.now, math.inf))  # every wait takes time, be it ever so little
        while not (self._events and descriptors):
            if not self._timeline or self._timeline[0][0] > end:
                self.now = end
                return False
            self.now, _, what = heapq.heappop(self._timeline)
            what()
        return True

    # The daemon.

    def restart(self) -> None:
        """Serve again, and take what is there."""
        self.serves = True
        self._take()

    def _take(self) -> None:
        text = self.nodes[REQUEST]
        if not text or not self.serves:
            return
        self.put(REQUEST, b"")
        request = parse_request(text)
        if known := self._replies.get(request.request_id):
            self._tell(known)
            return
        self.taken.append(request)
        getattr(self, f"_{request.verb}")(request)

    def _new(self, request: Request) -> None:
        if self.pendrive != "none":
            self._answer(request.request_id, "failed", f"have-pendrive {self.pendrive}")
        elif request.size_bytes and request.size_bytes > self.maximum_bytes:
            self._answer(request.request_id, "failed", f"too-large maximum={self.maximum_bytes}")
        else:
            self._pending = request.request_id
            self._move("creating", "accepted", then=lambda: self._move("clean", "attached"))

    def _send(self, request: Request) -> None:
        if self.pendrive != "clean":
            self._answer(request.request_id, "failed", self.pendrive if self.pendrive != "none" else "no-pendrive")
            return
        self._pending = request.request_id
        if self.disposable:
            self._return(request)
            return

        def leave() -> None:
            self._move("leaving", "accepted", then=back if self.verdict == "bounce" else arrive)

        def arrive() -> None:
            self.delivered.append(str(request.target or DISPOSABLE))
            self._move("none", "delivered")
            if request.target is None:
                self._tell_story(request.seq)

        def back() -> None:
            self._move("clean", "failed", "given-back")

        def decide() -> None:
            match self.verdict:
                case "deny":
                    self._move("clean", "denied")
                case "queue":
                    self._move("queued", "queued", then=leave, after_s=600)
                case word if word.startswith(("no-", "too-")):
                    self._move("clean", "failed", word)
                case _:
                    leave()

        self._move("asking", "asking", then=decide, after_s=3)

    def _return(self, request: Request) -> None:
        if self.verdict == "deny":
            self._move("clean", "denied")
        elif self.return_failures:
            self._move("clean", "failed", self.return_failures.pop(0))
        else:
            self.delivered.append(f"{request.target} {request.seq}")
            self._move("withdrawing", "accepted", then=self._destroy)

    def _destroy(self) -> None:
        raise Destroyed

    def _tell_story(self, seq: int) -> None:
        self.documents.add(seq)
        for after_s, event in self.story:
            self.later(event if callable(event) else lambda stage=event: self._show(seq, stage), after_s)  # type: ignore[misc]

    def _show(self, seq: int, stage: str) -> None:
        self.put(document(seq), stage.encode())
        if not stage.startswith(("starting", "preparing", "open")):
            self.documents.discard(seq)

    def _forget(self, request: Request) -> None:
        if request.seq in self.documents:
            self.documents.discard(request.seq)
            self._answer(request.request_id, "cancelled")
        else:
            self._answer(request.request_id, "failed", "no-document")

    def _cancel(self, request: Request) -> None:
        if self.pendrive not in AT_SENDER | {"creating"}:
            self._answer(request.request_id, "failed", self.pendrive if self.pendrive != "none" else "no-pendrive")
            return
        if self._pending != NO_ID:
            self._answer(self._pending, "cancelled")
        self._pending = request.request_id
        self._move("discarding", None, then=lambda: self._move("none", "cancelled"))

    def _umount(self, request: Request) -> None:
        if self.incoming == "none":
            self._answer(request.request_id, "failed", "no-pendrive")
        elif self.arriving:
            self.arriving -= 1
            self._answer(request.request_id, "failed", "arriving")
        elif self.detach_failures:
            self.detach_failures -= 1
            self._answer(request.request_id, "failed", "not-detached")
        else:
            self.incoming = "none"
            self._answer(request.request_id, "detached")

    def _status(self, request: Request) -> None:
        self._answer(request.request_id, "accepted", f"outgoing={self.pendrive} incoming={self.incoming}")

    def _killme(self, request: Request) -> None:
        if not self.disposable:
            self._answer(request.request_id, "denied")
            return
        self._answer(request.request_id, "accepted")
        self.later(self._destroy)

    def _move(
        self, phase: str, state: State | None, detail: str = "", then: Callable[[], None] | None = None, after_s: float = STEP_S
    ) -> None:
        self.pendrive = phase
        if state:
            self._answer(self._pending, state, detail)
            if state in FINAL_STATES:
                self._pending = NO_ID
        if then:
            # A cancel meanwhile changes the phase: what was to follow does not.
            self.later(lambda: then() if self.pendrive == phase else None, after_s)

    def _answer(self, request_id: str, state: State, detail: str = "") -> None:
        self._replies[request_id] = Reply(request_id, state, detail)
        self._tell(self._replies[request_id])

    def _tell(self, reply: Reply) -> None:
        if self.lost_replies:
            self.lost_replies -= 1
        else:
            self.put(REPLY, reply.encode())


class OutgoingFolder:
    """A slot whose disk comes and goes with dom0's pendrive, and whose mounts are a folder and a flag."""

    def __init__(self, dom0: Dom0, folder: Path) -> None:
        self._dom0 = dom0
        self.folder = str(folder)
        self.is_mounted = False
        self.synced = False
        self.calls: list[str] = []

    def present(self) -> bool:
        return self._dom0.pendrive in AT_SENDER

    def mounted(self) -> bool:
        return self.is_mounted

    def wait(self, waiter: Dom0, *, present: bool, deadline_s: float = 30) -> bool:
        end = waiter.now + deadline_s
        while self.present() is not present and waiter.now < end:
            waiter.wait((), end - waiter.now)
        return self.present() is present

    def wait_present(self, waiter: Dom0) -> None:
        waiter.check()
        if not self.present():
            raise NoDevice("/dev/xvdg", "appear")

    def mount(self) -> None:
        assert self.present()
        self.calls.append("mount")
        self.is_mounted = True

    def sync(self) -> None:
        assert self.is_mounted
        self.calls.append("sync")

    def unmount(self) -> None:
        assert self.is_mounted
        self.calls.append("unmount")
        self.is_mounted = False

    def abandon(self) -> None:
        assert self.is_mounted
        self.calls.append("abandon")
        self.is_mounted = False


class OutgoingDisk(OutgoingFolder):
    """The same slot where the raw disk is what matters: a file."""

    def __init__(self, dom0: Dom0, device: Path) -> None:
        super().__init__(dom0, device.parent)
        device.write_bytes(bytes(4 << 20))
        self.device = str(device)
