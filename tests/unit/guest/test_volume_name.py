from __future__ import annotations

import os
import select
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfilexchg.guest import volume_name
from qfilexchg.guest.slot import INCOMING, Disk, Slot
from qfilexchg.guest.volume_name import NAMES_ITSELF, follow, show, shown_as
from qfilexchg.protocol.names import VmName

WORK = VmName.parse("work")
SHIPPED = (Path(__file__).parents[3] / "packaging/vm/fstab").read_text()


def in_slot(table: str, name: VmName | None = WORK) -> str:
    return shown_as(table, INCOMING.device, INCOMING.folder, name)


def test_the_incoming_line_alone_gets_the_senders_name() -> None:
    outgoing, incoming = in_slot(SHIPPED).splitlines()
    assert outgoing == SHIPPED.splitlines()[0]
    before, after = SHIPPED.splitlines()[1].split(), incoming.split()
    assert after[3] == f"{before[3]},x-gvfs-show,x-gvfs-name=work"
    assert after[:3] + after[4:] == before[:3] + before[4:]


def test_the_next_senders_name_takes_the_place_of_the_last_and_nobodys_leaves_none() -> None:
    assert in_slot(in_slot(SHIPPED), VmName.parse("personal")) == in_slot(SHIPPED, VmName.parse("personal"))
    assert in_slot(in_slot(SHIPPED), None) == SHIPPED


@pytest.mark.parametrize(
    "line",
    [
        "# /dev/xvdh /mnt/incoming vfat user 0 0\n",
        "/dev/xvdh /mnt/other vfat user 0 0\n",
        "/dev/xvdh /mnt/incoming vfat\n",
        "\n",
        "\udcff x\r\n",
    ],
)
def test_all_other_lines_stay_as_they_are(line: str) -> None:
    assert in_slot(line) == line


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20)))
def test_what_is_no_line_of_ours_is_never_changed(words: list[str]) -> None:
    table = "\n".join(words)
    assert in_slot(table) == table


def test_the_file_keeps_its_mode_and_has_no_other_beside_it(tmp_path: Path) -> None:
    fstab = tmp_path / "fstab"
    fstab.write_bytes(SHIPPED.encode() + b"\xff is kept\r\n")
    fstab.chmod(0o640)
    show(str(fstab), INCOMING, WORK)
    assert fstab.read_bytes() == in_slot(SHIPPED).encode() + b"\xff is kept\r\n"
    assert fstab.stat().st_mode & 0o777 == 0o640 and os.listdir(tmp_path) == ["fstab"]


class Held(Disk):
    """A disk that is mounted until it is asked how long; what fstab said at that moment is ``seen``."""

    fstab: Path
    seen: str

    def wait_unmounted(self, waiter: object) -> None:
        self.seen = self.fstab.read_text()


class Place(Slot):
    """The slot, with ``held`` in it."""

    held: Held | None

    def disk(self) -> Disk | None:
        return self.held


class Arrival:
    def __init__(self, folder: Path) -> None:
        self.slot = Place(INCOMING.device, str(folder / "incoming"))
        self.slot.held = self.disk = Held("0:1", 5)
        self.fstab = self.disk.fstab = folder / "fstab"
        self.disk.seen = ""
        self.before = SHIPPED.replace(INCOMING.folder, self.slot.folder)
        self.fstab.write_text(self.before)
        (folder / "incoming").mkdir()
        self.logged: list[str] = []

    def follow(self) -> None:
        follow(self.slot, WORK, self.logged.append, str(self.fstab))


@pytest.fixture
def arrival(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Arrival:
    """A pendrive that is mounted."""
    monkeypatch.setattr(volume_name, "_mounted", lambda slot, disk: True)
    return Arrival(tmp_path)


def test_it_is_shown_while_it_is_mounted(arrival: Arrival) -> None:
    arrival.follow()
    assert arrival.disk.seen == shown_as(arrival.before, arrival.slot.device, arrival.slot.folder, WORK)
    assert arrival.fstab.read_text() == arrival.before and not arrival.logged


def test_the_name_that_a_vm_which_was_cut_off_left_is_not_shown_again(arrival: Arrival) -> None:
    show(str(arrival.fstab), arrival.slot, VmName.parse("other"))
    arrival.slot.held = None
    arrival.follow()
    assert arrival.fstab.read_text() == arrival.before


@pytest.mark.parametrize("name", NAMES_ITSELF)
def test_one_that_would_name_itself_is_not_shown(arrival: Arrival, name: str) -> None:
    (Path(arrival.slot.folder) / name).symlink_to("nowhere")
    arrival.follow()
    assert not arrival.disk.seen and arrival.fstab.read_text() == arrival.before
    assert name in arrival.logged[0] and "work" in arrival.logged[0]


def test_one_that_leaves_without_having_been_mounted_is_not_waited_for(tmp_path: Path) -> None:
    arrival = Arrival(tmp_path)
    looks = iter((arrival.disk, arrival.disk, None))
    arrival.slot.disk = lambda: next(looks)  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "poll", Ready)
        arrival.follow()
    assert not arrival.disk.seen and arrival.fstab.read_text() == arrival.before


class Ready:
    """A poll that never waits."""

    def register(self, *_: object) -> None:
        """All of them are ready."""

    def poll(self, *_: object) -> list[object]:
        return []
