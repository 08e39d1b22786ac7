"""What happens to a pendrive that arrives."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

import pytest

from qfilexchg.guest import document, pendrive_script, sequence
from qfilexchg.guest.interruption import Cancelled
from qfilexchg.guest.pendrive_script import Arrival, main
from qfilexchg.guest.programs import ProgramFailed
from qfilexchg.guest.returning import Returning
from qfilexchg.guest.sequence import Original
from qfilexchg.guest.slot import Disk, WrongMount
from qfilexchg.protocol import dvm_header
from qfilexchg.protocol.keys import BLOCK_SOURCE, TRANSACTION_SEQ
from qfilexchg.protocol.names import VmName
from qfilexchg.xenstore.blocking import Store
from qfilexchg.xenstore.errors import StoreLost
from tests.unit.guest.dom0 import Dom0


class IncomingDisk(Disk):
    """A disk that its person unmounts some time after it was mounted."""

    __slots__ = ("_slot",)

    def __init__(self, slot: IncomingSlot, sequence: int) -> None:
        super().__init__("254:32", sequence)
        self._slot = slot

    def wait_unmounted(self, waiter: object) -> None:
        self._slot.log.append("unmounted" if self._slot.is_mounted else "free")
        self._slot.is_mounted = False
        self._slot.after_unmount()


class IncomingSlot:
    """A slot with dom0's incoming pendrive."""

    device = "/dev/xvdh"
    folder = "/mnt/incoming"

    def __init__(self, dom0: Dom0) -> None:
        self._dom0 = dom0
        self.sequence = 5
        self.is_mounted = False
        self.log: list[str] = []
        self.mount_error: Exception | None = None
        self.waits: list[float] = []

    def after_unmount(self) -> None:
        """What else happens when the person unmounts."""

    def disk(self) -> Disk | None:
        return IncomingDisk(self, self.sequence) if self._dom0.incoming != "none" else None

    def mounted(self) -> bool:
        return self.is_mounted

    def mount(self) -> None:
        if self.mount_error:
            raise self.mount_error
        self.log.append("mounted")
        self.is_mounted = True

    def wait(self, waiter: Dom0, *, present: bool, deadline_s: float) -> bool:
        self.waits.append(deadline_s)
        waiter.wait((), deadline_s)
        return (self._dom0.incoming != "none") is present


@pytest.fixture
def dom0() -> Dom0:
    dom0 = Dom0()
    dom0.incoming = "loaded"
    dom0.nodes |= {BLOCK_SOURCE: b"work", TRANSACTION_SEQ: b"0"}
    return dom0


@pytest.fixture
def slot(dom0: Dom0) -> IncomingSlot:
    return IncomingSlot(dom0)


def no_return(device: str, sender: str, seq: int) -> Returning:
    raise AssertionError("this is no document")


def serve(dom0: Dom0, slot: IncomingSlot, returning: Callable[[str, VmName, int], Returning] = no_return) -> list[str]:
    """Serve the pendrive to its end; what was logged."""
    logged: list[str] = []
    Arrival(slot, dom0, logged.append, lambda: dom0, returning).serve()  # type: ignore[arg-type, return-value]
    return logged


def test_it_is_mounted_and_taken_away_once_it_is_unmounted(dom0: Dom0, slot: IncomingSlot) -> None:
    logged = serve(dom0, slot)
    assert slot.log == ["mounted", "unmounted"]
    assert [request.verb for request in dom0.taken] == ["umount"]
    assert dom0.incoming == "none"
    assert logged == ["a pendrive arrived from work", "it is in /mnt/incoming; unmount it when you are done with it"]


@pytest.mark.parametrize(
    "error", [ProgramFailed(["mount"], "failed with exit status 32", b"wrong fs type"), WrongMount("/mnt/incoming", "/dev/xvdh")]
)
def test_one_that_cannot_be_mounted_is_sent_away_at_once(dom0: Dom0, slot: IncomingSlot, error: Exception) -> None:
    slot.mount_error = error
    logged = serve(dom0, slot)
    assert dom0.incoming == "none"
    assert logged[1] == f"it cannot be used, and is deleted: {error}"


@pytest.mark.parametrize("seq", [b"", b"nonsense", b"-1", b"1 2", b"12345678901", "٣".encode()])
def test_a_document_that_nobody_sent_is_not_mounted(dom0: Dom0, slot: IncomingSlot, seq: bytes) -> None:
    dom0.nodes[TRANSACTION_SEQ] = seq
    serve(dom0, slot)
    assert slot.log == ["free"]
    assert dom0.incoming == "none"


