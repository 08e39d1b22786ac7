"""qubes_name_pendrive: shows the pendrive that has arrived in file managers, under its sender's name. A systemd unit starts it, as root.

File managers read the options ``x-gvfs-show`` and ``x-gvfs-name`` of a line in /etc/fstab (GIO's volume monitors, and Solid of KDE):
the volume is shown, under that name, while the line's device is there. So the line of the incoming pendrive has them while it is
mounted, with the name that dom0 has written for this arrival.

What the sender has put on the disk must not have a say in that. Nobody reads its label. But GIO lets a mounted volume name itself,
by files that it finds on it: one that has such a file is not shown.

It runs only where there is a desktop, and whatever goes wrong with it keeps no pendrive from being used: it is in its folder.
"""

from __future__ import annotations

import os
import select
import sys

from qfilexchg.errors import QfilexchgError
from qfilexchg.guest.slot import INCOMING, DeviceEvents
from qfilexchg.protocol.keys import BLOCK_SOURCE
from qfilexchg.protocol.names import VmName
from qfilexchg.xenstore.blocking import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    from qfilexchg.guest.slot import Disk, Slot

FSTAB: Final = "/etc/fstab"
STORE_S: Final = 60.0
NAMES_ITSELF: Final = (".xdg-volume-info", "BDMV")
"""Where GIO looks for a volume's own name: that of removable media, and that of a Blu-ray disc."""
_SHOW: Final = "x-gvfs-show"
_NAME: Final = "x-gvfs-name="


def shown_as(table: str, device: str, folder: str, name: VmName | None) -> str:
    """fstab(5) ``table``, in which each line that mounts ``device`` on ``folder`` shows it as ``name``, or not. All else is as it was."""
    lines = []
    for line in table.splitlines(keepends=True):
        fields = line.split()
        if fields[:2] == [device, folder] and len(fields) >= 4:
            options = [option for option in fields[3].split(",") if option != _SHOW and not option.startswith(_NAME)]
            options += [] if name is None else [_SHOW, f"{_NAME}{name}"]
            if options != fields[3].split(","):
                fields[3] = ",".join(options)
                line = " ".join(fields) + "\n"
        lines.append(line)
    return "".join(lines)


def show(path: str, slot: Slot, name: VmName | None) -> None:
    """Rewrite fstab, the file ``path``, which is complete at every moment."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        before = file.read()
    after = shown_as(before, slot.device, slot.folder, name)
    if after == before:
        return
    aside = f"{path}.qubes-{os.getpid()}"
    try:
        with open(aside, "x", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(after)
            os.fchmod(file.fileno(), os.stat(path).st_mode & 0o7777)
        os.rename(aside, path)
    except OSError:
        if os.path.exists(aside):
            os.unlink(aside)
        raise


class Patience:
    """A :class:`~qfilexchg.guest.slot.Waiter` for one that no signal interrupts."""

    def wait(self, descriptors: Sequence[int], timeout_s: float, events: int = select.POLLIN) -> bool:
        poll = select.poll()
        for descriptor in descriptors:
            poll.register(descriptor, events)
        return bool(poll.poll(timeout_s * 1000))


def follow(slot: Slot, name: VmName, log: Callable[[str], None], path: str = FSTAB) -> None:
    """Show the pendrive that is in ``slot`` from when it is mounted until it is not any more."""
    show(path, slot, None)  # a name that another has left, whose VM was cut off
    disk = slot.disk()
    if disk is None or not _mounted(slot, disk):
        return
    if found := [entry for entry in NAMES_ITSELF if os.path.lexists(f"{slot.folder}/{entry}")]:
        log(f"the pendrive of {name} is not shown, as it would give itself a name by {found[0]}; it is in {slot.folder}")
        return
    try:
        show(path, slot, name)
        disk.wait_unmounted(Patience())
    finally:
        show(path, slot, None)


def _mounted(slot: Slot, disk: Disk) -> bool:
    """Wait until ``disk`` is mounted, True, or gone, as that which brings back a document is, False."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mountinfo, DeviceEvents() as events:
        poll = select.poll()
        poll.register(mountinfo, select.POLLPRI)
        poll.register(events, select.POLLIN)
        while slot.disk() == disk:
            mountinfo.seek(0)
            if any(line.split(" ", 5)[2:5:2] == [disk.device, slot.folder] for line in mountinfo):
                return True
            poll.poll()
            events.clear()
    return False


def main(slot: Slot = INCOMING) -> int:
    try:
        with Store.open(STORE_S) as store:
            name = VmName.parse(store.read(BLOCK_SOURCE).decode("ascii", "replace"))
        follow(slot, name, _log)
    except (QfilexchgError, OSError) as error:
        _log(f"the pendrive is not shown under its sender's name: {error}")
        return 1
    return 0


def _log(text: str) -> None:
    """To standard error, so to the VM's journal."""
    sys.stderr.write(f"qubes_name_pendrive: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
