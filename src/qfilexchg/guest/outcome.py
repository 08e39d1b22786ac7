"""How a VM tool ends: its exit statuses, and the errors that lead to them.

The statuses are the same for every tool, so that a script can tell a refusal from a broken disk.
"""

from __future__ import annotations

from qfilexchg.errors import CallerError, HostError
from qfilexchg.guest.interruption import Cancelled
from qfilexchg.guest.progress import size
from qfilexchg.protocol.names import BadName

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

DONE: Final = 0
BROKEN: Final = 1
USAGE: Final = 2
REFUSED: Final = 3
CANNOT_BE_HELD: Final = 4
NO_ROOM: Final = 5
OCCUPIED: Final = 6
CANCELLED: Final = 130
"""As shells report a command that Ctrl-C ended."""


class Usage(CallerError):
    """A command line that cannot be understood."""

    def __init__(self, why: str, command: str) -> None:
        super().__init__(why, command)
        self.why = why
        self.command = command

    def __str__(self) -> str:
        return f"{self.why}; see {self.command} --help"


class Refused(CallerError):
    """dom0 said no. It gives no reason, so that a VM cannot learn which VMs exist."""

    def __str__(self) -> str:
        return "refused by dom0; the person there knows why"


class CannotBeHeld(CallerError):
    """Some of what is to be sent cannot stand on a pendrive, or cannot be read."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return self.why


class NoRoom(CallerError):
    """What is to be sent is larger than a pendrive may be."""

    def __init__(self, needed_bytes: int, limit_bytes: int | None = None) -> None:
        super().__init__(needed_bytes, limit_bytes)
        self.needed_bytes = needed_bytes
        self.limit_bytes = limit_bytes

    def __str__(self) -> str:
        limit = f" and dom0 makes none above {size(self.limit_bytes)}" if self.limit_bytes else ""
        return f"no room: this needs a pendrive of {size(self.needed_bytes)}{limit}; send it in parts"


class Occupied(CallerError):
    """This VM already has an outgoing pendrive: another copy runs, or one was killed."""

    def __str__(self) -> str:
        return (
            "this VM already has an outgoing pendrive. Wait if another copy is running; "
            "if one was broken off, end it with: /usr/lib/qubes/qubes_penctl cancel"
        )


class StillMounted(CallerError):
    """A pendrive cannot leave while its files are in use."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.folder = folder

    def __str__(self) -> str:
        return f"the pendrive is still mounted: first umount {self.folder}"


class Failed(HostError):
    """dom0 tried and could not. ``detail`` is its phrase for why."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return f"dom0 could not do it: {_MEANINGS.get(self.detail, self.detail) or 'it gave no reason'}"


_MEANINGS = {
    "no-pendrive": "this VM has no such pendrive",
    "no-pendrive-made": "it could not make a pendrive; its disk may be full",
    "not-attached": "the pendrive could not be attached",
    "not-detached": "the pendrive could not be detached; check that nothing here uses it, and try again",
    "waited-too-long": "the receiver was busy for too long",
    "receiver-ended": "the receiver has ended",
    "given-back": "the receiver could not take the pendrive",
    "kept-in-dom0": "the pendrive could be neither delivered nor given back; it is kept in dom0",
    "interrupted": "it was restarted; try again",
}

_STATUSES = (
    (Usage, USAGE),
    (BadName, USAGE),
    (Refused, REFUSED),
    (CannotBeHeld, CANNOT_BE_HELD),
    (NoRoom, NO_ROOM),
    (Occupied, OCCUPIED),
    (StillMounted, OCCUPIED),
    (Cancelled, CANCELLED),
)


def exit_status(error: Exception) -> int:
    """The exit status that ``error`` stands for."""
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            return status
    return BROKEN
