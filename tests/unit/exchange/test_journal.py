"""The journal, on a real disk, with real deaths."""

from __future__ import annotations

import itertools
import logging
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qfilexchg
from qfilexchg.dom0.exchange import journal as module
from qfilexchg.dom0.exchange.journal import VERSION, Journal, JournalFailed, JournalTooNew, Outcome, read_history
from qfilexchg.dom0.exchange.messages import Document, Entry, Fate, PendriveId
from qfilexchg.dom0.exchange.phases import Course, Phase
from qfilexchg.dom0.vms.hypervisor import RunningVm, VmId
from qfilexchg.protocol.names import DomainId, VmName
from tests.python import PYTHON


def vm(domain: int, name: str) -> RunningVm:
    return RunningVm(VmId(DomainId(domain), UUID(int=domain)), VmName.parse(name))


WORK, PERSONAL = vm(3, "work"), vm(5, "personal")
ENTRY = Entry(PendriveId("0a"), Phase.CLEAN, WORK, None, 0, "", 1 << 30, 4096)
DOCUMENT = Document(vm(7, "disp1"), WORK, 9, True, Fate.OPEN)

entries = st.builds(
    Entry,
    pendrive=st.sampled_from(["0a", "0b", "0c"]).map(PendriveId),
    phase=st.sampled_from(Phase),
    sender=st.sampled_from([WORK, PERSONAL]),
    receiver=st.sampled_from([None, WORK, PERSONAL]),
    seq=st.integers(0, 2**31 - 1),
    request_id=st.sampled_from(["", "abc", "z" * 32]),
    size_bytes=st.integers(0, 1 << 40),
    baseline_bytes=st.integers(0, 1 << 30),
    course=st.sampled_from(Course),
    view_only=st.booleans(),
)
documents = st.builds(
    Document,
    vm=st.integers(1, 3).map(lambda number: vm(number, f"disp{number}")),
    asker=st.sampled_from([WORK, PERSONAL]),
    seq=st.integers(1, 2**31 - 1),
    view_only=st.booleans(),
    fate=st.sampled_from(Fate),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@given(st.lists(entries | st.sampled_from(["0a", "0b", "0c"]).map(PendriveId), max_size=12))
def test_it_knows_what_a_dictionary_would_and_still_does_after_a_restart(calls: list[Entry | PendriveId]) -> None:
    model: dict[str, Entry] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.sqlite"
        with Journal(path) as journal:
            for call in calls:
                if isinstance(call, Entry):
                    journal.put(call)
                    model.pop(call.pendrive, None)
                    model[call.pendrive] = call
                else:
                    journal.forget(call)
                    model.pop(call, None)
            assert journal.entries() == list(model.values())
        with Journal(path) as journal:
            assert journal.entries() == list(model.values())


@given(st.lists(documents | st.integers(1, 3).map(lambda number: vm(number, "disp").id), max_size=12))
def test_it_knows_the_disposable_vms_as_a_dictionary_would(calls: list[Document | VmId]) -> None:
    model: dict[VmId, Document] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.sqlite"
        with Journal(path) as journal:
            for call in calls:
                if isinstance(call, Document):
                    journal.put_document(call)
                    model[call.vm.id] = call
                else:
                    journal.forget_document(call)
                    model.pop(call, None)
        with Journal(path) as journal:
            assert {document.vm.id: document for document in journal.documents()} == model
            assert journal.entries() == []


def test_a_journal_of_version_1_is_taken_over_whole(path: Path) -> None:
    row = "'0a', 'queued', 3, '{}', 'work', 5, '{}', 'personal', 0, 'abc', 1073741824, 4096".format(*(UUID(int=n) for n in (3, 5)))
    execute(path, *module._STEPS[0].split(";"), f"INSERT INTO pendrive VALUES ({row})", "PRAGMA user_version = 1")
    for _ in range(2):
        with Journal(path) as journal:
            assert journal.entries() == [Entry(PendriveId("0a"), Phase.QUEUED, WORK, PERSONAL, 0, "abc", 1 << 30, 4096)]
            assert journal.documents() == [] and journal.history() == []
    with Journal(path) as journal:
        journal.put(replace(ENTRY, pendrive=PendriveId("0b"), course=Course.BACK, view_only=True))
        journal.put_document(DOCUMENT)
    with Journal(path) as journal:
        assert journal.entries()[1] == replace(ENTRY, pendrive=PendriveId("0b"), course=Course.BACK, view_only=True)
        assert journal.documents() == [DOCUMENT]


def test_the_file_is_for_this_user_alone(path: Path) -> None:
    with Journal(path) as journal:
        journal.put(ENTRY)
        assert {part.stat().st_mode & 0o777 for part in path.parent.iterdir()} == {0o600}


def test_every_call_that_returned_survives_a_kill(path: Path) -> None:
    source = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.unit.exchange.test_journal import ENTRY
from qfilexchg.dom0.exchange.journal import Journal
journal = Journal(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    journal.put(replace(ENTRY, seq=number))
    print(number, flush=True)
"""
    root = Path(__file__).resolve().parents[3]
    environment = {"PYTHONPATH": f"{Path(qfilexchg.__file__).parents[1]}:{root}", "PATH": "/usr/bin"}
    with subprocess.Popen([*PYTHON, "-c", source, path], stdout=subprocess.PIPE, env=environment) as writer:
        assert writer.stdout is not None
        seen = [writer.stdout.readline() for _ in range(100)]
        writer.kill()
        last = int([*seen, *writer.stdout.read().split()][-1])
    with Journal(path) as journal:
        [entry] = journal.entries()
    assert entry.seq in (last, last + 1)
    assert entry == replace(ENTRY, seq=entry.seq)


class TestHistory:
    def test_the_newest_outcome_comes_first(self, path: Path) -> None:
        clock = iter((10.5, 20.5)).__next__
        with Journal(path, clock) as journal:
            journal.note_outcome(ENTRY, 0, "cancelled")
            journal.note_outcome(replace(ENTRY, receiver=PERSONAL), 4096, "delivered")
        with Journal(path) as journal:
            assert journal.history() == [
                Outcome(20.5, VmName("work"), VmName("personal"), 4096, "delivered"),
                Outcome(10.5, VmName("work"), None, 0, "cancelled"),
            ]
            assert [outcome.text for outcome in journal.history(1)] == ["delivered"]

    def test_it_is_bounded(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "HISTORY_MAX", 3)
        with Journal(path) as journal:
            for number in range(10):
                journal.note_outcome(ENTRY, number, "delivered")
            assert [outcome.used_bytes for outcome in journal.history()] == [9, 8, 7]

    def test_one_that_sends_in_a_loop_drives_out_its_own(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "HISTORY_OF_ONE_MAX", 2)
        with Journal(path) as journal:
            journal.note_outcome(replace(ENTRY, sender=PERSONAL), 100, "delivered")
            for number in range(10):
                journal.note_outcome(ENTRY, number, "denied")
            assert [outcome.used_bytes for outcome in journal.history()] == [9, 8, 100]


class TestSince:
    def test_it_is_known_since_when_a_pendrive_is_where_it_is_and_over_a_restart(self, path: Path) -> None:
        clock = itertools.count(10.5).__next__
        with Journal(path, clock) as journal:
            journal.put(ENTRY)
            journal.put(replace(ENTRY, seq=1))
            journal.put(replace(ENTRY, pendrive=PendriveId("0b")))
            assert journal.since() == {"0a": 10.5, "0b": 12.5}
        with Journal(path, clock) as journal:
            journal.put(ENTRY)
            assert journal.since()[PendriveId("0a")] == 10.5
            journal.put(replace(ENTRY, phase=Phase.ASKING))
            assert journal.since()[PendriveId("0a")] == 14.5
            journal.forget(PendriveId("0a"))
            assert journal.since() == {"0b": 12.5}

    def test_and_since_when_a_document_is_what_it_is(self, path: Path) -> None:
        with Journal(path, itertools.count(10.5).__next__) as journal:
            journal.put_document(DOCUMENT)
            journal.put_document(replace(DOCUMENT, view_only=False))
            assert journal.since() == {DOCUMENT.vm.id: 10.5}
            journal.put_document(replace(DOCUMENT, fate=Fate.RETURNING))
            assert journal.since() == {DOCUMENT.vm.id: 12.5}


class TestReading:
    """The history of a journal that is another process's."""

    def test_it_is_read_while_the_daemon_has_it_and_after(self, path: Path) -> None:
        with Journal(path, itertools.count(10.5).__next__) as journal:
            for number in range(4):
                journal.note_outcome(ENTRY, number, "delivered")
            assert [outcome.used_bytes for outcome in read_history(path)] == [3, 2, 1, 0]
        assert read_history(path, limit=1) == [Outcome(13.5, VmName("work"), None, 3, "delivered")]
        assert [outcome.used_bytes for outcome in read_history(path, 12)] == [3, 2]

    def test_where_there_is_none_there_is_no_history_and_none_is_made(self, path: Path) -> None:
        assert read_history(path) == [] and not path.exists()
        path.touch()
        assert read_history(path) == [] and path.read_bytes() == b""

    def test_one_of_an_earlier_version_is_read_and_left_as_it_is(self, path: Path) -> None:
        execute(path, *module._STEPS[0].split(";"), "INSERT INTO history VALUES (1, 10.5, 'work', NULL, 7, 'cancelled')")
        execute(path, "PRAGMA user_version = 1")
        before = path.read_bytes()
        assert [outcome.text for outcome in read_history(path)] == ["cancelled"]
        assert path.read_bytes() == before

    def test_one_of_a_later_version_is_not(self, path: Path) -> None:
        Journal(path).close()
        execute(path, f"PRAGMA user_version = {VERSION + 1}")
        with pytest.raises(JournalTooNew):
            read_history(path)

    def test_a_damaged_one_is_left_to_the_daemon(self, path: Path) -> None:
        spoil_head(path)
        before = path.read_bytes()
        with pytest.raises(JournalFailed, match="not a database"):
            read_history(path)
        assert path.read_bytes() == before


def spoil_head(path: Path) -> None:
    path.write_bytes(b"not a database, whatever its name says" * 100)


def spoil_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)


def spoil_phase(path: Path) -> None:
    execute(path, "UPDATE pendrive SET phase = 'floating'")


def spoil_name(path: Path) -> None:
    execute(path, "UPDATE pendrive SET sender_name = 'no name'")


def spoil_fate(path: Path) -> None:
    with Journal(path) as journal:
        journal.put_document(DOCUMENT)
    execute(path, "UPDATE document SET fate = 'floating'")


def replace_tables(path: Path) -> None:
    path.unlink()
    execute(path, "CREATE TABLE songs (title TEXT)")


def execute(path: Path, *statements: str) -> None:
    database = sqlite3.connect(path)
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()


class TestDamage:
    @pytest.mark.parametrize("spoil", [spoil_head, spoil_middle, spoil_phase, spoil_name, spoil_fate, replace_tables])
    def test_a_damaged_journal_is_moved_aside_and_a_new_one_begun(
        self, path: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        with Journal(path) as journal:
            journal.put(ENTRY)
        spoil(path)
        spoiled = path.read_bytes()
        with caplog.at_level(logging.ERROR), Journal(path, lambda: 0.0) as journal:
            assert journal.entries() == []
            journal.put(ENTRY)
        aside = path.with_name("journal.sqlite.damaged-19700101T000000Z")
        assert aside.read_bytes() == spoiled
        [record] = caplog.records
        assert str(aside) in record.getMessage()
        with Journal(path) as journal:
            assert journal.entries() == [ENTRY]

    def test_a_new_journal_is_not_damaged(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        for _ in range(2):
            Journal(path).close()
        assert caplog.records == []

    def test_the_journal_of_a_later_version_is_left_alone(self, path: Path) -> None:
        Journal(path).close()
        execute(path, f"PRAGMA user_version = {VERSION + 1}")
        before = path.read_bytes()
        with pytest.raises(JournalTooNew, match="start the newer qfilexchgd"):
            Journal(path)
        assert path.read_bytes() == before

    def test_a_locked_journal_is_not_taken_for_a_damaged_one(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_BUSY_S", 0.05)
        with Journal(path) as journal:
            journal.put(ENTRY)
            other = sqlite3.connect(path)
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(JournalFailed, match="locked"):
                journal.put(replace(ENTRY, seq=1))
            other.close()
            assert journal.entries() == [ENTRY]
        assert {part.name for part in path.parent.iterdir()} == {"journal.sqlite"}

    def test_a_full_disk_changes_nothing(self, path: Path) -> None:
        with Journal(path) as journal:
            journal.put(ENTRY)
            journal._database.execute("PRAGMA max_page_count = 1")
            with pytest.raises(JournalFailed, match="full"):
                for number in range(10_000):
                    journal.put(replace(ENTRY, pendrive=PendriveId(f"{number:032x}")))
        with Journal(path) as journal:
            assert ENTRY in journal.entries()

    def test_a_folder_that_does_not_exist_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(JournalFailed, match="No such file"):
            Journal(tmp_path / "none/journal.sqlite")
