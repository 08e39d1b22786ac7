"""What every hypervisor keeps of the port's promises (``qfilexchg.dom0.vms.hypervisor.Hypervisor``), whichever platform is behind it."""

from __future__ import annotations

import asyncio
import enum
import os
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never
from uuid import uuid4

import pytest

from qfilexchg.dom0.vms.hypervisor import HypervisorError, RunningVm, Slot, VmGone, VmId
from tests.conformance.hypervisor.conftest import DEADLINE_S, MakeImage, both
from tests.conformance.hypervisor.world import Disk, World, run

OUTGOING, INCOMING = Slot
Pair = tuple[RunningVm, RunningVm]

QCOW2 = b"QFI\xfb" + bytes.fromhex(
    "00000003" "0000000000000070" "0000000b" "00000010" "0000000000400000" "00000000" "00000001" "0000000000030000"
    "0000000000010000" "00000001" "00000000" "0000000000000000"
)  # fmt: skip
"""The header of a qcow2 image of 4 MiB, whose first table is at 192 KiB and whose backing file's name, of 11 bytes, is at 112."""
MBR = bytes(446) + bytes.fromhex("80 00 01 00 0c fe ff ff 08 00 00 00 00 10 00 00") + bytes(48) + b"\x55\xaa"
"""A partition table with one partition of 2 MiB, which begins at the eighth sector."""

HOSTILE = {
    "qcow2-with-a-backing-file": QCOW2.ljust(112, b"\0") + b"/etc/passwd",
    "vmdk-of-another-file": b'# Disk DescriptorFile\nversion=1\nCID=fffffffe\ncreateType="monolithicFlat"\nRW 8192 FLAT "/etc/passwd" 0\n',
    "partition-table": MBR,
    "luks": b"LUKS\xba\xbe\0\1aes".ljust(40, b"\0") + b"xts-plain64",
    "vhd": b"conectix\0\0\0\2\0\1\0\0",
}
"""The beginnings of what some program would take for more than bytes."""


def other(vm: VmId) -> VmId:
    """Another run of a VM that had, or will have, the same domain id."""
    return VmId(vm.domain, uuid4())


async def cut(coroutine: Coroutine[Any, Any, None], after_s: float) -> bool:
    """Cancel what has not ended after some time; whether it ended."""
    task = asyncio.ensure_future(coroutine)
    await asyncio.wait({task}, timeout=after_s)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return False
    return True


async def duration_s(coroutine: Coroutine[Any, Any, None]) -> float:
    begin = time.monotonic()
    await coroutine
    return time.monotonic() - begin


MOMENTS = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
"""Of the time that a call takes: when it is cancelled."""


class TestRunning:
    async def test_it_tells_the_vms_that_run_with_their_names_and_never_dom0(self, world: World, vms: Pair) -> None:
        running = await world.hypervisor.running()
        assert [running[vm.id.domain] for vm in vms] == list(vms)
        assert all(int(domain) > 0 and domain == vm.id.domain for domain, vm in running.items())

    async def test_a_vm_of_a_plain_template_has_no_screen_nor_has_a_vm_of_another_uuid(self, world: World, vms: Pair) -> None:
        for vm in vms:
            assert await world.hypervisor.screen(vm.id) is None
            assert await world.hypervisor.screen(other(vm.id)) is None


