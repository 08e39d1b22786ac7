"""The end of a home, with real stores, records and processes, and without machines."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import pytest

from qfilexchg.dom0.debian import Release
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.platform import Platform
from qfilexchg.dom0.vms import template
from qfilexchg.dom0.vms.collection import SAVED_VM, Label
from qfilexchg.dom0.vms.hypervisor import RunningVm, VmId
from qfilexchg.dom0.vms.machines import SHUTDOWN_DEADLINE_S, Machines, NoScreen, NotRunning, StillRunning
from qfilexchg.dom0.vms.qemu import command
from qfilexchg.dom0.vms.template import Contents
from qfilexchg.protocol.names import VmName
from qfilexchg.xenstore.server import Server
from tests.fakes.qemu import FakeQemu


class Obedient(Machines):
    """Its VMs power off when they are asked to, but for those of ``stubborn``."""

    def __init__(self, home: Home) -> None:
        super().__init__(home)
        self.asked: list[str] = []
        self.stubborn: set[str] = set()

    async def shutdown(self, name: VmName, deadline_s: float = SHUTDOWN_DEADLINE_S) -> None:
        self.asked.append(name)
        if name in self.stubborn:
            raise StillRunning(f"{name} goes on")
        await self.kill(name)


class Scene:
    def __init__(self, home: Home) -> None:
        self.home = home
        self.machines = Obedient(home)
        self.qemu = FakeQemu(home, self.machines.collection)
        self.said: list[str] = []

    async def start(self, name: str) -> RunningVm:
        vm = self.machines.collection.add(VmName.parse(name), Label.GREEN, 1)
        return (await self.qemu.start(RunningVm(VmId(self.machines.collection.next_domain(), vm.uuid), vm.name))).vm

    async def down(self) -> None:
        await self.machines.down(self.said.append)


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    home = Home(folder, folder / "run", folder / "cache")
    home.make()
    async with Server(home.store):
        here = Scene(home)
        try:
            yield here
        finally:
            here.qemu.end()


async def test_disposable_vms_are_shut_down_before_the_vms_that_their_documents_are_of(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        for name in ("aaa", "work", "zzz"):
            await here.start(name)
        await here.qemu.disposable(asker=VmName.parse("work"), running=True)
        await here.down()
        assert here.machines.asked[0] == "disp1" and sorted(here.machines.asked[1:]) == ["aaa", "work", "zzz"]
        assert not await here.machines.running() and [vm.name for vm in here.machines.collection.list()] == ["aaa", "work", "zzz"]


async def test_one_that_waits_to_be_woken_is_not_asked_to_shut_down(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        await here.qemu.disposable(preloaded=True)
        await here.qemu.disposable(running=True)
        await here.down()
        assert here.machines.asked == ["disp2"] and sorted(here.said) == ["disp1 killed", "disp2 shut down"]


async def test_the_screen_of_a_vm_is_the_socket_that_its_qemu_serves(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        use_template(here.home, desktop=True)
        vm = await here.start("work")
        here.machines.require_screen(vm.name)
        with pytest.raises(NoScreen, match="started from a template without a desktop"):
            await here.machines.screen(vm.name)
        with closing(socket.socket(socket.AF_UNIX)) as listener:
            listener.bind(str(command.screen_socket(here.home, vm.id.domain)))
            assert await here.machines.screen(vm.name) == here.home.domain(vm.id.domain) / "screen"
            await here.machines.kill(vm.name)
        with pytest.raises(NotRunning):
            await here.machines.screen(vm.name)


async def test_a_plain_template_has_no_screen_and_it_is_said_what_makes_one(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        use_template(here.home, desktop=False)
        vm = await here.start("work")
        with pytest.raises(NoScreen, match="qvm-template build --desktop"):
            here.machines.require_screen(vm.name)


async def test_xen_has_no_screen(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        on_xen = Machines(replace(here.home, platform=Platform.XEN), here.machines.toolstack)
        with pytest.raises(NoScreen, match="on Xen"):
            on_xen.require_screen(VmName.parse("work"))


def use_template(home: Home, *, desktop: bool) -> None:
    made = template.Template(home.cache / "made")
    made.folder.mkdir()
    if desktop:
        made.describe(Contents(Release.TRIXIE, desktop=True), time.time())
    template.use(home, made)


async def test_what_does_not_go_in_good_order_goes_by_force(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        here.machines.stubborn = {"work"}
        await here.start("work")
        await here.qemu.start(RunningVm(VmId(here.machines.collection.next_domain(), uuid.uuid4()), SAVED_VM), running=False)
        await here.down()
        assert sorted(here.said) == ["default-dvm killed", "work killed"] and not await here.machines.running()
