"""qvm-copy-to-vm: files and folders to another VM, on a virtual pendrive.

Everything that can be known is checked before dom0 is asked for a pendrive. From then on every way out but a delivery gives the
pendrive back.
"""

from __future__ import annotations

import os
import sys

from qfilexchg.errors import QfilexchgError
from qfilexchg.guest import fat
from qfilexchg.guest.arguments import REPORT, split
from qfilexchg.guest.copying import Copy
from qfilexchg.guest.interruption import Interruption
from qfilexchg.guest.outcome import BROKEN, DONE, CannotBeHeld, NoRoom, Occupied, Usage, exit_status
from qfilexchg.guest.outgoing import Outgoing
from qfilexchg.guest.progress import Progress, size
from qfilexchg.guest.request import Exchange
from qfilexchg.guest.slot import OUTGOING
from qfilexchg.guest.survey import ArchiveJudge, FatJudge, Survey, survey
from qfilexchg.protocol.names import DISPOSABLE, VmName
from qfilexchg.xenstore.blocking import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    from qfilexchg.guest.archive import Archive
    from qfilexchg.guest.slot import Slot
    from qfilexchg.protocol.qpen import Reply

HELP: Final = """\
usage: qvm-copy-to-vm DEST FILE|FOLDER… [--skip] [--archive]

Copies files and folders to the VM called DEST, where they appear on a pendrive in /mnt/incoming. The person in dom0 may be
asked to allow it. Nothing here is changed or removed. Ctrl-C gives up and takes back what was not delivered.

  --skip      leave out what a pendrive cannot hold, instead of stopping
  --archive   pack everything into one tar file, which keeps all names, modes, times and links; unpack it with: tar -xpf FILE
  --report=json  tell programs what is done, in lines of JSON on standard output; PROTOCOL.md has them
  --help      show this
  --          what follows are files and folders, even if they begin with a dash

A pendrive keeps names, contents and times (to two seconds), but no modes, owners or links; no file of 4 GiB or more; and no
two names in a folder that differ only in upper and lower case. All that it cannot hold is listed before anything is copied.

Exit status:
    0  delivered
    1  broken: something failed; the message says what
    2  the command line was not understood
    3  refused: by a rule or by the person in dom0, or there is no such VM
    4  some of the files cannot be held or read; the list says which
    5  no room: too much for one pendrive
    6  this VM already has an outgoing pendrive
  130  cancelled
"""

_COMMAND: Final = "qvm-copy-to-vm"
_SETTLE_S: Final = 2.0
"""Seconds that udev is given to forget a pendrive which has just left."""


class Order:
    """What the command line asks for."""

    def __init__(self, target: VmName, sources: Sequence[str], *, skip: bool, archive: bool, report: bool = False) -> None:
        self.target: Final = target
        self.sources: Final = sources
        self.skip: Final = skip
        self.archive: Final = archive
        self.report: Final = report


def parse(arguments: Sequence[str]) -> Order | None:
    """Understand the command line; None asks for help. Raises :exc:`Usage` and BadName."""
    understood = split(arguments, ("--skip", "--archive", REPORT), _COMMAND)
    if understood is None:
        return None
    words, options = understood
    if len(words) < 2:
        raise Usage("name a VM, and at least one file or folder", _COMMAND)
    if words[0] == DISPOSABLE:
        raise Usage("a DisposableVM opens documents; it takes no copies", _COMMAND)
    target, chosen = VmName.parse(words[0]), options.__contains__
    return Order(target, words[1:], skip=chosen("--skip"), archive=chosen("--archive"), report=chosen(REPORT))


class Cargo:
    """What goes onto the pendrive, and how. ``copy_bytes`` is what is written into files."""

    def __init__(self, found: Survey, writer: type[Copy | Archive], pendrive_bytes: int, copy_bytes: int) -> None:
        self.found: Final = found
        self.pendrive_bytes: Final = pendrive_bytes
        self.copy_bytes: Final = copy_bytes
        self._writer: Final = writer

    def load(self, folder: str, progress: Progress, interruption: Interruption) -> None:
        """Write everything into ``folder``."""
        room = os.statvfs(folder)
        if room.f_bavail * room.f_frsize < self.copy_bytes:
            raise NoRoom(self.pendrive_bytes)
        progress.state("copying", "Copying…")
        progress.begin(self.copy_bytes, self.found.files)
        self._writer(folder, progress, interruption, self.pendrive_bytes).run(self.found.items)


