"""The two places of a VM where a pendrive can be: a disk that comes and goes, and the folder on which it is mounted.

Mounting goes through ``/etc/fstab``, as the person's own user: the options there are the administrator's, and no tool needs
root. That the disk has come or gone is told by udev's broadcasts, which any user may hear; they only say "look again", so what
is in them does not matter.
"""

from __future__ import annotations

import os
import select
import time

from qfilexchg.errors import HostError
from qfilexchg.guest.programs import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence
    from typing import Final, Protocol, Self

    class Waiter(Protocol):
        """See :class:`qfilexchg.guest.interruption.Interruption`."""

        def wait(self, descriptors: Sequence[int], timeout_s: float, events: int = ...) -> bool: ...
else:
    import _socket as socket  # the same calls, without the enums: those cost more than all else here

DEVICE_S: Final = 30.0
"""Seconds for udev to name a disk that dom0 has attached, or to forget one that it took away."""
MOUNT_S: Final = 60.0
"""Seconds for a mount. The first one also loads the filesystem's module."""
UNMOUNT_S: Final = 300.0
"""Seconds for an unmount or a sync, which may have to write all that the kernel holds back."""

_LOOK_AGAIN_S: Final = 3600.0
_SECTOR_BYTES: Final = 512
"""The kernel counts in these, whatever the disk's own are."""

_NETLINK_KOBJECT_UEVENT: Final = 15
KERNEL: Final = 1
"""The multicast group on which the kernel tells of a device, in the moment in which it has made its node in /dev."""
_UDEV: Final = 2
"""That on which udev tells of it when its rules have run, so after the symbolic links are made."""


class NoDevice(HostError):
    """dom0 attached a pendrive, but the disk did not appear, or it took one away and the disk stayed."""

    def __init__(self, device: str, state: str) -> None:
        super().__init__(device, state)
        self.device = device
        self.state = state

    def __str__(self) -> str:
        return f"{self.device} did not {self.state} within {DEVICE_S:.0f} s: check udev in this VM with: udevadm info {self.device}"


class WrongMount(HostError):
    """Something else than the pendrive is on the pendrive's folder."""

    def __init__(self, folder: str, device: str) -> None:
        super().__init__(folder, device)
        self.folder = folder
        self.device = device

    def __str__(self) -> str:
        return f"{self.folder} is not {self.device}: check the line for it in /etc/fstab, and what else is mounted there"


class DeviceEvents:
    """A descriptor that becomes readable whenever udev has finished with a device, or the kernel has made it."""

    def __init__(self, group: int = _UDEV) -> None:
        self._group = group

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_KOBJECT_UEVENT)
        self._socket.setblocking(False)
        self._socket.bind((0, self._group))
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def wait(self, timeout_s: float | None) -> None:
        """Wait for an event; for callers that heed no signal."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.poll(None if timeout_s is None else timeout_s * 1000)

    def clear(self) -> None:
        try:
            while True:
                self._socket.recv(1)
        except BlockingIOError:
            pass
        except OSError:  # ENOBUFS: so many events that some were dropped; the caller looks again all the same
            pass


class Disk:
    """One disk, and no other that this VM has had or will have, even under the same name and number."""

    __slots__ = ("device", "sequence")

    def __init__(self, device: str, sequence: int) -> None:
        self.device: Final = device
        """Its number, as the kernel writes it: ``MAJOR:MINOR``."""
        self.sequence: Final = sequence
        """The kernel counts the disks that it has seen since it started."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Disk) and (self.device, self.sequence) == (other.device, other.sequence)

    def __hash__(self) -> int:
        return hash((self.device, self.sequence))

    def wait_unmounted(self, waiter: Waiter) -> None:
        """Wait, as long as it takes, until it is mounted nowhere."""
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mountinfo:
            while any(line.split(" ", 3)[2] == self.device for line in mountinfo):
                # A change of the table shows as an exceptional condition; POLLIN would always be there.
                waiter.wait((mountinfo.fileno(),), _LOOK_AGAIN_S, select.POLLPRI)
                mountinfo.seek(0)


class Slot:
    """One place. ``device`` is the disk's path, ``folder`` where fstab mounts it."""

    def __init__(self, device: str, folder: str, run: Callable[..., None] = run) -> None:
        self.device = device
        self.folder = folder
        self._run = run

    def present(self) -> bool:
        """Whether the disk is there."""
        return os.path.exists(self.device)

    def mounted(self) -> bool:
        """Whether anything at all is mounted on the folder."""
        return os.stat(self.folder).st_dev != os.stat(os.path.dirname(self.folder)).st_dev

    def disk(self) -> Disk | None:
        """The disk that is there now."""
        try:
            number = os.stat(self.device).st_rdev
            device = f"{os.major(number)}:{os.minor(number)}"
            with open(f"/sys/dev/block/{device}/diskseq", encoding="ascii") as file:
                return Disk(device, int(file.read()))
        except OSError:
            return None

    def size_bytes(self) -> int:
        """How much the disk that is there now can hold at all, whatever its filesystem claims. Raises OSError if there is none."""
        number = os.stat(self.device).st_rdev
        with open(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/size", encoding="ascii") as file:
            return int(file.read()) * _SECTOR_BYTES

    def wait(self, waiter: Waiter, *, present: bool, deadline_s: float = DEVICE_S) -> bool:
        """Wait until the disk is there, or is not; whether that came true in time."""
        deadline = time.monotonic() + deadline_s
        with DeviceEvents() as events:
            while self.present() is not present:
                if not waiter.wait((events.fileno(),), deadline - time.monotonic()):
                    return False
                events.clear()
        return True

    def wait_present(self, waiter: Waiter) -> None:
        """Wait for a disk that dom0 says is attached; raises :exc:`NoDevice`."""
        if not self.wait(waiter, present=True):
            raise NoDevice(self.device, "appear")

    def mount(self) -> None:
        """Mount the disk, and make sure that it is what is mounted. If this raises, it is not mounted."""
        self._run("/usr/bin/mount", "--", self.folder, deadline_s=MOUNT_S)
        try:
            if os.stat(self.folder).st_dev == os.stat(self.device).st_rdev:
                return
        except FileNotFoundError:
            pass  # the disk has vanished meanwhile
        self.unmount()
        raise WrongMount(self.folder, self.device)

    def sync(self) -> None:
        """Return when everything written is on the disk; raises :exc:`ProgramFailed` if anything could not be."""
        self._run("/usr/bin/sync", "--file-system", "--", self.folder, deadline_s=UNMOUNT_S)

    def unmount(self) -> None:
        self._run("/usr/bin/umount", "--", self.folder, deadline_s=UNMOUNT_S)

    def abandon(self) -> None:
        """Unmount what nobody needs any more, even if somebody still has a file of it open."""
        self._run("/usr/bin/umount", "--lazy", "--", self.folder, deadline_s=UNMOUNT_S)


OUTGOING = Slot("/dev/xvdg", "/mnt/outgoing")
INCOMING = Slot("/dev/xvdh", "/mnt/incoming")
