"""What qfilexchgd and a consent agent say to each other.

An agent is a process in the person's session that can put a question to them: on a terminal, on the desktop. It connects to the
daemon's socket (``agent.socket`` in the home's run folder), which takes root and its own user only. Both sides send JSON objects
in UTF-8, one a line, of at most 8192 bytes.

The agent begins, and is told that it is registered::

    agent   {"hello": 1, "kind": "tty"}
    daemon  {"welcome": 1}

From then on the daemon may ask; of several agents, the one of the session that the person has before them, and of those the one
that came last. ``source`` and ``target`` are VM names, ``target`` null for a new DisposableVM, the labels colours or null. ``kind``
says what is asked: ``copy``, may these files go; ``wait``, they may, but the receiver is busy: wait for it? ``busy`` says that the
receiver still has another pendrive, so that a yes will wait; ``can_remember``, that the person may be offered *always*::

    daemon  {"question": 7, "kind": "copy", "source": "work", "source_label": "green", "target": "personal",
             "target_label": null, "size_bytes": 1048576, "busy": false, "can_remember": true, "deadline_s": 60}
    agent   {"answer": 7, "allow": true}

An answer ``{"answer": 7, "allow": true, "remember": true}`` is *always for these two VMs*: the daemon makes a rule of it. No answer
within ``deadline_s`` is a no. The daemon may take a question back, which is then not to be answered, and tell the person something;
a notice with the ``transfer`` of an earlier one takes its place::

    daemon  {"withdraw": 7}
    daemon  {"notice": "work → personal: delivered", "transfer": "4f0c9a1b2d3e5f60"}

A DisposableVM that has just been given its document may have a screen. The agent that would be asked opens it for the person, by the
VNC protocol at the Unix socket; the display ends with the VM::

    daemon  {"screen": "disp3", "socket": "/run/user/1000/qfilexchg/domain/7/screen"}

Whatever is not exactly one of these ends the connection, and a question that is open then is answered with no. So does the end
of the connection itself. There is no way to say yes but ``"allow": true`` to a question that is open, and a no is never remembered.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from qfilexchg.errors import HostError
from qfilexchg.protocol.names import BadName, VmName

VERSION: Final = 1
LINE_MAX: Final = 8192
"""Bytes with the newline. A program that goes mad on the other side fills no memory."""
TEXT_MAX: Final = 1000
"""Characters of a notice; escaped they still fit into a line."""
NUMBER_MAX: Final = 2**53 - 1
"""Above it some JSON libraries round."""
WORD_MAX: Final = 32

_WORD = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")


class Kind(enum.Enum):
    """What a person is asked."""

    COPY = "copy"
    WAIT = "wait"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question. ``id`` is never used again by the same daemon; ``target`` None is a new DisposableVM."""

    id: int
    kind: Kind
    source: VmName
    source_label: str | None = None
    target: VmName | None
    target_label: str | None = None
    size_bytes: int
    busy: bool = False
    can_remember: bool = False
    deadline_s: int


@dataclass(frozen=True, slots=True)
class Welcome:
    """The agent is registered and may be asked from now on."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The question needs no answer any more."""

    question: int


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the person should know. ``transfer`` names what it is about."""

    text: str
    transfer: str | None = None


@dataclass(frozen=True, slots=True)
class Screen:
    """The person is to see the screen of ``vm``; it is served by VNC at the Unix socket of this absolute path."""

    vm: VmName
    socket: str


@dataclass(frozen=True, slots=True)
class Hello:
    """An agent registers. ``kind`` is for the log."""

    kind: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What the person said. ``remember`` goes with a yes alone: it holds for these two VMs from now on."""

    question: int
    allow: bool
    remember: bool = False


FromDaemon = Question | Welcome | Withdraw | Notice | Screen
FromAgent = Hello | Answer


class BadMessage(HostError):
    """A line that is no message of this protocol. ``why`` is our phrase, ``line`` what came."""

    def __init__(self, why: str, line: bytes) -> None:
        super().__init__(why, line)
        self.why = why
        self.line = line[:LINE_MAX]

    def __str__(self) -> str:
        return f"not understood, {self.why}: {self.line[:64]!a}"


