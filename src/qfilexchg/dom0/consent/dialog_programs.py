"""The agent where GTK's Python is missing: each question is put by a program for dialogs, yad, zenity or kdialog.

Each is told to take the text as it is, without markup, to have *Deny* as its default, and to end at the deadline; whatever it ends
with but the one status that means *Allow* is a no, and so is a yes within the first second. It is killed when its question closes.
"""

from __future__ import annotations

import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from qfilexchg.dom0.consent.asking import CONNECT_AGAIN_S, REFRESH_S, Answering, Asking, DaemonEnded, Look, Tell
from qfilexchg.dom0.consent.connection import NoDaemon
from qfilexchg.dom0.consent.dialog import View
from qfilexchg.dom0.consent.protocol import Question
from qfilexchg.dom0.consent.wording import allow_word, details, heading, party, printable

TITLE: Final = "qfilexchg asks"
_YAD_ALLOW: Final = 10


@dataclass(frozen=True, slots=True)
class Program:
    """One of them: how it is called for a text, the word for yes and a deadline, and the exit status that means yes."""

    name: str
    arguments: Callable[[str, str, int], Sequence[str]]
    yes: int


def _yad(text: str, yes: str, left_s: int) -> Sequence[str]:
    # Enter presses its first button, and where none has the focus it means status 0: both are Deny's.
    buttons = ("--button=Deny:0", f"--button={yes}:{_YAD_ALLOW}")
    where = ("--on-top", "--center", "--fixed", "--borders=12", "--image=dialog-question")
    return (f"--title={TITLE}", "--no-markup", f"--text={text}", f"--timeout={left_s}", "--timeout-indicator=bottom", *where, *buttons)


def _zenity(text: str, yes: str, left_s: int) -> Sequence[str]:
    plain = text.replace("\\", "\\\\")  # it takes backslashes for the beginning of an escape
    words = (f"--ok-label={yes}", "--cancel-label=Deny", "--default-cancel")
    return ("--question", f"--title={TITLE}", "--no-markup", "--no-wrap", f"--text={plain}", f"--timeout={left_s}", *words)


def _kdialog(text: str, yes: str, left_s: int) -> Sequence[str]:
    # Its warning has No as the default. It has no deadline of its own, and no switch against markup, of which the text has none.
    return ("--title", TITLE, "--yes-label", yes, "--no-label", "Deny", "--warningyesno", text)


PROGRAMS: Final = (Program("yad", _yad, _YAD_ALLOW), Program("zenity", _zenity, 0), Program("kdialog", _kdialog, 0))


def find(name: str | None = None) -> tuple[Program, str] | None:
    """The first that is installed, with its path; or the one called ``name``."""
    for program in PROGRAMS:
        if name in (None, program.name) and (path := shutil.which(program.name)):
            return program, path
    return None


def text(question: Question, left_s: int) -> str:
    """All that the window has, in plain lines."""
    target = None if question.target is None else party(question.target, question.target_label)
    route = f"{party(question.source, question.source_label)}  →  {target or 'a new DisposableVM'}"
    lines = [heading(question), "", route, "", *(f"{word}: {sentence}" for word, sentence in details(question))]
    return "\n".join(printable(line) for line in (*lines, "", f"No answer within {left_s} s means no."))


class ProgramAgent:
    """An agent whose questions are put by ``program``, which is at ``path``."""

    def __init__(self, program: Program, path: str, connect: Callable[[], socket.socket], tell: Tell, look: Look) -> None:
        self._program = program
        self._path = path
        self._connect = connect
        self._tell = tell
        self._asking = Asking(program.name, self._show, self._notice, look, time.monotonic)

    def run(self) -> int:
        """Ask until SIGINT; return the exit status. Waits for a daemon that is not there; raises what ``connect`` raises besides."""
        while True:
            try:
                self._serve(self._connect())
            except (NoDaemon, DaemonEnded):
                time.sleep(CONNECT_AGAIN_S)
            except KeyboardInterrupt:
                self._asking.end()
                return 0

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            self._asking.begin(connection)
            while True:
                ready, _, _ = select.select([connection], [], [], REFRESH_S if self._asking.is_open else None)
                if ready:
                    self._asking.read()
                else:
                    self._asking.refresh()

    def _show(self, question: Question, person: Answering) -> _Running:
        return _Running(self._program, self._path, question, person)

    def _notice(self, key: str | None, text: str) -> None:
        if not self._tell(key, text):
            print(f"qfilexchg-agent: {printable(text)}", file=sys.stderr)


class _Running:
    """A program that asks."""

    def __init__(self, program: Program, path: str, question: Question, person: Answering) -> None:
        self._program = program
        self._path = path
        self._question = question
        self._person = person
        self._process: subprocess.Popen[bytes] | None = None

    def update(self, view: View) -> None:
        if self._process is None:
            left_s = max(1, view.left_s)
            arguments = self._program.arguments(text(self._question, left_s), allow_word(self._question), left_s)
            quiet = subprocess.DEVNULL
            self._process = subprocess.Popen([self._path, *arguments], stdin=quiet, stdout=quiet, stderr=quiet)
            self._person.focus(True)  # it may be; what it has for certain is that it is new
            return
        status = self._process.poll()
        if status is None:
            return
        allowed = status == self._program.yes and self._person.answer(True)
        if not allowed:
            self._person.answer(False)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
