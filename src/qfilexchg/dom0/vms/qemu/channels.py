"""The way to the run agent of a machine that QEMU runs: a Unix socket for each of its run ports, of which the first free one is taken.

The sockets, and a lock for each, lie in one folder of the machine's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from qfilexchg.dom0.vms import run
from qfilexchg.errors import CallerError
from qfilexchg.protocol.channels import RUN_PORTS
from qfilexchg.xenstore import sockets


class AllPortsBusy(CallerError):
    """As many commands run in the VM as it has ports."""

    def __str__(self) -> str:
        return f"{len(RUN_PORTS)} commands run in this VM already: wait for one to end"


def run_socket(folder: Path, number: int) -> Path:
    """Where the host side of ``RUN_PORTS[number]`` is served."""
    return folder / f"run.{number}.socket"


@contextlib.asynccontextmanager
async def session(
    folder: Path, argv: Sequence[str], *, user: str = "user", window: tuple[int, int] | None = None, deadline_s: float | None = None
) -> AsyncIterator[run.Session]:
    """:func:`qfilexchg.dom0.vms.run.session` on the first port that no other program of the host uses. Raises :exc:`AllPortsBusy` too."""
    with _free_port(folder) as number:
        path = run_socket(folder, number)
        async with run.session(lambda: _connection(path), argv, user=user, window=window, deadline_s=deadline_s) as session:
            yield session


@contextlib.contextmanager
def _free_port(folder: Path) -> Iterator[int]:
    for number in range(len(RUN_PORTS)):
        try:
            lock = os.open(folder / f"run.{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise run.NoAnswer("the VM has just ended") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        try:
            yield number
            return
        finally:
            os.close(lock)
    raise AllPortsBusy


@contextlib.asynccontextmanager
async def _connection(path: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    try:
        reader, writer = await asyncio.open_connection(sock=await sockets.connected(path), limit=run.UNREAD_MAX)
    except OSError as error:
        raise run.NoAnswer("the VM's run port does not open", str(error)) from error
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