def encode(message: FromDaemon | FromAgent) -> bytes:
    """The line that carries ``message``, with its newline. Texts that are too long are cut."""
    fields: Mapping[str, object]
    match message:
        case Question():
            fields = {
                "question": message.id,
                "kind": message.kind.value,
                "source": message.source,
                "source_label": message.source_label,
                "target": message.target,
                "target_label": message.target_label,
                "size_bytes": message.size_bytes,
                "busy": message.busy,
                "can_remember": message.can_remember,
                "deadline_s": message.deadline_s,
            }
        case Welcome():
            fields = {"welcome": VERSION}
        case Withdraw(question):
            fields = {"withdraw": question}
        case Notice(text, transfer):
            fields = {"notice": text[:TEXT_MAX], "transfer": transfer}
        case Screen(vm, path):
            fields = {"screen": vm, "socket": path}
        case Hello(kind):
            fields = {"hello": VERSION, "kind": kind}
        case Answer(question, allow, remember):
            fields = {"answer": question, "allow": allow} | ({"remember": True} if remember else {})
    return json.dumps(fields, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"


def parse_from_agent(line: bytes) -> FromAgent:
    """What an agent's line says, or :exc:`BadMessage`."""
    return _parse(line, _from_agent)


def parse_from_daemon(line: bytes) -> FromDaemon:
    """What the daemon's line says, or :exc:`BadMessage`."""
    return _parse(line, _from_daemon)


class Lines:
    """The messages of the daemon in a stream of bytes, however they are cut."""

    def __init__(self) -> None:
        self._heard = bytearray()

    def feed(self, data: bytes) -> Iterator[FromDaemon]:
        """The messages that ``data`` completes, each parsed when it is asked for. Raises :exc:`BadMessage`."""
        self._heard += data
        while (end := self._heard.find(b"\n") + 1) or len(self._heard) > LINE_MAX:
            line = bytes(self._heard[: end or None])
            del self._heard[: len(line)]
            yield parse_from_daemon(line)


T = TypeVar("T")


def _parse(line: bytes, build: Callable[[Mapping[str, object]], T]) -> T:
    if len(line) > LINE_MAX:
        raise BadMessage(f"longer than {LINE_MAX} bytes", line)
    if not line.endswith(b"\n"):
        raise BadMessage("cut off", line)
    try:
        fields = json.loads(line.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
        if not isinstance(fields, dict):
            raise _Unclear("no object")
        return build(fields)
    except _Unclear as error:
        raise BadMessage(str(error), line) from None
    except (ValueError, RecursionError):
        raise BadMessage("no JSON", line) from None


class _Unclear(Exception):
    """Why an object is no message."""


def _from_agent(fields: Mapping[str, object]) -> FromAgent:
    match fields:
        case {"hello": version, "kind": kind, **rest} if not rest:
            _version(version)
            return Hello(_word(kind))
        case {"answer": question, "allow": allow, "remember": remember, **rest} if not rest:
            if not (allow is remember is True):
                raise _Unclear("what is remembered is not a yes")
            return Answer(_number(question), True, remember=True)
        case {"answer": question, "allow": allow, **rest} if not rest:
            return Answer(_number(question), _truth(allow))
        case _:
            raise _Unclear("neither hello nor answer")


def _from_daemon(fields: Mapping[str, object]) -> FromDaemon:
    match fields:
        case {
            "question": question,
            "kind": kind,
            "source": source,
            "source_label": source_label,
            "target": target,
            "target_label": target_label,
            "size_bytes": size_bytes,
            "busy": busy,
            "can_remember": can_remember,
            "deadline_s": deadline_s,
            **rest,
        } if not rest:
            return Question(
                id=_number(question),
                kind=_kind(kind),
                source=_name(source),
                source_label=None if source_label is None else _word(source_label),
                target=None if target is None else _name(target),
                target_label=None if target_label is None else _word(target_label),
                size_bytes=_number(size_bytes),
                busy=_truth(busy),
                can_remember=_truth(can_remember),
                deadline_s=_number(deadline_s),
            )
        case {"welcome": version, **rest} if not rest:
            _version(version)
            return Welcome()
        case {"withdraw": question, **rest} if not rest:
            return Withdraw(_number(question))
        case {"notice": text, "transfer": transfer, **rest} if not rest:
            return Notice(_text(text), None if transfer is None else _word(transfer))
        case {"screen": vm, "socket": path, **rest} if not rest:
            return Screen(_name(vm), _path(path))
        case _:
            raise _Unclear("unknown message")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise _Unclear("a key comes twice")
    return fields


def _refuse(constant: str) -> None:
    raise _Unclear("no JSON")


def _version(value: object) -> None:
    if _number(value) != VERSION:
        raise _Unclear(f"another version of the protocol than {VERSION}")


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= NUMBER_MAX:
        raise _Unclear("not a number that can stand here")
    return value


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise _Unclear("neither true nor false")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > TEXT_MAX:
        raise _Unclear(f"not a text of at most {TEXT_MAX} characters")
    return value


def _path(value: object) -> str:
    path = _text(value)
    if not path.startswith("/") or "\0" in path:
        raise _Unclear("not the path of a socket")
    return path


def _word(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= WORD_MAX or not _WORD.issuperset(value):
        raise _Unclear("not a word that can stand here")
    return value


def _kind(value: object) -> Kind:
    try:
        return Kind(value)
    except ValueError:
        raise _Unclear("an unknown kind of question") from None


def _name(value: object) -> VmName:
    try:
        return VmName.parse(_text(value))
    except BadName:
        raise _Unclear("not a VM name") from None