class TestAttaching:
    async def test_the_vm_has_the_image_byte_for_byte_and_can_write_to_it(self, world: World, vms: Pair, image: MakeImage) -> None:
        first, _ = vms
        for slot in Slot:
            disk = image(os.urandom(1 << 20))
            before = Disk.of(disk)
            await world.hypervisor.attach(first.id, slot, disk)
            assert await world.disk(first, slot) == before
            data = os.urandom(100_000)
            await world.write(first, slot, 3 << 20, data)
            seen = await world.disk(first, slot)
            await world.hypervisor.detach(first.id, slot)
            assert disk.read_bytes()[3 << 20 :][: len(data)] == data
            assert Disk.of(disk) == seen != before

    async def test_attaching_the_image_that_is_there_is_a_success(self, world: World, vms: Pair, image: MakeImage) -> None:
        first, _ = vms
        disk = image()
        for hypervisor in (world.hypervisor, world.hypervisor, world.hypervisor_anew()):
            await hypervisor.attach(first.id, OUTGOING, disk)
            assert await world.hypervisor.attached(first.id) == {OUTGOING: disk}
        assert await world.disk(first, OUTGOING) == Disk.of(disk)

    async def test_another_image_in_the_slot_is_an_error_and_the_first_stays(self, world: World, vms: Pair, image: MakeImage) -> None:
        first, _ = vms
        held, refused = image(b"held"), image(b"refused")
        await world.hypervisor.attach(first.id, OUTGOING, held)
        with pytest.raises(HypervisorError):
            await world.hypervisor.attach(first.id, OUTGOING, refused)
        assert await world.hypervisor.attached(first.id) == {OUTGOING: held}
        assert world.holders(refused) == []
        assert await world.disk(first, OUTGOING) == Disk.of(held)

    async def test_a_vm_has_an_image_in_each_slot(self, world: World, vms: Pair, image: MakeImage) -> None:
        first, _ = vms
        images = {OUTGOING: image(b"outgoing"), INCOMING: image(b"incoming")}
        for slot, disk in images.items():
            await world.hypervisor.attach(first.id, slot, disk)
        for slot, disk in images.items():
            assert await world.disk(first, slot) == Disk.of(disk)
        await world.hypervisor.detach(first.id, OUTGOING)
        assert await world.hypervisor.attached(first.id) == {INCOMING: images[INCOMING]}
        assert await world.disk(first, INCOMING) == Disk.of(images[INCOMING])

    async def test_one_image_is_never_in_two_slots_or_two_vms(self, world: World, vms: Pair, image: MakeImage) -> None:
        first, second = vms
        disk = image(b"once")
        await world.hypervisor.attach(first.id, OUTGOING, disk)
        for vm, slot in ((first, INCOMING), (second, OUTGOING), (second, INCOMING)):
            with pytest.raises(HypervisorError):
                await world.hypervisor.attach(vm.id, slot, disk)
        assert await world.hypervisor.attached(first.id) == {OUTGOING: disk}
        assert await world.hypervisor.attached(second.id) == {}
        assert await world.disk(first, OUTGOING) == Disk.of(disk)

    async def test_of_two_who_would_have_the_same_image_at_once_one_at_most_has_it(self, world: World, vms: Pair, image: MakeImage) -> None:
        disk = image()
        results = await asyncio.gather(*(world.hypervisor.attach(vm.id, OUTGOING, disk) for vm in vms), return_exceptions=True)
        assert all(result is None or isinstance(result, HypervisorError) for result in results), results
        for vm, result in zip(vms, results, strict=True):
            assert await world.hypervisor.attached(vm.id) == ({OUTGOING: disk} if result is None else {})
        assert results.count(None) <= 1

    async def test_several_attach_and_detach_at_once_without_a_mistake(self, world: World, vms: Pair, image: MakeImage) -> None:
        places = [(vm, slot, image(f"{vm.name} {slot.value}".encode())) for vm in vms for slot in Slot]
        await asyncio.gather(*(world.hypervisor.attach(vm.id, slot, disk) for vm, slot, disk in places))
        for vm in vms:
            assert await world.hypervisor.attached(vm.id) == {slot: disk for holder, slot, disk in places if holder == vm}
        assert await asyncio.gather(*(world.disk(vm, slot) for vm, slot, _ in places)) == [Disk.of(disk) for *_, disk in places]
        await asyncio.gather(*(world.hypervisor.detach(vm.id, slot) for vm, slot, _ in places))
        assert [world.holders(disk) for *_, disk in places] == [[]] * len(places)

    async def test_an_image_that_is_not_there_is_attached_nowhere(self, world: World, vms: Pair) -> None:
        first, _ = vms
        with pytest.raises(HypervisorError):
            await world.hypervisor.attach(first.id, OUTGOING, world.folder / "nosuch.img")
        assert await world.hypervisor.attached(first.id) == {}
        assert first.id.domain in await world.hypervisor.running()

    async def test_a_vm_of_another_uuid_gets_nothing(self, world: World, vms: Pair, image: MakeImage) -> None:
        first, _ = vms
        disk = image()
        with pytest.raises(HypervisorError):
            await world.hypervisor.attach(other(first.id), OUTGOING, disk)
        assert await world.hypervisor.attached(first.id) == {}
        assert world.holders(disk) == []

    @pytest.mark.parametrize("start", HOSTILE.values(), ids=HOSTILE.keys())
    async def test_whatever_the_image_says_it_is_it_is_handed_over_raw(
        self, world: World, vms: Pair, image: MakeImage, start: bytes
    ) -> None:
        first, _ = vms
        disk = image(start)
        with disk.open("r+b") as file:  # a VHD is known by its end
            file.seek(-512, os.SEEK_END)
            file.write(start[:512])
        before = Disk.of(disk)
        await world.hypervisor.attach(first.id, OUTGOING, disk)
        assert await world.disk(first, OUTGOING) == before
        await world.hypervisor.detach(first.id, OUTGOING)
        assert Disk.of(disk) == before

    @pytest.mark.parametrize("name", ["with blank.img", "with,comma.img", "with=sign,format=qcow2.img"])
    async def test_a_name_that_the_spool_never_has_works_or_is_refused(self, world: World, vms: Pair, image: MakeImage, name: str) -> None:
        """QEMU is told it in JSON and takes any; xl has no way to write some, and those are refused on Xen."""
        first, _ = vms
        disk = image(b"named", name=name)
        try:
            await world.hypervisor.attach(first.id, OUTGOING, disk)
        except HypervisorError:
            assert await world.hypervisor.attached(first.id) == {}
            assert world.holders(disk) == []
        else:
            assert await world.hypervisor.attached(first.id) == {OUTGOING: disk}
            assert await world.disk(first, OUTGOING) == Disk.of(disk)

    async def test_cancelled_at_any_moment_it_leaves_the_image_nowhere(self, world: World, vms: Pair, image: MakeImage) -> None:
        first, _ = vms
        disk = image()
        whole_s = await duration_s(world.hypervisor.attach(first.id, OUTGOING, disk))
        await world.hypervisor.detach(first.id, OUTGOING)
        for moment in MOMENTS:
            done = await cut(world.hypervisor.attach(first.id, OUTGOING, disk), moment * whole_s)
            assert await world.hypervisor.attached(first.id) == ({OUTGOING: disk} if done else {})
            assert bool(world.holders(disk)) == done
            await world.hypervisor.detach(first.id, OUTGOING)
        assert first.id.domain in await world.hypervisor.running(), "the VM has done nothing to be ended for"
        await world.hypervisor.attach(first.id, OUTGOING, disk)
        assert await world.disk(first, OUTGOING) == Disk.of(disk)

    async def test_cancelled_when_the_image_is_there_already_it_leaves_it_wholly_there_or_nowhere(
        self, world: World, vms: Pair, image: MakeImage
    ) -> None:
        first, _ = vms
        disk = image()
        await world.hypervisor.attach(first.id, OUTGOING, disk)
        whole_s = await duration_s(world.hypervisor.attach(first.id, OUTGOING, disk))
        for moment in MOMENTS:
            await cut(world.hypervisor.attach(first.id, OUTGOING, disk), moment * whole_s)
            held = await world.hypervisor.attached(first.id)
            assert held in ({OUTGOING: disk}, {})
            assert bool(world.holders(disk)) == bool(held)
            await world.hypervisor.attach(first.id, OUTGOING, disk)
        assert await world.disk(first, OUTGOING) == Disk.of(disk)


