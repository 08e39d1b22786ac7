"""Running other programs in a VM."""

from __future__ import annotations

import os
import signal
import time

import pytest

from qfilexchg.guest.programs import STDERR_MAX, NotStarted, ProgramFailed, run
from tests.python import PYTHON


def python(text: str, deadline_s: float = 30) -> None:
    run(*PYTHON, "-IS", "-c", text, deadline_s=deadline_s)


def test_one_that_ends_well_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    python("print('hello')")
    assert capfd.readouterr() == ("", "")


def test_one_that_fails_is_reported_with_what_it_said() -> None:
    with pytest.raises(ProgramFailed) as caught:
        python("import sys; sys.exit('no\\nway')")
    assert str(caught.value).endswith("failed with exit status 1: no; way")


def test_one_that_a_signal_ends_is_reported() -> None:
    with pytest.raises(ProgramFailed) as caught:
        python("import os; os.kill(os.getpid(), 9)")
    assert caught.value.how == "failed with exit status -9"


def test_one_that_is_missing_is_reported() -> None:
    with pytest.raises(NotStarted) as caught:
        run("/nowhere/mount", deadline_s=1)
    assert str(caught.value) == "/nowhere/mount could not be started (No such file or directory)"


def test_one_that_does_not_end_is_killed_with_its_children() -> None:
    began = time.monotonic()
    with pytest.raises(ProgramFailed) as caught:
        python("import os, time; os.fork(); time.sleep(1000)", deadline_s=0.2)
    assert caught.value.how == "did not end within 0.2 s and was killed"
    assert time.monotonic() - began < 20


def test_one_that_talks_without_end_fills_no_memory() -> None:
    with pytest.raises(ProgramFailed) as caught:
        python("import sys; sys.stderr.write('x' * (1 << 20)); sys.exit(1)")
    assert len(caught.value.stderr) == STDERR_MAX


def test_ctrl_c_on_the_terminal_does_not_reach_it() -> None:
    python(f"import os, sys; sys.exit(os.getpgid(0) == {os.getpgid(0)} or os.getpgid(0) != os.getpid())")


def test_no_descriptor_is_left_open() -> None:
    before = set(os.listdir("/proc/self/fd"))
    python("pass")
    with pytest.raises(ProgramFailed):
        run("/nowhere/mount", deadline_s=1)
    with pytest.raises(ProgramFailed):
        python("import time; time.sleep(1000)", deadline_s=0.05)
    assert set(os.listdir("/proc/self/fd")) == before
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
