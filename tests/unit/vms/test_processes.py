from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qfilexchg.dom0.vms.processes import Process, wait_until
from tests.python import PYTHON

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"


def start(log: Path, *argv: str) -> Process:
    process = Process.start(argv, log=log)
    assert process
    return process


def test_a_process_is_found_again_by_its_record_until_it_ends(tmp_path: Path) -> None:
    process = start(tmp_path / "log", "sleep", "60")
    process.save(tmp_path / "record")
    assert Process.load(tmp_path / "record") == process
    assert process.end(term_s=5, kill_s=5)
    assert not process.running
    assert Process.load(tmp_path / "record") is None


def test_a_number_that_has_another_process_now_is_no_process_of_ours(tmp_path: Path) -> None:
    this = Process.of(os.getpid())
    assert this and this.running
    for stranger in (replace(this, start_ticks=this.start_ticks - 1), replace(this, boot="another")):
        stranger.save(tmp_path / "record")
        assert Process.load(tmp_path / "record") is None
        assert stranger.end(term_s=5, kill_s=5), "and we are still here"


def test_one_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    process = start(tmp_path / "log", *PYTHON, "-c", STUBBORN)
    assert wait_until(lambda: (tmp_path / "log").read_text() == "ready\n", 20)
    assert not process.wait(0.05)
    assert process.end(term_s=0.05, kill_s=5)
    assert not process.running


def test_it_gets_a_session_of_its_own_and_keeps_others_out(tmp_path: Path) -> None:
    process = start(tmp_path / "log", "sh", "-c", "umask; pwd; ls /proc/self/fd; exec sleep 60")
    try:
        assert os.getsid(process.pid) == process.pid
        assert wait_until(lambda: "2\n3\n" in (tmp_path / "log").read_text(), 20)
        assert (tmp_path / "log").read_text().split() == ["0077", "/", "0", "1", "2", "3"], "3 is the folder that ls reads"
    finally:
        process.end(term_s=0, kill_s=5)


@pytest.mark.parametrize("record", ["", "{}", "[]", '{"pid": "x", "start_ticks": 1, "boot": ""}', "nonsense"])
def test_a_record_that_makes_no_sense_is_none(tmp_path: Path, record: str) -> None:
    (tmp_path / "record").write_text(record)
    assert Process.load(tmp_path / "record") is None
    assert Process.load(tmp_path / "missing") is None


class TestZombies:
    def killed(self, folder: Path) -> Process:
        """A child of ours that has ended by itself, and has been waited for by nobody."""
        process = start(folder / "log", "sleep", "60")
        process.save(folder / "record")
        os.kill(process.pid, signal.SIGKILL)
        assert wait_until(lambda: not process.running, 20)
        assert Path(f"/proc/{process.pid}").exists(), "it is one"
        return process

    def test_who_reads_its_record_leaves_none(self, tmp_path: Path) -> None:
        process = self.killed(tmp_path)
        assert Process.load(tmp_path / "record") is None
        assert not Path(f"/proc/{process.pid}").exists()

    @pytest.mark.parametrize("end", [lambda process: process.end(term_s=0, kill_s=5), lambda process: process.wait(5)])
    def test_who_ends_it_or_waits_for_it_leaves_none(self, tmp_path: Path, end: Callable[[Process], bool]) -> None:
        process = self.killed(tmp_path)
        assert end(process)
        assert not Path(f"/proc/{process.pid}").exists()

    def test_one_that_ends_at_once_leaves_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        of, pids = Process.of, []

        def look_late(pid: int) -> Process | None:
            pids.append(pid)
            assert wait_until(lambda: of(pid) is None, 20)
            return of(pid)

        monkeypatch.setattr(Process, "of", look_late)
        assert Process.start(["true"], log=tmp_path / "log") is None
        assert not Path(f"/proc/{pids[0]}").exists()

    def test_a_stranger_of_the_same_number_is_left_to_whoever_waits_for_it(self, tmp_path: Path) -> None:
        process = self.killed(tmp_path)
        replace(process, start_ticks=process.start_ticks - 1).reap()
        assert Path(f"/proc/{process.pid}").exists()
        process.reap()
