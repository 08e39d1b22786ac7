"""Images of pendrives, with the real mkfs.fat; the filesystems are judged by fsck.fat and filled by mtools."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from pathlib import Path

import pytest

from qfilexchg.dom0.exchange import pendrives
from qfilexchg.dom0.exchange.pendrives import (
    BadPendriveId,
    PendriveFailed,
    allocated_bytes,
    create,
    delete,
    image_path,
    keep,
    new_id,
    used_bytes,
)
from qfilexchg.dom0.programs import ProgramFailed, ProgramMissing

MIB = 1 << 20
FAT32_LEAST_CLUSTERS, FAT16_LEAST_CLUSTERS = 65525, 4085


def make(spool: Path, size_bytes: int, label: str = "work") -> Path:
    return asyncio.run(create(spool, new_id(), size_bytes, label))


def images(spool: Path) -> list[Path]:
    return list(spool.iterdir())


def fsck(image: Path) -> str:
    """What fsck.fat says of a filesystem that it finds in order."""
    return subprocess.run(["/usr/sbin/fsck.fat", "-nv", image], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.mark.parametrize("size_mib", [1, 2, 4, 8, 9, 16, 33, 34, 64, 127, 128, 256, 1024, 4096, 65536])
def test_every_size_is_formatted_as_the_specification_has_it(spool: Path, size_mib: int) -> None:
    image = make(spool, size_mib * MIB)
    said = fsck(image)
    [clusters] = map(int, re.findall(r"(\d+) data clusters", said))
    [bits] = map(int, re.findall(r"FATs, (\d+) bit entries", said))
    assert image.stat().st_size == size_mib * MIB
    assert bits == (32 if clusters >= FAT32_LEAST_CLUSTERS else 16 if clusters >= FAT16_LEAST_CLUSTERS else 12)
    assert (bits == 32) == (size_mib >= 34)


def test_a_size_is_rounded_up_to_whole_mib(spool: Path) -> None:
    assert make(spool, 1).stat().st_size == MIB
    assert make(spool, 40 * MIB + 1).stat().st_size == 41 * MIB


def test_an_image_is_sparse_and_private_and_named_by_its_id(spool: Path) -> None:
    token = new_id()
    image = asyncio.run(create(spool, token, 1 << 30, "work"))
    assert image == image_path(spool, token) == spool / f"{token}.img"
    assert image.stat().st_mode & 0o777 == 0o600
    assert spool.stat().st_mode & 0o777 == 0o700
    assert allocated_bytes(image) < 2 * MIB


def test_there_is_no_partition_table_and_nothing_behind_the_tables(spool: Path) -> None:
    with make(spool, 64 * MIB).open("rb") as image:
        head = image.read(512)
        image.seek(-32 * MIB, os.SEEK_END)
        assert not any(image.read())
    assert head[446:510] == bytes(64)


@pytest.mark.parametrize(("name", "label"), [("work", "work"), ("a-very-long-name", "a-very-long"), ("Bank_1", "Bank_1")])
def test_the_label_is_the_name_cut_to_what_fat_holds(spool: Path, name: str, label: str) -> None:
    image = make(spool, 40 * MIB, name)
    shown = subprocess.run(["mlabel", "-s", "-i", image, "::"], check=True, capture_output=True, text=True).stdout
    assert shown.strip() == f"Volume label is {label}"


def test_two_pendrives_have_different_serial_numbers(spool: Path) -> None:
    serials = {make(spool, 40 * MIB).read_bytes()[67:71] for _ in range(2)}
    assert len(serials) == 2


def test_small_ones_have_room_for_many_names_in_the_first_folder(spool: Path) -> None:
    assert "2048 root directory entries" in fsck(make(spool, 8 * MIB))


def test_what_a_vm_wrote_is_counted_and_the_empty_filesystem_is_not(spool: Path, tmp_path: Path) -> None:
    image = make(spool, 1 << 30)
    baseline = allocated_bytes(image)
    assert used_bytes(image, baseline) == 0
    (tmp_path / "file").write_bytes(os.urandom(3 * MIB))
    subprocess.run(["mcopy", "-i", image, tmp_path / "file", "::"], check=True)
    os.sync()
    assert 3 * MIB <= used_bytes(image, baseline) < 3 * MIB + MIB // 4


def test_less_than_the_baseline_counts_as_nothing(spool: Path) -> None:
    image = make(spool, MIB)
    assert used_bytes(image, allocated_bytes(image) + 4096) == 0


class TestFailures:
    def test_an_image_that_exists_is_never_used_again(self, spool: Path) -> None:
        token = new_id()
        image = asyncio.run(create(spool, token, MIB, "work"))
        before = image.read_bytes()
        with pytest.raises(PendriveFailed, match="File exists"):
            asyncio.run(create(spool, token, MIB, "work"))
        assert image.read_bytes() == before

    def test_a_link_in_the_place_of_the_image_is_not_followed(self, spool: Path, tmp_path: Path) -> None:
        spool.mkdir(mode=0o700)
        token = new_id()
        image_path(spool, token).symlink_to(tmp_path / "victim")
        with pytest.raises(PendriveFailed):
            asyncio.run(create(spool, token, MIB, "work"))
        assert not (tmp_path / "victim").exists()

    def test_nothing_is_left_when_formatting_fails(self, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pendrives, "_layout", lambda size_bytes: ["-F", "7"])
        with pytest.raises(ProgramFailed, match=r"mkfs\.fat"):
            make(spool, MIB)
        assert images(spool) == []

    def test_nothing_is_left_when_the_program_is_missing(self, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("qfilexchg.dom0.programs._SYSTEM_FOLDERS", ())
        monkeypatch.setenv("PATH", "/nonexistent")
        with pytest.raises(ProgramMissing, match="dosfstools"):
            make(spool, MIB)
        assert images(spool) == []

    def test_nothing_is_left_when_it_is_cancelled(self, spool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fifo = tmp_path / "formatting"
        os.mkfifo(fifo)
        (tmp_path / "mkfs.fat").write_text(f"#!/bin/sh\necho > {fifo}\nexec sleep 300\n")
        (tmp_path / "mkfs.fat").chmod(0o700)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

        async def scenario() -> None:
            task = asyncio.create_task(create(spool, new_id(), MIB, "work"))
            await asyncio.to_thread(fifo.read_bytes)
            assert len(images(spool)) == 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(scenario())
        assert images(spool) == []

    def test_a_size_that_the_host_cannot_have_is_refused(self, spool: Path) -> None:
        with pytest.raises(PendriveFailed, match=f"{1 << 62} bytes"):
            make(spool, 1 << 62)
        assert images(spool) == []

    def test_a_folder_that_others_may_enter_is_refused(self, spool: Path) -> None:
        spool.mkdir(mode=0o755)
        with pytest.raises(PendriveFailed, match="chmod it to 0700"):
            make(spool, MIB)

    @pytest.mark.parametrize("token", ["", "..", "../../etc/passwd", "ABC", "work", "0" * 8 + "/"])
    def test_only_our_own_ids_name_images(self, spool: Path, token: str) -> None:
        with pytest.raises(BadPendriveId):
            image_path(spool, token)


class TestTheEnd:
    def test_a_deleted_image_is_gone(self, spool: Path) -> None:
        image = make(spool, MIB)
        asyncio.run(delete(image))
        assert not image.exists()

    def test_deleting_twice_is_a_success(self, spool: Path) -> None:
        image = make(spool, MIB)
        asyncio.run(delete(image))
        asyncio.run(delete(image))

    def test_what_cannot_be_deleted_is_named(self, spool: Path) -> None:
        (spool / "folder").mkdir(parents=True)
        with pytest.raises(PendriveFailed, match="cannot delete the pendrive"):
            asyncio.run(delete(spool / "folder"))

    def test_a_kept_image_moves_with_its_holes(self, spool: Path, tmp_path: Path) -> None:
        image = make(spool, 1 << 30)
        before = image.stat()
        kept = asyncio.run(keep(image, tmp_path / "kept"))
        after = kept.stat()
        assert not image.exists()
        assert (after.st_ino, after.st_blocks, after.st_mode) == (before.st_ino, before.st_blocks, before.st_mode)
        assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700

    def test_keeping_again_after_a_crash_is_a_success(self, spool: Path, tmp_path: Path) -> None:
        image = make(spool, MIB)
        kept = asyncio.run(keep(image, tmp_path / "kept"))
        assert asyncio.run(keep(image, tmp_path / "kept")) == kept

    def test_what_is_not_there_cannot_be_kept(self, spool: Path, tmp_path: Path) -> None:
        with pytest.raises(PendriveFailed, match="No such file"):
            asyncio.run(keep(image_path(spool, new_id()), tmp_path / "kept"))
