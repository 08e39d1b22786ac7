"""The programs that have a document open: all that run in one control group (cgroups(7), version 2), however they came to be there.

A program may fork, detach itself and end; what it has started stays in its group, and the kernel tells when the group is empty.
"""

from __future__ import annotations

import os
import select
import time

from qfilexchg.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Sequence
    from typing import Final, NoReturn, Protocol

    class Waiter(Protocol):
        """See :class:`qfilexchg.guest.interruption.Interruption`."""

        def wait(self, descriptors: Sequence[int], timeout_s: float, events: int = ...) -> bool: ...
else:
    import _signal as signal  # the same calls, without the enums: those cost more than all else here

_LOOK_AGAIN_S: Final = 3600.0
_CANNOT_RUN: Final = 127
_FOR_PROGRAMS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that this process treats in its own way, and a program expects as usual."""


class CannotRun(HostError):
    """A program that could not be started."""

    def __init__(self, program: str, why: str) -> None:
        super().__init__(program, why)
        self.program = program
        self.why = why

    def __str__(self) -> str:
        return f"{self.program} cannot be run ({self.why})"


class Scope:
    """One control group. ``folder`` is its folder below /sys/fs/cgroup, which the user must own."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def start(self, argv: Sequence[str], folder: str | None = None) -> int:
        """Run ``argv``, whose first word is an absolute path, in the group; its process id. Raises :exc:`CannotRun`.

        It has a session of its own, no input, our output, and ``folder`` as its working directory unless that is None.
        """
        reader, writer = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            self._become(argv, folder, writer)
        os.close(writer)
        try:
            # Closed by the exec that succeeded.
            if error := os.read(reader, 16):
                os.waitpid(pid, 0)
                raise CannotRun(argv[0], os.strerror(int(error)))
        finally:
            os.close(reader)
        return pid

    def _become(self, argv: Sequence[str], folder: str | None, failed: int) -> NoReturn:
        """In the forked child."""
        try:
            os.setsid()
            with open(f"{self._folder}/cgroup.procs", "wb", buffering=0) as group:
                group.write(b"0")
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            if folder is not None:
                os.chdir(folder)
            signal.set_wakeup_fd(-1)
            for number in _FOR_PROGRAMS:
                signal.signal(number, signal.SIG_DFL)
            os.execv(argv[0], tuple(argv))  # noqa: S606 -- an argument list, no shell wanted
        except OSError as error:
            os.write(failed, b"%d" % (error.errno or 0))
        finally:
            os._exit(_CANNOT_RUN)

    def wait_until_empty(self, waiter: Waiter, timeout_s: float | None = None) -> bool:
        """Wait until nothing runs in the group any more; False after ``timeout_s`` seconds. Raises what the wait raises."""
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        with open(f"{self._folder}/cgroup.events", "rb", buffering=0) as events:
            while b"populated 1" in events.read(256):
                left_s = _LOOK_AGAIN_S if end_s is None else end_s - time.monotonic()
                if left_s <= 0:
                    return False
                # A change shows as an exceptional condition.
                waiter.wait((events.fileno(),), left_s, select.POLLPRI)
                reap()
                events.seek(0)
        return True


def reap() -> None:
    """Let go of what we have started and what has ended since."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
