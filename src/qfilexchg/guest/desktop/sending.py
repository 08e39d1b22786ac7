"""What is shown while ``qvm-copy-to-vm`` runs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Final

from qfilexchg.guest import outcome
from qfilexchg.guest.desktop.showing import End, Ends, Showing, View, things
from qfilexchg.protocol.names import VmName

SKIP: Final = "--skip"
ARCHIVE: Final = "--archive"


class Sending(Showing):
    """Files and folders on their way to a VM, sent with these options."""

    tool = "qvm-copy-to-vm"
    doing = "Sending {what} to {target}"
    ends: ClassVar[Ends] = {
        outcome.DONE: (End.GOOD, "Sent to {target}"),
        outcome.BROKEN: (End.BAD, "Not sent: something failed"),
        outcome.REFUSED: (End.NO, "Not sent: denied"),
        outcome.CANNOT_BE_HELD: (End.NO, "Not sent: a pendrive cannot hold this"),
        outcome.NO_ROOM: (End.NO, "Not sent: too much for one pendrive"),
        outcome.OCCUPIED: (End.NO, "Not sent: something else is being sent"),
        outcome.CANCELLED: (End.NO, "Cancelled: nothing was sent"),
    }

    def __init__(self, paths: Sequence[str], target: VmName, options: Sequence[str] = ()) -> None:
        super().__init__(what=things(paths), target=target)
        self._options = options

    def _end(self) -> View:
        view = super()._end()
        problems = tuple(self._problems)
        if self._status == outcome.DONE:
            if not problems:
                return replace(view, text=self._text)
            return replace(view, end=End.PARTLY, heading=f"{view.heading}, but not everything", text=self._text, problems=problems)
        if self._status != outcome.CANNOT_BE_HELD:
            return view
        offers = [SKIP] if problems and not self._left_out else []
        if problems and ARCHIVE not in self._options:
            offers.append(ARCHIVE)
        if not offers:
            return replace(view, problems=problems)
        return replace(view, text="These cannot go onto a pendrive as they are:", problems=problems, offers=tuple(offers))
