"""qvm-incoming: what has come into this VM, for people without a file manager: what it is, out of it, and away with it."""

from __future__ import annotations

import os
import sys
import time

from qfilexchg.errors import QfilexchgError
from qfilexchg.guest.arguments import split
from qfilexchg.guest.interruption import Interruption
from qfilexchg.guest.outcome import BROKEN, DONE, CannotBeHeld, InUse, NothingHere, Usage, exit_status
from qfilexchg.guest.programs import ProgramFailed, run
from qfilexchg.guest.progress import Progress, printable, size
from qfilexchg.guest.slot import DEVICE_S, INCOMING, UNMOUNT_S
from qfilexchg.protocol.keys import BLOCK_SOURCE, TRANSACTION_SEQ
from qfilexchg.protocol.names import BadName, VmName
from qfilexchg.xenstore.blocking import Store
from qfilexchg.xenstore.errors import StoreError, StoreLost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from qfilexchg.guest.slot import Slot
    from qfilexchg.guest.unloading import Found

HELP: Final = """\
usage: qvm-incoming [list]
       qvm-incoming copy FOLDER
       qvm-incoming eject

Deals with the pendrive that another VM has sent, which is mounted on /mnt/incoming.

  list          tell from which VM it is, and what is on it
  copy FOLDER   copy everything on it into FOLDER, which is made if it is not there. Nothing there is overwritten: what has a name
                that is taken gets another, as "NAME (from work)". Ctrl-C stops it; what was copied before is complete
  eject         unmount it and have it taken away, with all that is on it
  --help        show this

Exit status:
    0  done
    1  broken: something failed; the message says what. Or no pendrive is here
    2  the command line was not understood
    4  some of it cannot be read, or has a name that FOLDER cannot have; the list says what, and the rest was listed or copied
    6  it is in use, so it cannot be ejected
  130  cancelled
"""

_COMMAND: Final = "qvm-incoming"
_STORE_S: Final = 5.0
"""Seconds to get hold of the store. Without it all can be done but to tell who sent the pendrive."""
_LOOK_S: Final = 1.0
_UNKNOWN: Final = "another VM"


def parse(arguments: Sequence[str]) -> tuple[str, str] | None:
    """The verb and its folder; None asks for help. Raises :exc:`Usage`."""
    understood = split(arguments, (), _COMMAND)
    if understood is None:
        return None
    match understood[0]:
        case [] | ["list"]:
            return "list", ""
        case ["eject"]:
            return "eject", ""
        case ["copy", folder] if folder:
            return "copy", folder
        case _:
            raise Usage("use list, copy FOLDER or eject", _COMMAND)


