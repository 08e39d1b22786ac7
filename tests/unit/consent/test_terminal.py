"""The agent on a terminal: a real pseudo-terminal, a real socket. The test plays the daemon on one and the person on the other."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import select
import socket
import subprocess
import termios
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import qfilexchg
from qfilexchg.dom0.cli import __main__ as dispatcher
from qfilexchg.dom0.consent.agents import Agents, Consent
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
from qfilexchg.dom0.consent.terminal import DAEMON_ENDED, ENDED, TerminalAgent
from qfilexchg.protocol.names import VmName
from tests.python import PYTHON

TIMEOUT_S = 20
ASKED = "Allow work this? [y/N] "


@dataclass
class Person:
    """Who sits at the terminal."""

    terminal: int
    screen: str = ""

    def sees(self, text: str) -> str:
        """Wait until ``text`` is on the screen; return what was there up to its end, and look only at what comes after it."""
        deadline = time.monotonic() + TIMEOUT_S
        while text not in self.screen:
            if not select.select([self.terminal], [], [], deadline - time.monotonic())[0]:
                raise AssertionError(f"{text!r} is not in {self.screen!r}")
            self.screen += os.read(self.terminal, 65536).decode().replace("\r\n", "\n")
        end = self.screen.index(text) + len(text)
        seen, self.screen = self.screen[:end], self.screen[end:]
        return seen

    def types(self, text: str) -> None:
        os.write(self.terminal, text.encode())


@dataclass
class Daemon:
    """Who asks."""

    connection: socket.socket
    heard: bytearray = field(default_factory=bytearray)

    def say(self, *messages: FromDaemon) -> None:
        self.connection.sendall(b"".join(map(encode, messages)))

    def hears(self) -> FromAgent:
        while b"\n" not in self.heard:
            data = self.connection.recv(65536)
            assert data, "the agent has ended"
            self.heard += data
        end = self.heard.index(b"\n") + 1
        line = bytes(self.heard[:end])
        del self.heard[:end]
        return parse_from_agent(line)

    def hears_no_more(self) -> None:
        assert not self.heard
        assert self.connection.recv(65536) == b""


@dataclass
class Scene:
    """A running agent between the two."""

    person: Person
    daemon: Daemon
    clock: list[float]
    _thread: threading.Thread
    _result: list[int | BaseException]

    def ended(self) -> int:
        self._thread.join(TIMEOUT_S)
        [result] = self._result
        if isinstance(result, BaseException):
            raise result
        return result


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(theirs)
    with contextlib.suppress(OSError):
        os.close(ours)


@pytest.fixture
def scene(terminal: tuple[int, int]) -> Iterator[Scene]:
    ours, theirs = terminal
    daemon, connection = socket.socketpair()
    daemon.settimeout(TIMEOUT_S)
    result: list[int | BaseException] = []
    clock = [0.0]

    def run() -> None:
        with connection:
            try:
                result.append(TerminalAgent(connection, theirs, theirs, lambda: clock[0]).run())
            except BaseException as error:
                result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    scene = Scene(Person(ours), Daemon(daemon), clock, thread, result)
    with daemon:
        assert scene.daemon.hears() == Hello("tty")
        scene.daemon.say(Welcome())
        scene.person.sees("Waiting for questions")
        scene.person.sees("\n")
        yield scene
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()


def test_the_question_names_the_vms_the_size_and_the_time(scene: Scene, question: Question) -> None:
    scene.daemon.say(question)
    assert scene.person.sees(ASKED) == (
        "\a\nwork → personal: hand over 1.00 MiB?\n"
        "work (green) asks to give personal its pendrive with 1.00 MiB of files.\n"
        "No answer within 30 s means no.\n" + ASKED
    )


@pytest.mark.parametrize("line", ["y\n", "yes\n", "Y\n", " YES \n"])
def test_yes_is_a_yes(scene: Scene, question: Question, line: str) -> None:
    scene.daemon.say(question)
    scene.person.sees(ASKED)
    scene.person.types(line)
    assert scene.daemon.hears() == Answer(7, True)
    scene.person.sees("Allowed.\n")


@pytest.mark.parametrize("line", ["\n", "n\n", "no\n", "yy\n", "yes please\n", "ja\n", "y\x04", "y y\n", "\x1b[A\n", "ÿ\n"])
def test_any_other_line_is_a_no(scene: Scene, question: Question, line: str) -> None:
    scene.daemon.say(question)
    scene.person.sees(ASKED)
    scene.person.types(line)
    assert scene.daemon.hears() == Answer(7, False)
    scene.person.sees("Refused.\n")


def test_what_was_typed_before_the_question_does_not_count(scene: Scene, question: Question) -> None:
    scene.daemon.say(question, replace(question, id=8))
    scene.person.sees(ASKED)
    scene.person.types("n\ny\ny")
    assert scene.daemon.hears() == Answer(7, False)
    scene.person.sees(ASKED)
    scene.person.types("\n")
    assert scene.daemon.hears() == Answer(8, False)


def test_what_is_typed_while_nothing_is_asked_is_thrown_away(scene: Scene, question: Question) -> None:
    scene.person.types("yes\n")
    scene.person.sees("yes\n")
    scene.daemon.say(question)
    scene.person.sees(ASKED)
    scene.person.types("no\n")
    assert scene.daemon.hears() == Answer(7, False)


def test_questions_are_asked_one_after_the_other(scene: Scene, question: Question) -> None:
    scene.daemon.say(*(replace(question, id=number, size_bytes=number) for number in (1, 2, 3)))
    for number, line in ((1, "y"), (2, "n"), (3, "y")):
        shown = scene.person.sees(ASKED)
        assert shown.count("hand over") == 1
        assert f"hand over {number} byte" in shown
        scene.person.types(f"{line}\n")
        assert scene.daemon.hears() == Answer(number, line == "y")


def test_a_withdrawn_question_says_so_and_the_next_one_comes(scene: Scene, question: Question) -> None:
    scene.daemon.say(question, replace(question, id=8, size_bytes=8))
    scene.person.sees(ASKED)
    scene.daemon.say(Withdraw(7))
    scene.person.sees("The question is withdrawn.\n")
    assert "8 bytes" in scene.person.sees(ASKED)
    scene.person.types("y\n")
    assert scene.daemon.hears() == Answer(8, True)


def test_a_yes_typed_for_a_withdrawn_question_does_not_count_for_the_next(scene: Scene, question: Question) -> None:
    scene.daemon.say(question)
    scene.person.sees(ASKED)
    scene.person.types("y")
    scene.person.sees("y")
    scene.daemon.say(Withdraw(7), replace(question, id=8))
    scene.person.sees(ASKED)
    scene.person.types("\n")
    assert scene.daemon.hears() == Answer(8, False)


def test_a_question_that_is_withdrawn_while_it_waits_is_never_shown(scene: Scene, question: Question) -> None:
    scene.daemon.say(question, replace(question, id=8), replace(question, id=9, size_bytes=9), Withdraw(8), Withdraw(100))
    scene.person.sees(ASKED)
    scene.person.types("y\n")
    assert scene.daemon.hears() == Answer(7, True)
    assert "9 bytes" in scene.person.sees(ASKED)


def test_after_its_time_a_question_cannot_be_answered(scene: Scene, question: Question) -> None:
    scene.daemon.say(replace(question, deadline_s=1))
    scene.person.sees(ASKED)
    scene.clock[0] = 1.0
    scene.daemon.say(Notice("time passes"))
    scene.person.sees("No answer in time: refused.\n")
    scene.person.types("y\n")
    scene.daemon.say(Withdraw(7), replace(question, id=8))
    scene.person.sees(ASKED)
    scene.person.types("n\n")
    assert scene.daemon.hears() == Answer(8, False)


def test_when_the_daemon_was_first_to_see_that_time_is_over_it_is_said_in_the_same_way(scene: Scene, question: Question) -> None:
    scene.daemon.say(question)
    scene.person.sees(ASKED)
    scene.clock[0] = 29.9
    scene.daemon.say(Withdraw(7))
    scene.person.sees("No answer in time: refused.\n")


def test_a_question_whose_time_ran_out_while_it_waited_is_not_shown(scene: Scene, question: Question) -> None:
    scene.daemon.say(question, replace(question, id=8, deadline_s=5), replace(question, id=9, size_bytes=9, deadline_s=25))
    scene.daemon.say(Notice("all three are there"))
    scene.person.sees("there\n" + ASKED)
    scene.clock[0] = 10.0
    scene.person.types("y\n")
    assert scene.daemon.hears() == Answer(7, True)
    shown = scene.person.sees(ASKED)
    assert "9 bytes" in shown
    assert "within 15 s" in shown


def test_a_notice_is_one_line_and_the_prompt_comes_again(scene: Scene, question: Question) -> None:
    scene.daemon.say(Notice("work → personal: delivered \x1b[2J"))
    scene.person.sees("* work → personal: delivered \\x1b[2J\n")
    scene.daemon.say(question)
    scene.person.sees(ASKED)
    scene.daemon.say(Notice("bank has ended"))
    assert scene.person.sees(ASKED) == "\n* bank has ended\n" + ASKED


def test_where_a_screen_can_be_seen_is_said(scene: Scene) -> None:
    scene.daemon.say(Screen(VmName.parse("disp1"), "/run/screen"))
    assert scene.person.sees("/run/screen\n").endswith(
        "* disp1 shows its document on the screen that is served by VNC at the Unix socket /run/screen\n"
    )


def test_the_end_of_input_refuses_what_is_open_and_ends(scene: Scene, question: Question) -> None:
    scene.daemon.say(question, replace(question, id=8))
    scene.person.sees(ASKED)
    scene.person.types("\x04")
    assert (scene.daemon.hears(), scene.daemon.hears()) == (Answer(7, False), Answer(8, False))
    assert scene.ended() == ENDED
    scene.daemon.hears_no_more()


def test_a_terminal_that_hangs_up_refuses_what_is_open_and_ends(scene: Scene, question: Question) -> None:
    scene.daemon.say(question)
    scene.person.sees(ASKED)
    os.close(scene.person.terminal)
    assert scene.daemon.hears() == Answer(7, False)
    assert scene.ended() == ENDED


def test_the_end_of_the_daemon_is_said(scene: Scene, question: Question) -> None:
    scene.daemon.say(question)
    scene.person.sees(ASKED)
    scene.daemon.connection.shutdown(socket.SHUT_RDWR)
    assert scene.ended() == DAEMON_ENDED
    scene.person.sees("qfilexchgd has ended the connection")


@pytest.mark.parametrize("line", [b"hello\n", b'{"question": 1}\n', b"x" * 9000])
def test_a_message_that_is_none_ends_the_agent(scene: Scene, line: bytes) -> None:
    scene.daemon.connection.sendall(line)
    with pytest.raises(BadMessage):
        scene.ended()
    scene.daemon.hears_no_more()


def test_a_message_may_come_byte_by_byte(scene: Scene, question: Question) -> None:
    for byte in encode(question):
        scene.daemon.connection.sendall(bytes([byte]))
    scene.person.sees(ASKED)


class TestTheCommand:
    """``qfilexchg-agent --tty`` as a process with a terminal of its own, against the daemon's own side."""

    @pytest.fixture
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("QFILEXCHG_HOME", str(tmp_path))
        (tmp_path / "run").mkdir()
        return tmp_path

    def start(self, terminal: tuple[int, int]) -> subprocess.Popen[bytes]:
        theirs = terminal[1]
        return subprocess.Popen(
            [*PYTHON, "-m", "qfilexchg.dom0.cli", "qfilexchg-agent", "--tty"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | {"PYTHONPATH": str(Path(qfilexchg.__file__).parents[1])},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def play(self, home: Path, terminal: tuple[int, int], scenario: Callable[[Agents, Person], Awaitable[None]]) -> int:
        """Run the command and ``scenario`` beside it; return the command's exit status."""

        async def main() -> int:
            async with asyncio.timeout(TIMEOUT_S), Agents.serve(home / "run/agent.socket") as agents:
                with self.start(terminal) as agent:
                    person = Person(terminal[0])
                    await asyncio.to_thread(person.sees, "Waiting for questions")
                    await scenario(agents, person)
                    return await asyncio.to_thread(agent.wait, TIMEOUT_S)

        return asyncio.run(main())

    @pytest.mark.parametrize(
        ("typed", "consent"),
        [("y\n", Consent.ALLOWED), ("n\n", Consent.DENIED), ("\x03", Consent.DENIED), ("\x04", Consent.DENIED)],
    )
    def test_what_the_person_types_is_what_the_daemon_gets(
        self, home: Path, terminal: tuple[int, int], question: Question, typed: str, consent: Consent
    ) -> None:
        async def scenario(agents: Agents, person: Person) -> None:
            asking = asyncio.create_task(agents.ask(question))
            await asyncio.to_thread(person.sees, ASKED)
            person.types(typed)
            assert await asking is consent
            if typed.endswith("\n"):
                person.types("\x03")

        assert self.play(home, terminal, scenario) == ENDED

    def test_without_a_terminal_it_says_so(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert dispatcher.main(["qfilexchg-agent", "--tty"]) == dispatcher.FAILED
        assert "there is no terminal to ask on" in capsys.readouterr().err

    def test_without_a_daemon_it_says_so(self, home: Path, terminal: tuple[int, int]) -> None:
        with self.start(terminal) as agent:
            Person(terminal[0]).sees(f"qfilexchgd cannot be reached at {home}/run/agent.socket (No such file or directory)")
            assert agent.wait(TIMEOUT_S) == dispatcher.FAILED

    def test_the_help_lists_the_exit_statuses(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            dispatcher.main(["qfilexchg-agent", "--help"])
        assert caught.value.code == 0
        assert f"{DAEMON_ENDED} qfilexchgd has ended" in " ".join(capsys.readouterr().out.split())
