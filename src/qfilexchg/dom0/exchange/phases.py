"""The life of a pendrive as a literal table.

A pendrive has exactly one place, and its phase names it: in the spool, at its sender, at its receiver, or on the way. A phase
either rests (until somebody asks for something) or waits for exactly one result of one effect that was started when the phase
was entered. Every pair of phase and signal that can happen has its edge here; the diagram in PROTOCOL.md is made from
:data:`EDGES`.

That at most one result is ever under way is why there are phases such as ``ABANDONING``: a pendrive that nobody wants any
more cannot be deleted while it is still being attached, so it waits for that result first.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qfilexchg.protocol.qpen import State


class Phase(enum.Enum):
    """Where a pendrive is, and what is being done with it."""

    CREATING = "creating"  # its image is being made in the spool
    GIVING = "giving"  # being attached to its sender for the first time
    ABANDONING = "abandoning"  # unwanted, once the step under way is over
    CLEAN = "clean"  # at the sender, to be filled
    ASKING = "asking"  # at the sender; may it go?
    RESTORING = "restoring"  # at the sender, allowed; the DisposableVM that it is for is being made
    QUEUED = "queued"  # at the sender, allowed; its receiver still has another
    LEAVING = "leaving"  # allowed; being detached from the sender
    RECALLED = "recalled"  # being detached from the sender, but the receiver ended: to be given back
    ARRIVING = "arriving"  # being attached to the receiver
    BOUNCED = "bounced"  # was being attached to a receiver that ended
    PULLING = "pulling"  # being taken away from a receiver that could not have it
    WITHDRAWING = "withdrawing"  # a changed document; the DisposableVM that has it is being destroyed
    SALVAGING = "salvaging"  # the same, but the VM that it is for has ended
    HELD = "held"  # a changed document, attached nowhere; the VM that it is for still has another pendrive
    RETURNING = "returning"  # being attached to the sender again
    STRANDED = "stranded"  # was being given back to a sender that ended
    LOADED = "loaded"  # at the receiver
    DETACHING = "detaching"  # done with; being detached from the receiver
    DISCARDING = "discarding"  # cancelled; being detached from the sender
    DELETING = "deleting"  # attached nowhere; its image is being deleted
    KEEPING = "keeping"  # could be neither delivered nor given back, and may be the only copy; its image is put aside for the person
    GONE = "gone"  # no longer ours


class Signal(enum.Enum):
    """What happens to a pendrive."""

    CREATED = "created"
    CREATE_FAILED = "create failed"
    ATTACHED = "attached"
    ATTACH_FAILED = "attach failed"
    DETACHED = "detached"
    STRAY = "detached, sender ended"  # there is no one to give it back to
    SPARE = "not to be kept"  # it would be put aside, but is a copy of a document that has not left
    DETACH_FAILED = "detach failed"  # and the VM still runs
    DETACH_AGAIN = "detach failed, VM gone"  # the hypervisor is in trouble: there is no one to give it back to
    DELETED = "deleted"
    KEPT = "kept"
    SEND = "send"
    ALLOWED = "allowed"
    ALLOWED_DISPOSABLE = "allowed, DisposableVM"
    ALLOWED_TO_WAIT = "allowed to wait"
    BUSY = "allowed, receiver busy"  # it became so after the question was put
    DENIED = "denied"
    RESTORED = "DisposableVM made"
    RESTORE_FAILED = "no DisposableVM made"
    RETURN = "return"
    DESTROYED = "DisposableVM destroyed"
    SLOT_FREE = "receiver free"
    EXPIRED = "waited too long"
    CANCEL = "cancel"
    UMOUNT = "umount"
    SENDER_GONE = "sender ended"
    RECEIVER_GONE = "receiver ended"
    UNREAD = "receiver ended, document not taken"


class Course(enum.Enum):
    """What a pendrive is for."""

    COPY = "copy"  # files for another VM; so is a pendrive of which nothing is known yet
    OUT = "out"  # a document for a new DisposableVM
    BACK = "back"  # the changed document, for the VM that it came from; the only copy there is


@dataclass(frozen=True, slots=True)
class Edge:
    """The phase that follows, and what the VM that waits for an answer is told."""

    phase: Phase
    reply: State | None = None
    detail: str = ""


P, S = Phase, Signal

EDGES: Mapping[tuple[Phase, Signal], Edge] = MappingProxyType(
    {
        (P.CREATING, S.CREATED): Edge(P.GIVING),
        (P.CREATING, S.CREATE_FAILED): Edge(P.DELETING, "failed", "no-pendrive-made"),
        (P.CREATING, S.CANCEL): Edge(P.ABANDONING),
        (P.CREATING, S.SENDER_GONE): Edge(P.ABANDONING),
        (P.GIVING, S.ATTACHED): Edge(P.CLEAN, "attached"),
        (P.GIVING, S.ATTACH_FAILED): Edge(P.DISCARDING, "failed", "not-attached"),
        (P.GIVING, S.CANCEL): Edge(P.ABANDONING),
        (P.GIVING, S.SENDER_GONE): Edge(P.ABANDONING),
        (P.ABANDONING, S.CREATED): Edge(P.DELETING, "cancelled"),
        (P.ABANDONING, S.CREATE_FAILED): Edge(P.DELETING, "cancelled"),
        (P.ABANDONING, S.RESTORED): Edge(P.DISCARDING),
        (P.ABANDONING, S.RESTORE_FAILED): Edge(P.DISCARDING),
        (P.ABANDONING, S.ATTACHED): Edge(P.DISCARDING),
        (P.ABANDONING, S.ATTACH_FAILED): Edge(P.DISCARDING),
        (P.CLEAN, S.SEND): Edge(P.ASKING, "asking"),
        (P.CLEAN, S.RETURN): Edge(P.WITHDRAWING, "accepted"),
        (P.CLEAN, S.CANCEL): Edge(P.DISCARDING),
        (P.CLEAN, S.SENDER_GONE): Edge(P.DISCARDING),
        (P.ASKING, S.ALLOWED): Edge(P.LEAVING, "accepted"),
        (P.ASKING, S.ALLOWED_DISPOSABLE): Edge(P.RESTORING, "accepted"),
        (P.ASKING, S.ALLOWED_TO_WAIT): Edge(P.QUEUED, "queued"),
        (P.ASKING, S.BUSY): Edge(P.ASKING, "asking"),
        (P.ASKING, S.DENIED): Edge(P.CLEAN, "denied"),
        (P.ASKING, S.CANCEL): Edge(P.DISCARDING),
        (P.ASKING, S.SENDER_GONE): Edge(P.DISCARDING),
        (P.ASKING, S.RECEIVER_GONE): Edge(P.CLEAN, "denied"),
        (P.RESTORING, S.RESTORED): Edge(P.LEAVING),
        (P.RESTORING, S.RESTORE_FAILED): Edge(P.CLEAN, "failed"),
        (P.RESTORING, S.CANCEL): Edge(P.ABANDONING),
        (P.RESTORING, S.SENDER_GONE): Edge(P.ABANDONING),
        (P.QUEUED, S.SLOT_FREE): Edge(P.LEAVING, "accepted"),
        (P.QUEUED, S.EXPIRED): Edge(P.CLEAN, "failed", "waited-too-long"),
        (P.QUEUED, S.CANCEL): Edge(P.DISCARDING),
        (P.QUEUED, S.SENDER_GONE): Edge(P.DISCARDING),
        (P.QUEUED, S.RECEIVER_GONE): Edge(P.CLEAN, "failed", "receiver-ended"),
        (P.LEAVING, S.DETACHED): Edge(P.ARRIVING),
        (P.LEAVING, S.DETACH_FAILED): Edge(P.CLEAN, "failed", "not-detached"),
        (P.LEAVING, S.DETACH_AGAIN): Edge(P.LEAVING),
        (P.LEAVING, S.RECEIVER_GONE): Edge(P.RECALLED),
        (P.RECALLED, S.DETACHED): Edge(P.RETURNING),
        (P.RECALLED, S.STRAY): Edge(P.KEEPING, "failed", "kept-in-dom0"),
        (P.RECALLED, S.SPARE): Edge(P.DELETING, "failed", "receiver-ended"),
        (P.RECALLED, S.DETACH_FAILED): Edge(P.CLEAN, "failed", "receiver-ended"),
        (P.RECALLED, S.DETACH_AGAIN): Edge(P.RECALLED),
        (P.WITHDRAWING, S.DESTROYED): Edge(P.HELD),
        (P.WITHDRAWING, S.RECEIVER_GONE): Edge(P.SALVAGING),
        (P.SALVAGING, S.DESTROYED): Edge(P.KEEPING, "failed", "kept-in-dom0"),
        (P.HELD, S.SLOT_FREE): Edge(P.ARRIVING),
        (P.HELD, S.RECEIVER_GONE): Edge(P.KEEPING, "failed", "kept-in-dom0"),
        (P.ARRIVING, S.ATTACHED): Edge(P.LOADED, "delivered"),
        (P.ARRIVING, S.ATTACH_FAILED): Edge(P.PULLING),
        (P.ARRIVING, S.RECEIVER_GONE): Edge(P.BOUNCED),
        (P.BOUNCED, S.ATTACHED): Edge(P.PULLING),
        (P.BOUNCED, S.ATTACH_FAILED): Edge(P.PULLING),
        (P.PULLING, S.DETACHED): Edge(P.RETURNING),
        (P.PULLING, S.STRAY): Edge(P.KEEPING, "failed", "kept-in-dom0"),
        (P.PULLING, S.SPARE): Edge(P.DELETING, "failed", "not-attached"),
        (P.PULLING, S.DETACH_FAILED): Edge(P.LOADED, "failed", "not-attached"),
        (P.PULLING, S.DETACH_AGAIN): Edge(P.PULLING),
        (P.RETURNING, S.ATTACHED): Edge(P.CLEAN, "failed", "given-back"),
        (P.RETURNING, S.ATTACH_FAILED): Edge(P.KEEPING, "failed", "kept-in-dom0"),
        (P.RETURNING, S.SPARE): Edge(P.DELETING, "failed", "not-attached"),
        (P.RETURNING, S.SENDER_GONE): Edge(P.STRANDED),
        (P.STRANDED, S.ATTACHED): Edge(P.RECALLED),  # one that runs on under another name
        (P.STRANDED, S.ATTACH_FAILED): Edge(P.KEEPING),
        (P.STRANDED, S.SPARE): Edge(P.DELETING),
        (P.LOADED, S.UMOUNT): Edge(P.DETACHING, "accepted"),
        (P.LOADED, S.RECEIVER_GONE): Edge(P.DETACHING),
        (P.LOADED, S.UNREAD): Edge(P.PULLING),
        (P.DETACHING, S.DETACHED): Edge(P.DELETING, "detached"),
        (P.DETACHING, S.DETACH_FAILED): Edge(P.LOADED, "failed", "not-detached"),
        (P.DETACHING, S.DETACH_AGAIN): Edge(P.DETACHING),
        (P.DISCARDING, S.DETACHED): Edge(P.DELETING, "cancelled"),
        (P.DISCARDING, S.DETACH_FAILED): Edge(P.CLEAN, "failed", "not-detached"),
        (P.DISCARDING, S.DETACH_AGAIN): Edge(P.DISCARDING),
        (P.DELETING, S.DELETED): Edge(P.GONE),
        (P.KEEPING, S.KEPT): Edge(P.GONE),
    }
)


class Place(enum.Enum):
    """Where the hypervisor says a pendrive's image is, when the daemon starts."""

    AT_SENDER = "at its sender"
    AT_RECEIVER = "at its receiver"
    NOWHERE = "attached nowhere"


def diagram() -> str:
    """The table as a Mermaid state diagram, for PROTOCOL.md."""
    lines = ["stateDiagram-v2", "    [*] --> creating: new"]
    for (phase, signal), edge in EDGES.items():
        target = "[*]" if edge.phase is P.GONE else edge.phase.value
        answer = f" / {edge.reply}" if edge.reply else ""
        lines.append(f"    {phase.value} --> {target}: {signal.value}{answer}")
    return "\n".join(lines) + "\n"
