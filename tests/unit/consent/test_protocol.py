"""The lines between daemon and agent."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfilexchg.dom0.consent.protocol import (
    LINE_MAX,
    NUMBER_MAX,
    TEXT_MAX,
    Answer,
    BadMessage,
    FromAgent,
    FromDaemon,
    Hello,
    Kind,
    Notice,
    Question,
    Screen,
    Welcome,
    Withdraw,
    encode,
    parse_from_agent,
    parse_from_daemon,
)
from qfilexchg.protocol.names import VmName

QUESTION = Question(
    id=7,
    kind=Kind.COPY,
    source=VmName.parse("work"),
    source_label="green",
    target=VmName.parse("personal"),
    size_bytes=1 << 20,
    can_remember=True,
    deadline_s=60,
)

names = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,63}", fullmatch=True).map(VmName.parse)
labels = st.none() | st.from_regex(r"[a-z]{1,32}", fullmatch=True)
numbers = st.integers(0, NUMBER_MAX)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=TEXT_MAX)
questions = st.builds(
    Question,
    id=numbers,
    kind=st.sampled_from(Kind),
    source=names,
    source_label=labels,
    target=st.none() | names,
    target_label=labels,
    size_bytes=numbers,
    busy=st.booleans(),
    deadline_s=numbers,
)
screens = st.builds(Screen, names, st.from_regex(r"/[a-z0-9./ä-]{1,100}", fullmatch=True))
from_daemon = questions | st.just(Welcome()) | st.builds(Withdraw, numbers) | st.builds(Notice, texts, labels) | screens
from_agent = st.builds(Hello, st.from_regex(r"[a-z]{1,32}", fullmatch=True)) | st.builds(Answer, numbers, st.booleans())


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (Hello("tty"), b'{"hello": 1, "kind": "tty"}\n'),
        (Answer(7, True), b'{"answer": 7, "allow": true}\n'),
        (Answer(7, True, remember=True), b'{"answer": 7, "allow": true, "remember": true}\n'),
        (Welcome(), b'{"welcome": 1}\n'),
        (Withdraw(7), b'{"withdraw": 7}\n'),
        (Screen(VmName.parse("disp3"), "/run/screen"), b'{"screen": "disp3", "socket": "/run/screen"}\n'),
        (Notice("größer", "0a"), '{"notice": "größer", "transfer": "0a"}\n'.encode()),
        (
            QUESTION,
            b'{"question": 7, "kind": "copy", "source": "work", "source_label": "green", "target": "personal", "target_label": null, '
            b'"size_bytes": 1048576, "busy": false, "can_remember": true, "deadline_s": 60}\n',
        ),
    ],
)
def test_the_lines_are_those_of_the_documentation(message: FromDaemon | FromAgent, line: bytes) -> None:
    assert encode(message) == line


@given(from_daemon)
def test_what_the_daemon_says_arrives(message: FromDaemon) -> None:
    line = encode(message)
    assert line.count(b"\n") == 1
    assert len(line) <= LINE_MAX
    assert parse_from_daemon(line) == message


@given(from_agent)
def test_what_an_agent_says_arrives(message: FromAgent) -> None:
    assert parse_from_agent(encode(message)) == message


def test_a_text_that_is_too_long_is_cut() -> None:
    assert parse_from_daemon(encode(Notice("\0" * (TEXT_MAX + 1)))) == Notice("\0" * TEXT_MAX)


def test_half_a_character_does_not_stop_a_notice() -> None:
    assert parse_from_daemon(encode(Notice("a\ud800b"))) == Notice("a\ud800b")


UNCLEAR = [
    (b"", "cut off"),
    (b'{"answer": 7, "allow": true}', "cut off"),
    (b"\n", "no JSON"),
    (b"yes\n", "no JSON"),
    (b"true\n", "no object"),
    (b"[]\n", "no object"),
    (b"{}\n", "neither"),
    (b'{"answer": 7}\n', "neither"),
    (b'{"answer": 7, "allow": true, "really": true}\n', "neither"),
    (b'{"answer": 7, "allow": true} {"answer": 8, "allow": true}\n', "no JSON"),
    (b'{"answer": 7, "allow": false, "allow": true}\n', "twice"),
    (b'{"answer": 7, "allow": 1}\n', "neither true nor false"),
    (b'{"answer": 7, "allow": false, "remember": true}\n', "not a yes"),
    (b'{"answer": 7, "allow": true, "remember": false}\n', "not a yes"),
    (b'{"answer": 7, "allow": 1, "remember": 1}\n', "not a yes"),
    (b'{"answer": 7, "allow": true, "remember": "yes"}\n', "not a yes"),
    (b'{"answer": 7, "remember": true}\n', "neither"),
    (b'{"answer": 7, "allow": "true"}\n', "neither true nor false"),
    (b'{"answer": 7, "allow": null}\n', "neither true nor false"),
    (b'{"answer": true, "allow": true}\n', "not a number"),
    (b'{"answer": 7.0, "allow": true}\n', "not a number"),
    (b'{"answer": -1, "allow": true}\n', "not a number"),
    (b'{"answer": 9007199254740992, "allow": true}\n', "not a number"),
    (b'{"answer": ' + b"9" * 5000 + b', "allow": true}\n', "no JSON"),
    (b'{"answer": NaN, "allow": true}\n', "no JSON"),
    (b'{"answer": "7", "allow": true}\n', "not a number"),
    (b'{"hello": 2, "kind": "tty"}\n', "another version"),
    (b'{"hello": 1, "kind": "a b"}\n', "not a word"),
    (b'{"hello": 1, "kind": ""}\n', "not a word"),
    (b'{"question": 7}\n', "neither"),
    (b"\xff\n", "no JSON"),
    (b"[" * 5000 + b"\n", "no JSON"),
    (b" " * LINE_MAX + b"\n", "longer than"),
]


@pytest.mark.parametrize(("line", "why"), UNCLEAR)
def test_an_unclear_line_of_an_agent_is_no_answer(line: bytes, why: str) -> None:
    with pytest.raises(BadMessage, match=why) as caught:
        parse_from_agent(line)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("source", "dom 0"),
        ("source", None),
        ("source_label", "\x1b[31m"),
        ("target", ""),
        ("target", "-rf"),
        ("kind", "shred"),
        ("kind", ["copy"]),
        ("size_bytes", -1),
        ("busy", "no"),
        ("can_remember", 1),
        ("deadline_s", None),
        ("more", 1),
    ],
)
def test_a_question_with_one_wrong_field_is_not_shown(key: str, value: object) -> None:
    fields = json.loads(encode(QUESTION)) | {key: value}
    with pytest.raises(BadMessage):
        parse_from_daemon(json.dumps(fields).encode() + b"\n")


@given(st.binary(max_size=200).map(lambda data: data + b"\n"))
def test_any_bytes_are_a_message_or_one_clear_error(line: bytes) -> None:
    for parse in (parse_from_agent, parse_from_daemon):
        with pytest.raises(BadMessage):
            parse(line)


@given(from_agent, st.data())
def test_one_changed_byte_never_turns_a_no_into_a_yes(message: FromAgent, data: st.DataObject) -> None:
    line = bytearray(encode(message))
    line[data.draw(st.integers(0, len(line) - 1))] = data.draw(st.integers(0, 255))
    try:
        heard = parse_from_agent(bytes(line))
    except BadMessage:
        return
    if isinstance(heard, Answer) and heard.allow:
        assert isinstance(message, Answer)
        assert message.allow
