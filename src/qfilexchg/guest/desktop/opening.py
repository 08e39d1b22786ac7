"""What is shown while ``qvm-open-in-dvm`` runs. Pure."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import ClassVar, Final

from qfilexchg.guest import outcome
from qfilexchg.guest.desktop.showing import END_S, End, Ends, Showing, View, things
from qfilexchg.guest.progress import printable


class Opening(Showing):
    """A document in a DisposableVM."""

    tool = "qvm-open-in-dvm"
    doing = "Opening {name} in a DisposableVM"
    ends: ClassVar[Ends] = {
        outcome.DONE: (End.GOOD, "{name} has come back changed"),
        outcome.BROKEN: (End.BAD, "{name}: something failed"),
        outcome.REFUSED: (End.NO, "{name} was not opened: denied"),
        outcome.CANNOT_BE_HELD: (End.NO, "{name} cannot be opened in a DisposableVM"),
        outcome.NO_ROOM: (End.NO, "{name} was not opened: it is too large"),
        outcome.OCCUPIED: (End.NO, "{name} was not opened: something else is being sent"),
        outcome.BESIDE: (End.PARTLY, "The changes are not in {name}"),
        outcome.NO_PROGRAM: (End.NO, "No program opens {name}"),
        outcome.ENDED: (End.BAD, "The DisposableVM of {name} has ended"),
        outcome.CANCELLED: (End.NO, "Cancelled: {name} is as it was"),
    }
    _RETURNING: Final = ("returning", "blocked", "returned", "not-placed")
    """What was changed there is on its way, and nothing can stop it any more."""
    _STAGES: Final = {
        "handed-over": "Handed to dom0.",
        "preparing": "The savefile of the DisposableVMs is being made first. This takes a while…",
        "returning": "It was changed there, and is on its way back…",
        "blocked": "It was changed there. Eject the pendrive that is here: the document waits for that.",
        "too-late": "It is too late to stop: it is closed there.",
    }

    def __init__(self, path: str, waiting: int = 0) -> None:
        """``waiting`` more documents are to be opened after this."""
        super().__init__(name=things([path]))
        self._whole_name = printable(os.path.basename(path))
        self._waiting = waiting

    def cancel(self) -> bool:
        """Once it is open there, only the second time: what was changed there is lost then."""
        if self._stage in self._RETURNING:
            return False
        if self._stage == "open" and not self._confirming and not self._cancelling:
            self._confirming = True
            return False
        return super().cancel()

    def not_followed(self, count: int) -> None:
        """So many documents that waited behind this one are not opened."""
        self._waiting = 0
        if count:
            self._notes.append("1 more document was not opened." if count == 1 else f"{count} more documents were not opened.")

    def _heading(self) -> str:
        if self._stage == "open":
            return self._filled("{name} is open in a DisposableVM")
        return self._filled("{name} comes back") if self._stage in self._RETURNING else super()._heading()

    def _now(self) -> str:
        if self._confirming:
            return "What was changed there will be lost. Press again to end the DisposableVM, or Escape to keep it."
        if self._stage == "open":
            return "When it is closed there, what was changed comes back."
        more = f"\n{self._waiting} more to open after this." if self._waiting and not self.handed_over else ""
        return self._STAGES.get(self._stage, super()._now()) + more

    def _cancel_word(self) -> str:
        if self._stage in self._RETURNING:
            return ""
        return "End DisposableVM" if self._stage == "open" else super()._cancel_word()

    def _begins_with_a_name(self) -> tuple[str, ...]:
        return ("/", self._whole_name)

    def _working(self) -> bool:
        return self._stage != "open" or self._cancelling

    def _aside(self) -> bool:
        return self._stage in ("open", "returning", "returned") and not self._confirming and not self._cancelling

    def _stays(self) -> bool:
        return (self._stage == "open" and not self._confirming and not self._cancelling) or self._stage in self._RETURNING

    def _end(self) -> View:
        view = super()._end()
        if self._status != outcome.DONE:
            return view
        if self._stage == "unchanged":
            view = replace(view, heading=self._filled("{name} was not changed"))
        return replace(view, closes_s=None if view.notes else END_S)
