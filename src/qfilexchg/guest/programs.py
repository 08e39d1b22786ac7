"""The one way in which a VM tool runs another program: an argument list, a deadline, and a report of what went wrong.

The program gets a process group of its own, so that Ctrl-C on the terminal does not break off a mount half-way, and the C
locale. :mod:`subprocess` would do this too, and cost more at start-up than all else that a tool imports.
"""

from __future__ import annotations

import os
import select
import time

from qfilexchg.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

STDERR_MAX: Final = 4096
"""Bytes of standard error that are kept, the first ones."""
_SIGKILL: Final = 9


class ProgramFailed(HostError):
    """A program that could not be started, failed, or did not end in time. ``how`` is our phrase; ``stderr`` the program's own."""

    def __init__(self, argv: Sequence[str], how: str, stderr: bytes = b"") -> None:
        super().__init__(argv, how, stderr)
        self.argv = tuple(argv)
        self.how = how
        self.stderr = stderr

    def __str__(self) -> str:
        said = self.stderr.decode("utf-8", "backslashreplace").strip().replace("\n", "; ")
        return f"{' '.join(self.argv)} {self.how}{f': {said}' if said else ''}"


class NotStarted(ProgramFailed):
    """A program that could not be started, so nobody has seen anything of it."""


def run(*argv: str, deadline_s: float) -> None:
    """Run ``argv``, whose first word is an absolute path, to its end. Raises :exc:`ProgramFailed`, and :exc:`NotStarted` of it.

    A program that is killed at the deadline may stay in the kernel's hands for longer; it is not waited for then.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            pid = os.posix_spawn(
                argv[0],
                argv,
                {**os.environ, "LC_ALL": "C.UTF-8"},
                file_actions=[(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1), (os.POSIX_SPAWN_DUP2, writer, 2)],
                setpgroup=0,
            )
        except OSError as error:
            raise NotStarted(argv, f"could not be started ({error.strerror})") from error
        finally:
            os.close(writer)
            os.close(null)
        stderr = _read_to_end(reader, time.monotonic() + deadline_s)
    finally:
        os.close(reader)
    if stderr is None:
        os.killpg(pid, _SIGKILL)
        raise ProgramFailed(argv, f"did not end within {deadline_s:g} s and was killed")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != 0:
        raise ProgramFailed(argv, f"failed with exit status {status}", stderr)


def _read_to_end(reader: int, deadline: float) -> bytes | None:
    """What comes until every writer has closed the pipe, cut to :data:`STDERR_MAX`; None if ``deadline`` comes first."""
    kept = b""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        data = os.read(reader, STDERR_MAX)
        if not data:
            return kept
        kept = (kept + data)[:STDERR_MAX]
    return None
