"""Connecting to a Unix socket whose server is slow to take connections.

Such a server's queue may be full. Then connect(2) fails with EAGAIN, which asyncio takes for a connection that is being made, and then
for one that is there.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

_STEP_S = 0.02
"""Nothing tells when the queue has room again."""


async def connected(path: Path) -> socket.socket:
    """A connection that is there, waited for as long as the caller likes. Raises OSError."""
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        try:
            connection.connect(str(path))
        except BlockingIOError:
            connection.close()
        except BaseException:
            connection.close()
            raise
        else:
            return connection
        await asyncio.sleep(_STEP_S)
