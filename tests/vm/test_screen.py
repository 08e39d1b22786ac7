"""The whole story as a person has it: two VMs with screens, their file managers, the question at the host, and DisposableVMs in windows.

What acts is the emulated mouse and keyboard of the VMs, and a mouse at the host's own desk, where the real agent runs. Pictures of each
step are in ``.ci/out/screen``.
"""

from __future__ import annotations

import struct
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from qfilexchg.dom0.vms.collection import Collection, Kind
from qfilexchg.protocol.names import VmName
from tests.desktop.desk import PYTHON, Desk
from tests.machines import CHECKOUT
from tests.vm.conftest import laboratory
from tests.vm.lab import Lab, Vm
from tests.vm.screen import OUT, Screen
from tests.vm.steps import rule, spool_is_empty, until

HOSTILE = "-rf it's $(touch pwned)`touch pwned` %U.txt"
"""As far as a pendrive can hold it."""
WORDS = "Dear aunt,\nthank you for the pullover.\n"
PAPER = (0x20, 0x90, 0x40)
"""A colour that nothing else on these screens has."""


def pdf() -> bytes:
    """One page, all of it in the colour of :data:`PAPER`."""
    red, green, blue = (part / 255 for part in PAPER)
    content = f"{red:.4f} {green:.4f} {blue:.4f} rg 0 0 595 842 re f".encode()
    objects = (
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 4 0 R>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(content), content),
    )
    file, places = bytearray(b"%PDF-1.4\n"), []
    for number, body in enumerate(objects, start=1):
        places.append(len(file))
        file += b"%d 0 obj%sendobj\n" % (number, body)
    table = len(file)
    file += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + b"".join(b"%010d 00000 n \n" % place for place in places)
    return bytes(file + b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, table))


def png() -> bytes:
    """A picture, all of it in that colour."""
    width = height = 200

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes(PAPER) * width) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


REPORT = pdf()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One whose VMs have screens, and a savefile with X running."""
    with laboratory("--desktop") as lab:
        rule(lab, "* disposable allow\n* * ask")
        lab.succeed("qvm-create-default-dvm", "--default-template")
        yield lab


@pytest.fixture(scope="module")
def desk(lab: Lab) -> Iterator[Desk]:
    """The person's own desktop at the host, with their agent; their commands run there, too."""
    with Desk.set_up() as desk, ExitStack() as stack:
        lab.succeed("qfilexchg", "up")
        environment = desk.environment | {"PYTHONPATH": str(CHECKOUT / "src"), "QFILEXCHG_HOME": str(lab.home.data)}
        agent = subprocess.Popen([PYTHON, "-m", "qfilexchg.dom0.cli", "qfilexchg-agent"], env=environment, stdin=subprocess.DEVNULL)
        stack.callback(agent.wait)
        stack.callback(agent.terminate)
        lab.environment["DISPLAY"] = desk.environment["DISPLAY"]
        yield desk


@pytest.fixture(scope="module")
def work(lab: Lab, desk: Desk) -> Iterator[Screen]:
    with at(lab.vm("work")) as screen:
        screen.finds_the_file_manager()
        put(screen.vm, "report.pdf", REPORT)
        put(screen.vm, "letter.txt", WORDS.encode())
        yield screen


def put(vm: Vm, name: str, content: bytes) -> None:
    assert vm.run("sh", "-c", 'cat >"$1"', "sh", name, input=content).returncode == 0


@contextmanager
def at(vm: Vm) -> Iterator[Screen]:
    with Screen(vm) as screen:
        yield screen


@pytest.fixture(scope="module")
def personal(lab: Lab, work: Screen) -> Iterator[Screen]:
    with at(lab.vm("personal")) as screen:
        screen.finds_the_file_manager()
        yield screen


def disposable(lab: Lab) -> Vm:
    """The DisposableVM that a document was opened in."""

    def names() -> list[VmName]:
        return [vm.name for vm in Collection(lab.home.collection).list() if vm.kind is Kind.DISPOSABLE]

    until(lambda: len(names()) == 1, "there is a DisposableVM")
    vm = Vm(lab, names()[0])
    until(lambda: vm.runs, f"{vm.name} runs")
    return vm


def shows_the_page(screen: Screen) -> bool:
    """A viewer may round a colour."""
    return any(all(abs(part - wanted) <= 2 for part, wanted in zip(colour, PAPER, strict=True)) for colour in screen.colours())


def picture(desk: Desk, name: str, after_s: float = 0.0) -> None:
    """Of the desk, beside those of the VMs' screens."""
    desk.picture(name, after_s)
    (OUT / f"{name}.png").write_bytes(desk.picture_path(name).read_bytes())


def windows(desk: Desk, vm: Vm) -> list[str]:
    """In which the person sees the VM's screen."""
    command = ["xdotool", "search", "--name", rf"^QEMU \({vm.name}\)"]
    return subprocess.run(command, env=desk.environment, capture_output=True, text=True, timeout=20, check=False).stdout.split()


def shows(desk: Desk, screen: Screen) -> bool:
    """Whether the VM's screen is in a window of the desk: most of its largest parts, as a small one may change between two looks."""
    seen = desk.colours()
    return bool(windows(desk, screen.vm)) and all(seen.get(colour, 0) > count / 2 for colour, count in screen.colours().most_common(3))


