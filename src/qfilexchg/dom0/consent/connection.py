"""An agent's way to qfilexchgd: its socket, and what can be wrong with it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

from qfilexchg.errors import HostError

SEND_WITHIN_S: Final = 10
"""A daemon that does not read for so long has failed."""


class NotAllowed(HostError):
    """On Xen the daemon is root's, and asks the members of a group."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"this user may not open {self.path}: on Xen, 'adduser USER qfilexchg' lets USER do so, from the next login on"


class NoDaemon(HostError):
    """Nobody listens at the daemon's socket."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"qfilexchgd cannot be reached at {self.path} ({self.why}): start it by 'qfilexchg up', or with a VM by 'qvm-start'"


def connect(path: Path) -> socket.socket:
    """Raises :exc:`NotAllowed` and :exc:`NoDaemon`."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(SEND_WITHIN_S)
    try:
        connection.connect(str(path))
    except PermissionError as error:
        connection.close()
        raise NotAllowed(path) from error
    except OSError as error:
        connection.close()
        raise NoDaemon(path, error.strerror or str(error)) from error
    return connection
