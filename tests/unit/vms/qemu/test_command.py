from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import pytest

from qfilexchg.dom0.debian import Release
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.hypervisor import Slot
from qfilexchg.dom0.vms.qemu import command
from qfilexchg.dom0.vms.qemu.acceleration import Accelerator
from qfilexchg.dom0.vms.qemu.command import MemoryFile
from qfilexchg.dom0.vms.template import Contents, Template
from qfilexchg.protocol.channels import RUN_PORTS, STORE_PORTS
from qfilexchg.protocol.names import DomainId, VmName

HOME = Home(Path("/h"), Path("/h/run"), Path("/c"))


def words(
    accelerator: Accelerator = Accelerator.TCG, home: Home = HOME, memory: MemoryFile | None = None, template: Template | None = None
) -> list[str]:
    name = VmName.parse("work")
    disk = home.vm(name) / "private.img"
    machine = command.Machine(name, UUID(int=5), DomainId(7), 512, 2, disk, template or Template(Path("/t")), accelerator, memory)
    return command.command(machine, home)


def values(option: str, found: list[str]) -> list[str]:
    return [value for word, value in pairwise(found) if word == option]


def test_the_vm_has_no_network_no_display_and_nothing_by_default() -> None:
    found = words()
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(found)
    assert values("-display", found) == ["none"]
    assert not any("net" in device or "vga" in device.lower() for device in values("-device", found))
    assert not {"-nic", "-net", "-netdev", "-vnc", "-spice"} & set(found)


@pytest.fixture
def desktop(tmp_path: Path) -> Template:
    template = Template(tmp_path)
    template.describe(Contents(Release.TRIXIE, desktop=True), time.time())
    return template


def test_a_desktop_has_a_screen_at_a_unix_socket_of_the_vms_own_and_nowhere_else(desktop: Template) -> None:
    found = words(template=desktop)
    (display,) = values("-display", found)
    assert display.split(",")[0] == "vnc=unix:/h/run/domain/7/screen"
    assert not {"-nic", "-net", "-netdev", "-vnc", "-spice"} & set(found)
    added = {device.split(",")[0] for device in set(values("-device", found)) - set(values("-device", words()))}
    assert added - {'{"driver": "virtio-blk-pci"'} == {"bochs-display", "virtio-keyboard-pci", "virtio-tablet-pci"}


def test_a_savefile_of_a_desktop_is_another_machine(desktop: Template) -> None:
    plain = Template(Path("/t"))
    fingerprints = {command.fingerprint(template, Accelerator.TCG, 512, 2) for template in (plain, desktop)}
    assert len(fingerprints) == 2


def test_qemu_may_start_no_program_and_gain_no_privilege() -> None:
    (sandbox,) = values("-sandbox", words())
    assert sandbox.split(",") == ["on", "obsolete=deny", "elevateprivileges=deny", "spawn=deny", "resourcecontrol=deny"]


def test_disks_are_raw_and_only_the_vms_own_can_be_written() -> None:
    disks = {disk["node-name"]: disk for disk in map(json.loads, values("-blockdev", words()))}
    assert {name: (disk["driver"], disk["read-only"], disk["file"]["filename"]) for name, disk in disks.items()} == {
        "root": ("raw", True, "/t/root.img"),
        "private": ("raw", False, "/h/vms/work/private.img"),
    }


def test_a_full_host_disk_is_the_vms_error_and_does_not_stop_it() -> None:
    disks = [json.loads(device) for device in values("-device", words()) if device.startswith("{")]
    assert [disk["serial"] for disk in disks] == ["root", "private"]
    assert all((disk["werror"], disk["rerror"]) == ("report", "report") for disk in disks)


