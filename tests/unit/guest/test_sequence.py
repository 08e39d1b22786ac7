"""The book of the documents that are open in DisposableVMs."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import pwd
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest

from qfilexchg.guest import sequence
from qfilexchg.guest.interruption import Cancelled
from qfilexchg.guest.sequence import BESIDE, FAILED, REFUSED, REPLACED, Book, BookLocked, Original, Outcome
from qfilexchg.protocol.qpen import SEQ_MAX
from tests.unit.guest.dom0 import Dom0

DIGEST = bytes(range(32))
DAY_S = 24 * 3600


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / ".dvm"


@pytest.fixture
def book(folder: Path) -> Book:
    book = Book(str(folder))
    book.take(Dom0())
    return book


def original(path: str = "/home/user/a b.txt", boot: str = "now") -> Original:
    return Original(path, "b 写\n.txt", 5, DIGEST, 0o640, boot)


class TestNumbers:
    def test_they_begin_with_one_in_a_private_folder(self, folder: Path) -> None:
        assert [Book(str(folder)).take(Dom0()) for _ in range(3)] == [1, 2, 3]
        assert folder.stat().st_mode & 0o777 == 0o700

    def test_the_last_one_stands_in_the_file_of_2010(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "seq").write_bytes(struct.pack("i", 1000))
        assert Book(str(folder)).take(Dom0()) == 1001
        assert (folder / "seq").read_bytes() == struct.pack("i", 1001)

    @pytest.mark.parametrize("last", [SEQ_MAX, -1, -(2**31)])
    def test_after_the_largest_comes_one(self, folder: Path, last: int) -> None:
        folder.mkdir()
        (folder / "seq").write_bytes(struct.pack("i", last))
        assert Book(str(folder)).take(Dom0()) == 1

    @pytest.mark.parametrize("damaged", [b"", b"\1\2\3"])
    def test_a_damaged_file_is_begun_anew(self, folder: Path, damaged: bytes) -> None:
        folder.mkdir()
        (folder / "seq").write_bytes(damaged)
        assert Book(str(folder)).take(Dom0()) == 1

    def test_one_whose_document_may_come_back_is_passed_over(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "seq").write_bytes(struct.pack("i", SEQ_MAX - 1))
        for taken in (SEQ_MAX, 1, 2):
            (folder / str(taken)).symlink_to("nowhere")
        assert Book(str(folder)).take(Dom0()) == 3

    def test_many_at_once_get_each_their_own(self, folder: Path) -> None:
        with multiprocessing.get_context("fork").Pool(8) as pool:
            assert sorted(pool.map(_take, [str(folder)] * 80)) == list(range(1, 81))

    def test_a_lock_that_does_not_end_is_said_to_be(self, book: Book, folder: Path) -> None:
        dom0 = Dom0()
        with (folder / "seq").open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(BookLocked, match="end the program that holds it"):
                book.take(dom0)
            assert dom0.now == pytest.approx(1010)
            dom0.cancel_at = dom0.checkpoints + 3
            with pytest.raises(Cancelled):
                book.take(dom0)


def _take(folder: str) -> int:
    class Patient:
        def wait(self, descriptors: object, timeout_s: float) -> bool:
            os.sched_yield()
            return False

    while True:
        try:
            return Book(folder).take(Patient())
        except BookLocked:
            continue


class TestDocuments:
    @pytest.mark.parametrize("path", ["/home/user/a b.txt", "/写真/é\n.jpg", os.fsdecode(b"/\xff")])
    def test_what_is_noted_is_known(self, book: Book, folder: Path, path: str) -> None:
        book.note(7, original(path))
        known = book.original(7)
        assert known
        assert (known.path, known.name) == (path, "b 写\n.txt")
        assert (known.size_bytes, known.digest, known.mode, known.boot) == (5, DIGEST, 0o640, "now")
        assert (folder / "7").read_bytes() == os.fsencode(path) + b"\0"
        assert {file.name for file in folder.iterdir()} == {"seq", "7", "7.original"}

    def test_one_that_is_forgotten_is_unknown(self, book: Book, folder: Path) -> None:
        book.note(7, original())
        for _ in range(2):
            book.forget(7)
            assert book.original(7) is None
        assert {file.name for file in folder.iterdir()} == {"seq"}

    def test_without_the_folder_all_are_unknown(self, folder: Path) -> None:
        book = Book(str(folder))
        assert book.original(7) is None
        assert book.outcome(7) is None

    @pytest.mark.parametrize("path", [b"", b"\0", b"a.txt\0", b"/home/\0"])
    def test_one_without_a_path_is_unknown(self, book: Book, folder: Path, path: bytes) -> None:
        (folder / "7").write_bytes(path)
        assert book.original(7) is None

    @pytest.mark.parametrize(
        "data",
        [
            None,
            b"",
            b"name=61\nsize=1\nmode=600\n",
            b"name=61\nsize=x\nmode=600\ndigest=" + DIGEST.hex().encode(),
            b"name=61\nsize=1\nmode=600\ndigest=00",
            b"size=1\nmode=600\ndigest=" + DIGEST.hex().encode(),
            b"name=ff\nsize=1\nmode=600\ndigest=" + DIGEST.hex().encode(),
            b"\xff==",
        ],
    )
    def test_one_of_which_only_the_path_is_known_is_never_the_same(self, book: Book, folder: Path, data: bytes | None) -> None:
        (folder / "7").write_bytes(b"/a\0left over")
        if data is not None:
            (folder / "7.original").write_bytes(data)
        known = book.original(7)
        assert known
        assert (known.path, known.digest) == ("/a", b"")

    def test_rights_beyond_access_are_not_remembered(self, book: Book) -> None:
        book.note(7, Original("/a", "a", 1, DIGEST, 0o6755))
        known = book.original(7)
        assert known
        assert known.mode == 0o755

    @pytest.mark.parametrize("step", ["write", "fsync", "rename"])
    def test_a_note_that_is_broken_off_is_none(self, book: Book, folder: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
        with monkeypatch.context() as patch, pytest.raises(OSError, match="injected"):
            patch.setattr(os, step, _fail)
            book.note(7, original())
        assert book.original(7) is None
        book.note(7, original())
        assert book.original(7)


def _fail(*_: object) -> None:
    raise OSError("injected")


class TestOutcomes:
    @pytest.mark.parametrize(
        "outcome", [Outcome(REPLACED, "/a"), Outcome(BESIDE, "/写\n", "it was changed"), Outcome(REFUSED), Outcome(FAILED, "", "no room")]
    )
    def test_the_command_that_waits_learns_of_it(self, book: Book, outcome: Outcome) -> None:
        book.note(7, original())
        book.conclude(7, outcome)
        assert book.outcome(7) == outcome
        assert hash(book.outcome(7)) == hash(outcome)
        assert (book.original(7) is None) == outcome.final == (outcome.word != FAILED)
        assert outcome.word in repr(outcome)

    def test_one_that_was_read_is_dropped(self, book: Book) -> None:
        book.conclude(7, Outcome(REPLACED, "/a"))
        book.drop_outcome(7)
        assert book.outcome(7) is None

    def test_an_older_one_does_not_count_for_a_new_document(self, book: Book) -> None:
        book.conclude(7, Outcome(REPLACED, "/a"))
        book.note(7, original())
        assert book.outcome(7) is None

    @pytest.mark.parametrize("data", [b"", b"replaced", b"replaced\0/a\0", b"what\0/a\0\0", b"replaced\0/a\0\0more"])
    def test_one_that_is_damaged_is_none(self, book: Book, folder: Path, data: bytes) -> None:
        (folder / "7.outcome").write_bytes(data)
        assert book.outcome(7) is None


class TestTidying:
    def names(self, folder: Path) -> set[str]:
        return {file.name for file in folder.iterdir()} - {"seq"}

    def age(self, folder: Path) -> float:
        """A time at which everything here is old."""
        return max(file.stat().st_mtime for file in folder.iterdir()) + DAY_S + 1

    def test_what_is_old_and_of_no_use_goes(self, book: Book, folder: Path) -> None:
        book.conclude(1, Outcome(REPLACED, "/a"))
        book.note(2, original())
        (folder / "2").unlink()
        book.note(3, original())
        book.note(4, original(boot="earlier"))
        (folder / "5.path.new").touch()
        (folder / "6").write_bytes(b"/of/2010\0")
        for other in ("notes", "x.outcome", "٣.outcome", "7.txt", ".original"):
            (folder / other).touch()
        book.tidy("now", self.age(folder))
        assert self.names(folder) == {"3", "3.original", "6", "notes", "x.outcome", "٣.outcome", "7.txt", ".original"}

    def test_what_a_killed_vm_has_left_of_a_return_goes_with_it(self, book: Book, folder: Path, tmp_path: Path) -> None:
        documents = tmp_path / "documents"
        documents.mkdir()
        for seq, boot in ((4, "earlier"), (5, "now"), (6, "earlier")):
            book.note(seq, original(str(documents / "a.txt"), boot))
            (documents / f".a.txt.dvm-{seq}").touch()
            (tmp_path / f".a.txt.dvm-{seq}").touch()
        (documents / ".a.txt.dvm-6").unlink()
        (documents / ".a.txt.dvm-6").mkdir()
        (documents / "a.txt").touch()
        book.tidy("now", self.age(folder))
        assert {path.name for path in documents.iterdir()} == {"a.txt", ".a.txt.dvm-5", ".a.txt.dvm-6"}
        assert {path.name for path in tmp_path.iterdir()} == {"documents", ".dvm", ".a.txt.dvm-5"}

    def test_what_is_new_stays(self, book: Book, folder: Path) -> None:
        book.conclude(1, Outcome(REPLACED, "/a"))
        book.note(4, original(boot="earlier"))
        book.tidy("now", self.age(folder) - 2)
        assert self.names(folder) == {"1.outcome", "4", "4.original"}

    def test_it_looks_at_no_more_than_it_has_time_for(self, book: Book, folder: Path) -> None:
        for number in range(1, 1101):
            (folder / f"{number}.outcome").touch()
        book.tidy("now", self.age(folder))
        assert 100 <= len(self.names(folder)) <= 101

    def test_without_a_folder_there_is_nothing_to_do(self, folder: Path) -> None:
        Book(str(folder)).tidy("now", 1e10)


@pytest.mark.parametrize(("uid", "comes_back"), [(0, True), (1, False), (None, False)])
def test_only_documents_of_one_account_come_back(monkeypatch: pytest.MonkeyPatch, uid: int | None, comes_back: bool) -> None:
    accounts = {} if uid is None else {"user": SimpleNamespace(pw_uid=os.getuid() + uid)}
    monkeypatch.setattr(pwd, "getpwnam", accounts.__getitem__)
    assert sequence.comes_back() == comes_back
    service = Path(__file__).parents[3] / "packaging/vm/qubes-pendrive@.service"
    assert f"\nUser={sequence.ACCOUNT}\n" in service.read_text()


def test_the_home_is_that_of_the_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sequence.home() != str(tmp_path)
    sequence.book_in(str(tmp_path)).take(Dom0())
    assert (tmp_path / ".dvm/seq").exists()


def test_a_run_of_the_vm_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(sequence.this_boot()) == 36

    def absent(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", absent)
    assert sequence.this_boot() == ""
