"""Send to VM, in its windows under a real window manager: real keys, a real mouse, the real command, and dom0 played by the test."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

from qfilexchg.guest import outcome
from tests.desktop.desk import DEADLINE_S, SCREEN_HEIGHT, SCREEN_WIDTH, Desk, until
from tests.desktop.vm import Vm
from tests.desktop.windows import ASKING, DRAWN_S, cancel, close, ended, until_asked

FIELD = "Name of the VM"
CANCELLED = "Cancelled: nothing was sent"
PASSAGE_HEIGHT = 140


def start(vm: Vm, *files: str | Path, **environment: str) -> subprocess.Popen[str]:
    return vm.start("send-to-vm-window", *files, **environment)


def send_to_personal(desk: Desk, vm: Vm, *files: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Start it, and answer its question."""
    window = start(vm, *files, **environment)
    desk.sees(FIELD, "text", "FOCUSED")
    desk.types("personal")
    desk.press("Return")
    return window


class TestDestination:
    def test_is_typed_and_then_known(self, desk: Desk, vm: Vm, report: Path) -> None:
        window = send_to_personal(desk, vm, report)
        vm.attaches()
        vm.delivers(vm.takes("send"))
        desk.sees("Sent to personal")
        close(desk)
        assert ended(window) == 0
        window = start(vm, report)
        desk.sees("personal", "list item")
        desk.sees(FIELD, "text", "FOCUSED")
        desk.press("Escape")
        assert ended(window) == outcome.CANCELLED
        assert vm.asks_nothing()

    def test_is_taken_from_the_list_by_the_keyboard(self, desk: Desk, vm: Vm, report: Path) -> None:
        vm.knows("untrusted", "personal", "work")
        window = start(vm, report)
        desk.sees("work", "list item")
        desk.sees(FIELD, "text", "FOCUSED")
        desk.picture("s1-destination", DRAWN_S)
        desk.types("p")
        desk.does_not_see("work")
        desk.press("Down")
        desk.sees("personal", "list item", "FOCUSED")
        desk.picture("s2-destination-from-the-list", DRAWN_S)
        desk.press("Return")
        vm.attaches()
        assert vm.takes("send").target == "personal"
        window.terminate()

    def test_is_taken_from_the_list_by_the_mouse(self, desk: Desk, vm: Vm, report: Path) -> None:
        vm.knows("untrusted", "personal")
        start(vm, report)
        desk.sees(FIELD, "text", "FOCUSED")
        desk.clicks("personal", "list item")
        desk.clicks("Send", "push button", "SENSITIVE")
        vm.attaches()
        assert vm.takes("send").target == "personal"

    def test_is_forgotten_by_delete(self, desk: Desk, vm: Vm, report: Path) -> None:
        vm.knows("untrusted", "personal")
        start(vm, report)
        desk.sees("untrusted", "list item")
        desk.sees(FIELD, "text", "FOCUSED")
        desk.press("Down", "Delete")
        desk.does_not_see("untrusted")
        until(lambda: vm.known() == ["personal"], "the name is forgotten")

    def test_that_is_no_name_cannot_be_sent_to(self, desk: Desk, vm: Vm, report: Path) -> None:
        start(vm, report)
        desk.sees(FIELD, "text", "FOCUSED")
        desk.types("my work")
        desk.sees("A VM's name has letters, digits, _ and -, begins with a letter, and is at most 64 long.")
        assert "SENSITIVE" not in desk.sees("Send", "push button").states
        desk.picture("s3-no-name", DRAWN_S)
        desk.press("Return")
        desk.sees(FIELD)
        assert vm.asks_nothing()

    @pytest.mark.parametrize("way", ["Escape", "alt+F4", "Cancel"])
    def test_need_not_be_given(self, desk: Desk, vm: Vm, report: Path, way: str) -> None:
        window = start(vm, report)
        desk.sees(FIELD, "text", "FOCUSED")
        if way == "Cancel":
            desk.clicks("Cancel", "push button")
        else:
            desk.press(way)
        assert ended(window) == outcome.CANCELLED
        assert vm.asks_nothing()