class Attempts:
    """A document whose first attempts find no place for it."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.made: list[tuple[str, str, int]] = []
        self.count = 0

    def make(self, device: str, sender: VmName, seq: int) -> Returning:
        self.made.append((device, sender, seq))
        return self  # type: ignore[return-value]

    def attempt(self) -> bool:
        self.count += 1
        return self.count > self.failures


class TestDocuments:
    @pytest.fixture(autouse=True)
    def with_a_document(self, dom0: Dom0) -> None:
        dom0.nodes |= {BLOCK_SOURCE: b"disp3", TRANSACTION_SEQ: b"7"}

    def test_one_that_returns_is_taken_and_not_mounted(self, dom0: Dom0, slot: IncomingSlot) -> None:
        attempts = Attempts(0)
        serve(dom0, slot, attempts.make)
        assert attempts.made == [("/dev/xvdh", "disp3", 7)]
        assert (slot.log, slot.waits, dom0.incoming) == (["free"], [], "none")

    def test_one_without_a_place_keeps_its_pendrive_until_it_has_one(self, dom0: Dom0, slot: IncomingSlot) -> None:
        serve(dom0, slot, Attempts(6).make)
        assert slot.waits == [1, 2, 5, 15, 60, 60]
        assert (slot.log, dom0.incoming) == (["free"], "none")

    def test_one_whose_pendrive_vanishes_is_given_up(self, dom0: Dom0, slot: IncomingSlot) -> None:
        attempts = Attempts(100)
        dom0.later(lambda: setattr(dom0, "incoming", "none"), 4)
        serve(dom0, slot, attempts.make)
        assert (attempts.count, dom0.taken) == (3, [])

    def test_the_real_one_is_put_into_the_home_of_the_account(
        self, dom0: Dom0, slot: IncomingSlot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sequence, "home", lambda: str(tmp_path))
        monkeypatch.setattr(Store, "open", lambda _: dom0)
        monkeypatch.setattr(pendrive_script, "Interruption", lambda: dom0)
        (tmp_path / "a.txt").write_bytes(b"before")
        book = sequence.book_in(str(tmp_path))
        book.take(dom0)
        book.note(7, Original(str(tmp_path / "a.txt"), "a.txt", 6, blake2b(b"before", digest_size=32).digest(), 0o600))
        slot.device = str(tmp_path / "xvdh")
        Path(slot.device).write_bytes(dvm_header.encode("a.txt", 5) + b"after" + bytes(1 << 12))
        assert main(["xvdh"], slot) == 0  # type: ignore[arg-type]
        assert (tmp_path / "a.txt").read_bytes() == b"after"
        assert dom0.incoming == "none"
        assert f"{tmp_path}/a.txt now has the changes" in capsys.readouterr().err

    def test_the_real_one_knows_no_place_that_does_not_last(
        self, dom0: Dom0, slot: IncomingSlot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def full(*_: object) -> bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(sequence, "home", lambda: str(tmp_path))
        monkeypatch.setattr(Store, "open", lambda _: dom0)
        monkeypatch.setattr(pendrive_script, "Interruption", lambda: dom0)
        monkeypatch.setattr(document, "copy_body", full)
        book = sequence.book_in(str(tmp_path))
        book.take(dom0)
        book.note(7, Original("/nonexistent/a.txt", "a.txt", 6, bytes(32), 0o600))
        slot.device = str(tmp_path / "xvdh")
        Path(slot.device).write_bytes(dvm_header.encode("a.txt", 5) + b"after" + bytes(1 << 12))
        dom0.cancel_at = 3
        assert main(["xvdh"], slot) == 0  # type: ignore[arg-type]
        assert dom0.incoming == "loaded"
        tried = f"/nonexistent (No such file or directory), {tmp_path} (No space left on device); it stays on its pendrive"
        assert tried in capsys.readouterr().err


@pytest.mark.parametrize("source", [None, b"", b"-o", b"a b", b"\xff"])
def test_one_without_a_proper_sender_is_not_mounted(dom0: Dom0, slot: IncomingSlot, source: bytes | None) -> None:
    del dom0.nodes[BLOCK_SOURCE]
    if source is not None:
        dom0.nodes[BLOCK_SOURCE] = source
    logged = serve(dom0, slot)
    assert slot.log == ["free"]
    assert dom0.incoming == "none"
    assert logged == ["a pendrive arrived, and dom0 does not say from where; it is deleted"]


def test_one_that_an_earlier_run_mounted_is_not_mounted_again(dom0: Dom0, slot: IncomingSlot) -> None:
    slot.is_mounted = True
    serve(dom0, slot)
    assert slot.log == ["unmounted"]
    assert dom0.incoming == "none"


def test_a_detach_that_fails_is_tried_again_later_and_later(dom0: Dom0, slot: IncomingSlot) -> None:
    dom0.detach_failures = 7
    logged = serve(dom0, slot)
    assert dom0.incoming == "none"
    assert slot.waits == [1, 2, 5, 15, 60, 60, 60]
    assert logged[2] == "dom0 could not take the pendrive away (failed not-detached); trying again"


def test_a_store_that_is_away_is_tried_again(dom0: Dom0, slot: IncomingSlot) -> None:
    answers: Iterator[Dom0 | StoreLost] = iter([dom0, StoreLost("it is away"), dom0])

    def open_store() -> Dom0:
        answer = next(answers)
        if isinstance(answer, StoreLost):
            raise answer
        return answer

    logged: list[str] = []
    Arrival(slot, dom0, logged.append, open_store, no_return).serve()  # type: ignore[arg-type]
    assert dom0.incoming == "none"
    assert "it is away" in logged[2]


def test_of_one_that_vanished_nothing_is_said_to_dom0(dom0: Dom0, slot: IncomingSlot) -> None:
    def vanish() -> None:
        dom0.incoming = "none"

    slot.after_unmount = vanish  # type: ignore[method-assign]
    serve(dom0, slot)
    assert dom0.taken == []


def test_another_that_came_in_its_place_is_not_sent_away(dom0: Dom0, slot: IncomingSlot) -> None:
    def change() -> None:
        slot.sequence += 1

    slot.after_unmount = change  # type: ignore[method-assign]
    serve(dom0, slot)
    assert (dom0.taken, dom0.incoming) == ([], "loaded")


def test_none_at_all_ends_it(dom0: Dom0, slot: IncomingSlot) -> None:
    dom0.incoming = "none"
    assert serve(dom0, slot) == []


def test_a_signal_ends_it_and_leaves_the_pendrive(dom0: Dom0, slot: IncomingSlot) -> None:
    dom0.cancel_at = 1
    with pytest.raises(Cancelled):
        serve(dom0, slot)
    assert dom0.incoming == "loaded"


@pytest.mark.parametrize("words", [[], ["xvdg"], ["xvdh", "more"]])
def test_only_udev_calls_it(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "udev starts this" in capsys.readouterr().err
