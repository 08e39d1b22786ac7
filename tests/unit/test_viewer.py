from __future__ import annotations

import os
from pathlib import Path

import pytest

from qfilexchg.dom0 import viewer
from qfilexchg.dom0.viewer import NoViewer, Viewers
from qfilexchg.dom0.vms.processes import wait_until

SOCKET = Path("/run/domain/7/screen")


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the viewer that is installed was called with, once it has ended."""
    said = tmp_path / "said"
    file = tmp_path / viewer.PROGRAM
    file.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{said}\n')
    file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("DISPLAY", ":99")
    return said


def test_the_viewer_gets_the_socket_and_keeps_the_clipboards_apart(said: Path) -> None:
    assert viewer.start(SOCKET).wait(20) == 0
    *settings, last = said.read_text().splitlines()
    assert last == str(SOCKET)
    assert {"-AcceptClipboard=0", "-SendClipboard=0", "-SetPrimary=0", "-SendPrimary=0"} <= set(settings)


def test_without_a_session_it_is_said_where_the_screen_is(said: Path) -> None:
    with pytest.raises(NoViewer, match=str(SOCKET)):
        viewer.start(SOCKET, {})
    assert not said.exists()


def test_without_a_viewer_its_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DISPLAY", ":99")
    why = Viewers().open(SOCKET)
    assert why and viewer.PACKAGE in why and str(SOCKET) in why


def test_one_that_ends_at_once_with_a_failure_is_told_to_who_waits_for_it(said: Path) -> None:
    viewer.show(SOCKET)
    said.with_name(viewer.PROGRAM).write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(NoViewer, match=f"cannot use the display :99; .* {SOCKET}$"):
        viewer.show(SOCKET)


def test_an_agent_lets_go_of_the_windows_that_were_closed(said: Path) -> None:
    viewers = Viewers()
    assert viewers.open(SOCKET) is viewers.open(SOCKET) is None
    assert wait_until(lambda: not len(viewers), 20)
    assert said.read_text().endswith(f"{SOCKET}\n")
