from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from qfilexchg.guest.interruption import Cancelled
from qfilexchg.guest.scope import CannotRun, Scope, reap


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """A folder with the files of a control group, without the kernel behind them."""
    (tmp_path / "cgroup.procs").touch()
    (tmp_path / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    return tmp_path


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class TestStart:
    def test_a_program_joins_the_group_before_it_is_one(self, group: Path) -> None:
        assert ended(Scope(str(group)).start(("/bin/true",))) == 0
        assert (group / "cgroup.procs").read_bytes() == b"0"

    def test_it_gets_its_words_as_they_are_its_folder_no_input_and_a_session(self, group: Path, tmp_path: Path) -> None:
        script = 'test "$1" = "; reboot" && test -z "$(cat)" && pwd > out && cut -d " " -f 6 /proc/$$/stat > sid'
        folder = tmp_path / "folder"
        folder.mkdir()
        pid = Scope(str(group)).start(("/bin/sh", "-c", script, "sh", "; reboot"), str(folder))
        assert ended(pid) == 0
        assert (folder / "out").read_text() == f"{folder}\n" and (folder / "sid").read_text() == f"{pid}\n"

    @pytest.mark.parametrize("program", ["/nonexistent/program", "/etc/passwd"])
    def test_one_that_cannot_be_run_is_said(self, group: Path, program: str) -> None:
        with pytest.raises(CannotRun, match=f"{program} cannot be run"):
            Scope(str(group)).start((program,))

    def test_a_folder_that_is_gone_is_said(self, group: Path) -> None:
        with pytest.raises(CannotRun, match="No such file"):
            Scope(str(group)).start(("/bin/true",), "/nonexistent")

    def test_none_runs_outside_of_the_group(self, tmp_path: Path) -> None:
        with pytest.raises(CannotRun):
            Scope(str(tmp_path / "missing")).start(("/bin/true",))

    def test_it_heeds_the_signals_that_this_process_ignores(self, group: Path) -> None:
        done = Scope(str(group)).start(("/bin/sh", "-c", "kill -PIPE $$; exit 0"))
        assert ended(done) == -13


class Waiter:
    """Changes what the group says, a step at each wait; raises at the last."""

    def __init__(self, group: Path, *steps: str) -> None:
        self.events = group / "cgroup.events"
        self.steps = list(steps)

    def wait(self, descriptors: Sequence[int], timeout_s: float, events: int = 0) -> bool:
        if not self.steps:
            raise Cancelled
        self.events.write_text(self.steps.pop(0))
        return True


class TestEmpty:
    def test_an_empty_group_is_not_waited_for(self, group: Path) -> None:
        assert Scope(str(group)).wait_until_empty(Waiter(group))

    def test_one_that_is_not_empty_in_time_is_said_not_to_be(self, group: Path) -> None:
        (group / "cgroup.events").write_text("populated 1\nfrozen 0\n")
        waiter = Waiter(group, *["populated 1\nfrozen 0\n"] * 10_000)
        assert not Scope(str(group)).wait_until_empty(waiter, 0)
        assert len(waiter.steps) == 10_000
        assert not Scope(str(group)).wait_until_empty(waiter, 0.01)
        waiter.steps = ["populated 0\nfrozen 0\n"]
        assert Scope(str(group)).wait_until_empty(waiter, 10)

    def test_it_is_looked_at_again_whenever_it_changes(self, group: Path) -> None:
        (group / "cgroup.events").write_text("populated 1\nfrozen 0\n")
        waiter = Waiter(group, "populated 1\nfrozen 1\n", "populated 0\nfrozen 1\n")
        Scope(str(group)).wait_until_empty(waiter)
        assert not waiter.steps

    def test_a_signal_ends_the_wait(self, group: Path) -> None:
        (group / "cgroup.events").write_text("populated 1\nfrozen 0\n")
        with pytest.raises(Cancelled):
            Scope(str(group)).wait_until_empty(Waiter(group))


def test_what_has_ended_is_let_go_and_what_runs_is_not(group: Path) -> None:
    scope = Scope(str(group))
    quick, slow = scope.start(("/bin/true",)), scope.start(("/bin/sleep", "100"))
    try:
        end = time.monotonic() + 10
        while Path(f"/proc/{quick}").exists():
            assert time.monotonic() < end
            reap()
        assert Path(f"/proc/{slow}").exists()
    finally:
        os.kill(slow, 9)
        os.waitpid(slow, 0)
    reap()
