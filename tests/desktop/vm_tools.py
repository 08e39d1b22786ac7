"""A program of the VM side as it runs in a VM that the test plays: ``vm_tools.py PROGRAM ARGUMENT…``.

Its folder is ``$VM``: ``xvdg`` and ``xvdh`` there are the pendrives, which come and go as the test says; ``outgoing`` is the folder of the
first, and being mounted is a file beside it. Where ``$TOOL`` is, it stands in for
``qvm-copy-to-vm``; ``$GONE`` is a folder that vanishes under it. With ``$SLOW_S`` each 64 KiB that are copied take so many seconds. The
windows run these same tools. All else is what is installed in a VM.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from qfilexchg.guest import copy_to_vm, copying, open_in_dvm, sequence
from qfilexchg.guest.progress import Progress
from qfilexchg.guest.slot import Slot

VM = Path(os.environ["VM"])


class PlayedSlot(Slot):
    """A slot whose mount is a flag."""

    def __init__(self, disk: str, folder: str) -> None:
        super().__init__(str(VM / disk), str(VM / folder))
        self._flag = VM / f"{folder}-is-mounted"

    def mounted(self) -> bool:
        return self._flag.exists()

    def mount(self) -> None:
        self._flag.touch(exist_ok=False)

    def sync(self) -> None:
        assert self.mounted()

    def unmount(self) -> None:
        self._flag.unlink()

    abandon = unmount


def slow_down(pause_s: float) -> None:
    """Let each piece of a copy take so long, as a slow disk does: a copy that is under way is what the test looks at."""
    advance = Progress.advance

    def slowly(progress: Progress, size_bytes: int) -> None:
        time.sleep(pause_s)  # the slow disk itself
        advance(progress, size_bytes)

    copying.CHUNK_BYTES = 64 << 10  # type: ignore[misc]
    Progress.advance = slowly  # type: ignore[assignment, method-assign]


def main() -> int:
    program, *arguments = sys.argv[1:]
    if gone := os.environ.get("GONE"):
        os.chdir(gone)
        Path(gone).rmdir()
    slow_down(float(os.environ.get("SLOW_S", "0")))
    outgoing, incoming = PlayedSlot("xvdg", "outgoing"), PlayedSlot("xvdh", "incoming")
    sequence.home = lambda: str(VM)
    sequence.comes_back = lambda: True
    if program == "qvm-copy-to-vm":
        return copy_to_vm.main(arguments, outgoing)
    if program == "qvm-open-in-dvm":
        return open_in_dvm.main(arguments, outgoing, incoming)
    from qfilexchg.guest.desktop import start
    from qfilexchg.guest.desktop.programs import OpenInDvm, SendToVm

    tool = (sys.executable, __file__)
    if stand_in := os.environ.get("TOOL"):
        SendToVm.command = (stand_in,)
        return start.send_to_vm(arguments)
    SendToVm.command, OpenInDvm.command = (*tool, "qvm-copy-to-vm"), (*tool, "qvm-open-in-dvm")
    return {"send-to-vm-window": start.send_to_vm, "open-in-dvm-window": start.open_in_dvm}[program](arguments)


if __name__ == "__main__":
    sys.exit(main())
