"""VMs made, saved, restored and ended through an xl that fails and hangs as it is told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.collection import SAVED_VM, Collection, Kind, Label, Vm
from qfilexchg.dom0.vms.disposables import Disposables
from qfilexchg.dom0.vms.hypervisor import HypervisorError, RunningVm, VmId
from qfilexchg.dom0.vms.machines import AlreadyRunning, Machines
from qfilexchg.dom0.vms.savefile import Savefile
from qfilexchg.dom0.vms.template import Template
from qfilexchg.dom0.vms.toolstack import Basis, BootFailed
from qfilexchg.dom0.vms.xen import nodes, records, xl
from qfilexchg.dom0.vms.xen import toolstack as module
from qfilexchg.dom0.vms.xen.computer import OVERHEAD_MIB, Computer
from qfilexchg.dom0.vms.xen.toolstack import NameInUse, XenToolstack
from qfilexchg.protocol import keys
from qfilexchg.protocol.names import VmName
from qfilexchg.xenstore.client import Store
from tests.unit.vms.xen.xen import FakeXen, xen


class Scene:
    def __init__(self, fake: FakeXen, home: Home, store: Store, folder: Path) -> None:
        self.fake = fake
        self.home = home
        self.store = store
        self.collection = Collection(home.collection)
        self.template = Template(folder / "template")
        self.template.folder.mkdir()
        for file in (self.template.kernel, self.template.initrd, self.template.root):
            file.touch()
        self.saved = Savefile(home.savefiles / "saved")
        self.saved.folder.mkdir()
        self.saved.disk.touch()
        self.toolstack = self.anew()

    def anew(self) -> XenToolstack:
        return XenToolstack(self.home, self.fake.loops(), self.home.data / "logs")

    async def basis(self) -> Basis:
        return await self.toolstack.basis(300, self.template)

    def app(self, name: str) -> Vm:
        return self.collection.add(VmName.parse(name), Label.GREEN, 300)

    def disposable(self) -> Vm:
        return self.collection.add_new_disposablevm(Label.RED, 300)

    def disk(self, vm: Vm) -> Path:
        folder = self.home.vm(vm.name)
        folder.mkdir(parents=True, exist_ok=True)
        disk = folder / "disk.img"
        disk.touch()
        return disk

    async def start(self, vm: Vm) -> RunningVm:
        return await self.toolstack.start(vm, self.disk(vm), await self.basis(), {})

    async def restore(self, vm: Vm) -> RunningVm:
        self.saved.memory.touch()
        return await self.toolstack.restore(vm, self.disk(vm), self.saved, await self.basis())

    async def key(self, vm: RunningVm, key: str) -> bytes | None:
        return await nodes.read(self.store, keys.absolute(vm.id.domain, key))

    def left(self) -> list[str]:
        return [path.name for path in records.folder(self.home).glob("*")]


Begin = Callable[[], AbstractAsyncContextManager[Scene]]


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Begin:
    @asynccontextmanager
    async def scene() -> AsyncIterator[Scene]:
        async with xen(tmp_path, monkeypatch) as (fake, home, store):
            yield Scene(fake, home, store, tmp_path)

    return scene


async def test_a_vm_runs_when_it_has_its_keys(begin: Begin) -> None:
    async with begin() as scene:
        vm = scene.app("work")

        async def look() -> None:
            assert await scene.store.read("/local/domain/1/qubes_vm_type") == b"AppVM"
            assert await scene.store.get_perms("/local/domain/1/qubes_view_only") == ("n0", "r1")

        scene.fake.before["unpause"] = look
        running = await scene.toolstack.start(vm, scene.disk(vm), await scene.basis(), {keys.VIEW_ONLY: "0"})
        domain = scene.fake.domains[1]
        assert running == domain.vm and domain.uuid == vm.uuid and not domain.paused
        assert domain.settings["type"] == "pvh" and domain.settings["memory"] == 300 and domain.settings["vcpus"] == 2
        assert await scene.toolstack.running() == {"work": running}
        assert scene.left() == [f"{vm.uuid}.json"]


async def test_whoever_sees_a_new_vm_first_knows_what_it_is(begin: Begin) -> None:
    async with begin() as scene:
        kinds = []

        async def look() -> None:
            (vm,) = (await scene.toolstack.hypervisor.running()).values()
            kinds.append(await scene.key(vm, keys.VM_TYPE))

        scene.fake.half_way["restore"] = look
        restoring = asyncio.create_task(scene.restore(scene.disposable()))
        await scene.fake.hung.wait()
        restoring.cancel()
        await asyncio.gather(restoring, return_exceptions=True)
        assert kinds == [b"DisposableVM"]


async def test_without_virtualisation_a_vm_is_paravirtualised(begin: Begin) -> None:
    async with begin() as scene:
        scene.fake.virt_caps = "pv"
        await scene.start(scene.app("work"))
        assert scene.fake.domains[1].settings["type"] == "pv"


async def test_a_name_that_somebody_elses_vm_has_is_an_error_that_says_so(begin: Begin) -> None:
    async with begin() as scene:
        await scene.fake.start("work")
        with pytest.raises(NameInUse, match="'xl rename 1 NAME'"):
            await scene.start(scene.app("work"))
        assert await scene.toolstack.running() == {} and scene.left() == []


@pytest.mark.parametrize("name", ["old", "two words"])
async def test_one_that_somebody_has_renamed_runs_under_our_name_for_it_and_is_not_started_again(begin: Begin, name: str) -> None:
    async with begin() as scene:
        running = await scene.start(scene.app("work"))
        scene.fake.domains[1].name = name
        await scene.store.write(keys.absolute(running.id.domain, keys.NAME), name.encode())
        assert await scene.toolstack.running() == {running.name: running}
        machines = Machines(scene.home, scene.toolstack)
        with pytest.raises(AlreadyRunning):
            await machines.remove(running.name)
        await machines.kill(running.name)
        assert scene.fake.domains == {}


@pytest.mark.parametrize("command", ["create", "unpause"])
async def test_when_xl_fails_nothing_of_the_vm_is_left(begin: Begin, command: str) -> None:
    async with begin() as scene:
        scene.fake.fails.add(command)
        with pytest.raises(HypervisorError, match="refused by the test"):
            await scene.start(scene.app("work"))
        assert scene.fake.domains == {} and scene.left() == []


async def test_cancelled_when_xl_is_half_done_nothing_of_the_vm_is_left(begin: Begin) -> None:
    async with begin() as scene:

        async def nothing() -> None:
            return

        scene.fake.half_way["create"] = nothing
        starting = asyncio.create_task(scene.start(scene.app("work")))
        await scene.fake.hung.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert scene.fake.domains == {} and scene.left() == []


async def test_what_could_not_be_cleared_away_is_swept_later(begin: Begin) -> None:
    async with begin() as scene:

        async def nothing() -> None:
            return

        scene.fake.half_way["restore"] = nothing
        scene.fake.fails.add("destroy")
        restoring = asyncio.create_task(scene.restore(scene.disposable()))
        await scene.fake.hung.wait()
        restoring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await restoring
        assert len(scene.fake.domains) == 1
        scene.fake.fails.clear()
        await scene.anew().sweep(lambda _: None)
        assert scene.fake.domains == {} and scene.left() == []


async def test_when_xl_hangs_it_is_killed(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAKE_DEADLINE_S", 0.3)
    async with begin() as scene:
        scene.fake.hangs.add("create")
        with pytest.raises(HypervisorError, match=r"did not end within 0\.3 s"):
            await scene.start(scene.app("work"))


async def test_a_vm_is_saved_and_its_configuration_with_it(begin: Begin) -> None:
    async with begin() as scene:
        vm = Vm(SAVED_VM, uuid4(), Kind.DISPOSABLE, Label.RED, 300, datetime.now(UTC))
        running = await scene.toolstack.start(vm, scene.saved.disk, await scene.basis(), {keys.SAVE_REQUEST: "1"}, save_to=scene.saved)
        assert await scene.toolstack.running() == {SAVED_VM: running}
        await scene.toolstack.save(running.id, scene.saved)
        assert scene.fake.domains == {} and scene.saved.memory.stat().st_mode & 0o777 == 0o600
        scene.saved.record((await scene.basis()).stamp)
        scene.saved.check((await scene.anew().basis(300, scene.template)).stamp)
        await scene.toolstack.end(running)
        assert scene.left() == []


async def test_a_restored_vm_waits_and_gets_randomness_of_its_own_before_it_wakes(begin: Begin) -> None:
    async with begin() as scene:
        vm = scene.disposable()
        running = await scene.restore(vm)
        assert await scene.toolstack.paused(running.id) and await scene.key(running, keys.RESTORE_COMPLETE) is None
        seeds = []

        async def look() -> None:
            seeds.append(await scene.key(running, keys.RANDOM_SEED))
            assert await scene.store.get_perms(keys.absolute(running.id.domain, keys.RANDOM_SEED)) == ("n0", "b1")
            assert await scene.key(running, keys.RESTORE_COMPLETE) == b"True"

        scene.fake.before["unpause"] = look
        await scene.toolstack.wake(running)
        (seed,) = seeds
        assert seed and len(bytes.fromhex(seed.decode())) == keys.RANDOM_SEED_BYTES
        assert not await scene.toolstack.paused(running.id)


async def test_a_restored_vms_disk_has_no_name(begin: Begin) -> None:
    async with begin() as scene:
        vm = scene.disposable()
        await scene.restore(vm)
        assert list(scene.home.vm(vm.name).iterdir()) == []
        (root, volatile) = scene.fake.domains[1].settings["disk"]
        assert "xvda" in root and "access=ro" in root and "xvdc" in volatile


async def test_a_vm_that_has_ended_is_not_woken(begin: Begin) -> None:
    async with begin() as scene:
        running = await scene.restore(scene.disposable())
        await scene.fake.end(scene.fake.domains[1])
        with pytest.raises(HypervisorError, match="has ended before it was woken"):
            await scene.toolstack.wake(running)
        assert await nodes.children(scene.store, keys.home(running.id.domain)) == []


async def test_the_end_of_a_vm_is_seen_and_so_is_that_it_goes_on(begin: Begin) -> None:
    async with begin() as scene:
        running = await scene.start(scene.app("work"))
        assert not await scene.toolstack.wait_for_end(running.id, 0)
        assert not await scene.toolstack.wait_for_end(running.id, 0.05)
        waiting = asyncio.create_task(scene.toolstack.wait_for_end(running.id, 20))
        await scene.fake.end(scene.fake.domains[1])
        assert await waiting and await scene.toolstack.wait_for_end(running.id, 0)


async def test_a_vm_that_ends_before_it_answers_has_not_booted(begin: Begin) -> None:
    async with begin() as scene:
        running = await scene.start(scene.app("work"))
        waiting = asyncio.create_task(scene.toolstack.wait_for_hello(running))
        await scene.fake.end(scene.fake.domains[1])
        with pytest.raises(BootFailed, match="work ended before it was ready"):
            await waiting


async def test_a_vm_that_never_answers_has_not_booted(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "START_DEADLINE_S", 0.2)
    async with begin() as scene:
        running = await scene.start(scene.app("work"))
        with pytest.raises(BootFailed, match="was not ready"):
            await scene.toolstack.wait_for_hello(running)
        assert list(scene.fake.domains) == [1]


async def test_who_has_ended_is_swept_and_who_runs_or_is_just_made_is_not(begin: Begin) -> None:
    async with begin() as scene:
        running, ended, shut_down = [await scene.start(scene.app(name)) for name in ("running", "ended", "stopped")]
        await scene.fake.end(scene.fake.domains[2])
        scene.fake.domains[3].shutdown = "-"
        told: list[VmName] = []
        with records.making(scene.home, VmName.parse("disp9"), uuid4(), {}):
            await scene.toolstack.sweep(told.append)
            assert len(scene.left()) == 2
        assert sorted(told) == [ended.name, shut_down.name]
        assert list(await scene.toolstack.running()) == [running.name]


async def test_a_record_stays_as_long_as_xen_has_the_vm(begin: Begin) -> None:
    async with begin() as scene:
        running = await scene.start(scene.app("work"))
        domain = scene.fake.domains[1]
        await scene.fake.half_end(domain)
        await scene.toolstack.hypervisor.release(running.id.domain)
        assert len(scene.left()) == 1
        told: list[VmName] = []
        await scene.toolstack.sweep(told.append)
        assert told == [running.name] and scene.left() == [] and scene.fake.domains == {}


async def test_a_disposable_vm_is_forgotten_when_xen_has_it_no_more(begin: Begin) -> None:
    async with begin() as scene:
        disposables = Disposables(scene.home, scene.collection, scene.toolstack, 300)
        running = await scene.restore(scene.collection.add_new_disposablevm(Label.RED, 300, preloaded=True))
        await scene.fake.half_end(scene.fake.domains[1])
        scene.fake.fails.add("destroy")
        with pytest.raises(HypervisorError, match="refused by the test"):
            await disposables.forget(running.id)
        await disposables.sweep([])
        assert list(await scene.toolstack.running()) == [running.name] and scene.collection.get(running.name)
        scene.fake.fails.clear()
        await disposables.sweep([])
        assert scene.fake.domains == {} and scene.collection.list() == [] and scene.left() == []


async def test_one_that_is_being_saved_is_not_swept(begin: Begin) -> None:
    async with begin() as scene:
        await scene.start(scene.app("work"))
        scene.fake.domains[1].shutdown = "s"
        await scene.toolstack.sweep(lambda _: pytest.fail("it has not ended"))
        assert list(await scene.toolstack.running()) == ["work"]


async def test_released_a_vm_is_forgotten_and_one_that_has_its_id_now_is_not(begin: Begin) -> None:
    async with begin() as scene:
        running = await scene.start(scene.app("work"))
        await scene.toolstack.hypervisor.release(running.id.domain)
        assert len(scene.left()) == 1
        await scene.fake.end(scene.fake.domains[1])
        await scene.toolstack.hypervisor.release(running.id.domain)
        assert scene.left() == []


async def test_memory_is_asked_for_once_in_a_while_and_anew_when_a_vm_was_killed(begin: Begin) -> None:
    async with begin() as scene:
        running = await scene.restore(scene.disposable())
        memory = await scene.toolstack.memory()
        assert memory.available_mib == 2000 - 300 - OVERHEAD_MIB and memory.promised_mib == 0
        assert scene.fake.asked.count("info") == 1
        await scene.toolstack.end(running)
        assert (await scene.toolstack.memory()).available_mib == 2000
        assert scene.fake.asked.count("info") == 2


async def test_another_xen_makes_another_stamp(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    async with begin() as scene:
        stamp = (await scene.basis()).stamp
        assert json.loads(json.dumps(stamp)) == stamp
        scene.fake.virt_caps = "pv"
        assert (await scene.anew().basis(300, scene.template)).stamp != stamp


async def test_one_that_nobody_is_left_to_wake_is_swept_unless_it_is_preloaded(begin: Begin) -> None:
    async with begin() as scene:
        left, preloaded = scene.disposable(), scene.collection.add_new_disposablevm(Label.RED, 300, preloaded=True)
        for vm in (left, preloaded):
            await scene.restore(vm)
        told: list[VmName] = []
        await scene.anew().sweep(told.append)
        assert told == [] and len(scene.fake.domains) == 2, "who has made them is still there"
        for vm in (left, preloaded):
            scene.toolstack._let_go(vm.uuid)
        await scene.anew().sweep(told.append)
        assert told == [left.name] and [domain.name for domain in scene.fake.domains.values()] == [preloaded.name]


async def test_of_a_restore_that_was_killed_nothing_is_left_in_the_collection_either(begin: Begin) -> None:
    async with begin() as scene:
        vm = scene.disposable()
        volatile = scene.disk(vm)
        with records.making(scene.home, vm.name, vm.uuid, {keys.VM_TYPE: vm.kind.value}):
            await scene.fake.start(vm.name, vm.uuid, paused=True)
        await Machines(scene.home, scene.anew()).sweep()
        assert scene.fake.domains == {} and scene.left() == []
        assert scene.collection.list() == [] and not volatile.exists()


async def test_one_that_is_woken_while_others_are_swept_is_not(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    async with begin() as scene:
        left, woken = [await scene.restore(scene.disposable()) for _ in range(2)]
        scene.toolstack._let_go(left.id.uuid)
        all_records = records.all_records
        monkeypatch.setattr(records, "all_records", lambda home: sorted(all_records(home), key=lambda record: record.name))

        async def wake() -> None:
            scene.fake.before.clear()
            await scene.toolstack.wake(woken)

        scene.fake.before["destroy"] = wake
        await scene.anew().sweep(lambda _: None)
        assert [domain.name for domain in scene.fake.domains.values()] == [woken.name]


async def test_one_that_a_person_has_paused_is_not_swept(begin: Begin) -> None:
    async with begin() as scene:
        await scene.start(scene.app("work"))
        scene.fake.domains[1].paused = True
        await scene.toolstack.sweep(lambda _: pytest.fail("it has not ended"))
        assert list(scene.fake.domains) == [1]


async def test_only_the_vm_that_is_meant_is_told_to_end(begin: Begin) -> None:
    async with begin() as scene:
        running = await scene.start(scene.app("work"))
        await scene.toolstack.shut_down(VmId(running.id.domain, uuid4()), 5)
        assert not scene.fake.domains[1].shutdown
        await scene.toolstack.shut_down(running.id, 5)
        assert scene.fake.domains[1].shutdown


async def test_of_a_disposable_vm_xls_log_goes_too(begin: Begin) -> None:
    async with begin() as scene:
        logs = scene.home.data / "logs"
        logs.mkdir()
        vm, work = scene.disposable(), scene.app("work")
        others = [f"xl-{vm.name}0.log", f"xl-{vm.name}.log.old", "xl-work.log"]
        for name in (*others, f"xl-{vm.name}.log", f"xl-{vm.name}.log.1", f"xl-{vm.name}.log.10"):
            (logs / name).touch()
        for running in (await scene.restore(vm), await scene.start(work)):
            await scene.toolstack.end(running)
        assert sorted(log.name for log in logs.iterdir()) == sorted(others)


async def test_when_all_has_ended_nothing_is_left(begin: Begin) -> None:
    async with begin() as scene:
        await scene.start(scene.app("work"))
        scene.toolstack.clear()
        assert not records.folder(scene.home).exists()


async def test_one_that_could_be_neither_woken_nor_ended_is_swept_later(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    async with begin() as scene:
        scene.saved.memory.touch()
        vm = scene.disposable()
        running = await scene.restore(vm)
        scene.fake.fails |= {"unpause", "destroy"}
        with pytest.raises(HypervisorError):
            await scene.toolstack.wake(running)
        with pytest.raises(HypervisorError):
            await scene.toolstack.end(running)
        scene.fake.fails.clear()
        ended: list[VmName] = []
        await scene.anew().sweep(ended.append)
        assert not scene.fake.domains


async def test_memory_that_a_look_at_xen_has_found_missing_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    free_mib, ended = 500, 0

    async def info() -> xl.Info:
        return xl.Info(free_mib, frozenset(), "4.17", "dom0_mem=1G", 2, "")

    monkeypatch.setattr(xl, "info", info)
    computer = Computer(lambda: ended)
    with computer.promised(200):
        free_mib -= 200 + OVERHEAD_MIB
        ended += 1  # of another VM, so Xen is asked anew
        await computer.memory()
    assert (await computer.memory()).available_mib == free_mib
