from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from qfilexchg.dom0.home import Home
from qfilexchg.lab.xen import runs
from qfilexchg.lab.xen.disk import RECIPE, Disk
from qfilexchg.lab.xen.machine import Machine
from qfilexchg.lab.xen.runs import NotUp
from qfilexchg.protocol.names import VmName

XEN = VmName.parse("xen")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, tmp_path / "run", tmp_path / "cache")


def command(machine: Machine, private: Path | None) -> list[str]:
    return machine._command(Disk(Path("/disk")), Path("/parcel"), private)


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def test_a_run_maps_the_saved_memory_and_never_writes_it(home: Home) -> None:
    memory = json.loads(option(command(runs.machine(home, XEN), Path("/stage/memory")), "-object"))
    assert (memory["mem-path"], memory["share"]) == ("/stage/memory", False)


def test_a_machine_that_is_to_be_saved_has_its_memory_in_a_file(home: Home) -> None:
    machine = runs.machine(home, XEN)
    memory = json.loads(option(command(machine, None), "-object"))
    assert (memory["mem-path"], memory["share"]) == (str(machine.memory), True)


def test_its_disk_is_a_layer_of_its_own_and_the_parcel_is_only_read(home: Home) -> None:
    words = command(runs.machine(home, XEN), None)
    root, parcel = (json.loads(word) for word in words if word.startswith('{"node-name"'))
    assert root["file"]["filename"] == str(runs.machine(home, XEN).layer) and not root.get("read-only")
    assert parcel["file"]["filename"] == "/parcel" and parcel["read-only"]


def test_it_has_no_network_and_no_display(home: Home) -> None:
    words = command(runs.machine(home, XEN), None)
    assert "-nodefaults" in words and option(words, "-display") == "none"
    assert not {"-nic", "-netdev", "-net", "-vga"} & set(words)
    devices = {word.partition(",")[0] for name, word in itertools.pairwise(words) if name == "-device" and word[0] != "{"}
    assert devices == {"virtio-serial-pci", "virtserialport"}


def test_two_machines_share_no_folder(home: Home) -> None:
    one, other = (runs.machine(home, VmName.parse(name)) for name in ("one", "other"))
    assert not {one.folder, one.run_folder} & {other.folder, other.run_folder}


def test_a_machine_that_does_not_run_is_said_with_what_starts_it(home: Home) -> None:
    with pytest.raises(NotUp, match="'qfilexchg-lab xen up' starts it"):
        runs.running(home, XEN)


@pytest.mark.parametrize("name", ["packages", "masked-units"])
def test_the_recipe_names_each_thing_once_in_order(name: str) -> None:
    words = (RECIPE / name).read_text().split()
    assert words == sorted(set(words))
