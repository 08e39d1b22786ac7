from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from qfilexchg.dom0.debian import Release
from qfilexchg.dom0.vms.collection import Collection, Kind, Label, NameTaken, NoSuchVm
from qfilexchg.protocol.names import DOMAIN_ID_MAX, DomainId, VmName

WORK = VmName.parse("work")


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    return Collection(tmp_path / "collection.sqlite")


def test_what_is_added_is_there_for_the_next_program_too(collection: Collection, tmp_path: Path) -> None:
    added = collection.add(WORK, Label.BLUE, 512)
    assert Collection(tmp_path / "collection.sqlite").get(WORK) == added
    assert (added.kind, added.label, added.memory_mib) == (Kind.APP, Label.BLUE, 512)


@pytest.mark.parametrize("release", [None, *Release])
def test_a_vm_keeps_the_release_that_it_was_made_with(collection: Collection, release: Release | None) -> None:
    collection.add(WORK, Label.BLUE, 512, release)
    assert collection.get(WORK).release is release


def test_a_name_is_found_and_taken_in_any_case(collection: Collection) -> None:
    added = collection.add(WORK, Label.BLUE, 512)
    assert collection.get(VmName.parse("WORK")) == added
    with pytest.raises(NameTaken, match="work is taken"):
        collection.add(VmName.parse("Work"), Label.RED, 512)
    assert collection.list() == [added]


@pytest.mark.parametrize("name", ["dom0", "Dom0", "disposable", "default-dvm", "disp1", "Disp22"])
def test_words_with_a_meaning_of_their_own_name_no_vm(collection: Collection, name: str) -> None:
    with pytest.raises(NameTaken):
        collection.add(VmName.parse(name), Label.RED, 512)


def test_vms_are_listed_by_name(collection: Collection) -> None:
    for name in ("work", "Archive", "personal"):
        collection.add(VmName.parse(name), Label.RED, 512)
    assert [vm.name for vm in collection.list()] == ["Archive", "personal", "work"]


def test_a_removed_vm_is_gone_and_its_successor_is_another(collection: Collection) -> None:
    first = collection.add(WORK, Label.RED, 512)
    collection.remove(WORK)
    assert collection.label(WORK) is None
    for missing in (collection.get, collection.remove):
        with pytest.raises(NoSuchVm, match="qvm-create work"):
            missing(WORK)
    assert collection.add(WORK, Label.GREEN, 512).uuid != first.uuid
    assert collection.label(WORK) == "green"


def test_domain_ids_are_new_each_time_and_never_dom0s(collection: Collection, tmp_path: Path) -> None:
    assert [collection.next_domain() for _ in range(3)] == [1, 2, 3]
    assert Collection(tmp_path / "collection.sqlite").next_domain() == 4


def test_domain_ids_begin_again_after_the_last(collection: Collection) -> None:
    with collection._transaction() as database:
        database.execute("INSERT INTO last_domain (id) VALUES (?)", (DOMAIN_ID_MAX,))
    assert collection.next_domain() == DomainId(1)


def test_two_programs_at_once_never_get_the_same_domain(tmp_path: Path) -> None:
    found: list[int] = []

    def draw() -> None:
        collection = Collection(tmp_path / "collection.sqlite")
        found.extend(int(collection.next_domain()) for _ in range(20))

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1, 81))


class TestDisposables:
    def test_each_has_the_next_number_and_no_number_comes_twice(self, collection: Collection) -> None:
        first = collection.add_new_disposablevm(Label.BLUE, 256, asker=WORK)
        assert (first.name, first.kind, first.asker, first.preloaded) == ("disp1", Kind.DISPOSABLE, WORK, False)
        collection.remove(first.name)
        second = collection.add_new_disposablevm(Label.RED, 256)
        assert (second.name, second.asker) == ("disp2", None)
        assert collection.get(second.name) == second

    def test_a_preloaded_one_is_claimed_for_its_asker(self, collection: Collection) -> None:
        vm = collection.add_new_disposablevm(Label.RED, 256, preloaded=True)
        assert collection.get(vm.name).preloaded
        collection.claim(vm.name, Label.GREEN, WORK)
        claimed = collection.get(vm.name)
        assert (claimed.uuid, claimed.label, claimed.asker, claimed.preloaded) == (vm.uuid, Label.GREEN, WORK, False)

    def test_one_that_has_ended_cannot_be_claimed(self, collection: Collection) -> None:
        with pytest.raises(NoSuchVm):
            collection.claim(VmName.parse("disp9"), Label.GREEN, WORK)


def test_a_collection_of_an_older_version_is_taken_over(tmp_path: Path) -> None:
    file = tmp_path / "collection.sqlite"
    columns = "name TEXT PRIMARY KEY COLLATE NOCASE, uuid TEXT, kind TEXT, label TEXT, memory_mib INTEGER, created TEXT"
    with closing(sqlite3.connect(file)) as database:
        database.execute(f"CREATE TABLE vm ({columns})")
        row = ("work", "5a1ad5a4-6a3c-4c7c-a6f5-2f0f4b5a5d0e", "AppVM", "green", 512, "2026-01-01T00:00:00+00:00")
        database.execute("INSERT INTO vm VALUES (?, ?, ?, ?, ?, ?)", row)
        database.commit()
    found = Collection(file).get(WORK)
    assert (found.label, found.asker, found.preloaded, found.release) == (Label.GREEN, None, False, None)
