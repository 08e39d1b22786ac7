"""Documents on a raw device."""

from __future__ import annotations

import errno
import io
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qfilexchg.guest import document
from qfilexchg.guest.copying import PendriveBroken
from qfilexchg.guest.document import Changed, DocumentUnreadable
from qfilexchg.guest.interruption import Cancelled
from qfilexchg.guest.outcome import CannotBeHeld, NoRoom
from qfilexchg.guest.progress import Progress
from qfilexchg.protocol.dvm_header import HEADER_BYTES, BadDocumentName, BadHeader, Header, encode
from tests.unit.guest.dom0 import Dom0

MIB = 1 << 20
FOLDERS = [folder for folder in ("/dev/shm", tempfile.gettempdir()) if os.path.isdir(folder)]


def content(size_bytes: int) -> bytes:
    return (os.urandom(4096) * (size_bytes // 4096 + 1))[:size_bytes]


def device_in(folder: Path, size_bytes: int = 4 * MIB) -> str:
    """A device that is full of something older."""
    path = folder / "device"
    path.write_bytes(b"\xee" * size_bytes)
    return str(path)


def write(device: str, source: Path, size_bytes: int | None = None, dom0: Dom0 | None = None, name: str = "a.txt") -> bytes:
    file = os.open(source, os.O_RDONLY)
    try:
        size = source.stat().st_size if size_bytes is None else size_bytes
        return document.write(device, name, file, size, Progress(io.StringIO()), dom0 or Dom0())
    finally:
        os.close(file)


def read(device: str, target: Path) -> tuple[Header, bytes]:
    descriptor, device_bytes = document.open_to_read(device)
    file = os.open(target, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        header = document.read_header(descriptor, device_bytes)
        return header, document.copy_body(descriptor, header, file, lambda _: None)
    finally:
        os.close(descriptor)
        os.close(file)


SIZES = [0, 1, 511, 512, 1023, 1024, 3072, 3073, MIB - 1025, MIB - 1024, MIB - 1023, MIB, 2 * MIB - 1024, 2 * MIB - 1023, 3 * MIB]


@settings(max_examples=25)
@given(st.integers(0, 3 * MIB), st.sampled_from(FOLDERS))
@example(0, FOLDERS[0])
def test_what_is_written_is_read(size_bytes: int, folder: str) -> None:
    round_trip(size_bytes, folder)


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("size_bytes", SIZES)
def test_at_every_edge_too(size_bytes: int, folder: str) -> None:
    round_trip(size_bytes, folder)


def round_trip(size_bytes: int, folder: str) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as made:
        top = Path(made)
        body = content(size_bytes)
        (top / "source").write_bytes(body)
        device = device_in(top)
        digest = write(device, top / "source")
        header, again = read(device, top / "target")
        assert header == Header("a.txt", size_bytes)
        assert digest == again == blake2b(body, digest_size=32).digest()
        assert (top / "target").read_bytes() == body
        assert Path(device).read_bytes()[:1024] == encode("a.txt", size_bytes)
        assert Path(device).stat().st_size == 4 * MIB


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.write_bytes(content(3 * MIB))
    return source


def refusing(call: Callable[..., int], code: int, times: int = 1 << 30) -> Callable[..., int]:
    """``call``, but that its first ``times`` calls fail."""
    left = [times]

    def refuse(*arguments: object) -> int:
        if left[0]:
            left[0] -= 1
            raise OSError(code, os.strerror(code))
        return call(*arguments)

    return refuse


class TestWriting:
    def test_progress_is_told_and_a_signal_heeded_after_each_piece(self, tmp_path: Path, source: Path) -> None:
        dom0 = Dom0()
        dom0.cancel_at = 2
        with pytest.raises(Cancelled):
            write(device_in(tmp_path), source, dom0=dom0)
        assert dom0.checkpoints == 2

    @pytest.mark.parametrize("size_bytes", [0, MIB, 3 * MIB - 1, 3 * MIB + 1, 5 * MIB])
    def test_a_source_of_another_size_is_not_taken(self, tmp_path: Path, source: Path, size_bytes: int) -> None:
        with pytest.raises(Changed):
            write(device_in(tmp_path, 8 * MIB), source, size_bytes)

    @pytest.mark.parametrize(
        "change",
        [
            lambda source: os.truncate(source, MIB),
            lambda source: os.truncate(source, 5 * MIB),
            lambda source: os.utime(source, (1, 1)),
        ],
    )
    def test_one_that_changes_under_the_copy_is_not_taken(self, tmp_path: Path, source: Path, change: Callable[[Path], object]) -> None:
        class Disturbed(Dom0):
            def check(self) -> None:
                change(source)

        with pytest.raises(Changed) as caught:
            write(device_in(tmp_path), source, dom0=Disturbed())
        assert str(caught.value) == "a.txt changed while it was being read; nothing was sent. Try again when it is at rest"

    def test_one_that_cannot_be_read_is_told_from_a_broken_pendrive(
        self, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "preadv", refusing(os.preadv, errno.EIO))
        with pytest.raises(CannotBeHeld, match="Input/output error"):
            write(device_in(tmp_path), source)

    @pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, NoRoom), (errno.EIO, PendriveBroken)])
    def test_a_full_pendrive_and_a_broken_one_are_told_apart(
        self, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
    ) -> None:
        for call in ("pwritev", "fsync"):
            with monkeypatch.context() as patch, pytest.raises(kind):
                patch.setattr(os, call, refusing(getattr(os, call), code))
                write(device_in(tmp_path), source)

    def test_a_device_that_is_not_there_is_not_made(self, tmp_path: Path, source: Path) -> None:
        with pytest.raises(PendriveBroken):
            write(str(tmp_path / "missing"), source)
        assert not (tmp_path / "missing").exists()

    def test_a_name_that_cannot_be_sent_writes_nothing(self, tmp_path: Path, source: Path) -> None:
        device = device_in(tmp_path)
        with pytest.raises(BadDocumentName):
            write(device, source, name="a/b")
        assert set(Path(device).read_bytes()) == {0xEE}

    def test_a_disk_ends_where_it_ends(self, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stat, "S_ISBLK", lambda _: True)
        with pytest.raises(NoRoom):
            write(device_in(tmp_path, 3 * MIB + 1023), source)
        exact = device_in(tmp_path, 3 * MIB + 1024)
        write(exact, source)
        assert os.path.getsize(exact) == 3 * MIB + 1024

    def test_where_the_page_cache_cannot_be_passed_by_it_is_used(
        self, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        device = device_in(tmp_path)
        monkeypatch.setattr(os, "pwritev", refusing(os.pwritev, errno.EINVAL, times=1))
        write(device, source)
        read(device, tmp_path / "target")
        assert (tmp_path / "target").read_bytes() == source.read_bytes()

    def test_pieces_that_are_written_in_part_are_completed(self, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pwritev, preadv, plain = os.pwritev, os.preadv, os.write
        monkeypatch.setattr(os, "pwritev", lambda file, pieces, at: pwritev(file, [pieces[0][:8192]], at))
        monkeypatch.setattr(os, "preadv", lambda file, pieces, at: preadv(file, [pieces[0][:8192]], at))
        monkeypatch.setattr(os, "write", lambda file, piece: plain(file, piece[:5000]))
        device = device_in(tmp_path)
        assert write(device, source) == read(device, tmp_path / "target")[1]
        assert (tmp_path / "target").read_bytes() == source.read_bytes()

    def test_a_pendrive_is_asked_for_that_holds_it(self) -> None:
        assert document.pendrive_bytes(0) == MIB
        assert document.pendrive_bytes(MIB) == MIB + HEADER_BYTES


class TestReading:
    @pytest.fixture
    def device(self, tmp_path: Path, source: Path) -> str:
        device = device_in(tmp_path)
        write(device, source)
        return device

    def test_a_device_without_a_header_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(BadHeader):
            read(device_in(tmp_path), tmp_path / "target")
        with pytest.raises(BadHeader):
            read(device_in(tmp_path, 100), tmp_path / "target")

    def test_a_device_that_is_not_there_is_said_to_be(self, tmp_path: Path) -> None:
        with pytest.raises(DocumentUnreadable, match="No such file"):
            document.open_to_read(str(tmp_path / "missing"))

    def test_one_whose_size_cannot_be_had_is_closed(self, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "lseek", refusing(os.lseek, errno.EIO))
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(DocumentUnreadable):
            document.open_to_read(device)
        assert len(os.listdir("/proc/self/fd")) == before

    def test_a_read_that_fails_is_the_pendrives(self, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "preadv", refusing(os.preadv, errno.EIO))
        with pytest.raises(DocumentUnreadable, match="Input/output error"):
            read(device, tmp_path / "target")

    def test_where_the_page_cache_cannot_be_passed_by_it_is_used(
        self, tmp_path: Path, source: Path, device: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for call in ("preadv", "open"):
            with monkeypatch.context() as patch:
                patch.setattr(os, call, refusing(getattr(os, call), errno.EINVAL, times=1))
                read(device, tmp_path / call)
            assert (tmp_path / call).read_bytes() == source.read_bytes()

    def test_a_write_that_fails_is_the_targets(self, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "write", refusing(os.write, errno.ENOSPC))
        with pytest.raises(OSError, match="No space"):
            read(device, tmp_path / "target")

    def test_a_device_that_shrinks_is_said_to(self, tmp_path: Path, device: str) -> None:
        descriptor, device_bytes = document.open_to_read(device)
        header = document.read_header(descriptor, device_bytes)
        os.truncate(device, 2 * MIB)
        target = os.open(tmp_path / "target", os.O_WRONLY | os.O_CREAT)
        with pytest.raises(DocumentUnreadable, match="ends before"):
            document.copy_body(descriptor, header, target, lambda _: None)
        os.close(descriptor)
        os.close(target)


def test_the_digest_of_a_file_is_that_of_its_body(source: Path, open_source: int) -> None:
    checkpoints: list[None] = []
    digest = document.digest_of(open_source, lambda: checkpoints.append(None))
    assert digest == blake2b(source.read_bytes(), digest_size=32).digest()
    assert len(checkpoints) == 3


@pytest.fixture
def open_source(source: Path) -> Iterator[int]:
    descriptor = os.open(source, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)
