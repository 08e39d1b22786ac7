"""A real qxenstored in this process, and peers that speak to it packet by packet."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

from qfilexchg.xenstore.server import Server
from qfilexchg.xenstore.wire import Op, Packet, Parser

DEADLINE_S = 30


@contextmanager
def rundir() -> Iterator[Path]:
    """A folder with a path short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="qxs"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def serving(body: Callable[[Path], Awaitable[None]]) -> None:
    """Run ``body`` with the folder of a server that serves meanwhile."""

    async def served() -> None:
        with rundir() as folder:
            async with Server(folder):
                try:
                    await body(folder)
                finally:
                    await Peer.close_all()

    asyncio.run(asyncio.wait_for(served(), DEADLINE_S))


class Peer:
    """One raw connection to a server."""

    opened: ClassVar[list[Peer]] = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._parser = Parser()
        self.opened.append(self)

    @classmethod
    async def close_all(cls) -> None:
        """Close every connection that is still open; :func:`serving` does."""
        while cls.opened:
            await cls.opened.pop().close()

    @classmethod
    async def connect(cls, path: Path) -> Peer:
        return cls(*await asyncio.open_unix_connection(path))

    @classmethod
    async def dom0(cls, rundir: Path) -> Peer:
        return await cls.connect(rundir / "socket")

    @classmethod
    async def vm(cls, rundir: Path, domain: int) -> Peer:
        return await cls.connect(rundir / "domain" / str(domain))

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()

    def send(self, op: int, payload: str | bytes = b"", req_id: int = 0, tx: int = 0) -> None:
        self.writer.write(Packet(op, payload.encode() if isinstance(payload, str) else payload, req_id, tx).encode())

    async def receive(self) -> Packet:
        while (packet := self._parser.next_packet()) is None:
            data = await self.reader.read(1 << 16)
            if not data:
                raise EOFError
            self._parser.feed(data)
        return packet

    async def ask(self, op: int, payload: str | bytes = b"", tx: int = 0) -> bytes:
        """The reply's payload; passes over events."""
        self.send(op, payload, tx=tx)
        while (packet := await self.receive()).op == Op.WATCH_EVENT:
            continue
        return packet.payload

    async def introduce(self, domain: int) -> None:
        assert await self.ask(Op.INTRODUCE, f"{domain}\0001\0002\0") == b"OK\0"
        await self.ask(Op.WRITE, f"/local/domain/{domain}\0")
        await self.ask(Op.SET_PERMS, f"/local/domain/{domain}\0n{domain}\0")

    async def is_cut(self) -> bool:
        """Wait until the server has ended this connection."""
        with suppress(ConnectionResetError):
            while await self.reader.read(1 << 16):
                continue
        return True