class Incoming:
    """The pendrive in the incoming slot."""

    def __init__(self, slot: Slot, sender: VmName | None, progress: Progress, interruption: Interruption) -> None:
        self._slot = slot
        self._sender = sender
        self._progress = progress
        self._interruption = interruption
        self._problems = 0

    def list(self) -> None:
        """Print what is on it. Raises :exc:`CannotBeHeld` if some of it cannot be read."""
        from qfilexchg.guest.unloading import walk

        self._must_be_mounted()
        sys.stdout.write(f"From {self._sender or _UNKNOWN}, in {self._slot.folder}:\n")
        files = total_bytes = 0
        for found in walk(self._slot.folder, self._interruption.check):
            if found.status is None:
                self._problem(found)
                continue
            changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.status.st_mtime))
            length = "" if found.is_folder else size(found.size_bytes)
            sys.stdout.write(f"{length:>10}  {changed}  {printable(found.path)}{'/' if found.is_folder else ''}\n")
            files += not found.is_folder
            total_bytes += found.size_bytes
        sys.stdout.write(f"{files} files, {size(total_bytes)}\n")
        if self._problems:
            raise CannotBeHeld(f"what is listed above cannot be read ({self._problems} in all); the rest can")

    def copy(self, folder: str) -> None:
        """Copy it out. Raises :exc:`CannotBeHeld` if some of it cannot be read, and what :class:`Unloading` raises."""
        from qfilexchg.guest.unloading import CannotWrite, Unloading, walk

        self._must_be_mounted()
        os.makedirs(folder, exist_ok=True)
        room = os.statvfs(self._slot.folder)
        self._progress.state("looking", "Looking through what is on the pendrive…")
        files = total_bytes = 0
        for found in walk(self._slot.folder, self._interruption.check):
            files += found.status is not None and not found.is_folder
            total_bytes += found.size_bytes
        limit_bytes = min(room.f_blocks * room.f_frsize, self._slot.size_bytes())
        there = os.statvfs(folder)
        free_bytes = there.f_bavail * there.f_frsize
        if min(total_bytes, limit_bytes) > free_bytes:
            raise CannotWrite(folder, f"{size(total_bytes)} are needed, and {size(free_bytes)} free")
        self._progress.begin(total_bytes, files)
        sender = self._sender or _UNKNOWN
        unloading = Unloading(self._slot.folder, folder, sender, limit_bytes, self._progress, self._interruption.check)
        for problem in unloading.run():
            self._problem(problem)
        self._progress.state("writing-out", "Writing out what is left…")
        # The pendrive may go as soon as this has ended, and what is on it with it.
        run("/usr/bin/sync", "--file-system", "--", folder, deadline_s=UNMOUNT_S)
        for name, given in unloading.renamed:
            taken = os.path.lexists(os.path.join(folder, name))
            why = f"There was a {printable(name)} already" if taken else f"{printable(name)} is too long a name"
            self._progress.say(f"{why}: it is {printable(given)} now.")
        self._progress.say(f"Copied from {sender}: {unloading.files} files, {size(unloading.bytes)}.")
        if self._problems:
            raise CannotBeHeld(f"what is listed above was not copied ({self._problems} in all); the rest was")

    def eject(self) -> None:
        """Unmount it, and wait until dom0 has taken it away. Raises :exc:`NothingHere`, :exc:`InUse` and ProgramFailed."""
        disk = self._slot.disk()
        self._must_be_mounted()
        try:
            self._slot.unmount()
        except ProgramFailed as error:
            if b"busy" in error.stderr:
                raise InUse(self._slot.folder) from error
            raise
        self._progress.state("ejecting", "Waiting for dom0 to take it away…")
        end_s = time.monotonic() + DEVICE_S
        # Another one may come at once.
        while self._slot.present() and self._slot.disk() == disk and time.monotonic() < end_s:
            self._slot.wait(self._interruption, present=False, deadline_s=_LOOK_S)
        if self._slot.present() and self._slot.disk() == disk:
            self._progress.say("It is unmounted, and dom0 has not taken it away yet; that is tried again and again.")
        else:
            self._progress.say("It is gone.")

    def _must_be_mounted(self) -> None:
        if not self._slot.mounted():
            raise NothingHere("a pendrive is here, and not mounted: it is just coming or going; try again")

    def _problem(self, found: Found) -> None:
        self._problems += 1
        self._progress.say(f"{printable(found.path or self._slot.folder)}: {found.why}")


def main(arguments: Sequence[str] | None = None, slot: Slot = INCOMING) -> int:
    progress = Progress(sys.stderr)
    try:
        order = parse(sys.argv[1:] if arguments is None else arguments)
        if order is None:
            sys.stdout.write(HELP)
            return DONE
        verb, folder = order
        if not slot.present():
            raise NothingHere("no pendrive is here")
        with Interruption() as interruption:
            incoming = Incoming(slot, _sender(), progress, interruption)
            if verb == "copy":
                incoming.copy(folder)
            elif verb == "eject":
                incoming.eject()
            else:
                incoming.list()
        sys.stdout.flush()
        return DONE
    except QfilexchgError as error:
        return progress.fail(_COMMAND, error, exit_status(error))
    except BrokenPipeError:  # of standard output: whoever reads the list has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())  # what is left in its buffer goes there
        return DONE
    except OSError as error:
        return progress.fail(_COMMAND, error, BROKEN)


def _sender() -> VmName | None:
    """Who sent it, by dom0's word. Raises :exc:`NothingHere` if it is no pendrive for people."""
    try:
        with Store.open(_STORE_S) as store:
            seq = store.read(TRANSACTION_SEQ)
            sender = VmName.parse(store.read(BLOCK_SOURCE).decode("ascii", "replace"))
    except (StoreLost, StoreError, BadName):
        return None
    if seq not in (b"0", b""):
        raise NothingHere(f"a document is on its way back from {sender}, and will be put in its place")
    return sender


if __name__ == "__main__":
    sys.exit(main())
