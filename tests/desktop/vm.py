"""A VM at the desk: a real store, real tools in it, and dom0 played by the test, request by request."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

from qfilexchg.protocol.keys import DOCUMENTS, REPLY, REQUEST, absolute, document, readable_by, writable_by
from qfilexchg.protocol.names import DomainId
from qfilexchg.protocol.qpen import Reply, Request, parse_request
from qfilexchg.xenstore import client
from qfilexchg.xenstore.blocking import Store
from tests import python
from tests.desktop.desk import DEADLINE_S, PYTHON, TOP, Desk, until

if TYPE_CHECKING:
    from qfilexchg.protocol.qpen import State


@contextlib.contextmanager
def serve_store() -> Iterator[Path]:
    """A store, and its folder of sockets."""
    with tempfile.TemporaryDirectory(prefix="qfx") as rundir:
        command = [*python.PYTHON, "-m", "qfilexchg.xenstore.server", "--rundir", rundir]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(TOP / "src")}) as server:
            assert server.stderr and "serving" in server.stderr.readline()
            yield Path(rundir)
            server.terminate()


class Vm:
    """``folder`` is its home, ``outgoing`` what is on its outgoing pendrive."""

    def __init__(self, folder: Path, desk: Desk, store: Store, domain: DomainId, socket_path: Path) -> None:
        self.folder = folder
        self.outgoing = folder / "outgoing"
        self.outgoing.mkdir()
        (folder / "incoming").mkdir()
        self._desk = desk
        self._store = store
        self._domain = domain
        self._socket_path = socket_path
        self._processes: list[subprocess.Popen[str]] = []

    @classmethod
    @contextlib.contextmanager
    def set_up(cls, desk: Desk, rundir: Path, domain: DomainId) -> Iterator[Self]:
        """The VM with this domain id of the store that :func:`serve_store` serves."""
        asyncio.run(_introduce(rundir / "socket", domain))
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qfx")))
            store = stack.enter_context(Store(_connected(rundir / "socket")))
            # As a VM's ports do, it holds a connection as long as the VM runs: the store takes the end of the last for the VM's.
            own = rundir / f"domain/{domain}"
            stack.callback(os.close, _connected(own))
            vm = cls(folder, desk, store, domain, own)
            stack.callback(vm.end)
            yield vm

    def knows(self, *names: str) -> None:
        """Its person has sent something to these, to the last one first."""
        file = self.folder / "data/qfilexchg/destinations"
        file.parent.mkdir(parents=True)
        file.write_text("".join(f"{name}\n" for name in names))

    def known(self) -> list[str]:
        file = self.folder / "data/qfilexchg/destinations"
        return file.read_text().split() if file.exists() else []

    def start(self, program: str, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        """Start a program in the VM; it ends with the test."""
        process = subprocess.Popen(
            [PYTHON, str(Path(__file__).with_name("vm_tools.py")), program, *arguments],
            env=self._desk.environment
            | {"PYTHONPATH": str(TOP / "src"), "VM": str(self.folder), "XENSTORED_PATH": str(self._socket_path)}
            | {"XDG_DATA_HOME": str(self.folder / "data")}
            | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        self._processes.append(process)
        return process

    def end(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=DEADLINE_S)

    def takes(self, verb: str) -> Request:
        """Wait for the VM's next request, which must be this one, and take it as dom0 does."""
        path = absolute(self._domain, REQUEST)
        request = parse_request(until(lambda: self._store.read(path), f"the VM asks for {verb}"))
        self._store.write(path, b"")
        assert request.verb == verb, request
        return request

    def takes_again(self, request: Request) -> None:
        """Wait for the VM to ask for this once more, as it wants to know what has become of it."""
        again = self.takes(request.verb)
        assert again == request

    def asks_nothing(self) -> bool:
        return self._store.read(absolute(self._domain, REQUEST)) == b""

    def replies(self, request: Request, state: State, detail: str = "") -> None:
        self._store.write(absolute(self._domain, REPLY), Reply(request.request_id, state, detail).encode())

    def attaches(self) -> None:
        """Take ``new``, and attach the outgoing pendrive."""
        request = self.takes("new")
        self.attach()
        self.replies(request, "attached")

    def attach(self) -> None:
        (self.folder / "xvdg").write_bytes(bytes(4096))

    def delivers(self, request: Request) -> None:
        self.detaches()
        self.replies(request, "delivered")

    def detaches(self) -> None:
        (self.folder / "xvdg").unlink()

    def takes_back(self) -> None:
        """Take ``cancel``, and the outgoing pendrive."""
        request = self.takes("cancel")
        self.detaches()
        self.replies(request, "cancelled")

    def tells(self, seq: int, stage: str) -> None:
        """How far a document is in its DisposableVM."""
        self._store.write(absolute(self._domain, document(seq)), stage.encode())


def _connected(path: Path) -> int:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection.detach()


async def _introduce(path: Path, domain: DomainId) -> None:
    async with await client.Store.connect(path) as store:
        await store.introduce(domain)
        for key, permissions in ((REQUEST, writable_by), (REPLY, readable_by), (DOCUMENTS, readable_by)):
            await store.write(absolute(domain, key), b"")
            await store.set_perms(absolute(domain, key), permissions(domain))
