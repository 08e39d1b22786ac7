"""``qvm-run`` and ``qvm-console``."""

from __future__ import annotations

import argparse
import asyncio
import codecs
import contextlib
import os
import selectors
import signal
import sys
import termios
import tty
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Protocol

from qfilexchg.dom0.cli.arguments import parser, vm_name
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.machines import Machines
from qfilexchg.dom0.vms.run import Session
from qfilexchg.errors import CallerError, QfilexchgError
from qfilexchg.protocol.names import VmName

CANNOT_RUN = 125
BROKEN_PIPE = 128 + signal.SIGPIPE
ESCAPE = b"\x1d"
"""Ctrl-], as in telnet and xl console."""
_READ_BYTES = 64 << 10
_KEPT = frozenset("\n\r\t")


class Begin(Protocol):
    """Begins a command somewhere (:func:`qfilexchg.dom0.vms.run.session`)."""

    def __call__(
        self, argv: Sequence[str], *, user: str = "user", window: tuple[int, int] | None = None
    ) -> contextlib.AbstractAsyncContextManager[Session]: ...


class NoTerminal(CallerError):
    """A console needs one."""

    def __str__(self) -> str:
        return "standard input and output are not a terminal: use qvm-run for programs that need none"


def run(arguments: Sequence[str]) -> int:
    """``qvm-run``."""
    args = parser(
        "qvm-run",
        "Run a command in a VM, with this command's standard input, output and error. The words are given to the command as they "
        "are; for a pipe or a variable run a shell: qvm-run NAME sh -c '...'. On a terminal, control characters that the VM sends "
        "are replaced.",
        f"Exit status: the command's own; 126 it cannot be run, 127 it is not found, 128 + N it was ended by signal N; {CANNOT_RUN} the VM "
        "does not run or does not answer, 130 interrupted.",
    )
    args.add_argument("--user", default="user", help="run it as this user of the VM (default: user)")
    args.add_argument("name", type=vm_name, metavar="NAME")
    args.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...")
    options = args.parse_args(arguments)
    if not options.command:
        args.error("the following arguments are required: COMMAND")
    return run_in(partial(_in_vm, options.name), options.command, options.user, "qvm-run")


def console(arguments: Sequence[str]) -> int:
    """``qvm-console``."""
    args = parser(
        "qvm-console",
        "A shell in a VM, on this terminal. Ctrl-] leaves it. What the VM sends goes to the terminal as it is.",
        f"Exit status: the shell's own; {CANNOT_RUN} the VM does not run or does not answer, or there is no terminal.",
    )
    args.add_argument("--user", default="user", help="whose shell (default: user)")
    args.add_argument("name", type=vm_name, metavar="NAME")
    options = args.parse_args(arguments)
    return console_in(partial(_in_vm, options.name), options.user, "qvm-console")


def _in_vm(
    name: VmName, argv: Sequence[str], *, user: str = "user", window: tuple[int, int] | None = None
) -> contextlib.AbstractAsyncContextManager[Session]:
    return Machines(Home.from_environment()).run(name, argv, user=user, window=window)


def run_in(begin: Begin, command: Sequence[str], user: str, program: str) -> int:
    """Run ``command`` where ``begin`` leads, with our standard streams; the exit status. Errors are ``program``'s."""
    return _report(program, _run(begin, command, user))


def console_in(begin: Begin, user: str, program: str) -> int:
    """A shell where ``begin`` leads, on our terminal; the exit status. Errors are ``program``'s."""
    return _report(program, _console(begin, user))


def _report(name: str, command: Coroutine[None, None, int]) -> int:
    """Run ``command``, with a status for our own failures that few commands have."""
    try:
        # Unlike epoll, poll takes a regular file as standard input.
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.PollSelector())) as runner:
            return runner.run(command)
    except QfilexchgError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return CANNOT_RUN
    except BrokenPipeError:
        return BROKEN_PIPE


async def _run(begin: Begin, command: Sequence[str], user: str) -> int:
    async with begin(command, user=user) as session:
        return await _converse(session, StandardInput(), _writer(1), _writer(2))


async def _console(begin: Begin, user: str) -> int:
    if not (os.isatty(0) and os.isatty(1)):
        raise NoTerminal
    shell = ["sh", "-c", 'exec "${SHELL:-/bin/sh}" -l']  # the user's own, which only the other side knows
    async with begin(shell, user=user, window=_terminal_size()) as session:
        with _raw_terminal():

            def resize() -> None:
                session.resize(*_terminal_size())

            asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, resize)
            return await _converse(session, StandardInput(ESCAPE), lambda data: _write_all(1, data), lambda data: _write_all(2, data))


def _terminal_size() -> tuple[int, int]:
    """Rows and columns; a terminal that nobody has given a size says 0."""
    size = os.get_terminal_size()
    return size.lines or 24, size.columns or 80


async def _converse(session: Session, source: StandardInput, stdout: Callable[[bytes], object], stderr: Callable[[bytes], object]) -> int:
    """Both directions until the command ends, or the person leaves a console."""
    feeding = asyncio.create_task(session.feed(source))
    saying = asyncio.create_task(session.output(stdout, stderr))
    leaving = asyncio.create_task(source.left.wait())
    try:
        await asyncio.wait({saying, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return saying.result() if saying.done() else 0
    finally:
        for task in (feeding, saying, leaving):
            task.cancel()
        await asyncio.gather(feeding, saying, leaving, return_exceptions=True)


class StandardInput:
    """Our standard input, as it comes. ``left`` is set when ``escape`` was typed, which ends it too."""

    def __init__(self, escape: bytes | None = None) -> None:
        self.left = asyncio.Event()
        self._escape = escape

    async def read(self) -> bytes:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(0, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(0)
        data = os.read(0, _READ_BYTES)
        if self._escape and self._escape in data:
            self.left.set()
            return b""
        return data


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSADRAIN)  # what was typed already is for the shell
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _writer(descriptor: int) -> Callable[[bytes], None]:
    """Writes what the VM says to one of our streams; a terminal is spared what could command it."""
    if not os.isatty(descriptor):
        return lambda data: _write_all(descriptor, data)
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    return lambda data: _write_all(descriptor, harmless(decode(data)).encode())


def harmless(text: str) -> str:
    """``text`` with a replacement character for each that a terminal might obey."""
    return "".join(character if character.isprintable() or character in _KEPT else "\ufffd" for character in text)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