class TestDetaching:
    async def test_it_returns_when_nobody_has_the_image_open_and_the_vm_no_disk(self, world: World, vms: Pair, image: MakeImage) -> None:
        first, _ = vms
        disk = image()
        await world.hypervisor.attach(first.id, OUTGOING, disk)
        assert await world.disk(first, OUTGOING) == Disk.of(disk)
        assert world.holders(disk) != [], "somebody is seen to have it while it is attached"
        await world.hypervisor.detach(first.id, OUTGOING)
        assert world.holders(disk) == []
        await world.no_disk(first, OUTGOING)

    async def test_at_once_after_the_attaching_it_works_again_and_again(self, world: World, vms: Pair, image: MakeImage) -> None:
        first, _ = vms
        for _ in range(3):
            disk = image()
            await world.hypervisor.attach(first.id, OUTGOING, disk)
            await world.hypervisor.detach(first.id, OUTGOING)
            assert world.holders(disk) == []

    async def test_an_image_moves_from_one_vm_to_another_with_all_that_was_written(self, world: World, vms: Pair, image: MakeImage) -> None:
        first, second = vms
        disk = image(b"from dom0")
        await world.hypervisor.attach(first.id, OUTGOING, disk)
        await world.write(first, OUTGOING, 0, HOSTILE["qcow2-with-a-backing-file"])
        await world.write(first, OUTGOING, (4 << 20) - 512, os.urandom(512))
        written = await world.disk(first, OUTGOING)
        await world.hypervisor.detach(first.id, OUTGOING)
        await world.hypervisor.attach(second.id, INCOMING, disk)
        assert await world.hypervisor.attached(first.id) == {}
        assert await world.hypervisor.attached(second.id) == {INCOMING: disk}
        assert await world.disk(second, INCOMING) == written
        await world.hypervisor.detach(second.id, INCOMING)
        assert Disk.of(disk) == written

    async def test_an_empty_slot_is_a_success(self, world: World, vms: Pair, image: MakeImage) -> None:
        first, _ = vms
        disk = image()
        await world.hypervisor.attach(first.id, INCOMING, disk)
        for _ in range(2):
            await world.hypervisor.detach(first.id, OUTGOING)
        assert await world.hypervisor.attached(first.id) == {INCOMING: disk}

    async def test_a_vm_of_another_uuid_is_a_success_and_takes_nothing_from_this_one(
        self, world: World, vms: Pair, image: MakeImage
    ) -> None:
        first, _ = vms
        disk = image()
        await world.hypervisor.attach(first.id, OUTGOING, disk)
        await world.hypervisor.detach(other(first.id), OUTGOING)
        assert await world.hypervisor.attached(first.id) == {OUTGOING: disk}
        assert await world.disk(first, OUTGOING) == Disk.of(disk)

    async def test_cancelled_at_any_moment_it_can_be_repeated(self, world: World, vms: Pair, image: MakeImage) -> None:
        first, _ = vms
        disk = image()
        await world.hypervisor.attach(first.id, OUTGOING, disk)
        whole_s = await duration_s(world.hypervisor.detach(first.id, OUTGOING))
        for moment in MOMENTS:
            await world.hypervisor.attach(first.id, OUTGOING, disk)
            await cut(world.hypervisor.detach(first.id, OUTGOING), moment * whole_s)
            await world.hypervisor.detach(first.id, OUTGOING)
            assert await world.hypervisor.attached(first.id) == {}
            assert world.holders(disk) == []


