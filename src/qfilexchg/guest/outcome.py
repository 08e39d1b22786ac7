"""How a VM tool ends: its exit statuses, and the errors that lead to them.

The statuses are the same for every tool, so that a script can tell a refusal from a broken disk.
"""

from __future__ import annotations

from qfilexchg.errors import CallerError, HostError
from qfilexchg.guest.interruption import Cancelled
from qfilexchg.guest.progress import printable, size
from qfilexchg.protocol.dvm_header import BadDocumentName
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
BESIDE: Final = 7
NO_PROGRAM: Final = 8
ENDED: Final = 9
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


class NothingHere(CallerError):
    """There is no incoming pendrive that a person could do something with."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return self.why


class InUse(CallerError):
    """The incoming pendrive cannot leave."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.folder = folder

    def __str__(self) -> str:
        return (
            f"something still uses the pendrive: close what is open there, and leave {self.folder} in every shell. What it is: "
            f"fuser -vm {self.folder}"
        )


class Failed(HostError):
    """dom0 tried and could not. ``detail`` is its phrase for why."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        meaning = _MEANINGS.get(self.detail.partition(" ")[0], self.detail)
        return f"dom0 could not do it: {meaning or 'it gave no reason'}"


class Beside(CallerError):
    """A changed document came back, or is kept, and is not where the person looks for it."""

    def __init__(self, name: str, why: str, where: str) -> None:
        super().__init__(name, why, where)
        self.name = name
        self.why = why
        self.where = where

    def __str__(self) -> str:
        return f"the changes did not go into {printable(self.name)}, as {printable(self.why)}; they are in {printable(self.where)}"


class NoProgram(CallerError):
    """Nothing in the DisposableVM opens such a document."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return (
            f"no program in the DisposableVM opens {printable(self.name)}: check its extension, or have one installed in dom0 "
            "by 'qvm-template install PACKAGE'"
        )


class Ended(HostError):
    """The DisposableVM ended, and nothing comes back. ``why`` is dom0's word."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(name, why)
        self.name = name
        self.why = why

    def __str__(self) -> str:
        return (
            f"{printable(self.name)} is as it was: {_ENDINGS.get(self.why, 'its DisposableVM ended, and what was changed in it is lost')}"
        )


_ENDINGS = {
    "killed": "its DisposableVM was ended before the document was closed, and what was changed is lost",
    "bad-document": "its DisposableVM did not understand what it was sent, and has not opened it",
    "failed": "something failed in its DisposableVM, and what may have been changed there is lost",
}

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
    "no-disposable": "it could not make a DisposableVM; the person there knows why",
    "too-many-disposables": "as many DisposableVMs run as it allows; close a document that is open in one, and try again",
    "no-memory": "the computer has no memory left for a DisposableVM; end a VM or close a document, and try again",
    "no-savefile": "the savefile that DisposableVMs are made from could not be made; the person there knows why",
    "sequence-in-use": "another document has the same number; try again",
}

_STATUSES = (
    (Usage, USAGE),
    (BadName, USAGE),
    (Refused, REFUSED),
    (CannotBeHeld, CANNOT_BE_HELD),
    (BadDocumentName, CANNOT_BE_HELD),
    (NoRoom, NO_ROOM),
    (Occupied, OCCUPIED),
    (StillMounted, OCCUPIED),
    (InUse, OCCUPIED),
    (Beside, BESIDE),
    (NoProgram, NO_PROGRAM),
    (Ended, ENDED),
    (Cancelled, CANCELLED),
)


def exit_status(error: Exception) -> int:
    """The exit status that ``error`` stands for."""
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            return status
    return BROKEN
