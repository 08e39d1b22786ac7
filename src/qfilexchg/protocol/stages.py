"""What becomes of a document in a DisposableVM, as dom0 tells the VM that sent it in ``qubes_documents/SEQ``.

The reply to ``send disposable SEQ`` ends with the delivery; the document may be open for hours after that, and an asker that
was restarted meanwhile must still be able to know. So it stands in a key, which has one line of ASCII::

    starting                a DisposableVM is being made
    preparing               the savefile that they are made from is rebuilt first
    open VM                 the document is in that VM, to be looked at or worked on
    returning VM            it was changed, and is on its way back
    returned VM             it is on a pendrive in the asker
    unchanged VM            it was closed as it came
    ended VM WHY            the VM has ended and nothing comes back

The last three are final. There is no key where no DisposableVM was made: the reply tells why.
"""

from __future__ import annotations

from qfilexchg.errors import VmError
from qfilexchg.protocol.names import BadName, VmName

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Literal

    StageWord = Literal["starting", "preparing", "open", "returning", "returned", "unchanged", "ended"]

FINAL_STAGES: Final = frozenset(("returned", "unchanged", "ended"))
"""After one of these nothing more happens to the document."""
ENDINGS: Final = ("killed", "no-program", "bad-document", "failed", "kept-in-dom0")
"""Why nothing comes back: the VM ended by itself, or by the person's or the asker's wish; the three reasons that it can give
itself; or the changed document could not be given back, and dom0 has it."""


class BadStage(VmError):
    """Seen by a VM: what dom0 tells of a document is not one of this protocol."""


class Stage:
    """How far a document is. ``vm`` is the DisposableVM, None while there is none; ``why`` one of :data:`ENDINGS`, or empty."""

    __slots__ = ("vm", "why", "word")

    def __init__(self, word: StageWord, vm: VmName | None = None, why: str = "") -> None:
        self.word: Final = word
        self.vm: Final = vm
        self.why: Final = why

    @property
    def final(self) -> bool:
        """Whether nothing more happens to the document."""
        return self.word in FINAL_STAGES

    def _fields(self) -> tuple[object, ...]:
        return (self.word, self.vm, self.why)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stage) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def __repr__(self) -> str:
        return f"Stage({self.encode().decode('ascii')!r})"

    def encode(self) -> bytes:
        """The stage as it is written to the key."""
        return " ".join(word for word in (self.word, self.vm, self.why) if word).encode("ascii")


def parse_stage(data: bytes) -> Stage:
    """Return the stage in ``data``, as a VM reads it, or raise :exc:`BadStage`."""
    try:
        words = data.decode("ascii").split(" ")
        match words:
            case [("starting" | "preparing") as word]:
                return Stage(word)
            case [("open" | "returning" | "returned" | "unchanged") as word, vm]:
                return Stage(word, VmName.parse(vm))
            case ["ended", vm, why] if why in ENDINGS:
                return Stage("ended", VmName.parse(vm), why)
    except (UnicodeDecodeError, BadName):
        pass
    raise BadStage(f"what dom0 tells of a document is not understood: {data[:64]!a}")
