"""A person at the host who is asked, by a connection to the daemon's socket."""

from __future__ import annotations

import socket
from pathlib import Path

from tests import person


class Person(person.Person):
    """An agent of the daemon that listens at ``agent_socket``."""

    def __init__(self, agent_socket: Path) -> None:
        super().__init__(_Connection(agent_socket))


class _Connection:
    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(person.DEADLINE_S)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")

    def line(self) -> bytes:
        return self._lines.readline()

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def close(self) -> None:
        self._lines.close()
        self._socket.close()