def is_seen_until_it_is_closed(desk: Desk, screen: Screen) -> None:
    """A VM's screen, in its window at the desk."""
    until(lambda: shows(desk, screen), "the window shows the VM's desktop")
    picture(desk, "0-start")
    desk.press("alt+F4")
    until(lambda: not windows(desk, screen.vm), "the window is gone")
    assert screen.vm.runs


def is_gone(lab: Lab, desk: Desk, vm: Vm) -> None:
    """The DisposableVM, and the window in which the person saw it."""
    until(lambda: not vm.runs, f"{vm.name} is gone")
    until(lambda: not windows(desk, vm), f"the window of {vm.name} is gone")
    spool_is_empty(lab)


def test_a_screen_is_opened_by_the_command_that_starts_its_vm_and_again_while_that_runs(lab: Lab, desk: Desk) -> None:
    vm = lab.made("personal")
    command = ("qvm-start", "--screen", vm.name)
    lab.succeed(*command)
    with at(vm) as screen:
        screen.finds_the_file_manager()
        is_seen_until_it_is_closed(desk, screen)
        lab.succeed(*command)
        is_seen_until_it_is_closed(desk, screen)


def test_files_go_to_another_vm(lab: Lab, desk: Desk, work: Screen, personal: Screen) -> None:
    work.clicks("report.pdf")
    work.presses("ctrl", "a")
    work.opens_menu("report.pdf")
    work.points_to("Send to VM…")
    work.picture("1-menu")
    work.clicks_here()
    work.sees("Name of the VM", "text", "FOCUSED")
    work.types("personal")
    work.picture("2-destination")
    work.presses("ret")
    work.sees("Waiting for an answer in dom0…")
    work.picture("3-progress")
    allow = desk.sees("Allow", "push button", "SENSITIVE")
    picture(desk, "4-question", 0.25)
    desk.click(allow)
    work.sees("Sent to personal")
    work.picture("5-sent")
    work.presses("ret")
    work.clicks("letter.txt")  # alone from now on

    personal.sees("work", "table cell")
    personal.picture("6-arrived")
    personal.clicks("work", "table cell")
    personal.clicks("report.pdf")
    personal.picture("7-on-the-pendrive")
    personal.presses("ctrl", "c")
    personal.clicks("user", "table cell")
    personal.presses("ctrl", "v")
    until(lambda: personal.vm.run("cat", "report.pdf").stdout == REPORT, "the copy is there")
    personal.picture("8-copied")
    assert personal.vm.run("sh", "-c", "cat /mnt/incoming/*.txt").stdout == WORDS.encode()
    personal.ejects("work")
    personal.does_not_see("work")
    spool_is_empty(lab)
    until(lambda: personal.vm.run("test", "-e", "/dev/xvdh").returncode != 0, "the disk is gone")
    personal.picture("9-ejected")


def test_a_no_to_a_file_with_a_hostile_name_is_seen_in_the_vm(lab: Lab, desk: Desk, work: Screen) -> None:
    receiver = lab.vm("personal")
    put(work.vm, HOSTILE, b"content")
    work.chooses("Send to VM…", of=HOSTILE)
    work.sees("Name of the VM", "text", "FOCUSED")
    work.sees(f"Send {HOSTILE} to which VM?")
    work.types(receiver.name)
    work.presses("ret")
    desk.click(desk.sees("Deny", "push button", "FOCUSED"))
    work.sees("Not sent: denied")
    work.picture("10-denied")
    work.presses("ret")
    work.does_not_see("Not sent: denied")
    spool_is_empty(lab)
    assert "pwned" not in work.vm.output("ls").splitlines()
    work.vm.output("rm", "--", HOSTILE)


@pytest.mark.parametrize(("name", "content"), [("report.pdf", REPORT), ("photo.png", png())], ids=["pdf", "png"])
def test_a_document_is_shown_in_a_window_of_its_own(lab: Lab, desk: Desk, work: Screen, name: str, content: bytes) -> None:
    kind = name.rpartition(".")[2]
    put(work.vm, name, content)
    work.chooses("Open in DisposableVM", of=name)
    vm = disposable(lab)
    with at(vm) as screen:
        until(lambda: shows_the_page(screen), "it is shown")
        screen.picture(f"11-{kind}")
        until(lambda: shows(desk, screen), "its window shows it as well")
        picture(desk, f"12-window-{kind}")
        screen.presses("q")
    is_gone(lab, desk, vm)
    assert work.vm.run("cat", name).stdout == content


def test_a_letter_is_edited_and_comes_back(lab: Lab, desk: Desk, work: Screen) -> None:
    work.chooses("Open in DisposableVM", of="letter.txt")
    vm = disposable(lab)
    with at(vm) as screen:
        screen.sees("File", "menu")
        screen.presses("ctrl", "end")
        screen.types("Yours, Ann\n")
        screen.picture("13-edited")
        until(lambda: shows(desk, screen), "its window shows it as well")
        picture(desk, "14-edited-window")
        screen.presses("ctrl", "s")
        until(lambda: vm.run("cat", "/tmp/letter.txt").stdout == f"{WORDS}Yours, Ann\n".encode(), "it is saved")
        screen.presses("ctrl", "q")
    until(lambda: work.vm.run("cat", "letter.txt").stdout == f"{WORDS}Yours, Ann\n".encode(), "the letter is back")
    is_gone(lab, desk, vm)
    work.picture("15-returned")
