"""A VM at the desk: a real store, real tools in it, and dom0 played by the test, request by request."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

from qfilexchg.protocol.keys import REPLY, REQUEST, document
from qfilexchg.protocol.names import DomainId
from qfilexchg.protocol.qpen import Reply, Request, parse_request
from qfilexchg.xenstore import client
from qfilexchg.xenstore.blocking import Store
from tests.desktop.desk import DEADLINE_S, PYTHON, TOP, Desk, until

if TYPE_CHECKING:
    from qfilexchg.protocol.qpen import State

DOMAIN = DomainId(1)
HOME = f"/local/domain/{DOMAIN}"


class Vm:
    """``folder`` is its home, ``outgoing`` what is on its outgoing pendrive."""

    def __init__(self, folder: Path, store: Store, desk: Desk, socket_path: Path) -> None:
        self.folder = folder
        self.outgoing = folder / "outgoing"
        self.outgoing.mkdir()
        (folder / "incoming").mkdir()
        self._store = store
        self._desk = desk
        self._socket_path = socket_path
        self._processes: list[subprocess.Popen[str]] = []
        for key in (REQUEST, REPLY):
            store.write(f"{HOME}/{key}", b"")

    @classmethod
    @contextlib.contextmanager
    def set_up(cls, desk: Desk) -> Iterator[Self]:
        with contextlib.ExitStack() as stack:
            top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qfx")))
            command = [sys.executable, "-m", "qfilexchg.xenstore.server", "--rundir", str(top / "run")]
            environment = {**os.environ, "PYTHONPATH": str(TOP / "src")}
            server = stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
            stack.callback(server.terminate)
            assert server.stderr and "serving" in server.stderr.readline()
            asyncio.run(_introduce(top / "run/socket"))
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(top / "run/socket"))
            store = stack.enter_context(Store(connection.detach()))
            (top / "home").mkdir()
            vm = cls(top / "home", store, desk, top / f"run/domain/{DOMAIN}")
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
        path = f"{HOME}/{REQUEST}"
        request = parse_request(until(lambda: self._store.read(path), f"the VM asks for {verb}"))
        self._store.write(path, b"")
        assert request.verb == verb, request
        return request

    def takes_again(self, request: Request) -> None:
        """Wait for the VM to ask for this once more, as it wants to know what has become of it."""
        again = self.takes(request.verb)
        assert again == request

    def asks_nothing(self) -> bool:
        return self._store.read(f"{HOME}/{REQUEST}") == b""

    def replies(self, request: Request, state: State, detail: str = "") -> None:
        self._store.write(f"{HOME}/{REPLY}", Reply(request.request_id, state, detail).encode())

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
        self._store.write(f"{HOME}/{document(seq)}", stage.encode())


async def _introduce(path: Path) -> None:
    async with await client.Store.connect(path) as store:
        await store.introduce(DOMAIN)
        for key, permission in ((REQUEST, "b"), (REPLY, "r"), ("qubes_documents", "r")):
            await store.write(f"{HOME}/{key}", b"")
            await store.set_perms(f"{HOME}/{key}", ("n0", f"{permission}{DOMAIN}"))