class TestTellingWhatIsAttached:
    async def test_it_is_exact_for_each_vm_and_for_a_daemon_that_has_just_started(self, world: World, vms: Pair, image: MakeImage) -> None:
        first, second = vms
        disk = image()
        assert [await world.hypervisor.attached(vm.id) for vm in vms] == [{}, {}]
        await world.hypervisor.attach(second.id, INCOMING, disk)
        for hypervisor in (world.hypervisor, world.hypervisor_anew()):
            assert await hypervisor.attached(first.id) == {}
            assert await hypervisor.attached(second.id) == {INCOMING: disk}

    async def test_a_vm_of_another_uuid_has_nothing(self, world: World, vms: Pair, image: MakeImage) -> None:
        first, _ = vms
        await world.hypervisor.attach(first.id, OUTGOING, image())
        assert await world.hypervisor.attached(other(first.id)) == {}


async def test_killing_a_vm_of_another_uuid_is_a_success_and_ends_nobody(world: World, vms: Pair, image: MakeImage) -> None:
    first, _ = vms
    disk = image()
    await world.hypervisor.attach(first.id, OUTGOING, disk)
    await world.hypervisor.kill(other(first.id))
    assert (await world.hypervisor.running())[first.id.domain] == first
    assert await world.disk(first, OUTGOING) == Disk.of(disk)


@pytest.mark.patient
async def test_what_a_vm_that_does_nothing_keeps_waiting_ends_at_a_deadline(world: World, vms: Pair, image: MakeImage) -> None:
    first, _ = vms
    there, new = image(), image()
    await world.hypervisor.attach(first.id, OUTGOING, there)
    await world.freeze(first)
    results = await asyncio.gather(
        world.hypervisor.attach(first.id, INCOMING, new), world.hypervisor.detach(first.id, OUTGOING), return_exceptions=True
    )
    assert all(result is None or isinstance(result, HypervisorError) for result in results), results
    assert [bool(world.holders(new)), bool(world.holders(there))] == [results[0] is None, results[1] is not None]
    await world.hypervisor.kill(first.id)
    assert [world.holders(new), world.holders(there)] == [[], []]
    await world.hypervisor.release(first.id.domain)


