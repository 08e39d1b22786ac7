"""What a service tells systemd that started it (sd_notify(3)): a datagram to the socket that the environment names."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

READY = "READY=1"
STOPPING = "STOPPING=1"


def status(text: str) -> str:
    """A line that ``systemctl status`` shows."""
    return f"STATUS={text}"


def notify(*lines: str, environment: Mapping[str, str] | None = None) -> None:
    """Tell systemd, where it has started us; else, or if it does not listen, nothing happens: no service depends on being heard."""
    address = (os.environ if environment is None else environment).get("NOTIFY_SOCKET")
    if not address:
        return
    name = f"\0{address[1:]}" if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as connection:
        try:
            connection.sendto("\n".join(lines).encode(), name)
        except OSError:
            return
