"""dom0's loop devices, through which Xen's block backend reads and writes a file.

Our block script binds a file to a device of its own for each disk, and frees it when the disk is taken away. The kernel closes it a
moment after the backend's node is gone, and no event tells of that; and a script that was killed half-way frees nothing. So whoever
gives an image to another VM looks here first.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

CLEAR_AFTER_S = 2.0
"""A device that is still bound after this was forgotten by its script. The kernel takes milliseconds."""
_STEP_S = 0.01
_LOOP_CLR_FD = 0x4C01
"""linux/loop.h. A device that somebody still reads or writes is freed when they close it."""


def _clear(device: str) -> None:
    """Free a loop device, unless a filesystem on it is mounted. Nothing of it is read."""
    with contextlib.suppress(OSError):  # it has just been freed, or is mounted
        descriptor = os.open(f"/dev/{device}", os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, _LOOP_CLR_FD)
        finally:
            os.close(descriptor)


class LoopDevices:
    """The devices below ``sysfs``; ``clear`` frees one by its name."""

    def __init__(self, sysfs: Path = Path("/sys/block"), clear: Callable[[str], None] = _clear) -> None:
        self._sysfs = sysfs
        self._clear = clear

    def bound(self) -> dict[str, Path]:
        """The file of each device that has one."""
        found = {}
        for file in self._sysfs.glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):  # it has just been freed
                found[file.parts[-3]] = Path(os.fsdecode(file.read_bytes()).rstrip("\n").removesuffix(" (deleted)"))
        return found

    def holding(self, image: Path) -> list[str]:
        """The devices that are bound to ``image``."""
        wanted = Path(os.path.realpath(image))
        return [device for device, bound in self.bound().items() if bound == wanted]

    def clear(self, device: str, image: Path) -> None:
        """Have a device freed on which nobody is to have ``image``, and wait for nothing.

        One that has another file by now is left alone, and so is one on which a filesystem is mounted.
        """
        if device in self.holding(image):
            self._clear(device)

    async def released(self, image: Path) -> None:
        """Return when the devices that are bound to ``image`` now are not any more. For how long to wait is the caller's to say.

        To be called when no VM is to have the image, as what has been forgotten is freed here.
        """
        loop = asyncio.get_running_loop()
        clear_at = loop.time() + CLEAR_AFTER_S
        devices = set(self.holding(image))
        while devices:
            if loop.time() >= clear_at:
                for device in devices:
                    self._clear(device)
                clear_at = float("inf")
            await asyncio.sleep(_STEP_S)
            devices &= set(self.holding(image))
