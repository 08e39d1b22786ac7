"""DisposableVMs for those who ask, with real stores, records and processes, and without machines."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import disposables, restoring, saving
from qfilexchg.dom0.vms.collection import SAVED_VM, Collection, Label
from qfilexchg.dom0.vms.disposables import Disposables, require_memory
from qfilexchg.dom0.vms.hypervisor import HypervisorError, NoDisposable, RunningVm, VmId
from qfilexchg.dom0.vms.processes import Process, wait_until
from qfilexchg.dom0.vms.qemu import acceleration
from qfilexchg.dom0.vms.qemu.acceleration import Accelerator, Choice
from qfilexchg.dom0.vms.qemu.hypervisor import Record
from qfilexchg.dom0.vms.qemu.toolstack import QemuToolstack
from qfilexchg.dom0.vms.savefile import Savefile
from qfilexchg.dom0.vms.saving import SavingFailed
from qfilexchg.dom0.vms.template import Template
from qfilexchg.dom0.vms.toolstack import Basis, Toolstack
from qfilexchg.protocol.names import DomainId, VmName
from qfilexchg.xenstore.server import Server
from tests.fakes.qemu import FakeQemu
from tests.python import PYTHON

WORK = VmName.parse("work")
ASKER = RunningVm(VmId(DomainId(99), uuid.uuid4()), WORK)


class Scene:
    """A home with a template and a savefile."""

    def __init__(self, home: Home, preload: int) -> None:
        self.home = home
        self.collection = Collection(home.collection)
        self.qemu = FakeQemu(home, self.collection)
        self.toolstack = QemuToolstack(home)
        self.disposables = Disposables(home, self.collection, self.toolstack, 1, preload)

    async def saved(self, name: str = "0a") -> Savefile:
        """A new savefile, in the place of the last."""
        saved = Savefile(self.home.savefiles / name)
        saved.folder.mkdir()
        for file in (saved.memory, saved.state, saved.disk):
            file.write_bytes(b"")
        saved.record((await self.toolstack.basis(1)).stamp)
        self.home.current_savefile.unlink(missing_ok=True)
        self.home.current_savefile.symlink_to(name)
        return saved

    def names(self) -> set[str]:
        return {vm.name for vm in self.collection.list()}

    async def make(self) -> RunningVm:
        return await self.disposables.make(ASKER, lambda _: None)


@asynccontextmanager
async def scene(folder: Path, monkeypatch: pytest.MonkeyPatch, *, preload: int = 0) -> AsyncIterator[Scene]:
    home = Home(folder, folder / "run", folder / "cache")
    home.make()
    template = folder / "a-template"
    template.mkdir()
    (template / "root.img").write_bytes(b"root")
    home.template.symlink_to(template)

    async def choose(*_: object) -> Choice:
        return Choice(Accelerator.TCG, "")

    monkeypatch.setattr(acceleration, "choose", choose)
    monkeypatch.setattr(disposables, "LOOK_AGAIN_S", 0.01)
    here = Scene(home, preload)

    async def restore(
        _home: Home,
        _collection: Collection,
        _toolstack: Toolstack,
        _saved: Savefile,
        _made_of: Basis,
        _label: Label,
        *,
        asker: VmName | None = None,
        preloaded: bool = False,
    ) -> RunningVm:
        started = await here.qemu.disposable(asker=asker, preloaded=preloaded)
        here.toolstack.hypervisor.adopt(started.vm.id.domain, started.process)
        return started.vm

    monkeypatch.setattr(restoring, "restore", restore)
    async with Server(home.store):
        try:
            yield here
        finally:
            here.qemu.end()


async def until(done: Callable[[], bool]) -> None:
    while not done():  # noqa: ASYNC110  no event tells a bystander
        await asyncio.sleep(0.005)


def lives(process: Process) -> bool:
    """Whether there is anything of it, be it a zombie."""
    return Path(f"/proc/{process.pid}").exists()


@asynccontextmanager
async def kept_ready(here: Scene) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(here.disposables.keep_ready())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class TestPreload:
    async def test_an_error_of_any_kind_ends_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with scene(tmp_path, monkeypatch, preload=1) as here:
            await here.saved()
            errors = [OSError(28, "No space left on device"), ZeroDivisionError(), HypervisorError("no answer")]
            restore = restoring.restore

            async def fail_first(*words: object, **named: object) -> RunningVm:
                if errors:
                    raise errors.pop()
                return await restore(*words, **named)  # type: ignore[arg-type]

            monkeypatch.setattr(restoring, "restore", fail_first)
            async with kept_ready(here) as task:
                await until(lambda: bool(here.names()) or task.done())
                assert not task.done() and not errors

    async def test_what_is_in_the_way_is_said_once_until_it_changes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        rounds = 0
        basis = QemuToolstack.basis

        async def count(self: QemuToolstack, memory_mib: int, booted: Template | None = None) -> Basis:
            nonlocal rounds
            rounds += 1
            return await basis(self, memory_mib, booted)

        async with scene(tmp_path, monkeypatch, preload=1) as here:
            monkeypatch.setattr(QemuToolstack, "basis", count)
            with caplog.at_level(logging.WARNING):
                async with kept_ready(here):
                    await until(lambda: rounds > 5)
                    saved = await here.saved()
                    os.truncate(saved.made, 0)
                    await until(lambda: "cannot be read" in caplog.text)
                    seen = rounds
                    await until(lambda: rounds > seen + 5)
            said = [record.getMessage().split("(")[0] for record in caplog.records]
            assert len(said) == 2 and "there is no savefile" in said[0]

    async def test_one_that_has_ended_is_replaced_and_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with scene(tmp_path, monkeypatch, preload=1) as here:
            await here.saved()
            async with kept_ready(here):
                await until(lambda: bool(here.disposables._ready))
                (first,) = here.qemu.started
                os.kill(first.process.pid, signal.SIGKILL)
                await until(lambda: here.names() == {"disp2"})
            assert not here.home.vm(first.vm.name).exists() and not lives(first.process)

    async def test_an_asker_that_stops_waiting_leaves_stale_ones_to_the_next(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with scene(tmp_path, monkeypatch, preload=2) as here:
            await here.saved()
            async with kept_ready(here):
                await until(lambda: len(here.disposables._ready) == 2)
            await here.saved("0b")
            end, reached = restoring.end, asyncio.Event()

            async def never(*_: object) -> None:
                reached.set()
                await asyncio.Event().wait()

            monkeypatch.setattr(restoring, "end", never)
            asking = asyncio.create_task(here.make())
            await reached.wait()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            monkeypatch.setattr(restoring, "end", end)
            assert (await here.make()).name == "disp3" and here.names() == {"disp3"}

    async def test_a_stale_one_that_cannot_be_ended_is_given_to_nobody_and_in_nobodys_way(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with scene(tmp_path, monkeypatch, preload=1) as here:
            await here.saved()
            async with kept_ready(here):
                await until(lambda: bool(here.disposables._ready))
            await here.saved("0b")

            async def fail(*_: object) -> None:
                raise HypervisorError("it does not end")

            monkeypatch.setattr(restoring, "end", fail)
            assert (await here.make()).name == "disp2"


class TestSweep:
    async def test_it_ends_what_was_made_for_documents_and_leaves_alone_what_a_person_makes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with scene(tmp_path, monkeypatch) as here:
            known = await here.qemu.disposable(asker=WORK)
            await here.qemu.disposable(asker=WORK)
            await here.qemu.disposable(preloaded=True)
            person = await here.qemu.disposable()
            begun = here.collection.add_new_disposablevm(Label.RED, 1)
            here.home.vm(begun.name).mkdir()
            half_made = here.collection.add_new_disposablevm(Label.RED, 1, asker=WORK)
            await here.disposables.sweep([known.vm.id])
            assert here.names() == {known.vm.name, person.vm.name, begun.name} and half_made.name not in here.names()
            assert here.home.vm(begun.name).exists() and known.process.running and person.process.running

    async def test_one_that_cannot_be_ended_keeps_no_other(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with scene(tmp_path, monkeypatch) as here:
            stubborn = await here.qemu.disposable(asker=WORK)
            await here.qemu.disposable(asker=WORK)
            end = restoring.end

            async def fail(home: Home, collection: Collection, toolstack: Toolstack, vm: RunningVm) -> None:
                if vm == stubborn.vm:
                    raise HypervisorError("it does not end")
                await end(home, collection, toolstack, vm)

            monkeypatch.setattr(restoring, "end", fail)
            await here.disposables.sweep([])
            assert here.names() == {stubborn.vm.name}

    @pytest.mark.parametrize("under_way", [False, True])
    async def test_a_savefile_that_somebody_who_was_killed_had_half_made_is_removed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, under_way: bool
    ) -> None:
        async with scene(tmp_path, monkeypatch) as here:
            complete = await here.saved()
            half_made = here.home.savefiles / f".{uuid.uuid4().hex}"
            half_made.mkdir()
            booted = await here.qemu.start(RunningVm(VmId(here.collection.next_domain(), uuid.uuid4()), SAVED_VM))
            tried = await here.qemu.disposable(asker=SAVED_VM)
            with (here.home.savefiles / ".lock").open("w") as lock:
                if under_way:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                await here.disposables.sweep([])
            assert half_made.exists() == booted.process.running == tried.process.running == under_way
            assert here.names() == ({tried.vm.name} if under_way else set())
            assert here.home.vm(SAVED_VM).exists() == under_way and complete.folder.exists()


async def test_who_waits_for_a_savefile_that_fails_shares_the_failure_and_who_asks_later_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds = 0
    reached, released = asyncio.Event(), asyncio.Event()

    async def fail(*_: object) -> Savefile:
        nonlocal builds
        builds += 1
        reached.set()
        await released.wait()
        raise SavingFailed("as the test says so")

    async with scene(tmp_path, monkeypatch) as here:
        monkeypatch.setattr(saving, "make", fail)
        waiting = 0

        def wait(_: str) -> None:
            nonlocal waiting
            waiting += 1

        asking = [asyncio.create_task(here.disposables.make(ASKER, wait)) for _ in range(3)]
        await reached.wait()
        await until(lambda: waiting == 3)
        released.set()
        errors = await asyncio.gather(*asking, return_exceptions=True)
        assert builds == 1 and all(isinstance(error, NoDisposable) and error.word == "no-savefile" for error in errors)
        with pytest.raises(NoDisposable, match="as the test says so"):
            await here.make()
        assert builds == 2


async def test_who_is_told_to_stop_making_a_savefile_leaves_it_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(tmp_path, monkeypatch) as here:
        reached, first = asyncio.Event(), True

        async def make(*_: object) -> Savefile:
            nonlocal first
            if first:
                first = False
                reached.set()
                await asyncio.Event().wait()
            return await here.saved()

        monkeypatch.setattr(saving, "make", make)
        one = asyncio.create_task(here.make())
        await reached.wait()
        other = asyncio.create_task(here.make())
        await asyncio.sleep(0)
        one.cancel()
        assert (await other).name == "disp1"


class TestMemory:
    def available_mib(self) -> int:
        fields = {line.partition(":")[0]: int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()}
        return fields["MemAvailable"] >> 10

    async def test_what_those_that_run_may_still_take_is_not_given_away_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with scene(tmp_path, monkeypatch) as here:
            await require_memory(here.toolstack, 1)
            other = await here.qemu.disposable(memory_mib=self.available_mib())
            with pytest.raises(NoDisposable, match="those that run may take") as refused:
                await require_memory(here.toolstack, 1)
            assert refused.value.word == "no-memory"
            await here.toolstack.hypervisor.kill(other.vm.id)
            await require_memory(here.toolstack, 1)

    async def test_what_they_have_taken_is_not_counted_twice(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with scene(tmp_path, monkeypatch) as here:
            vm = await here.qemu.disposable(memory_mib=100)
            before = (await here.toolstack.memory()).promised_mib
            log = tmp_path / "hungry.log"
            stays = "import time; x = b'x' * (64 << 20); print(1, flush=True); time.sleep(60)"
            hungry = Process.start((*PYTHON, "-c", stays), log=log)
            assert hungry
            try:
                assert wait_until(lambda: "1" in log.read_text(), 20)
                Record(vm.vm, hungry).save(here.home)
                assert 50 <= before - (await here.toolstack.memory()).promised_mib <= 80
            finally:
                hungry.end(term_s=0, kill_s=5)
            assert (await here.toolstack.memory()).promised_mib == 0, "it has ended"
