"""The wrapper for external programs, with real programs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import time
from pathlib import Path

import pytest

from qfilexchg.dom0.programs import OUTPUT_MAX, STDERR_MAX, ProgramFailed, ProgramMissing, run, run_in_sight
from tests.python import PYTHON

LONG_S = "300"
"""How long the programs that must be killed would run. Each test ends long before or fails."""


def python(source: str, *arguments: str, deadline_s: float = 20, input: bytes | None = None) -> bytes:
    return asyncio.run(run(*PYTHON, "-SEc", source, *arguments, deadline_s=deadline_s, input=input))


def wait_until_gone(process: int) -> None:
    """Return when no process has this id, or fail."""
    with contextlib.suppress(ProcessLookupError), os.fdopen(os.pidfd_open(process)) as pidfd:
        assert select.select([pidfd], [], [], 10)[0], f"process {process} still runs"


def test_the_standard_output_is_returned() -> None:
    assert asyncio.run(run("printf", "%s-%s", "a b", "$(id)", deadline_s=10)) == b"a b-$(id)"


def test_input_reaches_the_program_and_ends() -> None:
    data = bytes(range(256)) * 4096
    assert asyncio.run(run("cat", deadline_s=10, input=data)) == data


def test_without_input_the_standard_input_is_empty() -> None:
    assert asyncio.run(run("cat", deadline_s=10)) == b""


def test_a_program_may_leave_its_input_unread() -> None:
    assert asyncio.run(run("true", deadline_s=10, input=bytes(1 << 20))) == b""


def test_a_program_outside_of_an_ordinary_path_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert b"mkfs.fat" in asyncio.run(run("mkfs.fat", "--help", deadline_s=10))


def test_a_failure_names_command_status_and_what_was_said() -> None:
    with pytest.raises(ProgramFailed) as caught:
        python("import sys; sys.stderr.write('no \\x1b[31mroom\\n'); sys.exit(3)")
    assert caught.value.status == 3
    text = str(caught.value)
    assert "failed with exit status 3" in text
    assert "\\x1b[31mroom" in text
    assert text.isprintable()


def test_a_program_that_a_signal_ended_has_failed() -> None:
    with pytest.raises(ProgramFailed) as caught:
        python("import os; os.kill(os.getpid(), 9)")
    assert caught.value.status == -9


def test_only_the_end_of_a_long_complaint_is_kept() -> None:
    with pytest.raises(ProgramFailed) as caught:
        python("import sys; sys.stderr.write('x' * 100000 + 'end'); sys.exit(1)")
    assert len(caught.value.stderr) == STDERR_MAX
    assert caught.value.stderr.endswith(b"xend")


@pytest.mark.parametrize(("program", "remedy"), [("mkfs.no-such", "put its folder into PATH"), ("mkfs.fat", "dosfstools")])
def test_a_missing_program_is_named_with_the_remedy(program: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qfilexchg.dom0.programs._SYSTEM_FOLDERS", ())
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ProgramMissing, match=program) as caught:
        asyncio.run(run(program, deadline_s=10))
    assert remedy in str(caught.value)


def test_a_program_that_cannot_be_started_is_an_error_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "broken").write_bytes(b"#!/nonexistent\n")
    (tmp_path / "broken").chmod(0o700)
    with pytest.raises(ProgramFailed, match="could not be started"):
        asyncio.run(run(str(tmp_path / "broken"), deadline_s=10))


def test_at_the_deadline_the_program_and_its_children_are_killed(tmp_path: Path) -> None:
    source = """
import os, sys, time
from pathlib import Path
child = os.fork()
if child:
    Path(sys.argv[1]).write_text(str(child))
time.sleep(float(sys.argv[2]))
"""
    start = time.monotonic()
    with pytest.raises(ProgramFailed, match=r"did not end within 1\.5 s") as caught:
        python(source, str(tmp_path / "child"), LONG_S, deadline_s=1.5)
    assert time.monotonic() - start < 10
    assert caught.value.status is None
    wait_until_gone(int((tmp_path / "child").read_text()))


def test_a_child_that_left_the_group_and_holds_the_output_does_not_hold_the_caller(tmp_path: Path) -> None:
    source = """
import os, sys, time
from pathlib import Path
if os.fork() == 0:
    os.setsid()
    Path(sys.argv[1]).write_text(str(os.getpid()))
    time.sleep(float(sys.argv[2]))
"""
    start = time.monotonic()
    with pytest.raises(ProgramFailed, match="did not end within"):
        python(source, str(tmp_path / "child"), LONG_S, deadline_s=1.5)
    assert time.monotonic() - start < 10
    os.kill(int((tmp_path / "child").read_text()), 9)


def test_a_flood_of_output_is_cut_off() -> None:
    start = time.monotonic()
    with pytest.raises(ProgramFailed, match=f"wrote more than {OUTPUT_MAX} bytes"):
        asyncio.run(run("yes", deadline_s=float(LONG_S)))
    assert time.monotonic() - start < 20


def test_cancelling_kills_the_program(tmp_path: Path) -> None:
    fifo = tmp_path / "started"
    os.mkfifo(fifo)

    async def scenario() -> int:
        source = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(float(sys.argv[2]))"
        task = asyncio.create_task(run(*PYTHON, "-SEc", source, str(fifo), LONG_S, deadline_s=float(LONG_S)))
        process = int(await asyncio.to_thread(fifo.read_text))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return process

    wait_until_gone(asyncio.run(scenario()))


class TestInSight:
    def test_all_that_is_said_goes_to_the_person(self, capfd: pytest.CaptureFixture[str]) -> None:
        run_in_sight("sh", "-c", "echo out; echo err >&2; echo $WORD", deadline_s=10, env={"WORD": "added"})
        assert capfd.readouterr() == ("", "out\nerr\nadded\n")

    def test_a_failure_names_command_and_status(self) -> None:
        with pytest.raises(ProgramFailed, match="sh -c exit 3 failed with exit status 3"):
            run_in_sight("sh", "-c", "exit 3", deadline_s=10)

    def test_at_the_deadline_it_is_killed(self) -> None:
        with pytest.raises(ProgramFailed, match=r"did not end within 0\.05 s and was killed"):
            run_in_sight("sleep", LONG_S, deadline_s=0.05)
