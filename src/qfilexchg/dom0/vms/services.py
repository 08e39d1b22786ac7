"""The two daemons that every home's VMs need: qxenstored, the store, and qfilexchgd, the exchange.

They are separate processes that outlive the command that started them and each other. Whoever needs them starts those that do
not run; a lock lets two commands do so at once.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import qfilexchg
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.processes import Process, wait_until
from qfilexchg.errors import HostError

START_DEADLINE_S = 30.0
STOP_DEADLINE_S = 10.0
_LOG_TAIL_BYTES = 2000
_LOCK_STEP_S = 0.01


class ServiceFailed(HostError):
    """A daemon that did not come up, or would not go. ``said`` is the end of its log."""

    def __init__(self, name: str, how: str, log: Path, said: str = "") -> None:
        super().__init__(name, how, log, said)
        self.name = name
        self.how = how
        self.log = log
        self.said = said

    def __str__(self) -> str:
        return f"{self.name} {self.how}; see {self.log}{f', which ends:{chr(10)}{self.said}' if self.said else ''}"


@dataclass(frozen=True, slots=True)
class Service:
    """One daemon of a home. It serves when ``socket`` accepts."""

    name: str
    command: Sequence[str]
    socket: Path
    log: Path
    record: Path

    def serves(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(START_DEADLINE_S)
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
        return True

    def start(self) -> bool:
        """Start it if it does not serve, and wait until it does; whether it was started. Raises :exc:`ServiceFailed`."""
        if self.serves():
            return False
        self._stop_half_dead()
        process = Process.start((sys.executable, *self.command), log=self.log, env=_environment())
        if process:
            process.save(self.record)
        wait_until(lambda: self.serves() or process is None or not process.running, START_DEADLINE_S)
        if not self.serves():
            runs = process is not None and process.running
            how = f"does not serve {self.socket} after {START_DEADLINE_S:g} s" if runs else "ended at once"
            raise ServiceFailed(self.name, how, self.log, self._log_tail())
        return True

    def _stop_half_dead(self) -> None:
        """A process of ours that runs and does not serve is in the way of a new one."""
        if process := Process.load(self.record):
            process.end(term_s=STOP_DEADLINE_S, kill_s=STOP_DEADLINE_S)

    def stop(self) -> bool:
        """End it; whether it ran. Raises :exc:`ServiceFailed`."""
        process = Process.load(self.record)
        if process and not process.end(term_s=STOP_DEADLINE_S, kill_s=STOP_DEADLINE_S):
            raise ServiceFailed(self.name, f"(process {process.pid}) does not end", self.log)
        self.record.unlink(missing_ok=True)
        return process is not None

    def _log_tail(self) -> str:
        text = self.log.read_bytes()[-_LOG_TAIL_BYTES:].decode("utf-8", "backslashreplace")
        return "".join(character if character.isprintable() or character == "\n" else ascii(character)[1:-1] for character in text)


def _environment() -> dict[str, str]:
    """Ours, and this very package first on the path: a checkout's daemons are those of the checkout."""
    package = str(Path(qfilexchg.__file__).parents[1])
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join((package, path)) if path else package}


def services(home: Home) -> tuple[Service, Service]:
    """The daemons of ``home``, in the order in which they are started."""
    store = ("-m", "qfilexchg.xenstore.server", "--rundir", str(home.store))
    exchange = ("-m", "qfilexchg.dom0.cli", "qfilexchgd")
    return (
        Service("qxenstored", store, home.store_socket, home.log / "qxenstored.log", home.run / "qxenstored.process"),
        Service("qfilexchgd", exchange, home.agent_socket, home.log / "qfilexchgd.log", home.run / "qfilexchgd.process"),
    )


@contextmanager
def toolstack_lock(home: Home) -> Iterator[None]:
    """Held while daemons or VMs are being started or stopped: what is begun by one command is not half seen by another."""
    with (home.run / "toolstack.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@asynccontextmanager
async def toolstack_turn(home: Home) -> AsyncIterator[None]:
    """:func:`toolstack_lock` for those who have other things to do while they wait for it, and may be told to stop waiting."""
    with (home.run / "toolstack.lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_LOCK_STEP_S)
        yield


def start(home: Home) -> list[str]:
    """Start the daemons that do not serve; the names of those that were started. To be called with the lock held."""
    return [service.name for service in services(home) if service.start()]


def stop(home: Home) -> list[str]:
    """Stop the daemons; the names of those that ran. To be called with the lock held and no VM running."""
    return [service.name for service in reversed(services(home)) if service.stop()]
