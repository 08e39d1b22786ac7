"""The window of a VM's screen: the real viewer, and a QEMU with a display and nothing that runs on it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qfilexchg.dom0 import viewer
from qfilexchg.dom0.consent.protocol import Screen
from qfilexchg.dom0.viewer import NoViewer
from qfilexchg.protocol.names import VmName
from tests.desktop.conftest import Start
from tests.desktop.desk import DEADLINE_S, Desk, until

TITLE = "QEMU (disp7) - TigerVNC"
Machine = tuple[subprocess.Popen[bytes], Path]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine that is switched on and stopped, and the socket at which its screen is served."""
    socket = tmp_path / "screen"
    words = ("-nodefaults", "-S", "-m", "16M", "-name", "guest=disp7", "-device", "bochs-display")
    process = subprocess.Popen(["qemu-system-x86_64", *words, "-display", f"vnc=unix:{socket},share=force-shared,power-control=off"])
    try:
        until(socket.is_socket, "the screen is served")
        yield process, socket
    finally:
        process.kill()
        process.wait(DEADLINE_S)


def titles(desk: Desk) -> list[str]:
    """Of all windows of viewers."""
    found = desk._xdotool("search", "--name", "TigerVNC").split()
    return [desk._xdotool("getwindowname", window).strip() for window in found]


def test_it_bears_the_vms_name_and_goes_with_the_vm(desk: Desk, machine: Machine) -> None:
    process, socket = machine
    window = viewer.start(socket, desk.environment)
    until(lambda: titles(desk) == [TITLE], "the window is there")
    process.kill()
    assert window.wait(DEADLINE_S) is not None
    until(lambda: not titles(desk), "the window is gone, and nothing in its place")


def test_a_display_that_it_cannot_use_is_told_to_who_waits_for_it(desk: Desk, machine: Machine) -> None:
    _, socket = machine
    with pytest.raises(NoViewer, match=f"cannot use the display :nowhere; .* {socket}$"):
        viewer.show(socket, desk.environment | {"DISPLAY": ":nowhere"})


def test_two_may_look_at_one_screen(desk: Desk, machine: Machine) -> None:
    _, socket = machine
    windows = [viewer.start(socket, desk.environment) for _ in range(2)]
    until(lambda: titles(desk) == [TITLE] * 2, "both are there")
    for window in windows:
        assert window.poll() is None
        window.terminate()
        window.wait(DEADLINE_S)


@pytest.mark.parametrize("way", ["gtk", "yad"])
def test_the_agent_opens_it_when_the_daemon_says_so(desk: Desk, machine: Machine, start: Start, way: str) -> None:
    process, socket = machine
    agent = start("--by", way)
    agent.say(Screen(VmName.parse("disp7"), str(socket)))
    until(lambda: titles(desk) == [TITLE], "the window is there")
    process.kill()
    until(lambda: not titles(desk), "the window is gone")


def test_where_there_is_nothing_to_show_it_with_the_person_is_told(desk: Desk, machine: Machine, start: Start, tmp_path: Path) -> None:
    _, socket = machine
    agent = start("--by", "gtk", PATH=str(tmp_path))
    agent.say(Screen(VmName.parse("disp7"), str(socket)))
    until(lambda: any(text.startswith("disp7 has a document open, which is not shown") for text in desk.texts()), "the person is told")
