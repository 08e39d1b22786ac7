from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest

from qfilexchg.xenstore.client import Store
from qfilexchg.xenstore.errors import StoreLost
from qfilexchg.xenstore.sockets import connected


async def full(listening: socket.socket, path: Path, attempts: contextlib.ExitStack) -> None:
    listening.bind(str(path))
    listening.listen(0)
    with contextlib.suppress(BlockingIOError):
        while True:
            attempt = attempts.enter_context(socket.socket(socket.AF_UNIX))
            attempt.setblocking(False)
            attempt.connect(str(path))


def test_a_full_queue_is_waited_for_and_is_no_lost_store(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "socket"
        with socket.socket(socket.AF_UNIX) as listening, contextlib.ExitStack() as attempts:
            await full(listening, path, attempts)
            connecting = asyncio.create_task(Store.connect(path))
            await asyncio.sleep(0)
            assert not connecting.done()
            while not connecting.done():
                attempts.enter_context(listening.accept()[0])
                await asyncio.sleep(0)
                await asyncio.wait({connecting}, timeout=0.1)
            await (await connecting).close()

    asyncio.run(scenario())


def test_a_socket_that_nobody_serves_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        asyncio.run(connected(tmp_path / "none"))
    with pytest.raises(StoreLost):
        asyncio.run(Store.connect(tmp_path / "none"))
