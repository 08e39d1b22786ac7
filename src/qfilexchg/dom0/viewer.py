"""The window in which the person has a VM's screen: a VNC viewer on the Unix socket of that VM's display.

What comes by that socket QEMU has made of what the VM paints, so a viewer takes in pictures and nothing else of the VM's: its
clipboard is cut off from the person's, and it neither resizes the VM's screen nor asks anything when the VM ends, but ends too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from qfilexchg.errors import HostError

PROGRAM: Final = "xtigervncviewer"
PACKAGE: Final = "tigervnc-viewer"
BREAKS_WITHIN_S: Final = 0.5
"""A viewer that cannot use the display ends at once."""
_SETTINGS: Final = (
    *("-AcceptClipboard=0", "-SendClipboard=0", "-SetPrimary=0", "-SendPrimary=0"),
    *("-SecurityTypes=None", "-Shared=1", "-RemoteResize=0"),
    *("-AlertOnFatalError=0", "-ReconnectOnError=0"),
)


class NoViewer(HostError):
    """There is no session to show a screen in, or nothing to show it with. It can still be seen at ``socket``."""

    def __init__(self, socket: Path, why: str) -> None:
        super().__init__(socket, why)
        self.socket = socket
        self.why = why

    def __str__(self) -> str:
        return f"{self.why}; the screen is served by VNC at the Unix socket {self.socket}"


def program() -> str | None:
    """The path of the viewer, if it is installed."""
    return shutil.which(PROGRAM)


def start(socket: Path, environment: Mapping[str, str] = os.environ) -> subprocess.Popen[bytes]:
    """Open the screen that is served at ``socket``, in a window of its own; the process ends with that. Raises :exc:`NoViewer`."""
    if not environment.get("DISPLAY"):
        raise NoViewer(socket, "there is no graphical session here (DISPLAY is not set)")
    path = program()
    if path is None:
        raise NoViewer(socket, f"{PROGRAM} is missing: install the Debian package {PACKAGE}")
    quiet = subprocess.DEVNULL
    # A session of its own: it outlives the terminal that it was started from.
    return subprocess.Popen(
        [path, *_SETTINGS, str(socket)], env=environment, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
    )


def show(socket: Path, environment: Mapping[str, str] = os.environ) -> None:
    """Open the screen as :func:`start` does, for somebody who waits for it: also what the viewer itself cannot do is said."""
    viewer = start(socket, environment)
    with contextlib.suppress(subprocess.TimeoutExpired):
        if viewer.wait(BREAKS_WITHIN_S):
            raise NoViewer(socket, f"{PROGRAM} cannot use the display {environment['DISPLAY']}")


class Viewers:
    """The windows that one agent has opened."""

    def __init__(self) -> None:
        self._open: list[subprocess.Popen[bytes]] = []

    def __len__(self) -> int:
        """How many there are. It lets go of those that have ended."""
        self._open = [viewer for viewer in self._open if viewer.poll() is None]
        return len(self._open)

    def open(self, socket: Path) -> str | None:
        """Open a screen; why it cannot be, where it cannot."""
        len(self)
        try:
            self._open.append(start(socket))
        except (NoViewer, OSError) as error:
            return str(error)
        return None