class TestProgress:
    def test_each_stage_is_shown(self, desk: Desk, vm: Vm) -> None:
        folder = vm.folder / "pictures"
        folder.mkdir()
        for number in range(3):
            (folder / f"{number}.jpg").write_bytes(bytes(1_000_000))
        window = send_to_personal(desk, vm, folder, vm.folder / "report.pdf", SLOW_S="0.06")
        desk.sees("These cannot go onto a pendrive as they are:")  # there is no report.pdf
        desk.clicks("Leave these out", "push button")
        desk.sees("Asking dom0 for a pendrive…")
        desk.picture("s4-getting-a-pendrive", DRAWN_S)
        vm.attaches()
        until(lambda: any("left" in text for text in desk.texts()), "the time left is told")
        desk.sees("Sending 2 files and folders to personal")
        desk.picture("s5-copying", DRAWN_S)
        request = vm.takes("send")
        vm.replies(request, "asking")
        desk.sees(ASKING)
        desk.picture("s6-asking", DRAWN_S)
        vm.replies(request, "queued")
        desk.sees("Allowed; waiting until personal is done with its last pendrive…")
        vm.replies(request, "accepted")
        desk.sees("Allowed; the pendrive is on its way…")
        vm.delivers(request)
        desk.sees("Sent to personal, but not everything")
        desk.picture("s7-sent-in-part", DRAWN_S)
        assert {path.name for path in (vm.outgoing / "pictures").iterdir()} == {"0.jpg", "1.jpg", "2.jpg"}
        desk.clicks("Close", "push button", "FOCUSED")
        assert ended(window) == 0

    def test_a_denial_is_a_clear_end_and_no_name_is_remembered(self, desk: Desk, vm: Vm, report: Path) -> None:
        window = send_to_personal(desk, vm, report)
        vm.attaches()
        vm.replies(vm.takes("send"), "denied")
        vm.takes_back()
        desk.sees("Not sent: denied")
        desk.picture("s8-denied", DRAWN_S)
        desk.sees("Close", "push button", "FOCUSED")
        desk.press("Escape")
        assert ended(window) == outcome.REFUSED
        assert vm.known() == []

    def test_a_failure_says_what_failed(self, desk: Desk, vm: Vm, report: Path) -> None:
        window = send_to_personal(desk, vm, report)
        vm.replies(vm.takes("new"), "failed", "no-pendrive-made")
        desk.sees("Not sent: something failed")
        desk.sees("Dom0 could not do it: it could not make a pendrive; its disk may be full")
        desk.picture("s9-failed", DRAWN_S)
        close(desk)
        assert ended(window) == outcome.BROKEN


