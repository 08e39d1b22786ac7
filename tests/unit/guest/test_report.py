"""What a VM tool tells a program that shows it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from qfilexchg.guest import copy_to_vm
from qfilexchg.guest.interruption import Cancelled, Interruption
from qfilexchg.guest.outcome import Failed
from qfilexchg.guest.progress import REDRAW_S
from qfilexchg.guest.report import PROBLEMS_MAX, Report
from qfilexchg.guest.survey import Problem
from qfilexchg.xenstore.blocking import Store
from tests.python import PYTHON
from tests.unit.guest.dom0 import Dom0, OutgoingFolder

CHECKOUT = Path(__file__).parents[3]


class Told(io.StringIO):
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_stage_has_a_word_and_the_sentence_of_the_terminal(told: Told, clock: Clock) -> None:
    report = Report(told, clock)
    report.state("asking", "Waiting…")
    report.milestone("open", "open in disp3", 1.5)
    report.say("a word")
    assert told.lines() == [{"stage": "asking", "text": "Waiting…"}, {"stage": "open", "text": "open in disp3"}, {"note": "a word"}]


def test_bytes_and_files_are_told_now_and_then_and_when_a_stage_is_over(told: Told, clock: Clock) -> None:
    report = Report(told, clock)
    report.state("copying", "Copying…")
    report.begin(1000, 10)
    for _ in range(10):
        clock.now += REDRAW_S * 0.3
        report.advance(100)
        report.file_done()
    report.state("writing-out", "Writing…")
    counts = [line for line in told.lines() if "bytes" in line]
    assert len(counts) in (3, 4, 5)
    assert counts[-1] == {"bytes": 1000, "of_bytes": 1000, "files": 10, "of_files": 10, "left_s": None}


def test_the_time_left_is_in_seconds(told: Told, clock: Clock) -> None:
    report = Report(told, clock)
    report.begin(1000, 1)
    clock.now += 4
    report.advance(250)
    assert told.lines()[-1]["left_s"] == 12.0


def test_problems_are_told_one_by_one_and_beyond_some_as_a_number(told: Told, clock: Clock) -> None:
    report = Report(told, clock)
    report.problems([Problem("a\n\udcff", "it is a link")], left_out=True)
    report.problems([Problem("b", "no")] * (PROBLEMS_MAX + 5), left_out=False)
    lines = told.lines()
    assert lines[0] == {"problem": "a\\n\\udcff", "why": "it is a link", "left_out": True}
    assert len(lines) == PROBLEMS_MAX + 2
    assert lines[-1] == {"more_problems": 5, "left_out": False}


def test_an_end_has_the_exit_status_and_why(told: Told, clock: Clock) -> None:
    assert Report(told, clock).fail("qvm-copy-to-vm", Failed("not-attached"), 1) == 1
    assert Report(told, clock).done() == 0
    assert told.lines() == [{"end": 1, "text": "dom0 could not do it: the pendrive could not be attached"}, {"end": 0, "text": ""}]


def test_every_line_is_ascii(told: Told, clock: Clock) -> None:
    Report(told, clock).state("x", "写\x1b[2J\udcff\u202e")
    assert told.getvalue() == '{"stage": "x", "text": "\\u5199\\\\x1b[2J\\\\udcff\\\\u202e"}\n'


class TestCommand:
    @pytest.fixture
    def dom0(self, monkeypatch: pytest.MonkeyPatch) -> Dom0:
        dom0 = Dom0()
        monkeypatch.setattr(Store, "open", lambda: dom0)
        monkeypatch.setattr(copy_to_vm, "Interruption", lambda _listener: dom0)
        return dom0

    def run(self, dom0: Dom0, tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[dict[str, object]]]:
        (tmp_path / "mnt").mkdir()
        (tmp_path / "file").write_bytes(b"content")
        slot = OutgoingFolder(dom0, tmp_path / "mnt")
        status = copy_to_vm.main(["--report=json", "work", *words], slot)  # type: ignore[arg-type]
        out, err = capsys.readouterr()
        assert err == ""
        return status, [json.loads(line) for line in out.splitlines()]

    def test_a_copy_tells_of_its_stages_and_its_end(self, dom0: Dom0, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        dom0.verdict = "queue"
        status, lines = self.run(dom0, tmp_path, capsys, str(tmp_path / "file"))
        stages = [line["stage"] for line in lines if "stage" in line]
        assert stages == ["looking", "getting", "copying", "writing-out", "asking", "queued", "leaving", "delivered"]
        assert {"bytes": 7, "of_bytes": 7, "files": 1, "of_files": 1, "left_s": None} in lines
        assert (status, lines[-1]) == (0, {"end": 0, "text": ""})

    def test_one_that_is_denied_gives_the_pendrive_back(self, dom0: Dom0, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        dom0.verdict = "deny"
        status, lines = self.run(dom0, tmp_path, capsys, str(tmp_path / "file"))
        assert lines[-2]["stage"] == "giving-back"
        assert (status, lines[-1]) == (3, {"end": 3, "text": "refused by dom0; the person there knows why"})

    def test_what_cannot_be_held_is_told(self, dom0: Dom0, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        status, lines = self.run(dom0, tmp_path, capsys, str(tmp_path / "missing"))
        problem = {"problem": str(tmp_path / "missing"), "why": "it cannot be read (No such file or directory)", "left_out": False}
        assert problem in lines
        assert (status, lines[-1]["end"]) == (4, 4)


class TestListener:
    @pytest.fixture
    def pipe(self) -> Iterator[SimpleNamespace]:
        reader, writer = os.pipe()
        pipe = SimpleNamespace(reader=reader, writer=writer)
        yield pipe
        os.close(writer)

    def test_while_somebody_reads_nothing_happens(self, pipe: SimpleNamespace) -> None:
        with Interruption(pipe.writer) as interruption:
            interruption.check()
            assert not interruption.wait((), 0)
        os.close(pipe.reader)

    def test_its_end_is_a_signal_once(self, pipe: SimpleNamespace) -> None:
        with Interruption(pipe.writer) as interruption:
            os.close(pipe.reader)
            with pytest.raises(Cancelled):
                interruption.wait((), 10)
            assert not interruption.wait((), 0)

    def test_its_end_is_seen_between_two_pieces_of_a_copy(self, pipe: SimpleNamespace) -> None:
        with Interruption(pipe.writer) as interruption:
            os.close(pipe.reader)
            with pytest.raises(Cancelled):
                interruption.check()

    def test_one_that_was_dismissed_may_end(self, pipe: SimpleNamespace) -> None:
        with Interruption(pipe.writer) as interruption:
            interruption.dismiss()
            os.close(pipe.reader)
            interruption.check()
            assert not interruption.wait((), 0)

    def test_a_file_has_no_end(self, tmp_path: Path) -> None:
        with (tmp_path / "report").open("w") as file, Interruption(file.fileno()) as interruption:
            assert not interruption.wait((), 0)

    def test_it_wakes_a_command_that_waits(self) -> None:
        program = """if True:
            import sys
            from qfilexchg.guest.interruption import Cancelled, Interruption
            with Interruption(sys.stdout.fileno()) as interruption:
                print("ready", flush=True)
                try:
                    interruption.wait((), 60)
                except Cancelled:
                    sys.stderr.write("gave up")
        """
        environment = {"PYTHONPATH": str(CHECKOUT / "src")}
        pipe = subprocess.PIPE
        with subprocess.Popen([*PYTHON, "-c", program], env=environment, text=True, stdout=pipe, stderr=pipe) as command:
            try:
                assert command.stdout and command.stderr
                assert command.stdout.readline() == "ready\n"
                command.stdout.close()
                assert command.stderr.read() == "gave up"
            finally:
                command.send_signal(signal.SIGKILL)
