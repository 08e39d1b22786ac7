"""A changed document comes back: into its place, or beside it, and never at the cost of what is there."""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qfilexchg.guest import document, placing
from qfilexchg.guest.document import DocumentUnreadable
from qfilexchg.guest.interruption import Cancelled
from qfilexchg.guest.placing import NoPlace
from qfilexchg.guest.progress import Progress
from qfilexchg.guest.returning import Returning
from qfilexchg.guest.sequence import BESIDE, FAILED, REFUSED, REPLACED, Book, Original, Outcome
from qfilexchg.protocol.dvm_header import encode
from qfilexchg.protocol.names import VmName
from tests.unit.guest.dom0 import Dom0

DISP3 = VmName.parse("disp3")
SENT = b"as it was sent " * 100
CHANGED = b"as it was changed there " * 90_000
SEQ = 7


class Home:
    """A VM's home with one document that was sent, and a pendrive with the changed one."""

    def __init__(self, top: Path, name: str = "report.pdf") -> None:
        self.top = top
        self.folder = top / "documents"
        self.home = top / "home"
        self.temporary = top / "tmp"
        for folder in (self.folder, self.home, self.temporary):
            folder.mkdir()
        self.file = self.folder / name
        self.file.write_bytes(SENT)
        self.file.chmod(0o640)
        self.device = top / "device"
        self.load(CHANGED)
        self.book = Book(str(self.home / ".dvm"))
        self.book.take(Dom0())
        self.book.note(SEQ, self.original())
        self.logged: list[str] = []

    def original(self) -> Original:
        digest = blake2b(SENT, digest_size=document.DIGEST_BYTES).digest()
        return Original(str(self.file), self.file.name, len(SENT), digest, 0o640, "now")

    def load(self, body: bytes, name: str | None = None) -> None:
        """Put ``body`` on the pendrive as the DisposableVM does, under the name that was sent or another."""
        self.device.write_bytes(bytes(4 << 20))
        source = self.top / "source"
        source.write_bytes(body)
        descriptor = os.open(source, os.O_RDONLY)
        document.write(str(self.device), name or self.file.name, descriptor, len(body), Progress(io.StringIO()), Dom0())
        os.close(descriptor)

    def returning(self, source: VmName = DISP3, checkpoint: Callable[[], None] = lambda: None) -> Returning:
        folders = (str(self.home), str(self.temporary))
        return Returning(str(self.device), source, SEQ, self.book, folders, checkpoint, self.logged.append)

    def attempt(self, checkpoint: Callable[[], None] = lambda: None) -> Outcome:
        """Have it come back, once; the outcome."""
        done = self.returning(checkpoint=checkpoint).attempt()
        outcome = self.book.outcome(SEQ)
        assert outcome
        assert done == outcome.final == (self.book.original(SEQ) is None)
        return outcome

    def names(self) -> set[str]:
        """All that lies in the folders where a document may."""
        return {path.name for folder in (self.folder, self.home, self.temporary) for path in folder.iterdir()} - {".dvm"}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


