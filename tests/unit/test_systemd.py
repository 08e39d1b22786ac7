from __future__ import annotations

import socket
from pathlib import Path

import pytest

from qfilexchg.dom0 import systemd


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_all_lines_at_once(tmp_path: Path, abstract: bool) -> None:
    name = f"@{tmp_path}/notify" if abstract else f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name[1:]}" if abstract else name)
        systemd.notify(systemd.READY, systemd.status("serving"), environment={"NOTIFY_SOCKET": name})
        assert listener.recv(4096) == b"READY=1\nSTATUS=serving"


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nowhere/notify"}])
def test_who_is_not_heard_goes_on(environment: dict[str, str]) -> None:
    systemd.notify(systemd.READY, environment=environment)
