"""``qfilexchg status``: what is where now, as qfilexchgd knows it."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

from qfilexchg.dom0.cli.tables import NOTHING, duration, since, table, time_of_day
from qfilexchg.dom0.consent.connection import connect
from qfilexchg.dom0.consent.protocol import Kind
from qfilexchg.dom0.consent.wording import human_size, printable
from qfilexchg.dom0.exchange.messages import Fate
from qfilexchg.dom0.exchange.phases import Course, Phase
from qfilexchg.dom0.exchange.status import LINE_MAX, BadStatus, Outcome, Pendrive, Question, Status, parse
from qfilexchg.dom0.exchange.watchers import socket_path
from qfilexchg.dom0.home import Home
from qfilexchg.errors import HostError

ANSWERS_WITHIN_S: Final = 10.0

PHASES: Final = {
    Phase.CREATING: "is being made",
    Phase.GIVING: "is being attached to its sender",
    Phase.ABANDONING: "is not wanted any more",
    Phase.CLEAN: "is at its sender, to be filled",
    Phase.ASKING: "is at its sender; may it go?",
    Phase.RESTORING: "is at its sender; the DisposableVM is being made",
    Phase.QUEUED: "is at its sender; the receiver has another pendrive",
    Phase.LEAVING: "is being detached from its sender",
    Phase.RECALLED: "is being detached from its sender; the receiver has ended",
    Phase.ARRIVING: "is being attached to its receiver",
    Phase.BOUNCED: "was being attached to its receiver, which has ended",
    Phase.PULLING: "is being taken away from its receiver",
    Phase.WITHDRAWING: "holds a changed document; its DisposableVM is being destroyed",
    Phase.SALVAGING: "holds a changed document for a VM that has ended",
    Phase.HELD: "holds a changed document; the receiver has another pendrive",
    Phase.RETURNING: "is being given back to its sender",
    Phase.STRANDED: "was being given back to its sender, which has ended",
    Phase.LOADED: "is at its receiver",
    Phase.DETACHING: "is done with, and being detached from its receiver",
    Phase.DISCARDING: "is cancelled, and being detached from its sender",
    Phase.DELETING: "is being deleted",
    Phase.KEEPING: "is being put aside for you",
    Phase.GONE: "is gone",
}
"""What a pendrive does, for a person."""
FATES: Final = {
    Fate.BROUGHT: "on its way there",
    Fate.DELIVERED: "there, not taken yet",
    Fate.OPEN: "open",
    Fate.RETURNING: "changed, on its way back",
    Fate.UNDELIVERED: "not brought",
    Fate.UNCHANGED: "closed as it came",
    Fate.NO_PROGRAM: "nothing opens it",
    Fate.BAD_DOCUMENT: "was none",
    Fate.FAILED: "failed",
    Fate.KILLED: "ended",
}
"""What became of a document so far, for a person."""


class DaemonEnded(HostError):
    """qfilexchgd has closed the connection."""

    def __str__(self) -> str:
        return "qfilexchgd has ended: start it again by 'qfilexchg up'"


class NoAnswer(HostError):
    """qfilexchgd is there and says nothing."""

    def __str__(self) -> str:
        return f"qfilexchgd does not answer within {ANSWERS_WITHIN_S:g} s: its log says what it waits for"


class Watch:
    """The lines of a daemon that tells its status. Raises as :func:`~qfilexchg.dom0.consent.connection.connect` does."""

    def __init__(self, path: Path) -> None:
        self._connection = connect(path)
        self._connection.setblocking(False)
        self._heard = bytearray()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def next(self, within_s: float, clock_s: Callable[[], float] = time.monotonic) -> bytes | None:
        """The next line, or None if none comes in time. Raises :exc:`DaemonEnded`, :exc:`BadStatus`."""
        until_s = clock_s() + within_s
        while not (end := self._heard.find(b"\n") + 1):
            if len(self._heard) > LINE_MAX:
                raise BadStatus("too long")
            if not select.select([self._connection], [], [], max(0.0, until_s - clock_s()))[0]:
                return None
            try:
                data = self._connection.recv(1 << 16)
            except ConnectionError:
                data = b""
            if not data:
                raise DaemonEnded
            self._heard += data
        line = bytes(self._heard[:end])
        del self._heard[:end]
        return line


def show(*, json: bool) -> int:
    """Print what is where now."""
    with Watch(socket_path(Home.from_environment(for_everybody=True))) as watch:
        line = watch.next(ANSWERS_WITHIN_S)
    if line is None:
        raise NoAnswer
    status = parse(line)
    sys.stdout.write(line.decode() if json else "".join(f"{text}\n" for text in render(status, time.time())))
    return 0


def render(status: Status, now_s: float) -> Iterator[str]:
    """The lines in which a person reads ``status`` at the time ``now_s``."""
    phases = {pendrive.pendrive: pendrive.phase.value for pendrive in status.pendrives}
    rows = [["VM", "DOMAIN", "OUTGOING", "INCOMING"]]
    for vm in status.vms:
        slots = [phases.get(slot, NOTHING) if slot else NOTHING for slot in (vm.outgoing, vm.incoming)]
        rows.append([vm.name, str(vm.domain), *slots])
    yield from table(rows) if status.vms else ["No VM runs."]
    for question in status.questions:
        yield ""
        yield f"You are asked: {question_line(question)} {duration(question.until_s - now_s)} are left for an answer."
    yield ""
    if status.pendrives:
        rows = [["FROM", "TO", "SIZE", "SINCE", "THE PENDRIVE"]]
        rows += [[p.sender, target(p), size(p), since(p.since_s, now_s), PHASES[p.phase]] for p in status.pendrives]
        yield from table(rows)
    else:
        yield "There is no pendrive."
    if status.documents:
        yield ""
        rows = [["DISPOSABLEVM", "FOR", "SINCE", "THE DOCUMENT"]]
        for known in status.documents:
            only = ", only to be looked at" if known.view_only else ""
            rows.append([known.vm, known.asker, since(known.since_s, now_s), FATES[known.fate] + only])
        yield from table(rows)
    if status.history:
        yield ""
        yield "Before:"
        yield from (f"{time_of_day(outcome.time_s)}  {outcome_line(outcome)}" for outcome in status.history)


def question_line(question: Question) -> str:
    what = "wait to hand over" if question.kind == Kind.WAIT.value else "hand over" if question.target else "open a document of"
    return f"{question.source} → {question.target or 'a new DisposableVM'}: {what} {human_size(question.size_bytes)}?"


def outcome_line(outcome: Outcome) -> str:
    return f"{outcome.sender} → {outcome.receiver or NOTHING}, {human_size(outcome.used_bytes)}: {printable(outcome.outcome)}"


def target(pendrive: Pendrive) -> str:
    return pendrive.receiver or ("DisposableVM" if pendrive.course is Course.OUT else NOTHING)


def size(pendrive: Pendrive) -> str:
    return NOTHING if pendrive.used_bytes is None else human_size(pendrive.used_bytes)
