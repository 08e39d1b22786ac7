"""A place for a pendrive: the disk, and the folder on which it is mounted."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from qfilexchg.guest import slot as module
from qfilexchg.guest.programs import ProgramFailed
from qfilexchg.guest.slot import Disk, NoDevice, Slot, WrongMount


class Udev:
    """A waiter in whose waits things happen, and an end to them."""

    def __init__(self, *happenings: object) -> None:
        self._happenings = list(happenings)

    def wait(self, descriptors: Sequence[int], timeout_s: float, events: int = 0) -> bool:
        if not self._happenings:
            return False
        happening = self._happenings.pop(0)
        if callable(happening):
            happening()
        return True


@pytest.fixture
def calls() -> list[tuple[str, ...]]:
    return []


@pytest.fixture
def slot(tmp_path: Path, calls: list[tuple[str, ...]]) -> Slot:
    def run(*argv: str, deadline_s: float) -> None:
        calls.append(argv)

    (tmp_path / "mnt").mkdir()
    return Slot(str(tmp_path / "xvdg"), str(tmp_path / "mnt"), run)


class TestWait:
    def test_a_disk_that_is_there_is_not_waited_for(self, slot: Slot) -> None:
        Path(slot.device).touch()
        assert slot.wait(Udev(), present=True)

    def test_other_devices_are_passed_over(self, slot: Slot) -> None:
        assert slot.wait(Udev(None, None, Path(slot.device).touch), present=True)

    def test_one_that_leaves_is_waited_for(self, slot: Slot) -> None:
        Path(slot.device).touch()
        assert slot.wait(Udev(None, Path(slot.device).unlink), present=False)

    def test_one_that_does_not_come_is_an_error(self, slot: Slot) -> None:
        with pytest.raises(NoDevice) as caught:
            slot.wait_present(Udev(None))
        assert str(caught.value).startswith(f"{slot.device} did not appear within 30 s")


class TestMount:
    def test_it_goes_by_the_folder_so_by_fstab(self, slot: Slot, calls: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module.os, "stat", lambda path: os.stat_result((0,) * 10, {"st_rdev": 0}))  # type: ignore[attr-defined]
        slot.mount()
        slot.sync()
        slot.unmount()
        assert [argv[0] for argv in calls] == ["/usr/bin/mount", "/usr/bin/sync", "/usr/bin/umount"]
        assert {argv[-2:] for argv in calls} == {("--", slot.folder)}

    def test_a_folder_that_is_not_the_disk_is_unmounted_again(self, slot: Slot, calls: list[tuple[str, ...]]) -> None:
        Path(slot.device).touch()
        with pytest.raises(WrongMount):
            slot.mount()
        assert [argv[0] for argv in calls] == ["/usr/bin/mount", "/usr/bin/umount"]

    def test_a_disk_that_vanishes_meanwhile_is_a_wrong_mount(self, slot: Slot) -> None:
        with pytest.raises(WrongMount):
            slot.mount()

    def test_a_mount_that_fails_is_not_looked_at(self, tmp_path: Path) -> None:
        def fail(*argv: str, deadline_s: float) -> None:
            raise ProgramFailed(argv, "failed with exit status 32", b"no medium")

        with pytest.raises(ProgramFailed):
            Slot(str(tmp_path / "xvdg"), str(tmp_path), fail).mount()

    def test_a_mount_is_seen_by_its_device_number(self, slot: Slot) -> None:
        assert not slot.mounted()
        assert Slot("/dev/xvdg", "/proc").mounted()


class TestDisk:
    def test_there_is_none_where_no_device_is(self, slot: Slot) -> None:
        assert slot.disk() is None
        Path(slot.device).touch()
        assert slot.disk() is None

    def test_its_size_is_the_kernels_word(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def sysfs(path: str, **_: str) -> io.StringIO:
            asked.append(path)
            return io.StringIO("16\n")

        monkeypatch.setattr(module, "open", sysfs, raising=False)
        assert Slot("/dev/null", "/mnt").size_bytes() == 16 * 512
        assert asked == ["/sys/dev/block/1:3/size"]

    def test_the_same_number_is_another_disk_when_its_sequence_differs(self) -> None:
        assert Disk("254:32", 5) == Disk("254:32", 5) != Disk("254:32", 6)

    def test_one_that_is_mounted_nowhere_is_not_waited_for(self) -> None:
        Disk("0:0", 1).wait_unmounted(Udev())

    def test_one_that_is_mounted_is_looked_for_at_each_change(self) -> None:
        class Unmounted(Exception):
            pass

        def unmounted() -> None:
            raise Unmounted

        number = os.stat("/proc").st_dev
        with pytest.raises(Unmounted):
            Disk(f"{os.major(number)}:{os.minor(number)}", 1).wait_unmounted(Udev(None, None, unmounted))


def test_udev_is_listened_to() -> None:
    threads = threading.active_count()
    with module.DeviceEvents() as events:
        assert events.fileno() >= 0
        events.clear()
    assert threading.active_count() == threads
