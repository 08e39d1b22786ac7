"""An agent of a graphical session without the graphics: what is shown is recorded, and the test is the daemon."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from qfilexchg.dom0.consent.asking import Answering, Asking, DaemonEnded
from qfilexchg.dom0.consent.dialog import FOCUS_S, View
from qfilexchg.dom0.consent.protocol import (
    Answer,
    BadMessage,
    FromAgent,
    FromDaemon,
    Hello,
    Notice,
    Question,
    Screen,
    Welcome,
    Withdraw,
    encode,
    parse_from_agent,
)
from qfilexchg.protocol.names import VmName


@dataclass
class Window:
    """A question as the person would see it."""

    question: Question
    person: Answering
    views: list[View] = field(default_factory=list)
    closed: bool = False

    def update(self, view: View) -> None:
        assert not self.closed
        self.views.append(view)

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class Scene:
    def __init__(self, daemon: socket.socket, agent: socket.socket) -> None:
        self.now_s = 0.0
        self.windows: list[Window] = []
        self.told: list[tuple[str | None, str]] = []
        self.daemon = daemon
        self.screens: list[Path] = []
        self.blind: str | None = None
        self.asking = Asking("test", self.show, lambda key, text: self.told.append((key, text)), self.look, lambda: self.now_s)
        self.asking.begin(agent)
        assert self.hears() == [Hello("test")]

    def show(self, question: Question, person: Answering) -> Window:
        self.windows.append(Window(question, person))
        return self.windows[-1]

    def look(self, socket: Path) -> str | None:
        self.screens.append(socket)
        return self.blind

    def says(self, *messages: FromDaemon) -> None:
        self.daemon.sendall(b"".join(map(encode, messages)))
        self.asking.read()

    def hears(self) -> list[FromAgent]:
        """All that has been said."""
        self.daemon.setblocking(False)
        try:
            return [parse_from_agent(line) for line in self.daemon.recv(65536).splitlines(keepends=True)]
        except BlockingIOError:
            return []

    @property
    def open(self) -> list[Window]:
        return [window for window in self.windows if not window.closed]


@pytest.fixture
def scene() -> Iterator[Scene]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Scene(ours, theirs)


def test_a_question_is_shown_and_its_answer_sent(scene: Scene, question: Question) -> None:
    scene.says(Welcome(), question)
    (window,) = scene.open
    assert window.question == question and not window.views[-1].can_allow
    window.person.focus(True)
    assert not window.person.answer(True)
    assert scene.hears() == [] and not window.closed
    scene.now_s = FOCUS_S
    scene.asking.refresh()
    assert window.views[-1].can_allow
    assert window.person.answer(True)
    assert scene.hears() == [Answer(7, True)] and window.closed and not scene.asking.is_open


def test_there_is_one_window_at_a_time(scene: Scene, question: Question) -> None:
    scene.says(question, replace(question, id=8))
    (first,) = scene.open
    assert first.views[-1].waiting == 1
    assert first.person.answer(False)
    (second,) = scene.open
    assert second.question.id == 8
    assert not first.person.answer(False), "the window that has gone answers no other question"
    first.person.focus(True)
    scene.now_s = FOCUS_S
    assert not second.person.answer(True)
    assert scene.hears() == [Answer(7, False)]


def test_too_many_questions_of_one_vm_are_denied(scene: Scene, question: Question) -> None:
    scene.says(*(replace(question, id=number) for number in range(6)))
    assert scene.hears() == [Answer(4, False), Answer(5, False)]


def test_a_withdrawn_question_closes(scene: Scene, question: Question) -> None:
    scene.says(question)
    scene.says(Withdraw(7))
    assert scene.open == [] and scene.hears() == []


def test_a_question_closes_when_its_time_is_over(scene: Scene, question: Question) -> None:
    scene.says(question)
    scene.now_s = question.deadline_s
    scene.asking.refresh()
    assert scene.open == [] and scene.hears() == []


def test_a_notice_that_comes_with_a_question_is_told_while_that_is_open(scene: Scene, question: Question) -> None:
    opens: list[bool] = []
    scene.asking._tell = lambda key, text: opens.append(scene.asking.is_open)
    scene.says(question, Notice("delivered", "0a"))
    assert opens == [True]


def test_the_end_of_the_daemon_closes_everything(scene: Scene, question: Question) -> None:
    scene.says(question, replace(question, id=8))
    scene.daemon.shutdown(socket.SHUT_RDWR)
    with pytest.raises(DaemonEnded):
        scene.asking.read()
    assert scene.open == []


def test_an_answer_to_a_daemon_that_has_gone_is_none(scene: Scene, question: Question) -> None:
    scene.says(question)
    scene.daemon.close()
    with pytest.raises(DaemonEnded):
        scene.open[0].person.answer(False)
    assert scene.open == []


def test_its_own_end_denies_what_is_open(scene: Scene, question: Question) -> None:
    scene.says(question, replace(question, id=8))
    scene.asking.end()
    assert scene.hears() == [Answer(7, False), Answer(8, False)] and scene.open == []


def test_a_screen_is_opened_and_where_it_cannot_be_the_person_is_told(scene: Scene) -> None:
    screen = Screen(VmName.parse("disp3"), "/run/domain/7/screen")
    scene.says(screen)
    assert scene.screens == [Path("/run/domain/7/screen")] and scene.told == []
    scene.blind = "there is no viewer"
    scene.says(screen)
    assert scene.told == [(None, "disp3 has a document open, which is not shown: there is no viewer")]


def test_what_is_no_message_is_not_shown(scene: Scene) -> None:
    scene.daemon.sendall(b'{"question": 7}\n')
    with pytest.raises(BadMessage):
        scene.asking.read()
    assert scene.windows == []


def test_a_new_connection_begins_with_nothing_of_the_last_one(scene: Scene, question: Question) -> None:
    scene.says(question)
    scene.daemon.sendall(b'{"withdraw"')
    scene.asking.read()
    scene.daemon.shutdown(socket.SHUT_RDWR)
    with pytest.raises(DaemonEnded):
        scene.asking.read()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        scene.daemon = ours
        scene.asking.begin(theirs)
        assert scene.hears() == [Hello("test")]
        scene.says(replace(question, id=1))
        assert [window.question.id for window in scene.open] == [1]
