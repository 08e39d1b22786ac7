"""The daemons that every home's VMs need: qfilexchgd, the exchange; and where there is no Xen qxenstored, the store.

They are separate processes that outlive the command that started them and each other. Whoever needs them starts those that do
not run; a lock lets two commands do so at once. On Xen the system's qfilexchgd is systemd's to start and stop.
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
from typing import IO, Protocol

import qfilexchg
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.platform import Platform
from qfilexchg.dom0.programs import ProgramFailed, run_in_sight
from qfilexchg.dom0.vms.processes import Process, wait_until
from qfilexchg.errors import HostError

START_DEADLINE_S = 30.0
STOP_DEADLINE_S = 10.0
EXCHANGE = "qfilexchgd"
_LOG_TAIL_BYTES = 2000
_LOCK_STEP_S = 0.01


class ServiceFailed(HostError):
    """A daemon that did not come up, or would not go. ``log`` is a file, or the command that shows it; ``said`` is its end."""

    def __init__(self, name: str, how: str, log: Path | str, said: str = "") -> None:
        super().__init__(name, how, log, said)
        self.name = name
        self.how = how
        self.log = log
        self.said = said

    def __str__(self) -> str:
        return f"{self.name} {self.how}; see {self.log}{f', which ends:{chr(10)}{self.said}' if self.said else ''}"


class Service(Protocol):
    """One daemon."""

    @property
    def name(self) -> str: ...

    @property
    def socket(self) -> Path:
        """It serves when this accepts."""
        ...

    def start(self) -> bool:
        """Start it if it does not serve, and wait until it does; whether it was started. Raises a HostError."""
        ...

    def stop(self) -> bool:
        """End it; whether it ran. Raises a HostError."""
        ...


def serves(service: Service) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(START_DEADLINE_S)
        try:
            probe.connect(str(service.socket))
        except OSError:
            return False
    return True


@dataclass(frozen=True, slots=True)
class OwnProcess:
    """A daemon that a command of ours starts."""

    name: str
    command: Sequence[str]
    socket: Path
    log: Path
    record: Path

    def start(self) -> bool:
        """Raises :exc:`ServiceFailed`."""
        if serves(self):
            return False
        self._stop_half_dead()
        process = Process.start((sys.executable, *self.command), log=self.log, env=_environment())
        if process:
            process.save(self.record)
        wait_until(lambda: serves(self) or process is None or not process.running, START_DEADLINE_S)
        if not serves(self):
            runs = process is not None and process.running
            how = f"does not serve {self.socket} after {START_DEADLINE_S:g} s" if runs else "ended at once"
            raise ServiceFailed(self.name, how, self.log, self._log_tail())
        return True

    def _stop_half_dead(self) -> None:
        """A process of ours that runs and does not serve is in the way of a new one."""
        if process := Process.load(self.record):
            process.end(term_s=STOP_DEADLINE_S, kill_s=STOP_DEADLINE_S)

    def stop(self) -> bool:
        """Raises :exc:`ServiceFailed`."""
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


@dataclass(frozen=True, slots=True)
class Unit:
    """A daemon that is systemd's."""

    name: str
    socket: Path

    def start(self) -> bool:
        """Raises :exc:`ServiceFailed`, or that systemctl failed."""
        if serves(self):
            return False
        self._systemctl("start")  # returns when the daemon has told systemd that it serves
        if not wait_until(lambda: serves(self), START_DEADLINE_S):
            how = f"does not serve {self.socket} after {START_DEADLINE_S:g} s"
            raise ServiceFailed(self.name, how, f"'journalctl -u {self.name}'")
        return True

    def stop(self) -> bool:
        try:
            self._systemctl("is-active", "--quiet")
        except ProgramFailed:
            ran = False
        else:
            ran = True
        self._systemctl("stop")
        return ran

    def _systemctl(self, *words: str) -> None:
        run_in_sight("systemctl", *words, f"{self.name}.service", deadline_s=START_DEADLINE_S + STOP_DEADLINE_S)


def services(home: Home) -> tuple[Service, ...]:
    """The daemons of ``home``, in the order in which they are started; the exchange is the last."""
    if home.of_the_system:
        return (Unit(EXCHANGE, home.agent_socket),)
    own = ("-m", "qfilexchg.dom0.cli", EXCHANGE)
    exchange = OwnProcess(EXCHANGE, own, home.agent_socket, home.log / "qfilexchgd.log", home.run / "qfilexchgd.process")
    if home.platform is Platform.XEN:
        return (exchange,)
    command = ("-m", "qfilexchg.xenstore.server", "--rundir", str(home.store))
    return (OwnProcess("qxenstored", command, home.store_socket, home.log / "qxenstored.log", home.run / "qxenstored.process"), exchange)


def _lock_file(home: Home) -> IO[bytes]:
    """Closed to others: who can open it can lock it, and on Xen its folder is open to agents."""
    return os.fdopen(os.open(home.run / "toolstack.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb")


@contextmanager
def toolstack_lock(home: Home) -> Iterator[None]:
    """Held while daemons or VMs are being started or stopped: what is begun by one command is not half seen by another."""
    with _lock_file(home) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@asynccontextmanager
async def toolstack_turn(home: Home) -> AsyncIterator[None]:
    """:func:`toolstack_lock` for those who have other things to do while they wait for it, and may be told to stop waiting."""
    with _lock_file(home) as lock:
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
