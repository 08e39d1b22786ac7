"""What a DisposableVM must change before it is one of its own: all that come from one savefile wake up as the same VM.

That VM's clock stands where it was saved, its kernel's random numbers would be those of every other, and it has one name and one
machine id. The kernel of a PC is told of the copy by vmgenid, but Debian's cloud kernel has no driver for that; so randomness is
taken from the host here, before anything else is done, and a VM that gets none opens no document.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import time

from qfilexchg.errors import HostError
from qfilexchg.protocol.keys import NAME, VM_PATH
from qfilexchg.protocol.names import VmName

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from qfilexchg.xenstore.blocking import Store

_RTC: Final = "/sys/class/rtc/rtc0/since_epoch"
_HWRNG: Final = "/dev/hwrng"
_SEED_BYTES: Final = 64
_STALE_BYTES: Final = 128
"""What the kernel may have fetched before the VM was saved: a piece of 64 bytes in virtio_rng, and one in hw_random. All that come
from the savefile have these."""
_RNDADDENTROPY: Final = 0x40085203
_RNDRESEEDCRNG: Final = 0x5207
CLOCK_STEP_S: Final = 2
"""A clock that is wrong by less is left alone: the hardware's counts whole seconds."""


class NoRandomness(HostError):
    """The host gives this VM no randomness of its own."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return (
            f"this VM's random numbers would be those of every other from its savefile: {_HWRNG} gives none ({self.why}); check that "
            "the VM has a virtio-rng device, and its kernel the driver for it"
        )


def seconds_behind() -> int:
    """How far the system's clock is behind the hardware's, which goes on while a VM is saved; 0 where there is none to compare."""
    try:
        with open(_RTC, encoding="ascii") as file:
            return int(file.read()) - int(time.time())
    except (OSError, ValueError):
        return 0


def take_on(store: Store, log: Callable[[str], None]) -> VmName:
    """Become the VM that the store says this is, and return its name. To be called as root.

    Raises :exc:`NoRandomness`, what the store raises, and BadName.
    """
    _reseed()
    try:
        _set_clock()
    except OSError as error:
        log(f"the clock cannot be set ({error.strerror})")
    name = VmName.parse(store.read(NAME).decode("ascii", "replace"))
    uuid = store.read(VM_PATH).decode("ascii", "replace").rpartition("/")[2]
    socket.sethostname(name)
    _rewrite("/etc/hostname", name, log)
    _rewrite("/etc/machine-id", uuid.replace("-", ""), log)
    return name


def _reseed() -> None:
    """Stir the host's randomness into the kernel's, so that what is drawn from now on no other VM draws (random(4))."""
    try:
        with open(_HWRNG, "rb", buffering=_SEED_BYTES) as source:
            seed = source.read(_STALE_BYTES + _SEED_BYTES)[_STALE_BYTES:]
        if len(seed) < _SEED_BYTES:
            raise NoRandomness("it ends too soon")
        with open("/dev/urandom", "wb", buffering=0) as random:
            fcntl.ioctl(random, _RNDADDENTROPY, struct.pack("ii", 8 * len(seed), len(seed)) + seed)
            fcntl.ioctl(random, _RNDRESEEDCRNG)
    except OSError as error:
        raise NoRandomness(error.strerror or str(error)) from error


def _set_clock() -> None:
    if behind := seconds_behind():
        time.clock_settime(time.CLOCK_REALTIME, time.time() + behind)


def _rewrite(path: str, line: str, log: Callable[[str], None]) -> None:
    """In place: the machine id's file may have a mount on it."""
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{line}\n")
    except OSError as error:
        log(f"{path}: {error.strerror}")