def plan(order: Order, folder: str, checkpoint: Callable[[], None]) -> Cargo:
    """Look at all sources and measure what holds them; what cannot be sent stands in ``found.problems``.

    Raises :exc:`CannotBeHeld` for an archive that is too large, and what ``checkpoint`` raises.
    """
    if not order.archive:
        found = survey(order.sources, FatJudge(folder), checkpoint)
        return Cargo(found, Copy, found.pendrive_bytes(), found.size_bytes)
    from qfilexchg.guest.archive import Archive, archive_bytes  # here, as tarfile takes longer to import than all else

    found = survey(order.sources, ArchiveJudge(), checkpoint)
    packed = archive_bytes(found.items)
    if packed > fat.FILE_BYTES_MAX:
        raise CannotBeHeld(f"the archive would have {size(packed)}, and a pendrive holds no file of 4 GiB or more; send it in parts")
    return Cargo(found, Archive, fat.pendrive_bytes([packed], [64]), packed)


def deliver(cargo: Cargo, target: VmName, outgoing: Outgoing, slot: Slot, progress: Progress, interruption: Interruption) -> None:
    """Fill a pendrive with ``cargo`` and send it. If this raises, the pendrive was given back, or the error says why not."""
    if slot.mounted() or (slot.present() and not slot.wait(interruption, present=False, deadline_s=_SETTLE_S)):
        raise Occupied
    mounted = False
    try:
        outgoing.get(cargo.pendrive_bytes)
        slot.wait_present(interruption)
        slot.mount()
        mounted = True
        cargo.load(slot.folder, progress, interruption)
        progress.state("writing-out", "Writing out what is left…")
        slot.sync()
        slot.unmount()
        mounted = False
        interruption.check()
        outgoing.send(target)
    except BaseException:
        interruption.shield()
        progress.state("giving-back", "Giving the pendrive back…")
        if mounted:
            _abandon(slot, progress)
        if outgoing.give_back():
            progress.milestone("too-late", "It was too late to stop: the pendrive has been delivered.")
            return
        raise


def _abandon(slot: Slot, progress: Progress) -> None:
    try:
        slot.abandon()
    except QfilexchgError as error:
        # dom0 takes the disk away all the same.
        progress.say(f"{_COMMAND}: {error}")


def main(arguments: Sequence[str] | None = None, slot: Slot = OUTGOING) -> int:
    progress = Progress(sys.stderr)
    try:
        order = parse(sys.argv[1:] if arguments is None else arguments)
        if order is None:
            sys.stdout.write(HELP)
            return DONE
        if order.report:
            from qfilexchg.guest.report import Report  # here, as a person at a terminal needs no JSON

            progress = Report(sys.stdout)
        with Interruption(progress.listener) as interruption:
            return _carry_out(order, slot, progress, interruption)
    except QfilexchgError as error:
        return progress.fail(_COMMAND, error, exit_status(error))
    except OSError as error:
        return progress.fail(_COMMAND, error, BROKEN)


def _carry_out(order: Order, slot: Slot, progress: Progress, interruption: Interruption) -> int:
    progress.state("looking", "Looking through what is to be sent…")
    cargo = plan(order, slot.folder, interruption.check)
    if problems := cargo.found.problems:
        progress.problems(problems, left_out=order.skip)
        if not order.skip:
            advice = "leave them out with --skip"
            raise CannotBeHeld(advice if order.archive else f"{advice}, or pack everything into one tar file with --archive")
        if not cargo.found.items:
            raise CannotBeHeld("nothing is left to be sent")
    if not order.archive and (count := cargo.found.beyond_calendar):
        progress.say(f"{count} of the times are outside of 1980 to 2107; a pendrive gets the nearest it can hold.")
    with Store.open() as store:
        outgoing = Outgoing(Exchange(store, interruption), lambda reply: _show(reply, order.target, progress, sending=outgoing.sending))
        progress.state("getting", "Asking dom0 for a pendrive…")
        deliver(cargo, order.target, outgoing, slot, progress, interruption)
    progress.milestone("delivered", f"Delivered to {order.target}: {cargo.found.files} files, {size(cargo.copy_bytes)}.")
    return progress.done()


def _show(reply: Reply, target: VmName, progress: Progress, *, sending: bool) -> None:
    match reply.state:
        case "asking":
            progress.state("asking", "Waiting for an answer in dom0…")
        case "queued":
            progress.state("queued", f"Allowed; waiting until {target} is done with its last pendrive…")
        case "accepted" if sending:
            progress.state("leaving", "Allowed; the pendrive is on its way…")


if __name__ == "__main__":
    sys.exit(main())
