"""Open in DisposableVM, in its windows under a real window manager: a real keys and mouse, the real command, dom0 played by the test."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from qfilexchg.guest import outcome
from qfilexchg.guest.sequence import BESIDE, REPLACED, Outcome, book_in
from tests.desktop.desk import Desk, until
from tests.desktop.vm import Vm
from tests.desktop.windows import ASKING, DRAWN_S, cancel, close, ended, until_asked

REALLY = "What was changed there will be lost. Press again to end the DisposableVM, or Escape to keep it."
TITLE = "Open in DisposableVM"
SETTLED_S = 0.5
"""The window manager has decided by then which window has the keyboard."""
OPENING = "Opening report.pdf in a DisposableVM"
OPEN = "report.pdf is open in a DisposableVM"


def start(vm: Vm, *files: str | Path, **environment: str) -> subprocess.Popen[str]:
    return vm.start("open-in-dvm-window", *files, **environment)


def hand_over(vm: Vm, stage: str = "") -> int:
    """dom0 takes the document, and tells of a stage; its number."""
    vm.attaches()
    request = vm.takes("send")
    assert request.target is None
    vm.replies(request, "accepted")
    if stage:
        vm.tells(request.seq, stage)
    vm.delivers(request)
    return request.seq


def open_there(desk: Desk, vm: Vm) -> int:
    seq = hand_over(vm, "open disp3")
    desk.sees(OPEN)
    until(lambda: not desk.shows_window(TITLE), "the window is out of the way")
    return seq


def bring_back(desk: Desk) -> None:
    """The person looks for the window that is out of the way."""
    desk.press("alt+Tab")
    until(lambda: desk.shows_window(TITLE), "the window is there again")
    desk.sees(TITLE, "frame", "ACTIVE")


class TestStages:
    def test_are_shown_until_it_is_open_and_then_the_window_is_out_of_the_way(self, desk: Desk, vm: Vm, report: Path) -> None:
        window = start(vm, report)
        desk.sees(OPENING)
        desk.sees("Asking dom0 for a pendrive…")
        request = until_asked(desk, vm)
        desk.picture("o1-asking", DRAWN_S)
        vm.replies(request, "accepted", "preparing")
        desk.sees("The savefile of the DisposableVMs is being made first. This takes a while…")
        vm.tells(request.seq, "starting")
        vm.delivers(request)
        desk.sees("A DisposableVM is being made…")
        vm.tells(request.seq, "open disp3")
        desk.sees(OPEN)
        until(lambda: not desk.shows_window(TITLE), "the window is out of the way")
        bring_back(desk)
        desk.sees("When it is closed there, what was changed comes back.")
        desk.picture("o2-open", DRAWN_S)
        vm.tells(request.seq, "unchanged disp3")
        desk.sees("report.pdf was not changed")
        desk.picture("o3-unchanged", DRAWN_S)
        close(desk)
        assert ended(window) == 0

    def test_that_it_has_come_back_is_shown_and_the_window_goes_by_itself(self, desk: Desk, vm: Vm, report: Path) -> None:
        window = start(vm, report)
        seq = open_there(desk, vm)
        vm.tells(seq, "returning disp3")
        vm.tells(seq, "returned disp3")
        book_in(str(vm.folder)).conclude(seq, Outcome(REPLACED, str(report)))
        desk.sees("report.pdf has come back changed")
        until(lambda: desk.shows_window(TITLE), "the window is there again")
        desk.picture("o4-changed", DRAWN_S)
        assert ended(window) == 0

    @pytest.mark.parametrize(
        ("stage", "heading", "text", "status"),
        [
            ("no-program", "No program opens report.pdf", "No program in the DisposableVM opens report.pdf: check", outcome.NO_PROGRAM),
            ("killed", "The DisposableVM of report.pdf has ended", "report.pdf is as it was: its DisposableVM was ended", outcome.ENDED),
        ],
    )
    def test_a_bad_end_stays_until_it_was_read(
        self, desk: Desk, vm: Vm, report: Path, stage: str, heading: str, text: str, status: int
    ) -> None:
        window = start(vm, report)
        seq = open_there(desk, vm)
        vm.tells(seq, f"ended disp3 {stage}")
        desk.sees(heading)
        until(lambda: desk.shows_window(TITLE), "the window is there again")
        assert any(seen.startswith(text) for seen in desk.texts())
        desk.picture(f"o5-{stage}", DRAWN_S)
        desk.clicks("Close", "push button", "SENSITIVE")
        assert ended(window) == status

    def test_changes_that_are_elsewhere_are_always_told(self, desk: Desk, vm: Vm, report: Path) -> None:
        window = start(vm, report)
        seq = open_there(desk, vm)
        vm.tells(seq, "returned disp3")
        book_in(str(vm.folder)).conclude(seq, Outcome(BESIDE, f"{report} (edited in disp3)", "it was changed here meanwhile"))
        desk.sees("The changes are not in report.pdf")
        until(lambda: desk.shows_window(TITLE), "the window is there again")
        assert any(f"they are in {report} (edited in disp3)" in text for text in desk.texts())
        desk.picture("o6-beside", DRAWN_S)
        desk.clicks("Close", "push button", "SENSITIVE")
        assert ended(window) == outcome.BESIDE

    @pytest.mark.parametrize("key", ["space", "Return"])
    def test_a_window_that_comes_forward_by_itself_does_not_take_the_keyboard(self, desk: Desk, vm: Vm, report: Path, key: str) -> None:
        window = start(vm, report)
        seq = open_there(desk, vm)
        with desk.letter() as letter:
            vm.tells(seq, "returned disp3")
            book_in(str(vm.folder)).conclude(seq, Outcome(BESIDE, f"{report} (edited in disp3)", "it was changed here meanwhile"))
            until(lambda: desk.shows_window(TITLE), "the window is there again")
            desk.sees("The changes are not in report.pdf")
            desk.waits(SETTLED_S)
            desk.sees(letter.name, letter.role, "ACTIVE")
            desk.press(key)
            desk.waits(SETTLED_S)
            desk.sees("The changes are not in report.pdf")
            assert window.poll() is None

    def test_one_that_waits_for_a_pendrive_to_go_says_so_and_is_only_put_out_of_the_way(self, desk: Desk, vm: Vm, report: Path) -> None:
        start(vm, report)
        seq = open_there(desk, vm)
        (vm.folder / "incoming-is-mounted").touch()
        vm.tells(seq, "returning disp3")
        until(lambda: desk.shows_window(TITLE), "the window is there again")
        desk.sees("It was changed there. Eject the pendrive that is here: the document waits for that.")
        assert "SENSITIVE" not in desk.sees("Cancel", "push button").states
        desk.picture("o9-blocked", DRAWN_S)
        for key in ("Escape", "alt+F4"):
            bring_back(desk)
            desk.press(key)
            until(lambda: not desk.shows_window(TITLE), "the window is out of the way")
        assert vm.asks_nothing()
        vm.tells(seq, "returned disp3")
        book_in(str(vm.folder)).conclude(seq, Outcome(REPLACED, str(report)))
        desk.sees("report.pdf has come back changed")
        until(lambda: desk.shows_window(TITLE), "the window is there again")

    def test_a_folder_is_refused_by_the_command(self, desk: Desk, vm: Vm) -> None:
        window = start(vm, vm.outgoing)
        desk.sees("outgoing cannot be opened in a DisposableVM")
        desk.sees(f"{vm.outgoing} is a folder; name one file")
        assert vm.asks_nothing()
        desk.sees("Close", "push button", "FOCUSED")
        desk.press("Escape")
        assert ended(window) == outcome.CANNOT_BE_HELD


class TestCancel:
    @pytest.mark.parametrize("way", ["Cancel", "Escape"])
    def test_before_it_is_open(self, desk: Desk, vm: Vm, report: Path, way: str) -> None:
        start(vm, report)
        until_asked(desk, vm)
        cancel(desk, way)
        vm.takes_back()
        desk.sees("Cancelled: report.pdf is as it was")

    def test_once_it_is_open_asks_again_and_ends_the_disposablevm(self, desk: Desk, vm: Vm, report: Path) -> None:
        window = start(vm, report)
        seq = open_there(desk, vm)
        bring_back(desk)
        desk.clicks("End DisposableVM", "push button", "SENSITIVE")
        desk.sees(REALLY)
        desk.picture("o7-really", DRAWN_S)
        desk.press("Escape")
        until(lambda: not desk.shows_window(TITLE), "the window is out of the way")
        assert vm.asks_nothing()
        bring_back(desk)
        desk.clicks("End DisposableVM", "push button", "SENSITIVE")
        desk.sees(REALLY)
        desk.clicks("End DisposableVM", "push button", "SENSITIVE")
        request = vm.takes("forget")
        assert request.seq == seq
        vm.replies(request, "cancelled")
        desk.sees("Cancelled: report.pdf is as it was")
        close(desk)
        assert ended(window) == outcome.CANCELLED

    def test_a_double_click_does_not_end_the_disposablevm(self, desk: Desk, vm: Vm, report: Path) -> None:
        start(vm, report)
        open_there(desk, vm)
        bring_back(desk)
        desk.waits(SETTLED_S)
        desk.click_twice(desk.sees("End DisposableVM", "push button", "SENSITIVE"))
        desk.sees(REALLY)
        assert "SENSITIVE" not in desk.sees("End DisposableVM", "push button").states
        desk.sees("End DisposableVM", "push button", "SENSITIVE")  # a second later
        assert vm.asks_nothing()

    @pytest.mark.parametrize("way", ["Return", "space", "Keep it"])
    def test_what_is_pressed_without_looking_keeps_it(self, desk: Desk, vm: Vm, report: Path, way: str) -> None:
        start(vm, report)
        open_there(desk, vm)
        bring_back(desk)
        desk.clicks("End DisposableVM", "push button", "SENSITIVE")
        desk.sees("Keep it", "push button", "FOCUSED")
        if way == "Keep it":
            desk.clicks(way, "push button")
        else:
            desk.press(way)
        until(lambda: not desk.shows_window(TITLE), "the window is out of the way")
        assert vm.asks_nothing()
        bring_back(desk)
        desk.does_not_see("Keep it")

    @pytest.mark.parametrize("way", ["Escape", "alt+F4"])
    def test_to_close_the_window_of_an_open_document_only_puts_it_out_of_the_way(self, desk: Desk, vm: Vm, report: Path, way: str) -> None:
        start(vm, report)
        seq = open_there(desk, vm)
        bring_back(desk)
        desk.press(way)
        until(lambda: not desk.shows_window(TITLE), "the window is out of the way")
        assert vm.asks_nothing()
        vm.tells(seq, "ended disp3 failed")
        desk.sees("The DisposableVM of report.pdf has ended")
        until(lambda: desk.shows_window(TITLE), "the window is there again")

    def test_the_end_of_the_window_leaves_an_open_document_open(self, desk: Desk, vm: Vm, report: Path) -> None:
        window = start(vm, report)
        seq = open_there(desk, vm)
        tool = children(window.pid)[0]
        window.kill()
        window.wait()
        vm.tells(seq, "unchanged disp3")
        until(lambda: not Path(f"/proc/{tool}").exists() or "(defunct)" in cmdline(tool), "the command has seen the end")
        assert vm.asks_nothing()


class TestSeveral:
    @pytest.fixture
    def documents(self, vm: Vm) -> list[Path]:
        files = [vm.folder / f"{name}.pdf" for name in ("first", "second", "third")]
        for file in files:
            file.write_bytes(b"content")
        return files

    def test_are_delivered_one_after_another(self, desk: Desk, vm: Vm, documents: list[Path]) -> None:
        window = start(vm, *documents)
        desk.sees("Opening first.pdf in a DisposableVM")
        desk.sees("Asking dom0 for a pendrive…\n2 more to open after this.")
        numbers = []
        for document in documents:
            numbers.append(hand_over(vm, "open disp3"))
            desk.sees(f"{document.name} is open in a DisposableVM")
        assert len(set(numbers)) == 3
        for number, document in zip(numbers, documents, strict=True):
            vm.tells(number, "unchanged disp3")
            desk.sees(f"{document.name} was not changed")
            desk.clicks("Close", "push button", "SENSITIVE")
            desk.does_not_see(f"{document.name} was not changed")
        assert ended(window) == 0

    @pytest.mark.parametrize("key", ["space", "Return"])
    def test_the_window_of_the_next_does_not_take_the_keyboard(self, desk: Desk, vm: Vm, documents: list[Path], key: str) -> None:
        start(vm, *documents)
        desk.sees("Opening first.pdf in a DisposableVM")
        with desk.letter() as letter:
            hand_over(vm)
            desk.sees("Opening second.pdf in a DisposableVM")
            desk.waits(SETTLED_S)
            desk.sees(letter.name, letter.role, "ACTIVE")
            desk.press(key)
            desk.waits(SETTLED_S)
            desk.sees("Asking dom0 for a pendrive…\n1 more to open after this.")

    def test_one_that_cannot_be_opened_does_not_stop_the_others(self, desk: Desk, vm: Vm, documents: list[Path]) -> None:
        start(vm, vm.outgoing, *documents)
        desk.sees("outgoing cannot be opened in a DisposableVM")
        desk.sees("Opening first.pdf in a DisposableVM")

    @pytest.mark.parametrize("end", ["denied", "cancelled"])
    def test_a_no_stops_those_that_wait(self, desk: Desk, vm: Vm, documents: list[Path], end: str) -> None:
        window = start(vm, *documents)
        request = until_asked(desk, vm, f"{ASKING}\n2 more to open after this.")
        if end == "cancelled":
            cancel(desk, "Escape")
        else:
            vm.replies(request, "denied")
        vm.takes_back()
        desk.sees("2 more documents were not opened.")
        desk.picture(f"o8-several-{end}", DRAWN_S)
        close(desk)
        assert ended(window) == (outcome.CANCELLED if end == "cancelled" else outcome.REFUSED)
        assert vm.asks_nothing()

    def test_a_cancel_that_comes_too_late_stops_those_that_wait_all_the_same(self, desk: Desk, vm: Vm, documents: list[Path]) -> None:
        window = start(vm, *documents)
        send = until_asked(desk, vm, f"{ASKING}\n2 more to open after this.")
        cancel(desk, "Escape")
        vm.replies(vm.takes("cancel"), "failed", "busy")
        vm.takes_again(send)
        vm.delivers(send)
        vm.replies(vm.takes("forget"), "failed", "no-document")
        desk.sees("It is too late to stop: it is closed there.")
        desk.sees("2 more documents were not opened.")
        assert vm.asks_nothing()
        desk.clicks("Close", "push button", "SENSITIVE")
        assert ended(window) == outcome.DONE
        assert vm.asks_nothing()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return "(defunct)"
