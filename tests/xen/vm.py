"""A VM of a Xen machine, in the hands of a test.

``qvm-run`` in dom0 takes seconds there, most of it to start Python. So the session's other end is the test's own, and its bytes go
through a ``socat`` in dom0 to the VM's console, under the lock of the console's turn: ``qvm-run`` may be used between.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import subprocess
from collections.abc import AsyncIterator

from qfilexchg.dom0.vms import run
from qfilexchg.protocol.console import Line
from qfilexchg.protocol.run import NONCE_BYTES, PREAMBLE, HelloSeeker, Start
from tests.xen.dom0 import Dom0
from tests.xen.running import DEADLINE_S, Running

_FIND = """
domain=$(xl domid "$1") || exit
echo "$domain"
# xl may still be making it.
for i in $(seq 300); do xenstore-read "/local/domain/$domain/console/tty" 2> /dev/null && exit; sleep 0.1; done
exit 1
"""
_TUNNEL = """
[ -d /run/qfilexchg/console ] || mkdir -m 700 /run/qfilexchg/console
exec 9> "/run/qfilexchg/console/$1.lock"
flock 9
echo open >&2
exec socat -t 0 -b 65536 - "$2,raw,echo=0"
"""
_HELLO_DEADLINE_S = 300.0
_FAREWELL_DEADLINE_S = 10.0
_READ_BYTES = 64 << 10


class XenVm:
    """One VM that has our run agent, by its name. One command at a time can run in it."""

    def __init__(self, dom0: Dom0, name: str) -> None:
        self.dom0 = dom0
        self.name = name
        self._found: tuple[str, str] | None = None

    @property
    def domain(self) -> str:
        """The domain id of its present run."""
        return self._find()[0]

    def _find(self) -> tuple[str, str]:
        """Its domain id, and the console's terminal in dom0."""
        if self._found is None:
            domain, tty = self.dom0.sh(_FIND, self.name).split()
            self._found = domain, tty
        return self._found

    def start(self) -> None:
        self.dom0.output("qvm-start", self.name, deadline_s=2 * DEADLINE_S)
        self._found = None

    def destroy(self) -> None:
        """End it at once, without qfilexchg's knowing."""
        self.dom0.output("xl", "destroy", self.domain)
        self._found = None

    def popen(self, *argv: str, user: str = "user") -> Running:
        """A command that goes on."""
        domain, tty = self._find()
        return Running(
            self.dom0.loop,
            argv,
            lambda: run.session(lambda: _tunnel(self.dom0, domain, tty), argv, user=user, deadline_s=_HELLO_DEADLINE_S),
        )

    def run(self, *argv: str, user: str = "user", input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end, whatever its status."""
        running = self.popen(*argv, user=user)
        if input:
            running.write(input)
        return running.wait()

    def output(self, *argv: str, user: str = "user", input: bytes = b"") -> str:
        """What a command prints, which must succeed."""
        done = self.run(*argv, user=user, input=input)
        assert done.returncode == 0, f"{argv} in {self.name}: status {done.returncode}, {done.stderr.decode(errors='replace')}"
        return done.stdout.decode()

    def sh(self, script: str, *arguments: str, user: str = "user") -> str:
        """What a script of the shell's prints, which must succeed. ``$1`` is the first argument."""
        return self.output("sh", "-c", script, "sh", *arguments, user=user)


class _Bytes(asyncio.Queue[bytes]):
    """Input for a session."""

    async def read(self) -> bytes:
        return await self.get()


class _Tunnel:
    """Carries one session's bytes between ``session``, a socket, and what a socat in dom0 hands on."""

    def __init__(self, session: socket.socket) -> None:
        self._session = session
        self._line = Line()
        self._room = asyncio.Event()
        self._heard = _Bytes()
        self.outward = _Bytes()
        self.opened = asyncio.Event()

    def close(self) -> None:
        """Nothing comes from the VM any more."""
        self.opened.set()
        self._heard.put_nowait(b"")

    def hear(self, data: bytes) -> None:
        _, data = self._line.decode(data)
        if data:
            self._heard.put_nowait(data)
        if grants := self._line.grants():
            self.outward.put_nowait(grants)
        self._room.set()

    async def receive(self) -> None:
        while data := await self._heard.get():
            await asyncio.get_running_loop().sock_sendall(self._session, data)
        self._session.shutdown(socket.SHUT_WR)

    async def send(self) -> None:
        loop = asyncio.get_running_loop()
        data = b""
        while len(data) < len(PREAMBLE):
            if not (piece := await loop.sock_recv(self._session, _READ_BYTES)):
                return
            data += piece
        self.outward.put_nowait(self._line.encode(data))
        while data := await loop.sock_recv(self._session, _READ_BYTES):
            while data:
                self._room.clear()
                if self._line.room_bytes:
                    now, data = data[: self._line.room_bytes], data[self._line.room_bytes :]
                    self.outward.put_nowait(self._line.encode(now))
                else:
                    await self._room.wait()

    async def end(self) -> None:
        """End what still runs in the VM: nobody hangs up a console. Returns when the VM has heard it."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        seeker = HelloSeeker(nonce)
        self.outward.put_nowait(self._line.encode(Start(nonce, "root", []).encode()))
        while (data := await self._heard.get()) and seeker.feed(data) is None:
            pass


@contextlib.asynccontextmanager
async def _tunnel(dom0: Dom0, domain: str, tty: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A :data:`~qfilexchg.dom0.vms.run.Way` to a VM."""
    async with dom0.session(("sh", "-c", _TUNNEL, "sh", domain, tty)) as session:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        with theirs:
            reader, writer = await asyncio.open_connection(sock=ours, limit=run.UNREAD_MAX)
            tunnel = _Tunnel(theirs)
            outward = asyncio.create_task(session.feed(tunnel.outward))
            inward = asyncio.create_task(session.output(tunnel.hear, lambda _said: tunnel.opened.set()))
            inward.add_done_callback(lambda _inward: tunnel.close())
            carrying = [asyncio.create_task(tunnel.send()), asyncio.create_task(tunnel.receive())]
            try:
                await tunnel.opened.wait()
                yield reader, writer
            finally:
                for task in carrying:
                    task.cancel()
                await asyncio.gather(*carrying, return_exceptions=True)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_FAREWELL_DEADLINE_S):
                        await tunnel.end()
                outward.cancel()
                inward.cancel()
                await asyncio.gather(outward, inward, return_exceptions=True)
                writer.transport.abort()
