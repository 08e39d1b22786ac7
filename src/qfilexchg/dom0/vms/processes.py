"""Processes that outlive whoever started them, known by more than a number.

A process id is reused, so a record holds the start time beside it and the boot it belongs to; a signal goes through a pidfd
that was opened before the record was compared. So no stranger is ever taken for ours, and none is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_RECORD_MAX = 4096
"""Bytes of a record; it is a few dozen."""


def boot_id() -> str:
    """What distinguishes this boot of the host from every other."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _start_ticks(pid: int, *, ended: bool = False) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)); None where no such process runs. A zombie does not run, and counts with ``ended``."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") and not ended else int(fields[19])


@dataclass(frozen=True, slots=True)
class Process:
    """One process of this host, during one boot."""

    pid: int
    start_ticks: int
    boot: str

    @classmethod
    def start(cls, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> Process | None:
        """Start ``argv`` in a session of its own, its output appended to ``log``; None when it has ended already.

        It inherits no descriptor, keeps running when its parent ends, and gets a umask that keeps others out of its sockets.
        """
        with log.open("ab") as output:
            # Not waited for: whoever starts it ends soon, and init adopts it.
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                umask=0o077,
                cwd="/",
                env=env,
            )
        child.returncode = 0  # so that the interpreter does not warn of a child that runs on
        process = cls.of(child.pid)
        if process is None:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child.pid, 0)
        return process

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this id now."""
        ticks = _start_ticks(pid)
        return None if ticks is None else cls(pid, ticks, boot_id())

    @property
    def running(self) -> bool:
        return self.boot == boot_id() and _start_ticks(self.pid) == self.start_ticks

    def wait(self, deadline_s: float) -> bool:
        """Whether the process is gone within ``deadline_s``."""
        with self._pidfd() as pidfd:
            return pidfd is None or _ends(pidfd, deadline_s)

    def reap(self) -> None:
        """Leave no zombie, if it was a child of ours and has ended. Others are left to whoever started them."""
        if self.boot == boot_id() and _start_ticks(self.pid, ended=True) == self.start_ticks:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, os.WNOHANG)

    def private_bytes(self) -> int:
        """Memory that it has written to and shares with nobody; 0 when it has ended."""
        try:
            fields = Path(f"/proc/{self.pid}/smaps_rollup").read_text(encoding="ascii").split()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return int(fields[fields.index("Private_Dirty:") + 1]) << 10

    def end(self, *, term_s: float, kill_s: float) -> bool:
        """Ask it to end, then kill it; whether it is gone. ``term_s`` of 0 kills at once."""
        with self._pidfd() as pidfd:
            if pidfd is None:
                return True
            for number, deadline_s in ((signal.SIGTERM, term_s), (signal.SIGKILL, kill_s)):
                if deadline_s > 0:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(pidfd, number)
                    if _ends(pidfd, deadline_s):
                        return True
            return False

    @contextlib.contextmanager
    def _pidfd(self) -> Iterator[int | None]:
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            # Compared after the opening: from now on the descriptor means this process and no later one.
            running = self.running
            if not running:
                self.reap()
            yield pidfd if running else None
        finally:
            os.close(pidfd)

    def save(self, file: Path) -> None:
        """Write the record, whole or not at all."""
        aside = file.with_name(f".{file.name}.{os.getpid()}")
        aside.write_text(json.dumps(asdict(self)), encoding="ascii")
        aside.rename(file)

    @classmethod
    def load(cls, file: Path) -> Process | None:
        """The process that ``file`` records, if it runs still. Of a child of ours that has ended no zombie is left."""
        try:
            with file.open("rb") as stream:
                record = json.loads(stream.read(_RECORD_MAX))
            process = cls(int(record["pid"]), int(record["start_ticks"]), str(record["boot"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        if process.running:
            return process
        process.reap()
        return None


def _ends(pidfd: int, deadline_s: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    with contextlib.suppress(ChildProcessError):
        if poll.poll(max(0.0, deadline_s) * 1000):
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)  # if it is a child of ours, leave no zombie
            return True
        return False
    return True


def wait_until(done: Callable[[], bool], deadline_s: float, *, step_s: float = 0.02) -> bool:
    """Whether ``done()`` became true in time: for the few things of the host that cannot be watched."""
    end = time.monotonic() + deadline_s
    while not done():
        if time.monotonic() >= end:
            return False
        time.sleep(step_s)
    return True