class TestCancel:
    @pytest.mark.parametrize("way", ["Cancel", "alt+F4"])
    def test_while_dom0_asks(self, desk: Desk, vm: Vm, report: Path, way: str) -> None:
        window = send_to_personal(desk, vm, report)
        request = until_asked(desk, vm)
        cancel(desk, way)
        taking_back = vm.takes("cancel")
        vm.detaches()
        vm.replies(request, "cancelled")
        vm.replies(taking_back, "cancelled")
        desk.sees(CANCELLED)
        desk.picture("s10-cancelled", DRAWN_S)
        close(desk)
        assert ended(window) == outcome.CANCELLED

    def test_while_a_pendrive_is_waited_for(self, desk: Desk, vm: Vm, report: Path) -> None:
        send_to_personal(desk, vm, report)
        desk.sees("Asking dom0 for a pendrive…")
        new = vm.takes("new")
        cancel(desk)
        vm.takes_again(new)
        vm.attach()
        vm.replies(new, "attached")
        vm.takes_back()
        desk.sees(CANCELLED)

    def test_while_it_is_copied(self, desk: Desk, vm: Vm) -> None:
        large = vm.folder / "large"
        large.write_bytes(bytes(50_000_000))
        send_to_personal(desk, vm, large, SLOW_S="0.05")
        vm.attaches()
        desk.sees("Copying…")
        cancel(desk)
        vm.takes_back()
        desk.sees(CANCELLED)

    def test_while_it_waits_for_the_receiver(self, desk: Desk, vm: Vm, report: Path) -> None:
        send_to_personal(desk, vm, report)
        vm.attaches()
        request = vm.takes("send")
        vm.replies(request, "queued")
        desk.sees("Allowed; waiting until personal is done with its last pendrive…")
        cancel(desk)
        vm.takes_back()
        desk.sees(CANCELLED)

    def test_that_comes_too_late_ends_as_it_should(self, desk: Desk, vm: Vm, report: Path) -> None:
        window = send_to_personal(desk, vm, report)
        vm.attaches()
        request = vm.takes("send")
        vm.replies(request, "accepted")
        desk.sees("Allowed; the pendrive is on its way…")
        cancel(desk)
        vm.replies(vm.takes("cancel"), "failed", "leaving")
        vm.takes_again(request)
        vm.delivers(request)
        desk.sees("Sent to personal")
        close(desk)
        assert ended(window) == 0

    def test_the_end_of_the_window_takes_the_pendrive_back(self, desk: Desk, vm: Vm, report: Path) -> None:
        window = send_to_personal(desk, vm, report)
        until_asked(desk, vm)
        window.kill()
        vm.takes_back()


class TestWhatAPendriveCannotHold:
    @pytest.fixture
    def folder(self, vm: Vm) -> Path:
        folder = vm.folder / "notes"
        folder.mkdir()
        (folder / "what?\n<b>.txt").write_bytes(b"1")
        (folder / "link").symlink_to("good")
        (folder / "good").write_bytes(b"2")
        return folder

    def test_is_listed_and_can_be_left_out(self, desk: Desk, vm: Vm, folder: Path) -> None:
        window = send_to_personal(desk, vm, folder)
        desk.sees(f"{folder}/link: it is a link\n{folder}/what?\\n<b>.txt: its name has < > ?")
        desk.picture("s11-cannot-be-held", DRAWN_S)
        assert vm.asks_nothing()
        desk.sees("Close", "push button", "FOCUSED")
        desk.press("alt+l")
        vm.attaches()
        vm.delivers(vm.takes("send"))
        desk.sees("Sent to personal, but not everything")
        assert [path.name for path in (vm.outgoing / "notes").iterdir()] == ["good"]
        close(desk)
        assert ended(window) == 0

    def test_can_be_packed(self, desk: Desk, vm: Vm, folder: Path) -> None:
        send_to_personal(desk, vm, folder)
        desk.clicks("Pack all into one tar file", "push button")
        vm.attaches()
        vm.delivers(vm.takes("send"))
        desk.sees("Sent to personal")
        assert [path.name for path in vm.outgoing.iterdir()] == ["notes.tar"]

    def test_need_not_be_sent_at_all(self, desk: Desk, vm: Vm, folder: Path) -> None:
        window = send_to_personal(desk, vm, folder)
        desk.sees("Pack all into one tar file", "push button")
        desk.sees("Close", "push button", "FOCUSED")
        desk.press("Escape")
        assert ended(window) == outcome.CANNOT_BE_HELD
        assert vm.asks_nothing()


def test_assistive_technology_is_told_of_everything(desk: Desk, vm: Vm, report: Path) -> None:
    vm.knows("personal")
    start(vm, report)
    for part in (FIELD, "VMs used before", "personal", "Cancel", "Send"):
        desk.sees(part)
    desk.types("personal")
    desk.press("Return")
    for part in ("Sending report.pdf to personal", "Progress", "Cancel"):
        desk.sees(part)
    assert not [widget for widget in desk.look() if widget.role in ("push button", "progress bar", "text") and not widget.name]


