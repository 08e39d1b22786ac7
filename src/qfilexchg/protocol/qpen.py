"""Requests that a VM writes to ``device/qpen``, and the replies it gets in ``qubes_qpen_reply``.

A request is one line of at most 256 bytes of printable ASCII, words between blanks. The first words are those of 2010::

    new | send VM [SEQ] | send disposable SEQ | umount | killme | cancel | status | forget SEQ

``cancel``, ``status`` and ``forget`` are ours, and so are the ``key=value`` words that may follow: ``id=`` (a token by which the
client knows its reply, and by which a repeated request is known), with ``new`` ``size=`` (bytes), with ``send disposable``
``view=only`` (the document is only to be looked at: it never comes back), with ``killme`` ``why=`` and one of
:data:`KILL_REASONS`. Words that are not understood are passed over, as in 2010, so that a newer VM can talk to an older dom0.

A reply is ``ID STATE [DETAIL…]``; ``-`` stands for the id of a request that had none.
"""

from __future__ import annotations

from qfilexchg.errors import VmError
from qfilexchg.protocol.names import DISPOSABLE, BadName, VmName

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Literal

    Verb = Literal["new", "send", "umount", "killme", "cancel", "status", "forget"]
    State = Literal["accepted", "attached", "asking", "queued", "delivered", "detached", "denied", "cancelled", "failed"]

REQUEST_MAX: Final = 256
"""Bytes. Stops a VM from making dom0 hold, split or log more than one short line."""
ID_MAX: Final = 32
"""Characters. The reply repeats the id, and dom0 remembers a few for each VM."""
NO_ID: Final = "-"
SEQ_MAX: Final = 2**31 - 1
"""The sequence number is a native signed 4-byte integer in ``~/.dvm/seq``, as in 2010. 0 means a plain copy."""
SIZE_DIGITS_MAX: Final = 18
"""Digits of ``size=``. Keeps a request from costing a big-number conversion."""

KILL_REASONS: Final = ("unchanged", "no-program", "bad-document", "failed")
"""Why a DisposableVM has no more use for itself: its document was closed as it came, nothing here opens it, it is no document, or
something went wrong. Nothing of the VM's own is let through to its asker but one of these words."""

FINAL_STATES: Final = frozenset(("attached", "delivered", "detached", "denied", "cancelled", "failed"))
"""After one of these a request has had its last reply. ``attached`` ends ``new``; no other request is answered so."""

_ID_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_DIGITS = frozenset("0123456789")


class BadRequest(VmError):
    """A request that is none. ``why`` is a fixed phrase of ours; the VM's bytes are kept apart in ``request``."""

    def __init__(self, why: str, request: bytes) -> None:
        super().__init__(why, request)
        self.why = why
        self.request = request[: REQUEST_MAX + 1]

    def __str__(self) -> str:
        return f"bad request, {self.why}: {self.request[:64]!a}"


class BadReply(VmError):
    """Seen by a VM: dom0's answer is not one of this protocol."""


class Request:
    """One request, checked. Fields that a verb does not have are None, ``seq`` is 0, ``view_only`` false and ``why`` empty."""

    __slots__ = ("request_id", "seq", "size_bytes", "target", "verb", "view_only", "why")

    def __init__(
        self,
        verb: Verb,
        *,
        target: VmName | None = None,
        seq: int = 0,
        request_id: str = NO_ID,
        size_bytes: int | None = None,
        view_only: bool = False,
        why: str = "",
    ) -> None:
        self.verb: Final = verb
        self.target: Final = target
        """Where ``send`` sends to. None means a new DisposableVM."""
        self.seq: Final = seq
        self.request_id: Final = request_id
        self.size_bytes: Final = size_bytes
        self.view_only: Final = view_only
        """Whether the document that ``send disposable`` sends is never to come back."""
        self.why: Final = why
        """Why ``killme``: one of :data:`KILL_REASONS`, or empty."""

    def _fields(self) -> tuple[object, ...]:
        return (self.verb, self.target, self.seq, self.request_id, self.size_bytes, self.view_only, self.why)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Request) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def __repr__(self) -> str:
        return f"Request({self.encode().decode('ascii')!r})"

    def encode(self) -> bytes:
        """The request as it is written to the key."""
        words: list[str] = [self.verb]
        if self.verb == "send":
            words.append(DISPOSABLE if self.target is None else self.target)
            if self.seq or self.target is None:
                words.append(str(self.seq))
        if self.verb == "forget":
            words.append(str(self.seq))
        if self.request_id != NO_ID:
            words.append(f"id={self.request_id}")
        if self.size_bytes is not None:
            words.append(f"size={self.size_bytes}")
        if self.view_only:
            words.append("view=only")
        if self.why:
            words.append(f"why={self.why}")
        return " ".join(words).encode("ascii")


