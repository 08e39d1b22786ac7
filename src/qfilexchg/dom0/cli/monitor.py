"""``qfilexchg monitor``: what is where, as it changes.

On a terminal it is the page of ``qfilexchg status``, drawn again with each change and each second. Elsewhere it is a line for
each thing that changes, and with ``--json`` a status for each, as ``exchange.status`` describes it. It outlives qfilexchgd, and
goes on when there is one again.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Final

from qfilexchg.dom0.cli.status import FATES, PHASES, DaemonEnded, Watch, outcome_line, question_line, render, target
from qfilexchg.dom0.cli.tables import time_of_day
from qfilexchg.dom0.consent.connection import NoDaemon
from qfilexchg.dom0.exchange.status import Status, parse
from qfilexchg.dom0.exchange.watchers import socket_path
from qfilexchg.dom0.home import Home

AGAIN_S: Final = 1.0
"""Between two pages, so that times go on; and before a daemon that has ended is looked for again."""
ALONE: Final = "qfilexchgd does not run, or has no store"

_HOME, _REST_OF_LINE, _REST_OF_PAGE = "\x1b[H", "\x1b[K", "\x1b[J"


def run(*, json: bool) -> int:
    """Show what is where until Ctrl-C. Raises :exc:`~qfilexchg.dom0.consent.connection.NoDaemon` where there is no daemon at the start."""
    view = _Lines() if json else _Page() if sys.stdout.isatty() else _Changes()
    path = socket_path(Home.from_environment(for_everybody=True))
    watch: Watch | None = Watch(path)
    try:
        while True:
            try:
                if watch is None:
                    watch = Watch(path)
                line = watch.next(AGAIN_S)
            except (DaemonEnded, NoDaemon):
                if watch:
                    watch.close()
                watch = None
                view.alone()
                time.sleep(AGAIN_S)
            else:
                view.show(line)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be written has no reader
        return 0
    finally:
        if watch:
            watch.close()


class _Lines:
    """The daemon's own lines."""

    def show(self, line: bytes | None) -> None:
        if line:
            parse(line)
            sys.stdout.write(line.decode())
            sys.stdout.flush()

    def alone(self) -> None:
        """There is no daemon."""


class _Page:
    """A page that is drawn over the last one, as much of it as the terminal holds."""

    def __init__(self) -> None:
        self._status: Status | None = None
        sys.stdout.write(_HOME + _REST_OF_PAGE)

    def show(self, line: bytes | None) -> None:
        if line:
            self._status = parse(line)
        if self._status:
            now_s = time.time()
            self._draw([f"qfilexchg, {time_of_day(now_s)}. Ctrl-C ends this.", "", *render(self._status, now_s)])

    def alone(self) -> None:
        self._status = None
        self._draw([f"qfilexchg, {time_of_day(time.time())}. Ctrl-C ends this.", "", ALONE + ". It is waited for."])

    def _draw(self, lines: list[str]) -> None:
        columns, rows = shutil.get_terminal_size()
        page = "\n".join(line[:columns] + _REST_OF_LINE for line in lines[: rows - 1])
        sys.stdout.write(f"{_HOME}{page}\n{_REST_OF_PAGE}")
        sys.stdout.flush()


class _Changes:
    """A line for each change."""

    def __init__(self) -> None:
        self._last: Status | None = None
        self._is_alone = False

    def show(self, line: bytes | None) -> None:
        if line:
            status = parse(line)
            for change in changes(self._last, status):
                print(f"{time_of_day(status.time_s)}  {change}", flush=True)
            self._last = status
            self._is_alone = False

    def alone(self) -> None:
        if not self._is_alone:
            self._is_alone = True
            print(f"{time_of_day(time.time())}  {ALONE}", flush=True)


def changes(before: Status | None, after: Status) -> Iterator[str]:
    """What is different from ``before``, in a line each. Without it: what is under way, without what is past."""
    names = {vm.name for vm in before.vms} if before else set()
    yield from (f"{vm.name} runs" for vm in after.vms if vm.name not in names)
    yield from (f"{name} has ended" for name in sorted(names - {vm.name for vm in after.vms}))
    phases = {pendrive.pendrive: pendrive.phase for pendrive in before.pendrives} if before else {}
    for pendrive in after.pendrives:
        if phases.get(pendrive.pendrive) is not pendrive.phase:
            yield f"{pendrive.sender} → {target(pendrive)}: the pendrive {PHASES[pendrive.phase]}"
    asked = {question.question for question in before.questions} if before else set()
    yield from (f"{question_line(question)} You are asked." for question in after.questions if question.question not in asked)
    fates = {document.vm: document.fate for document in before.documents} if before else {}
    for document in after.documents:
        if fates.get(document.vm) is not document.fate:
            yield f"{document.asker} → {document.vm}: the document is {FATES[document.fate]}"
    if before:
        past = set(before.history)
        yield from (outcome_line(outcome) for outcome in reversed(after.history) if outcome not in past)