def test_every_port_has_its_own_socket_as_the_sides_agreed() -> None:
    found = words()
    chardevs = (chardev for chardev in values("-chardev", found) if chardev.startswith("socket,"))
    sockets = dict(chardev.removeprefix("socket,id=").split(",", 1) for chardev in chardevs)
    ports = {}
    for device in values("-device", found):
        if device.startswith("virtserialport"):
            fields = dict(field.split("=") for field in device.split(",")[1:])
            ports[fields["name"]] = sockets[fields["chardev"]]
    assert ports == {
        **dict.fromkeys(STORE_PORTS, "path=/h/run/store/domain/7"),
        **{name: f"path=/h/run/domain/7/run.{number}.socket,server=on,wait=off" for number, name in enumerate(RUN_PORTS)},
    }


def test_each_slot_has_a_pcie_port_that_is_free_for_hotplug() -> None:
    ports = [device for device in values("-device", words()) if device.startswith("pcie-root-port")]
    assert ports == [f"pcie-root-port,id=pen-{slot.value},chassis={number},slot={number}" for number, slot in enumerate(Slot, start=1)]


def test_what_the_vms_kernel_says_is_kept_in_a_ring() -> None:
    (console,) = (chardev for chardev in values("-chardev", words()) if "id=console" in chardev)
    assert console.startswith("ringbuf,")


@pytest.mark.parametrize(("accelerator", "processor"), [(Accelerator.TCG, "max"), (Accelerator.KVM, "host")])
def test_only_an_emulated_processor_goes_without_mitigations(accelerator: Accelerator, processor: str) -> None:
    found = words(accelerator)
    assert values("-cpu", found) == [processor]
    assert ("mitigations=off" in values("-append", found)[0].split()) == (accelerator is Accelerator.TCG)


def test_a_comma_in_the_homes_path_does_not_end_an_option() -> None:
    found = words(home=Home(Path("/a,b"), Path("/a,b/run"), Path("/c")))
    assert any("path=/a,,b/run/domain/7/qmp," in value for value in values("-chardev", found))
    assert json.loads(values("-blockdev", found)[1])["file"]["filename"] == "/a,b/vms/work/private.img"


class TestDisposable:
    def backing(self, memory: MemoryFile) -> dict[str, object]:
        (backing,) = (json.loads(value) for value in values("-object", words(memory=memory)))
        return dict(backing)

    def test_a_savefile_is_made_in_its_memory_file_and_clones_write_to_none(self) -> None:
        assert self.backing(MemoryFile(Path("/s/memory"), restored=False))["share"] is True
        backing = self.backing(MemoryFile(Path("/s/memory"), restored=True))
        assert (backing["share"], backing["mem-path"], backing["size"]) == (False, "/s/memory", 512 << 20)

    def test_a_restored_one_waits_for_its_state_and_loads_no_kernel(self) -> None:
        found = words(memory=MemoryFile(Path("/s/memory"), restored=True))
        assert values("-incoming", found) == ["defer"]
        assert not {"-kernel", "-initrd", "-append"} & set(found)

    def test_what_it_writes_is_on_a_disk_that_its_initrd_knows(self) -> None:
        found = words(memory=MemoryFile(Path("/s/memory"), restored=False))
        assert [json.loads(disk)["node-name"] for disk in values("-blockdev", found)] == ["root", "volatile"]

    def test_the_hardware_of_a_clone_is_that_of_the_savefile(self) -> None:
        saved, restored = (words(memory=MemoryFile(Path("/s/memory"), restored=restored)) for restored in (False, True))
        for option in ("-device", "-chardev", "-cpu", "-smp", "-m", "-machine", "-serial"):
            assert values(option, saved) == values(option, restored), option

    def test_the_fingerprint_changes_with_the_hardware_alone(self) -> None:
        template = Template(Path("/t"))
        known = command.fingerprint(template, Accelerator.TCG, 256, 2)
        assert command.fingerprint(template, Accelerator.TCG, 256, 2) == known
        others = [(Accelerator.KVM, 256, 2), (Accelerator.TCG, 512, 2), (Accelerator.TCG, 256, 1)]
        assert len({known, *(command.fingerprint(template, *other) for other in others)}) == 4
