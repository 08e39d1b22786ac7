"""qubes_add_pendrive_script: what happens to a pendrive that arrives. A systemd unit starts it when udev has named the disk.

It runs as the person's user. It mounts the pendrive, waits until nobody has it mounted any more, and tells dom0 that it may be
taken away. A pendrive that cannot be mounted, perhaps because somebody made it so, is sent away at once. dom0's word ``umount``
does not say which pendrive is meant, so before it is said we look whether the one in the slot is still ours.

A pendrive with a sequence number has no filesystem: it brings back a document that was changed in a DisposableVM, which is put in
its place before the pendrive goes.
"""

from __future__ import annotations

import sys

from qfilexchg.errors import HostError, QfilexchgError
from qfilexchg.guest.interruption import Cancelled, Interruption
from qfilexchg.guest.outcome import DONE, Usage, exit_status
from qfilexchg.guest.request import Exchange, fresh_id, pauses
from qfilexchg.guest.slot import INCOMING
from qfilexchg.protocol.keys import BLOCK_SOURCE, TRANSACTION_SEQ
from qfilexchg.protocol.names import BadName, VmName
from qfilexchg.protocol.qpen import Request
from qfilexchg.xenstore.blocking import Store
from qfilexchg.xenstore.errors import NoEntry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    from qfilexchg.guest.returning import Returning
    from qfilexchg.guest.slot import Disk, Slot

_COMMAND: Final = "qubes_add_pendrive_script"
SEQ_DIGITS_MAX: Final = 10
"""Digits of a sequence number (protocol/qpen.py)."""
STORE_S: Final = 60.0
"""Seconds to get hold of the store: other tools may hold every port for a while."""


class Arrival:
    """A pendrive in the incoming slot."""

    def __init__(
        self,
        slot: Slot,
        interruption: Interruption,
        log: Callable[[str], None],
        open_store: Callable[[], Store],
        returning: Callable[[str, VmName, int], Returning],
    ) -> None:
        """``returning`` makes what takes the document on a device, from a VM, with a sequence number."""
        self._slot = slot
        self._interruption = interruption
        self._log = log
        self._open_store = open_store
        self._returning = returning

    def serve(self) -> None:
        """Returns when the pendrive is gone."""
        disk = self._slot.disk()
        if disk:
            self._receive(disk)
        pauses_s = pauses()
        while disk and disk == self._slot.disk():
            disk.wait_unmounted(self._interruption)
            if disk != self._slot.disk() or self._taken_away():
                return
            # Most failures are a disk in use.
            self._slot.wait(self._interruption, present=False, deadline_s=next(pauses_s))

    def _receive(self, disk: Disk) -> None:
        try:
            with self._open_store() as store:
                sender = VmName.parse(store.read(BLOCK_SOURCE).decode("ascii", "replace"))
                seq = _seq(store.read(TRANSACTION_SEQ))
        except (NoEntry, BadName):
            self._log("a pendrive arrived, and dom0 does not say from where; it is deleted")
            return
        self._log(f"a pendrive arrived from {sender}")
        if seq is None:
            self._log("it returns a document that nobody here sent; it is deleted")
        elif seq:
            self._take_back(disk, self._returning(self._slot.device, sender, seq))
        elif not self._slot.mounted():
            self._mount()

    def _mount(self) -> None:
        try:
            self._slot.mount()
            self._log(f"it is in {self._slot.folder}; unmount it when you are done with it")
        except HostError as error:
            self._log(f"it cannot be used, and is deleted: {error}")

    def _take_back(self, disk: Disk, returning: Returning) -> None:
        """Returns when the document has its place, or the pendrive is gone."""
        pauses_s = pauses()
        while disk == self._slot.disk() and not returning.attempt():
            self._slot.wait(self._interruption, present=False, deadline_s=next(pauses_s))

    def _taken_away(self) -> bool:
        try:
            with self._open_store() as store:
                reply = Exchange(store, self._interruption).carry_out(Request("umount", request_id=fresh_id()))
        except HostError as error:
            self._log(str(error))
            return False
        if reply.state == "detached" or reply.detail == "no-pendrive":
            return True
        self._log(f"dom0 could not take the pendrive away ({reply.state} {reply.detail}); trying again")
        return False


def main(arguments: Sequence[str] | None = None, slot: Slot = INCOMING) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if list(words) != [slot.device.rpartition("/")[2]]:
            raise Usage("udev starts this, with the name of the incoming disk", _COMMAND)
        with Interruption() as interruption:
            Arrival(slot, interruption, _log, lambda: Store.open(STORE_S), _returning(interruption)).serve()
    except Cancelled:
        return DONE
    except QfilexchgError as error:
        _log(str(error))
        return exit_status(error)
    return DONE


def _returning(interruption: Interruption) -> Callable[[str, VmName, int], Returning]:
    def make(device: str, sender: VmName, seq: int) -> Returning:
        from qfilexchg.guest import sequence  # here, as a plain copy needs nothing of it
        from qfilexchg.guest.returning import Returning

        home = sequence.home()
        return Returning(device, sender, seq, sequence.book_in(home), (home,), interruption.check, _log)

    return make


def _seq(data: bytes) -> int | None:
    """The sequence number that dom0 wrote, 0 for a plain copy; None if it is no number."""
    return int(data) if data.isdigit() and len(data) <= SEQ_DIGITS_MAX else None


def _log(text: str) -> None:
    """To standard error, so to the VM's journal."""
    sys.stderr.write(f"{_COMMAND}: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