@pytest.mark.parametrize("thing", ["trash:///old.txt", "smb://server/share/file", "file:///a%00b"])
def test_what_is_no_file_of_this_vm_is_refused(desk: Desk, vm: Vm, report: Path, thing: str) -> None:
    window = start(vm, report, thing)
    desk.sees("This cannot be done")
    desk.picture("s12-not-local", DRAWN_S)
    assert FIELD not in desk.texts()
    desk.sees("Close", "push button", "FOCUSED")
    desk.press("Escape")
    assert ended(window) == outcome.CANNOT_BE_HELD


def test_no_text_makes_a_window_larger_than_the_screen(desk: Desk, vm: Vm) -> None:
    window = start(vm, *(f"smb://server/{quote('Д' * 120)}{number}.pdf" for number in range(10)))
    desk.sees("This cannot be done")
    desk.picture("s13-long", DRAWN_S)
    frame = desk.sees("Send to VM", "frame")
    text = next(widget for widget in desk.look() if widget.name.startswith("Only files of this VM itself"))
    assert text.place[3] > PASSAGE_HEIGHT, "it scrolls"
    assert frame.place[3] < SCREEN_HEIGHT / 2
    desk.clicks("Close", "push button", "SENSITIVE")
    assert ended(window) == outcome.CANNOT_BE_HELD


@pytest.mark.parametrize("letters", ["Д", "写"])
def test_notes_and_a_reason_without_end_leave_the_buttons_on_the_screen(desk: Desk, vm: Vm, tmp_path: Path, letters: str) -> None:
    tool = tmp_path / "qvm-copy-to-vm"
    lines = [{"note": letters * 200} for _ in range(20)] + [{"problem": letters * 100, "why": letters, "left_out": False}]
    lines.append({"end": outcome.CANNOT_BE_HELD, "text": letters * 2000})
    said = "".join(f"{json.dumps(line)}\n" for line in lines)
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{said}END\nexit {outcome.CANNOT_BE_HELD}\n")
    tool.chmod(0o755)
    window = send_to_personal(desk, vm, "/etc/hostname", TOOL=str(tool))
    desk.sees("Pack all into one tar file", "push button")
    desk.picture(f"s14-without-end-{letters}", DRAWN_S)
    x, y, width, height = desk.sees("Close", "push button").place
    assert (y + height < SCREEN_HEIGHT, x + width < SCREEN_WIDTH) == (True, True)
    desk.clicks("Close", "push button", "SENSITIVE")
    assert ended(window) == outcome.CANNOT_BE_HELD


def test_a_tool_that_could_not_be_started_is_said_to_be_so(desk: Desk, vm: Vm, report: Path) -> None:
    window = send_to_personal(desk, vm, report, TOOL="/nonexistent/qvm-copy-to-vm")
    desk.sees("Not sent: something failed")
    assert any(text.startswith("Qvm-copy-to-vm could not be started: ") for text in desk.texts())
    close(desk)
    assert ended(window) == outcome.BROKEN


def test_a_program_that_breaks_before_its_first_window_ends(vm: Vm) -> None:
    folder = vm.folder / "gone"
    folder.mkdir()
    window = vm.start("send-to-vm-window", "report.pdf", GONE=str(folder))
    _, said = window.communicate(timeout=DEADLINE_S)
    assert window.returncode == outcome.BROKEN
    assert "FileNotFoundError" in said


def test_without_a_display_that_is_said(vm: Vm, report: Path) -> None:
    window = start(vm, report, DISPLAY="", XENSTORED_PATH="")
    _, said = window.communicate(timeout=DEADLINE_S)
    assert window.returncode == outcome.BROKEN
    assert "send-to-vm-window: there is no display that a window could be shown on; or use qvm-copy-to-vm" in said