class TestReplacing:
    def test_an_original_that_is_as_it_was_sent_is_replaced_whole(self, home: Home) -> None:
        with home.file.open("rb") as before:
            assert home.attempt() == Outcome(REPLACED, str(home.file))
            assert before.read() == SENT, "whoever has the old one open keeps it"
        assert home.file.read_bytes() == CHANGED
        assert home.names() == {"report.pdf"}
        assert home.logged == [f"{home.file} now has the changes"]

    @pytest.mark.parametrize("body", [b"", b"x", SENT])
    def test_by_whatever_came(self, home: Home, body: bytes) -> None:
        home.load(body)
        assert home.attempt().word == REPLACED
        assert home.file.read_bytes() == body

    @pytest.mark.parametrize("name", ["a b.txt", "写真.jpg", "-rf", "n" * 255, "写" * 85, "new\nline", ".hidden"])
    def test_whatever_its_name_is(self, tmp_path: Path, name: str) -> None:
        home = Home(tmp_path, name)
        assert home.attempt().word == REPLACED
        assert home.names() == {name}
        assert "\n" not in home.logged[0]

    @pytest.mark.parametrize("mode", [0o600, 0o644, 0o755, 0o400])
    def test_its_mode_as_it_is_now_is_kept(self, home: Home, mode: int) -> None:
        home.file.chmod(mode)
        home.attempt()
        assert stat.S_IMODE(home.file.stat().st_mode) == mode

    def test_rights_beyond_access_are_not_given_to_what_another_vm_wrote(self, home: Home) -> None:
        home.file.chmod(0o6755)
        home.attempt()
        assert stat.S_IMODE(home.file.stat().st_mode) == 0o755

    def test_its_attributes_are_kept(self, home: Home) -> None:
        try:
            os.setxattr(home.file, "user.note", b"mine")
        except OSError:
            pytest.skip("this filesystem has no attributes")
        home.attempt()
        assert os.getxattr(home.file, "user.note") == b"mine"

    @pytest.mark.parametrize("call", ["listxattr", "getxattr", "setxattr"])
    def test_attributes_that_cannot_be_kept_do_not_stop_it(self, home: Home, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
        monkeypatch.setattr(os, "listxattr", lambda _: ["user.note", "security.capability"])
        monkeypatch.setattr(os, "getxattr", lambda *_: b"")
        monkeypatch.setattr(os, "setxattr", lambda *_: None)
        monkeypatch.setattr(os, call, failing(errno.ENOTSUP))
        assert home.attempt().word == REPLACED

    def test_its_owner_is_kept(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        if os.getuid():
            pytest.skip("only root has files of others")
        os.chown(home.file, 1234, 1235)
        assert home.attempt().word == REPLACED
        assert (home.file.stat().st_uid, home.file.stat().st_gid) == (1234, 1235)

    def test_folders_that_cannot_be_read_or_synced_are_written_all_the_same(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        fsync = os.fsync

        def refuse_folders(file: int) -> None:
            if stat.S_ISDIR(os.fstat(file).st_mode) and os.path.samestat(os.fstat(file), home.folder.stat()):
                raise OSError(errno.EIO, "injected")
            fsync(file)

        monkeypatch.setattr(os, "fsync", refuse_folders)
        assert home.attempt().word == REPLACED


def edit(home: Home) -> None:
    home.file.write_bytes(b"X" + SENT[1:])


def append(home: Home) -> None:
    home.file.write_bytes(SENT + b"more")


def by_link(home: Home) -> None:
    home.file.unlink()
    home.file.symlink_to("elsewhere")


def by_folder(home: Home) -> None:
    home.file.unlink()
    home.file.mkdir()


def by_pipe(home: Home) -> None:
    home.file.unlink()
    os.mkfifo(home.file)


def remove(home: Home) -> None:
    home.file.unlink()


def forget_digest(home: Home) -> None:
    (home.home / f".dvm/{SEQ}.original").unlink()


def untouched(file: Path) -> tuple[int, ...] | None:
    """What changes when a file is written to or exchanged, and not when it is read."""
    if not os.path.lexists(file):
        return None
    status = file.lstat()
    return (status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class TestBeside:
    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (edit, "it was changed here meanwhile"),
            (append, "it was changed here meanwhile"),
            (forget_digest, "it was changed here meanwhile"),
            (by_link, "a symbolic link is in its place"),
            (by_folder, "it is no file any more"),
            (by_pipe, "it is no file any more"),
            (remove, "it is gone"),
        ],
    )
    def test_an_original_that_is_not_what_was_sent_is_left_alone(self, home: Home, change: Callable[[Home], None], why: str) -> None:
        change(home)
        before = untouched(home.file)
        beside = home.folder / "report.pdf (edited in disp3)"
        assert home.attempt() == Outcome(BESIDE, str(beside), why)
        assert beside.read_bytes() == CHANGED
        assert untouched(home.file) == before
        assert home.names() - {"report.pdf"} == {beside.name}
        assert home.logged == [f"{home.file}: the changes are in {beside}, as {why}"]

    def test_it_has_the_mode_that_was_sent(self, home: Home) -> None:
        edit(home)
        assert stat.S_IMODE(os.stat(home.attempt().path).st_mode) == 0o640

    @pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
    def test_an_original_that_cannot_be_read_is_left_alone(self, home: Home, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
        monkeypatch.setattr(document, "digest_of", failing(code))
        assert home.attempt() == Outcome(BESIDE, f"{home.file} (edited in disp3)", f"it cannot be read ({os.strerror(code)})")

    @pytest.mark.parametrize("call", ["fchown", "fchmod"])
    def test_so_is_one_whose_owner_cannot_be_kept(self, home: Home, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
        if call == "fchown":
            if os.getuid():
                pytest.skip("only root has files of others")
            os.chown(home.file, 1234, 1235)
        monkeypatch.setattr(os, call, failing(errno.EPERM))
        assert home.attempt().why == "its owner and rights cannot be kept (Operation not permitted)"

    def test_so_is_one_that_must_not_be_replaced(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        rename = os.rename

        def immutable(source: str, target: str) -> None:
            if target == str(home.file):
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            rename(source, target)

        monkeypatch.setattr(os, "rename", immutable)
        assert home.attempt().why == "it cannot be replaced (Operation not permitted)"
        assert home.file.read_bytes() == SENT

    @pytest.mark.parametrize("change", [edit, remove, append])
    def test_so_is_one_that_changes_between_the_look_and_the_end(
        self, home: Home, monkeypatch: pytest.MonkeyPatch, change: Callable[[Home], None]
    ) -> None:
        dress = placing._dress

        def change_then_dress(*arguments: object) -> str:
            change(home)
            return dress(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(placing, "_dress", change_then_dress)
        assert home.attempt() == Outcome(BESIDE, f"{home.file} (edited in disp3)", "it was changed here meanwhile")

    def test_nothing_is_ever_overwritten(self, home: Home) -> None:
        edit(home)
        (home.folder / "report.pdf (edited in disp3)").write_text("mine")
        (home.folder / "report.pdf (edited in disp3) 2").symlink_to("nowhere")
        (home.folder / "report.pdf (edited in disp3) 3").mkdir()
        assert home.attempt().path == str(home.folder / "report.pdf (edited in disp3) 4")
        assert (home.folder / "report.pdf (edited in disp3)").read_text() == "mine"

    def test_names_that_never_end_lead_to_another_folder(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        edit(home)
        monkeypatch.setattr(placing, "NAMES_MAX", 2)
        for name in ("report.pdf (edited in disp3)", "report.pdf (edited in disp3) 2"):
            (home.folder / name).touch()
        assert home.attempt().path == str(home.home / "report.pdf (edited in disp3)")

    @pytest.mark.parametrize("name", ["n" * 255, "写" * 85, "é" * 127, "x" + "写" * 84])
    def test_a_name_that_would_be_too_long_is_cut(self, tmp_path: Path, name: str) -> None:
        home = Home(tmp_path, name)
        edit(home)
        path = home.attempt().path
        cut = os.path.basename(path).removesuffix(" (edited in disp3)")
        assert name.startswith(cut)
        assert 250 <= len(os.path.basename(path).encode()) <= 255

    @pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
    def test_a_filesystem_without_hard_links_will_do(self, home: Home, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
        edit(home)
        (home.folder / "report.pdf (edited in disp3)").write_text("mine")
        monkeypatch.setattr(os, "link", failing(code))
        path = Path(home.attempt().path)
        assert path.name == "report.pdf (edited in disp3) 2"
        assert path.read_bytes() == CHANGED
        assert (home.folder / "report.pdf (edited in disp3)").read_text() == "mine"

    def test_a_name_that_was_reserved_for_nothing_is_given_up(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        edit(home)
        monkeypatch.setattr(os, "link", failing(errno.EPERM))
        monkeypatch.setattr(placing.os, "rename", failing_once(os.rename, errno.EIO, str(home.folder)))  # type: ignore[attr-defined]
        assert home.attempt().path == str(home.home / "report.pdf (edited in disp3)")
        assert home.names() == {"report.pdf", "report.pdf (edited in disp3)"}
        assert sorted(os.listdir(home.folder)) == ["report.pdf"]

    def test_a_neighbour_that_cannot_be_read_is_another_file(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        edit(home)
        (home.folder / "report.pdf (edited in disp3)").write_bytes(CHANGED)
        monkeypatch.setattr(document, "digest_of", failing(errno.EIO))
        assert home.attempt().path.endswith(" 2")


def failing(code: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def failing_once(call: Callable[..., object], code: int, folder: str) -> Callable[..., object]:
    """``call``, but that it fails below ``folder``."""

    def maybe(*arguments: object) -> object:
        if any(isinstance(word, str) and word.startswith(f"{folder}/") for word in arguments):
            raise OSError(code, os.strerror(code))
        return call(*arguments)

    return maybe


ACL_OF_FOLDER = "system.posix_acl_default"
ACL = "system.posix_acl_access"


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An access list of (tag, rights, id) as the kernel takes it (linux/posix_acl_xattr.h)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
LIST = acl((1, 6, NOBODY), (2, 6, 4711), (4, 0, NOBODY), (16, 6, NOBODY), (32, 0, NOBODY))
"""The owner and the user 4711 may read and write, its group and others may not."""


class TestRights:
    @pytest.fixture(autouse=True)
    def _lists(self, home: Home) -> None:
        """Files that are made in the document's folder inherit an access list."""
        try:
            os.setxattr(home.folder, ACL_OF_FOLDER, LIST)
        except OSError:
            pytest.skip("this filesystem has no access lists")

    def rights(self, path: str | Path) -> tuple[int, bytes]:
        mode = stat.S_IMODE(os.stat(path).st_mode)
        try:
            return mode, os.getxattr(path, ACL)
        except OSError:
            return mode, b""

    def test_a_replaced_file_gets_none_that_the_original_had_not(self, home: Home) -> None:
        home.file.chmod(0o660)
        assert self.rights(home.file) == (0o660, b"")
        assert home.attempt().word == REPLACED
        assert self.rights(home.file) == (0o660, b"")

    def test_nor_does_one_beside_it(self, home: Home) -> None:
        edit(home)
        assert self.rights(home.attempt().path) == (0o640, b"")

    def test_a_list_of_its_own_is_kept(self, home: Home) -> None:
        os.setxattr(home.file, ACL, LIST)
        assert self.rights(home.file) == (0o660, LIST)
        home.attempt()
        assert self.rights(home.file) == (0o660, LIST)

    @pytest.mark.parametrize("call", ["getxattr", "setxattr"])
    def test_one_whose_list_cannot_be_kept_is_left_alone(self, home: Home, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
        os.setxattr(home.file, ACL, LIST)
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing(errno.EPERM))
            assert home.attempt().why == "its owner and rights cannot be kept (Operation not permitted)"
        assert home.file.read_bytes() == SENT

    def test_a_folder_whose_list_cannot_be_taken_away_is_none_to_write_to(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        removexattr = os.removexattr

        def refuse(file: int, name: str) -> None:
            if os.readlink(f"/proc/self/fd/{file}").startswith(f"{home.folder}/"):
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            removexattr(file, name)

        monkeypatch.setattr(os, "removexattr", refuse)
        assert home.attempt().path == str(home.home / "report.pdf (edited in disp3)")


class TestElsewhere:
    @pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
    def test_a_folder_that_cannot_be_written_leaves_the_home(self, home: Home, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
        opened = os.open

        def refuse(path: str, flags: int, mode: int = 0o777) -> int:
            if flags & os.O_CREAT and path.startswith(f"{home.folder}/"):
                raise OSError(code, os.strerror(code))
            return opened(path, flags, mode)

        monkeypatch.setattr(os, "open", refuse)
        outcome = home.attempt()
        path = home.home / "report.pdf (edited in disp3)"
        assert outcome == Outcome(BESIDE, str(path), f"its folder cannot be written ({os.strerror(code)})")
        assert path.read_bytes() == CHANGED
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert home.file.read_bytes() == SENT

    def test_a_folder_that_is_gone_leaves_the_home(self, home: Home) -> None:
        home.file.unlink()
        home.folder.rmdir()
        assert home.attempt().path == str(home.home / "report.pdf (edited in disp3)")

    @pytest.mark.parametrize("call", ["write", "fsync"])
    def test_a_disk_that_is_full_half_way_keeps_nothing_of_it(self, home: Home, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
        real = getattr(os, call)

        def full(file: int, *rest: object) -> object:
            is_file = stat.S_ISREG(os.fstat(file).st_mode)
            if is_file and os.path.dirname(os.readlink(f"/proc/self/fd/{file}")) in (str(home.folder), str(home.home)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(file, *rest)

        monkeypatch.setattr(os, call, full)
        assert home.attempt().path == str(home.temporary / "report.pdf (edited in disp3)")
        assert sorted(os.listdir(home.folder)) == ["report.pdf"]
        assert sorted(os.listdir(home.home)) == [".dvm"]

    def test_where_nothing_can_be_written_it_stays_on_the_pendrive(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        copy_body = document.copy_body
        with monkeypatch.context() as patch:
            patch.setattr(document, "copy_body", failing(errno.ENOSPC))
            outcome = home.attempt()
        assert outcome.word == FAILED
        assert outcome.why == str(
            NoPlace("report.pdf", [(str(folder), "No space left on device") for folder in (home.folder, home.home, home.temporary)])
        )
        assert home.logged == [outcome.why]
        assert home.names() == {"report.pdf"}
        assert document.copy_body is copy_body
        assert home.attempt() == Outcome(REPLACED, str(home.file))

    def test_a_home_that_is_the_documents_folder_is_tried_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        home = Home(tmp_path)
        home.home = home.folder
        monkeypatch.setattr(document, "copy_body", failing(errno.ENOSPC))
        assert home.attempt().why.count("No space left") == 2


class TestThePendrive:
    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\xff" * 2048,
            encode("a", 2048) + bytes(1024),
            encode("a", 0).replace(b"a\0", b"/\0"),
            (2**64 - 1).to_bytes(8) + bytes(1 << 20),
        ],
    )
    def test_one_without_a_document_changes_nothing(self, home: Home, data: bytes) -> None:
        home.device.write_bytes(data)
        outcome = home.attempt()
        assert (outcome.word, outcome.why) == (REFUSED, home.logged[0])
        assert outcome.why.startswith("there is no document on the pendrive: ")
        assert home.file.read_bytes() == SENT
        assert home.names() == {"report.pdf"}

    @settings(max_examples=30)
    @given(data=st.binary(max_size=3000))
    def test_whatever_is_on_it_nothing_but_the_document_changes(self, data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
        home = Home(tmp_path_factory.mktemp("home"))
        home.device.write_bytes(data)
        home.attempt()
        assert home.names() == {"report.pdf"}

    def test_one_with_another_name_may_be_another_document_and_replaces_nothing(self, home: Home) -> None:
        home.load(CHANGED, "passwd")
        beside = home.folder / "report.pdf (edited in disp3)"
        assert home.attempt() == Outcome(BESIDE, str(beside), "it came back under another name")
        assert (home.file.read_bytes(), beside.read_bytes()) == (SENT, CHANGED)
        assert home.names() == {"report.pdf", beside.name}

    def test_one_that_cannot_be_read_is_tried_again(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", failing(errno.EIO))
            assert home.attempt() == Outcome(FAILED, "", str(DocumentUnreadable("Input/output error")))
        assert home.attempt().word == REPLACED


class TestTheBook:
    def test_a_document_that_nobody_waits_for_is_not_taken(self, home: Home) -> None:
        home.book.forget(SEQ)
        assert home.returning().attempt() is True
        assert home.file.read_bytes() == SENT
        assert home.names() == {"report.pdf"}
        assert home.logged == ["it returns a document that nobody here waits for; it is deleted"]

    def test_a_book_that_cannot_be_read_is_tried_again(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(home.book, "original", failing(errno.EIO))
        assert home.returning().attempt() is False
        assert home.file.read_bytes() == SENT

    def test_an_outcome_that_cannot_be_written_does_not_hold_the_pendrive(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(home.book, "conclude", failing(errno.ENOSPC))
        assert home.returning().attempt() is True
        assert home.file.read_bytes() == CHANGED
        assert home.book.original(SEQ) is None

    def test_one_beside_the_original_is_not_let_go_before_its_place_is_noted(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        edit(home)
        beside = home.folder / "report.pdf (edited in disp3)"
        returning = home.returning()
        with monkeypatch.context() as patch:
            patch.setattr(home.book, "conclude", failing(errno.ENOSPC))
            assert [returning.attempt(), returning.attempt()] == [False, False]
            assert home.book.original(SEQ)
            assert home.returning().attempt() is False, "a script that was started again finds what it has done"
            patch.setattr(document, "copy_body", failing(errno.ENOSPC))
            assert returning.attempt() is False
        assert returning.attempt() is True
        assert home.book.outcome(SEQ) == Outcome(BESIDE, str(beside), "it was changed here meanwhile")
        assert home.names() == {"report.pdf", beside.name}

    def test_nor_does_a_book_that_cannot_be_written_at_all(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(home.book, "conclude", failing(errno.EROFS))
        monkeypatch.setattr(home.book, "forget", failing(errno.EROFS))
        assert home.returning().attempt() is True
        assert home.logged[:2] == [
            "the outcome cannot be noted (Read-only file system)",
            "the document cannot be forgotten (Read-only file system)",
        ]

    def test_a_document_without_a_place_stays_known_even_if_that_cannot_be_told(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(document, "copy_body", failing(errno.ENOSPC))
        monkeypatch.setattr(home.book, "conclude", failing(errno.ENOSPC))
        assert home.returning().attempt() is False
        assert home.book.original(SEQ)

    def test_an_end_that_was_told_and_not_finished_is_finished(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(home.book, "forget", failing(errno.EIO))
            home.returning().attempt()
        home.file.write_bytes(b"edited again")
        assert home.attempt() == Outcome(REPLACED, str(home.file))
        assert home.file.read_bytes() == b"edited again"
        assert home.names() == {"report.pdf"}


class TestBreakingOff:
    @pytest.mark.parametrize("change", [None, edit])
    def test_what_an_earlier_attempt_has_done_is_on_the_disk_before_the_pendrive_goes(
        self, home: Home, monkeypatch: pytest.MonkeyPatch, change: Callable[[Home], None] | None
    ) -> None:
        if change:
            change(home)
        home.attempt()
        home.book.drop_outcome(SEQ)
        home.book.note(SEQ, home.original())
        synced: list[str] = []
        fsync = os.fsync

        def note(file: int) -> None:
            synced.append(os.readlink(f"/proc/self/fd/{file}"))
            fsync(file)

        monkeypatch.setattr(os, "fsync", note)
        home.attempt()
        assert str(home.folder) in synced

    def test_a_signal_leaves_everything_as_it_was(self, home: Home) -> None:
        for checkpoint in range(1, 100):
            dom0 = Dom0()
            dom0.cancel_at = checkpoint
            try:
                outcome = home.attempt(dom0.check)
            except Cancelled:
                assert home.file.read_bytes() == SENT
                assert home.names() == {"report.pdf"}
                assert home.book.original(SEQ)
            else:
                assert outcome.word == REPLACED
                break
        assert checkpoint > 3

    @pytest.mark.parametrize("change", [None, edit, remove])
    def test_one_that_is_killed_anywhere_is_made_good_by_the_next(self, tmp_path: Path, change: Callable[[Home], None] | None) -> None:
        for step in range(1, 200):
            home = Home(_made(tmp_path / str(step)))
            if change:
                change(home)
            mine = home.file.read_bytes() if home.file.exists() else None
            died = _attempt_and_die(home, step)
            now = home.file.read_bytes() if home.file.exists() else None
            assert now in ((mine, CHANGED) if change is None else (mine,)), "at every moment the file is whole"
            if home.book.original(SEQ):
                home.attempt()
            outcome = home.book.outcome(SEQ)
            assert outcome
            assert Path(outcome.path).read_bytes() == CHANGED
            if change is None:
                assert (outcome.word, home.names()) == (REPLACED, {"report.pdf"})
            else:
                assert outcome.word == BESIDE
                assert home.names() - {"report.pdf"} == {"report.pdf (edited in disp3)"}
            assert {file.name for file in (home.home / ".dvm").iterdir()} - {f"{SEQ}.original"} == {"seq", f"{SEQ}.outcome"}
            if not died:
                break
        else:
            pytest.fail("the attempt never came to its end")
        assert step > 20

    def test_two_documents_of_one_name_do_not_meet(self, home: Home) -> None:
        home.book.note(8, home.original())
        assert home.attempt().word == REPLACED
        other = Returning(str(home.device), VmName.parse("disp4"), 8, home.book, (str(home.home),), lambda: None, home.logged.append)
        home.load(b"the other's changes")
        assert other.attempt()
        assert home.book.outcome(8) == Outcome(BESIDE, f"{home.file} (edited in disp4)", "it was changed here meanwhile")
        assert home.file.read_bytes() == CHANGED


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _attempt_and_die(home: Home, step: int) -> bool:
    """Have it come back in a process that is gone at its ``step``-th call of the system; whether it was."""
    pid = os.fork()
    if pid == 0:
        left = [step]
        for name in ("open", "close", "write", "fsync", "rename", "link", "unlink", "fchmod", "lstat"):
            setattr(os, name, _deadly(getattr(os, name), left))
        home.returning().attempt()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def _deadly(call: Callable[..., object], left: list[int]) -> Callable[..., object]:
    def die(*arguments: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)
        return call(*arguments)

    return die
