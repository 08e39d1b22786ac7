"""The agent with programs for dialogs. They are played by scripts; what the real ones do with their arguments is in ``tests/desktop``."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from qfilexchg.dom0.consent import dialog_programs
from qfilexchg.dom0.consent.connection import NoDaemon
from qfilexchg.dom0.consent.dialog_programs import PROGRAMS, ProgramAgent, find, text
from qfilexchg.dom0.consent.protocol import Answer, Hello, Kind, Notice, Question, Welcome, encode, parse_from_agent
from qfilexchg.protocol.names import VmName

TIMEOUT_S = 20


class Over(Exception):
    """Ends the agent of a test: the daemon is not there a second time."""


@dataclass
class Scene:
    """The daemon's end, and what the agent told the person."""

    connection: socket.socket
    told: list[tuple[str | None, str]]

    def hears(self) -> object:
        with self.connection.makefile("rb", buffering=0) as lines:
            return parse_from_agent(lines.readline())


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Scene]]:
    """Starts an agent with a program called ``name`` that does what ``script`` says, with the first second over at once."""
    monkeypatch.setattr("qfilexchg.dom0.consent.dialog.FOCUS_S", 0.0)
    monkeypatch.setattr(dialog_programs, "CONNECT_AGAIN_S", 0.0)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    ours, theirs = socket.socketpair()
    ours.settimeout(TIMEOUT_S)
    connections = iter([theirs])
    threads: list[threading.Thread] = []

    def connect() -> socket.socket:
        try:
            return next(connections)
        except StopIteration:
            raise Over from None

    def start(name: str, script: str) -> Scene:
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
        program = next(program for program in PROGRAMS if program.name == name)
        scene = Scene(ours, [])

        def tell(key: str | None, text: str) -> bool:
            scene.told.append((key, text))
            return True

        def run() -> None:
            with pytest.raises(Over):
                ProgramAgent(program, str(tmp_path / name), connect, tell, lambda socket: None).run()

        threads.append(threading.Thread(target=run))
        threads[0].start()
        assert scene.hears() == Hello(name)
        ours.sendall(encode(Welcome()))
        return scene

    yield start
    ours.close()
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
@pytest.mark.parametrize("status", [0, 1, 2, 5, 10, 70, 127, 252])
def test_one_exit_status_alone_is_a_yes(
    play: Callable[[str, str], Scene], program: dialog_programs.Program, status: int, question: Question
) -> None:
    scene = play(program.name, f"exit {status}")
    scene.connection.sendall(encode(question))
    assert scene.hears() == Answer(7, status == program.yes)


def test_a_program_that_is_killed_or_cannot_run_is_a_no(play: Callable[[str, str], Scene], question: Question) -> None:
    scene = play("zenity", "kill -9 $$")
    scene.connection.sendall(encode(question))
    assert scene.hears() == Answer(7, False)


def test_a_notice_is_told_with_its_key(play: Callable[[str, str], Scene], question: Question) -> None:
    scene = play("yad", "exit 10")
    scene.connection.sendall(encode(Notice("delivered", "0a")) + encode(question))
    assert scene.hears() == Answer(7, True)
    assert scene.told == [("0a", "delivered")]


def test_a_program_that_asks_when_time_is_over_is_killed(play: Callable[[str, str], Scene], question: Question, tmp_path: Path) -> None:
    scene = play("kdialog", f"echo $$ >{tmp_path}/pid; exec sleep 100")
    scene.connection.sendall(encode(replace(question, deadline_s=1)) + encode(replace(question, id=8, deadline_s=2)))
    scene.connection.settimeout(5)
    pid = ""
    while not pid:
        pid = (tmp_path / "pid").read_text().strip() if (tmp_path / "pid").exists() else ""
    while Path("/proc", pid).exists():
        pass  # no event tells a bystander of the end of another's child


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_the_text_is_one_argument_and_nothing_in_it_is_an_option(program: dialog_programs.Program, question: Question) -> None:
    asked = text(replace(question, kind=Kind.WAIT, source=VmName.parse("w" * 64)), 30)
    arguments = program.arguments(asked, "Wait", 30)
    assert sum(asked in argument for argument in arguments) == 1
    assert not asked.startswith("-")
    assert "No answer within 30 s means no." in asked
    assert all(line.isprintable() for line in asked.splitlines())


def test_the_first_that_is_installed_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find() is None
    for name in ("kdialog", "zenity"):
        (tmp_path / name).touch(mode=0o755)
        found = find()
        assert found and found[0].name == name
    assert find("yad") is None
    named = find("kdialog")
    assert named and named[0].name == "kdialog"


def test_without_a_daemon_it_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialog_programs, "CONNECT_AGAIN_S", 0.0)
    tries = iter([NoDaemon(Path("socket"), "why"), NoDaemon(Path("socket"), "why"), Over()])

    def connect() -> socket.socket:
        raise next(tries)

    with pytest.raises(Over):
        ProgramAgent(PROGRAMS[0], "yad", connect, lambda key, text: True, lambda socket: None).run()
    assert not list(tries)
