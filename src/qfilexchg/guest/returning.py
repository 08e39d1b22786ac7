"""A document that comes back to the VM which sent it: from its pendrive to its place, and word of it to whoever waits.

Nothing is lost on the way: the pendrive is held until the document is complete on this VM's disk, and an attempt that was broken
off is made again from the beginning, by the next start of the script.
"""

from __future__ import annotations

import os

from qfilexchg.guest import document
from qfilexchg.guest.document import DocumentUnreadable
from qfilexchg.guest.placing import NoPlace, Placing
from qfilexchg.guest.progress import printable
from qfilexchg.guest.sequence import BESIDE, FAILED, REFUSED, REPLACED, Outcome
from qfilexchg.protocol.dvm_header import BadHeader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qfilexchg.guest.sequence import Book, Original
    from qfilexchg.protocol.names import VmName


class Returning:
    """The document ``seq`` on the disk ``device``, back from ``source``. ``other_folders`` are for one that has no place any more."""

    def __init__(
        self,
        device: str,
        source: VmName,
        seq: int,
        book: Book,
        other_folders: Sequence[str],
        checkpoint: Callable[[], None],
        log: Callable[[str], None],
    ) -> None:
        self._device = device
        self._source = source
        self._seq = seq
        self._book = book
        self._other_folders = other_folders
        self._checkpoint = checkpoint
        self._log = log
        self._placed: Outcome | None = None
        """What an attempt has come to that could not be noted."""

    def attempt(self) -> bool:
        """Whether there is nothing more to do with the pendrive. If not, try again later: there is no place for the document now, or
        nobody could know which place it has.

        Raises what the checkpoint raises.
        """
        try:
            original = self._book.original(self._seq)
            if original is None:
                self._log("it returns a document that nobody here waits for; it is deleted")
                return True
            outcome = self._book.outcome(self._seq)
        except OSError as error:
            self._log(f"what is known of the document cannot be read ({error.strerror}); trying again")
            return False
        if outcome is None or not outcome.final:
            outcome = self._placed or self._place(original)
        concluded = self._concluded(outcome)
        self._log(_sentence(outcome, original))
        return concluded

    def _place(self, original: Original) -> Outcome:
        try:
            device, device_bytes = document.open_to_read(self._device)
            try:
                header = document.read_header(device, device_bytes)
                placing = Placing(device, header, original, self._source, self._seq, self._checkpoint)
                return placing.place(self._other_folders)
            finally:
                os.close(device)
        except BadHeader as error:
            return Outcome(REFUSED, why=str(error))
        except (DocumentUnreadable, NoPlace) as error:
            return Outcome(FAILED, why=str(error))

    def _concluded(self, outcome: Outcome) -> bool:
        """Tell whoever waits; whether the pendrive can go."""
        try:
            self._book.conclude(self._seq, outcome)
        except OSError as error:
            self._log(f"the outcome cannot be noted ({error.strerror})")
            if outcome.word == BESIDE:
                self._placed = outcome
                return False
            if outcome.final:
                # It is where everybody looks for it; the pendrive need not wait for whoever wants to hear of it.
                self._forget()
        return outcome.final

    def _forget(self) -> None:
        try:
            self._book.forget(self._seq)
        except OSError as error:
            self._log(f"the document cannot be forgotten ({error.strerror})")


def _sentence(outcome: Outcome, original: Original) -> str:
    if outcome.word == REPLACED:
        return f"{printable(original.path)} now has the changes"
    if outcome.word == BESIDE:
        return f"{printable(original.path)}: the changes are in {printable(outcome.path)}, as {printable(outcome.why)}"
    return printable(outcome.why)