def parse_request(data: bytes) -> Request:
    """Return what ``data`` asks for, or raise :exc:`BadRequest`. The only parser of what a VM writes to ``device/qpen``."""
    if len(data) > REQUEST_MAX:
        raise BadRequest(f"longer than {REQUEST_MAX} bytes", data)
    if any(byte < 0x20 or byte > 0x7E for byte in data):
        raise BadRequest("not printable ASCII", data)
    words = data.decode("ascii").split(" ")
    plain = [word for word in words if word and "=" not in word]
    options = dict(reversed([word.split("=", 1) for word in words if "=" in word]))
    request_id = options.get("id", NO_ID)
    if request_id != NO_ID and not is_request_id(request_id):
        raise BadRequest(f"id= takes 1 to {ID_MAX} letters and digits", data)
    size_bytes = None
    match plain:
        case ["new", *_]:
            if "size" in options:
                size_bytes = _number(options["size"], "size=", data)
                if size_bytes == 0:
                    raise BadRequest("size= takes at least 1 byte", data)
            return Request("new", request_id=request_id, size_bytes=size_bytes)
        case ["send", "disposable", seq, *_]:
            return Request("send", seq=_document(seq, data), request_id=request_id, view_only=options.get("view") == "only")
        case ["forget", seq, *_]:
            return Request("forget", seq=_document(seq, data), request_id=request_id)
        case ["send", "disposable"] | ["forget"]:
            raise BadRequest("a DisposableVM needs a sequence number", data)
        case ["send", target, *rest]:
            try:
                name = VmName.parse(target)
            except BadName:
                raise BadRequest("the destination is not a VM name", data) from None
            return Request("send", target=name, seq=_seq(rest[0], data) if rest else 0, request_id=request_id)
        case ["killme", *_]:
            why = options.get("why", "")
            return Request("killme", request_id=request_id, why=why if why in KILL_REASONS else "")
        case [("umount" | "cancel" | "status") as verb, *_]:
            return Request(verb, request_id=request_id)
        case _:
            raise BadRequest("unknown", data)


def is_request_id(text: str) -> bool:
    """Whether ``text`` can stand after ``id=``."""
    return 1 <= len(text) <= ID_MAX and _ID_CHARACTERS.issuperset(text)


def _number(text: str, what: str, data: bytes) -> int:
    if not 1 <= len(text) <= SIZE_DIGITS_MAX or not _DIGITS.issuperset(text):
        raise BadRequest(f"{what} takes a decimal number", data)
    return int(text)


def _seq(text: str, data: bytes) -> int:
    number = _number(text, "the sequence", data)
    if number > SEQ_MAX:
        raise BadRequest(f"the sequence is above {SEQ_MAX}", data)
    return number


def _document(text: str, data: bytes) -> int:
    number = _seq(text, data)
    if number == 0:
        raise BadRequest("a DisposableVM needs a sequence number of 1 or more", data)
    return number


class Reply:
    """An answer to one request; the last of several has a state in :data:`FINAL_STATES`."""

    __slots__ = ("detail", "request_id", "state")

    def __init__(self, request_id: str, state: State, detail: str = "") -> None:
        self.request_id: Final = request_id
        self.state: Final = state
        self.detail: Final = detail

    def _fields(self) -> tuple[object, ...]:
        return (self.request_id, self.state, self.detail)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reply) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def __repr__(self) -> str:
        return f"Reply({self.encode().decode('ascii')!r})"

    def encode(self) -> bytes:
        """The reply as it is written to the key."""
        return " ".join(word for word in (self.request_id, self.state, self.detail) if word).encode("ascii")


def parse_reply(data: bytes) -> Reply:
    """Return the reply in ``data``, as a VM reads it, or raise :exc:`BadReply`."""
    try:
        words = data.decode("ascii").split(" ", 2)
    except UnicodeDecodeError:
        raise BadReply("dom0's reply is not ASCII") from None
    match words:
        case [
            request_id,
            ("accepted" | "attached" | "asking" | "queued" | "delivered" | "detached" | "denied" | "cancelled" | "failed") as state,
            *detail,
        ]:
            return Reply(request_id, state, " ".join(detail))
        case _:
            raise BadReply(f"dom0's reply is not understood: {data[:64]!a}")
