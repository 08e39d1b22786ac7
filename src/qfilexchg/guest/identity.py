"""What a DisposableVM must change before it is one of its own: all that come from one savefile wake up as the same VM.

That VM's clock stands where it was saved, its kernel's random numbers would be those of every other, and it has one name and one
machine id. The kernel of a PC is told of the copy by vmgenid, but Debian's cloud kernel has no driver for that; so randomness is
taken from the host here, before anything else is done, and a VM that gets none opens no document. On QEMU the host gives it by a
device, on Xen by a key of the store; each is the only source there, so nobody can make a VM take the other.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import time

from qfilexchg.errors import HostError
from qfilexchg.protocol.keys import NAME, RANDOM_SEED, RANDOM_SEED_BYTES, VM_PATH
from qfilexchg.protocol.names import VmName
from qfilexchg.xenstore.errors import NoEntry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from qfilexchg.xenstore.blocking import Store

_RTC: Final = "/sys/class/rtc/rtc0/since_epoch"
_XEN_UUID: Final = "/sys/hypervisor/uuid"
_HWRNG: Final = "/dev/hwrng"
_STALE_BYTES: Final = 128
"""What the kernel may have fetched before the VM was saved: a piece of 64 bytes in virtio_rng, and one in hw_random. All that come
from the savefile have these."""
_RNDADDENTROPY: Final = 0x40085203
_RNDRESEEDCRNG: Final = 0x5207
CLOCK_STEP_S: Final = 2
"""A clock that is wrong by less is left alone: the hardware's counts whole seconds."""


class NoRandomness(HostError):
    """The host gives this VM no randomness of its own."""

    def __init__(self, source: str, why: str, cure: str) -> None:
        super().__init__(source, why, cure)
        self.source = source
        self.why = why
        self.cure = cure

    def __str__(self) -> str:
        return (
            f"this VM's random numbers would be those of every other from its savefile: {self.source} gives none ({self.why}); {self.cure}"
        )


class Saved:
    """What tells a VM that it has been restored since this was made: on Xen another UUID, elsewhere that the clock has stood."""

    def __init__(self) -> None:
        self._uuid = xen_uuid()
        # The host's clock may have been set, or have stood, since this VM was booted: what counts is what it loses from now on.
        self._behind = seconds_behind()

    def restored(self) -> bool:
        if self._uuid is not None:
            return xen_uuid() != self._uuid
        return seconds_behind() - self._behind >= CLOCK_STEP_S


def xen_uuid() -> str | None:
    """The UUID that Xen knows this VM by at present; None where there is no Xen."""
    try:
        with open(_XEN_UUID, encoding="ascii") as file:
            return file.read()
    except FileNotFoundError:
        return None


def seconds_behind() -> int:
    """How far the system's clock is behind the hardware's, which goes on while a VM is saved; 0 where there is none to compare.

    There is none on Xen, where the kernel sets the clock by Xen's own when it is resumed.
    """
    try:
        with open(_RTC, encoding="ascii") as file:
            return int(file.read()) - int(time.time())
    except (OSError, ValueError):
        return 0


def take_on(store: Store, log: Callable[[str], None]) -> VmName:
    """Become the VM that the store says this is, and return its name. To be called as root.

    Raises :exc:`NoRandomness`, what the store raises, and BadName.
    """
    if xen_uuid() is None:
        _stir_in(_seed_of_device(), _HWRNG)
    else:
        _stir_in(_seed_of_dom0(store), RANDOM_SEED)
        store.write(RANDOM_SEED, b"")
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


def _seed_of_device() -> bytes:
    cure = "check that the VM has a virtio-rng device, and its kernel the driver for it"
    try:
        with open(_HWRNG, "rb", buffering=RANDOM_SEED_BYTES) as source:
            seed = source.read(_STALE_BYTES + RANDOM_SEED_BYTES)[_STALE_BYTES:]
    except OSError as error:
        raise NoRandomness(_HWRNG, error.strerror or str(error), cure) from error
    if len(seed) < RANDOM_SEED_BYTES:
        raise NoRandomness(_HWRNG, "it ends too soon", cure)
    return seed


def _seed_of_dom0(store: Store) -> bytes:
    cure = "restore the VM by qfilexchg in dom0, which writes that key, and not by xl alone"
    try:
        digits = store.read(RANDOM_SEED)
    except NoEntry:
        raise NoRandomness(RANDOM_SEED, "there is no such key", cure) from None
    try:
        seed = bytes.fromhex(digits.decode("ascii"))
    except ValueError:
        seed = b""
    # Both are counted, as blanks between the digits would be passed over.
    if (len(seed), len(digits)) != (RANDOM_SEED_BYTES, 2 * RANDOM_SEED_BYTES):
        raise NoRandomness(RANDOM_SEED, f"it does not hold {RANDOM_SEED_BYTES} bytes in hexadecimal digits", cure)
    return seed


def _stir_in(seed: bytes, source: str) -> None:
    """Stir the host's randomness into the kernel's, so that what is drawn from now on no other VM draws (random(4))."""
    try:
        with open("/dev/urandom", "wb", buffering=0) as random:
            fcntl.ioctl(random, _RNDADDENTROPY, struct.pack("ii", 8 * len(seed), len(seed)) + seed)
            fcntl.ioctl(random, _RNDRESEEDCRNG)
    except OSError as error:
        raise NoRandomness(
            source, error.strerror or str(error), "the kernel does not take it from this process: it must be root"
        ) from error


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
