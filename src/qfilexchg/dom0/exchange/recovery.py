"""Where to go on with what an earlier daemon left under way: the other half of the table in ``phases``, for its restart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qfilexchg.dom0.exchange.phases import Course, Phase, Place

if TYPE_CHECKING:
    from qfilexchg.protocol.qpen import State

P = Phase


def resume(phase: Phase, place: Place, *, sender_runs: bool, receiver_runs: bool, course: Course = Course.COPY) -> Phase:
    """The phase to enter for a pendrive that the journal left in ``phase`` and that is now found in ``place``.

    What had been allowed is finished where both VMs still run; all else is undone: the sender has it again, or, when there is
    no sender to have it, it is deleted if it had not left yet, or is a document (the files are still the sender's), and else kept.
    """
    if course is Course.BACK:
        return _resume_return(phase, place, receiver_runs=receiver_runs)
    match phase, place:
        case (P.DELETING | P.KEEPING), _:
            return phase
        case (P.ABANDONING | P.DISCARDING), Place.AT_SENDER:
            return P.DISCARDING
        case (P.ASKING | P.RESTORING), Place.AT_SENDER if sender_runs and course is Course.OUT:
            return phase
        case (P.ASKING | P.QUEUED | P.LEAVING), Place.AT_SENDER if sender_runs and receiver_runs:
            return phase
        case _, Place.AT_SENDER:
            return P.CLEAN if sender_runs else P.DISCARDING
        case (P.ARRIVING | P.LOADED), Place.AT_RECEIVER if receiver_runs:
            return P.LOADED
        case (P.LOADED | P.DETACHING), Place.AT_RECEIVER:
            return P.DETACHING
        case _, Place.AT_RECEIVER:
            return P.PULLING
        case (P.CREATING | P.GIVING | P.ABANDONING | P.DISCARDING | P.LOADED | P.DETACHING), Place.NOWHERE:
            return P.DELETING
        case (P.CLEAN | P.ASKING | P.QUEUED | P.RESTORING), Place.NOWHERE:
            return P.RETURNING if sender_runs else P.DELETING
        case (P.LEAVING | P.ARRIVING), Place.NOWHERE if receiver_runs:
            return P.ARRIVING
        case _:
            return P.RETURNING if sender_runs else P.DELETING if course is Course.OUT else P.KEEPING


def _resume_return(phase: Phase, place: Place, *, receiver_runs: bool) -> Phase:
    """The same for a changed document: it is the only copy, so it is deleted only where its receiver has said that it has it."""
    match phase, place:
        case (P.DELETING | P.KEEPING), _:
            return phase
        case (P.WITHDRAWING | P.SALVAGING), _:
            return P.WITHDRAWING if receiver_runs else P.SALVAGING
        case _, Place.AT_SENDER:  # it was to be destroyed, and is not
            return P.WITHDRAWING if receiver_runs else P.SALVAGING
        case P.DETACHING, Place.AT_RECEIVER:
            return P.DETACHING
        case P.DETACHING, _:
            return P.DELETING
        case (P.ARRIVING | P.LOADED), Place.AT_RECEIVER if receiver_runs:
            return P.LOADED
        case _, Place.AT_RECEIVER:
            return P.PULLING
        case (P.HELD | P.ARRIVING | P.LOADED), _ if receiver_runs:
            return P.HELD
        case _:
            return P.KEEPING


def news(was: Phase, now: Phase) -> tuple[State, str] | None:
    """What the VM that waits is told of a pendrive that was in phase ``was`` before the restart, and is ``now`` in another."""
    match was, now:
        case P.GIVING, P.CLEAN:
            return "attached", ""
        case P.ARRIVING, P.LOADED:
            return "delivered", ""
        case P.ASKING, P.ASKING:
            return "asking", ""
        case P.QUEUED, P.QUEUED:
            return "queued", ""
        case P.ASKING, P.CLEAN:
            return "denied", ""
        case (P.CREATING | P.GIVING | P.ABANDONING), _:
            return "failed", "interrupted"
        case _, (P.CLEAN | P.DELETING | P.KEEPING) if now is not was:
            return "failed", "interrupted"
        case _:
            return None
