"""The desktop tier: the real agent and the real windows of a VM on a real screen, what they talk to played by the test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path

import pytest

from qfilexchg.dom0.consent.protocol import Answer, FromDaemon, Hello, Welcome, encode, parse_from_agent
from qfilexchg.protocol.names import DomainId
from tests.desktop.desk import DEADLINE_S, PYTHON, TOP, Desk
from tests.desktop.vm import Vm, serve_store


class Agent:
    """A running qfilexchg-agent, seen from the daemon's end of its connection."""

    def __init__(self, process: subprocess.Popen[str], listener: socket.socket) -> None:
        self.process = process
        self._listener = listener
        self._heard = bytearray()
        self.kind = self._accept()

    def _accept(self) -> str:
        self._connection, _ = self._listener.accept()
        self._connection.settimeout(DEADLINE_S)
        hello = parse_from_agent(self._line())
        assert isinstance(hello, Hello)
        self.say(Welcome())
        return hello.kind

    def say(self, *messages: FromDaemon) -> None:
        self._connection.sendall(b"".join(map(encode, messages)))

    def hears(self) -> Answer:
        """The next answer of the person, waited for."""
        answer = parse_from_agent(self._line())
        assert isinstance(answer, Answer)
        return answer

    def hears_nothing(self, *, drop: bool = False) -> bool:
        """Whether nothing has been answered so far; what has been can be dropped."""
        self._connection.setblocking(False)
        try:
            self._heard += self._connection.recv(65536)
        except BlockingIOError:
            pass
        finally:
            self._connection.settimeout(DEADLINE_S)
        if drop:
            self._heard.clear()
        return not self._heard

    def is_gone(self) -> bool:
        """Wait for the end of its connection, with nothing said before."""
        return not self._heard and self._connection.recv(65536) == b""

    def restart_daemon(self) -> None:
        """End its connection, as a daemon does that is restarted, and wait for the next."""
        self._connection.close()
        self._accept()

    def close(self) -> None:
        self._connection.close()

    def _line(self) -> bytes:
        while b"\n" not in self._heard:
            data = self._connection.recv(65536)
            assert data, "the agent has ended"
            self._heard += data
        line, _, rest = bytes(self._heard).partition(b"\n")
        self._heard = bytearray(rest)
        return line + b"\n"


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    """One for each module: what has hung or died badly at one desk troubles no other."""
    with Desk.set_up() as desk:
        yield desk


@pytest.fixture(scope="session")
def store() -> Iterator[Path]:
    with serve_store() as rundir:
        yield rundir


DOMAINS = map(DomainId, count(1))


@pytest.fixture
def vm(desk: Desk, store: Path) -> Iterator[Vm]:
    with Vm.set_up(desk, store, next(DOMAINS)) as vm:
        yield vm


@pytest.fixture
def report(vm: Vm) -> Path:
    file = vm.folder / "report.pdf"
    file.write_bytes(b"content")
    return file


Start = Callable[..., Agent]


@pytest.fixture
def start(desk: Desk) -> Iterator[Start]:
    """Starts an agent with arguments, and with changes of its environment; it ends with the test."""
    with ExitStack() as stack:

        def start(*arguments: str, **environment: str) -> Agent:
            home = stack.enter_context(tempfile.TemporaryDirectory())
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            path = Path(home, "run/agent.socket")
            path.parent.mkdir()
            listener.bind(str(path))
            listener.listen()
            listener.settimeout(DEADLINE_S)
            process = subprocess.Popen(
                [PYTHON, "-m", "qfilexchg.dom0.cli", "qfilexchg-agent", *arguments],
                env=desk.environment | {"PYTHONPATH": str(TOP / "src"), "QFILEXCHG_HOME": home} | environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                text=True,
            )
            stack.callback(_end, process)
            agent = Agent(process, listener)
            stack.callback(agent.close)
            return agent

        yield start


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(DEADLINE_S)