class End(enum.Enum):
    KILLED = "killed"
    FROZEN_AND_KILLED = "frozen and killed"
    VANISHED = "vanished while a disk is detached"


@dataclass(frozen=True, slots=True)
class Ended:
    """A VM that has ended with an image in each slot."""

    end: End
    vm: RunningVm
    survivor: RunningVm
    images: tuple[Path, Path]
    held: list[str]
    """Who had them at the moment when the call that ended it had returned."""


async def end_one(world: World, end: End) -> Ended:
    first, second = await both(world)
    vm, survivor = (second, first) if end is End.KILLED else (first, second)
    images = world.folder / f"{end.name}-outgoing.img", world.folder / f"{end.name}-incoming.img"
    for slot, image in zip(Slot, images, strict=True):
        with image.open("xb") as file:
            file.truncate(1 << 20)
        await world.hypervisor.attach(vm.id, slot, image)
    match end:
        case End.VANISHED:
            results = await asyncio.gather(world.hypervisor.detach(vm.id, OUTGOING), world.vanish(vm), return_exceptions=True)
            assert results[0] is None or isinstance(results[0], HypervisorError), results
            assert results[1] is None
        case End.FROZEN_AND_KILLED:
            await world.freeze(vm)
            await world.hypervisor.kill(vm.id)
        case End.KILLED:
            await world.hypervisor.kill(vm.id)
        case _:
            assert_never(end)
    return Ended(end, vm, survivor, images, [holder for image in images for holder in world.holders(image)])


@pytest.fixture(scope="class", params=list(End), ids=lambda end: end.value)
def ended(world: World, request: pytest.FixtureRequest) -> Iterator[Ended]:
    here = run(world, end_one(world, request.param), DEADLINE_S)
    yield here
    run(world, world.hypervisor.release(here.vm.id.domain), DEADLINE_S)
    for image in here.images:
        image.unlink()


class TestAVmThatHasEnded:
    async def test_its_images_are_free_when_its_killing_returns_or_the_detaching(self, world: World, ended: Ended) -> None:
        if ended.end is not End.VANISHED:
            assert ended.held == []
        for slot, image in zip(Slot, ended.images, strict=True):
            await world.hypervisor.detach(ended.vm.id, slot)
            assert world.holders(image) == []

    async def test_it_is_not_listed_any_more_and_the_other_is(self, world: World, ended: Ended) -> None:
        running = await world.hypervisor.running()
        assert ended.vm not in running.values() and ended.survivor in running.values()

    async def test_to_kill_it_again_or_to_detach_from_it_is_a_success(self, world: World, ended: Ended) -> None:
        for _ in range(2):
            await world.hypervisor.kill(ended.vm.id)
            for slot in Slot:
                await world.hypervisor.detach(ended.vm.id, slot)

    async def test_it_has_nothing_and_gets_nothing(self, world: World, ended: Ended) -> None:
        for slot, image in zip(Slot, ended.images, strict=True):
            with pytest.raises(VmGone):
                await world.hypervisor.attach(ended.vm.id, slot, image)
            assert world.holders(image) == []
        assert await world.hypervisor.attached(ended.vm.id) == {}

    async def test_its_images_can_go_to_another_vm(self, world: World, ended: Ended) -> None:
        for slot in Slot:
            await world.hypervisor.detach(ended.vm.id, slot)
        for slot, image in zip(Slot, ended.images, strict=True):
            await world.hypervisor.attach(ended.survivor.id, slot, image)
            assert await world.disk(ended.survivor, slot) == Disk.of(image)
            await world.hypervisor.detach(ended.survivor.id, slot)
            assert world.holders(image) == []

    async def test_released_it_leaves_nothing_behind_and_that_may_be_repeated(self, world: World, ended: Ended) -> None:
        for _ in range(2):
            await world.hypervisor.release(ended.vm.id.domain)
            assert await world.leftovers(ended.vm) == []
        assert ended.survivor in (await world.hypervisor.running()).values()
