"""What the Xen platform promises the exchange, with an xl that fails, hangs and is killed, and VMs that do as they like."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.hypervisor import HypervisorError, Slot, VmGone, VmId
from qfilexchg.dom0.vms.xen import config, hypervisor, loops, nodes, orders, records
from qfilexchg.dom0.vms.xen.hypervisor import Xen
from qfilexchg.protocol import keys
from qfilexchg.protocol.names import DomainId
from qfilexchg.xenstore.client import Store
from tests.unit.vms.xen.xen import Domain, FakeXen, xen

OUTGOING, INCOMING = Slot.OUTGOING, Slot.INCOMING


class Scene:
    def __init__(self, fake: FakeXen, home: Home, store: Store) -> None:
        self.fake = fake
        self.home = home
        self.store = store
        self.xen = Xen(home, fake.loops(), home.data / "logs")

    def image(self, name: str = "pen") -> Path:
        path = self.home.spool / name
        path.touch()
        return path

    async def backend(self, domain: Domain, slot: Slot) -> bool:
        return await self.store.exists(nodes.backend(domain.id, slot.value))

    async def foreign(self, domain: Domain, slot: Slot, image: Path) -> None:
        """A disk that somebody has given to the VM by hand."""
        await self.fake._backend(domain, slot.value, str(image), nodes.CONNECTED)


Begin = Callable[[], AbstractAsyncContextManager[Scene]]


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Begin:
    @asynccontextmanager
    async def scene() -> AsyncIterator[Scene]:
        async with xen(tmp_path, monkeypatch) as (fake, home, store):
            yield Scene(fake, home, store)

    return scene


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that end in vain end soon."""
    monkeypatch.setattr(hypervisor, "ATTACH_DEADLINE_S", 0.5)
    monkeypatch.setattr(hypervisor, "DETACH_DEADLINE_S", 0.5)


class TestRunning:
    async def test_every_vm_that_runs_is_told_but_not_dom0(self, begin: Begin) -> None:
        async with begin() as scene:
            work, foreign = await scene.fake.start("work"), await scene.fake.start("foreign", paused=True)
            assert await scene.xen.running() == {work.id: work.vm, foreign.id: foreign.vm}

    async def test_one_that_has_shut_down_or_has_no_vms_name_does_not_run(self, begin: Begin) -> None:
        async with begin() as scene:
            (await scene.fake.start("work")).shutdown = "-"
            await scene.fake.start("two words")
            await scene.fake.start("(null)")
            assert await scene.xen.running() == {}

    async def test_one_that_is_being_saved_goes_on_running(self, begin: Begin) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")
            work.shutdown = "s"
            assert await scene.xen.running() == {work.id: work.vm}

    async def test_one_that_xl_and_the_store_do_not_agree_on_does_not_run(self, begin: Begin) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")
            await scene.store.write(keys.absolute(work.id, "vm"), f"/vm/{uuid4()}".encode())
            assert await scene.xen.running() == {}

    async def test_when_xl_fails_it_is_an_error_and_not_that_nothing_runs(self, begin: Begin) -> None:
        async with begin() as scene:
            scene.fake.fails.add("list")
            with pytest.raises(HypervisorError, match="is refused by the test"):
                await scene.xen.running()

    async def test_when_the_store_is_gone_it_is_an_error_and_not_that_nothing_runs(self, begin: Begin, tmp_path: Path) -> None:
        async with begin() as scene:
            await scene.fake.start("work")
            storeless = Xen(Home(tmp_path, tmp_path / "elsewhere", tmp_path), scene.fake.loops())
            with pytest.raises(HypervisorError, match="no xenstore"):
                await storeless.running()


class TestAttach:
    async def test_it_returns_when_the_vm_has_the_disk(self, begin: Begin) -> None:
        async with begin() as scene:
            work, image = await scene.fake.start("work"), scene.image()
            await scene.xen.attach(work.vm.id, OUTGOING, image)
            assert scene.fake.asked == [f"block-attach 1 {config.disk('xvdg', image, writable=True)}"]
            assert await scene.store.read(f"{nodes.BACKENDS}/1/51808/state") == b"4"
            assert await scene.xen.attached(work.vm.id) == {OUTGOING: image}

    async def test_the_same_image_again_is_a_success_and_needs_no_xl(self, begin: Begin) -> None:
        async with begin() as scene:
            work, image = await scene.fake.start("work"), scene.image()
            await scene.xen.attach(work.vm.id, INCOMING, image)
            await scene.xen.attach(work.vm.id, INCOMING, image)
            assert len(scene.fake.asked) == 1

    async def test_another_image_there_is_an_error_and_the_first_stays(self, begin: Begin) -> None:
        async with begin() as scene:
            work, image = await scene.fake.start("work"), scene.image()
            await scene.xen.attach(work.vm.id, INCOMING, image)
            with pytest.raises(HypervisorError, match="another image"):
                await scene.xen.attach(work.vm.id, INCOMING, scene.image("other"))
            assert await scene.xen.attached(work.vm.id) == {INCOMING: image}

    async def test_an_image_that_another_vm_has_is_an_error_at_once(self, begin: Begin) -> None:
        async with begin() as scene:
            work, personal, image = await scene.fake.start("work"), await scene.fake.start("personal"), scene.image()
            await scene.xen.attach(work.vm.id, OUTGOING, image)
            with pytest.raises(HypervisorError, match="is attached to domain 1"):
                await scene.xen.attach(personal.vm.id, INCOMING, image)
            assert await scene.xen.attached(personal.vm.id) == {}

    async def test_of_two_at_once_one_has_the_image(self, begin: Begin) -> None:
        async with begin() as scene:
            vms, image = [await scene.fake.start("work"), await scene.fake.start("personal")], scene.image()
            results = await asyncio.gather(*(scene.xen.attach(vm.vm.id, INCOMING, image) for vm in vms), return_exceptions=True)
            assert [result for result in results if result is None] == [None]
            assert len(scene.fake.bound()) == 1

    @pytest.mark.usefixtures("hasty")
    async def test_a_vm_that_never_takes_it_has_it_taken_away_by_force(self, begin: Begin) -> None:
        async with begin() as scene:
            work, image = await scene.fake.start("work"), scene.image()
            work.connects = work.lets_go = False
            with pytest.raises(HypervisorError, match=r"was not done within 0\.5 s"):
                await scene.xen.attach(work.vm.id, OUTGOING, image)
            assert scene.fake.asked[-1] == "block-detach --force 1 xvdg"
            assert scene.fake.bound() == [] and not await scene.backend(work, OUTGOING)

    async def test_a_vm_that_refuses_it_is_not_waited_for(self, begin: Begin) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")
            work.connects, work.closes = False, True
            with pytest.raises(HypervisorError, match="does not take xvdg"):
                await scene.xen.attach(work.vm.id, OUTGOING, scene.image())
            assert scene.fake.bound() == [] and not await scene.backend(work, OUTGOING)

    @pytest.mark.usefixtures("hasty")
    async def test_when_it_cannot_be_taken_back_the_vm_is_killed(self, begin: Begin) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")
            work.connects, scene.fake.backend_stays = False, True
            with pytest.raises(VmGone):
                await scene.xen.attach(work.vm.id, OUTGOING, scene.image())
            assert scene.fake.domains == {} and scene.fake.bound() == []

    async def test_when_xl_fails_its_words_are_told_and_nothing_is_attached(self, begin: Begin) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")
            with pytest.raises(HypervisorError, match="No such file or directory"):
                await scene.xen.attach(work.vm.id, OUTGOING, scene.home.spool / "missing")
            assert scene.fake.bound() == [] and not await scene.backend(work, OUTGOING)

    @pytest.mark.usefixtures("hasty")
    async def test_when_xl_hangs_it_is_killed(self, begin: Begin) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")
            scene.fake.hangs.add("block-attach")
            with pytest.raises(HypervisorError, match="within"):
                await scene.xen.attach(work.vm.id, OUTGOING, scene.image())

    async def test_cancelled_when_xl_is_half_done_it_leaves_the_image_nowhere(self, begin: Begin) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")
            scene.fake.half_way["block-attach"] = _nothing
            task = asyncio.create_task(scene.xen.attach(work.vm.id, OUTGOING, scene.image()))
            await scene.fake.hung.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert scene.fake.bound() == [] and not await scene.backend(work, OUTGOING)

    async def test_a_vm_that_ended_before_is_gone(self, begin: Begin) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")
            with pytest.raises(VmGone):
                await scene.xen.attach(VmId(work.id, uuid4()), OUTGOING, scene.image())
            assert scene.fake.asked == []

    async def test_a_vm_that_ends_meanwhile_is_gone_and_has_nothing(self, begin: Begin) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")
            work.connects = False
            scene.fake.before["block-attach"] = lambda: scene.fake.end(work)
            with pytest.raises(VmGone):
                await scene.xen.attach(work.vm.id, OUTGOING, scene.image())
            assert scene.fake.bound() == []

    async def test_another_vm_that_got_the_domain_id_meanwhile_does_not_keep_the_image(self, begin: Begin) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")

            async def reuse() -> None:
                await scene.fake.end(work)
                await scene.fake.introduce(Domain(work.id, uuid4(), "stranger"))

            scene.fake.before["block-attach"] = reuse
            with pytest.raises(VmGone):
                await scene.xen.attach(work.vm.id, OUTGOING, scene.image())
            assert scene.fake.bound() == [] and list(scene.fake.domains) == [work.id]

    async def test_it_waits_for_a_loop_device_that_still_has_the_image(self, begin: Begin) -> None:
        async with begin() as scene:
            work, personal, image = await scene.fake.start("work"), await scene.fake.start("personal"), scene.image()
            await scene.xen.attach(work.vm.id, OUTGOING, image)
            scene.fake.loops_lag = True
            await scene.fake.end(work)
            attaching = asyncio.create_task(scene.xen.attach(personal.vm.id, INCOMING, image))
            done, _ = await asyncio.wait({attaching}, timeout=0.2)
            assert not done and len(scene.fake.asked) == 1
            scene.fake.free("loop0")
            await attaching

    async def test_a_path_that_xl_would_misread_is_refused(self, begin: Begin) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")
            with pytest.raises(HypervisorError, match="takes only paths"):
                await scene.xen.attach(work.vm.id, OUTGOING, scene.image('a"b'))
            assert scene.fake.asked == []


class TestDetach:
    async def test_it_returns_when_backend_and_loop_device_are_gone(self, begin: Begin) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")
            await scene.xen.attach(work.vm.id, OUTGOING, scene.image())
            await scene.xen.detach(work.vm.id, OUTGOING)
            assert scene.fake.asked[-1] == "block-detach 1 xvdg"
            assert scene.fake.bound() == [] and await scene.xen.attached(work.vm.id) == {}

    async def test_an_empty_slot_and_a_vm_that_is_another_now_are_successes(self, begin: Begin) -> None:
        async with begin() as scene:
            work, image = await scene.fake.start("work"), scene.image()
            await scene.xen.detach(work.vm.id, OUTGOING)
            await scene.xen.attach(work.vm.id, OUTGOING, image)
            await scene.xen.detach(VmId(work.id, uuid4()), OUTGOING)
            assert await scene.xen.attached(work.vm.id) == {OUTGOING: image}

    async def test_a_vm_that_does_not_let_go_is_an_error_first_and_forced_then(self, begin: Begin) -> None:
        async with begin() as scene:
            work, image = await scene.fake.start("work"), scene.image()
            work.lets_go = False
            await scene.xen.attach(work.vm.id, OUTGOING, image)
            with pytest.raises(HypervisorError, match="unable to remove device"):
                await scene.xen.detach(work.vm.id, OUTGOING)
            assert await scene.xen.attached(work.vm.id) == {OUTGOING: image}
            await scene.xen.detach(work.vm.id, OUTGOING)
            assert scene.fake.asked[-1] == "block-detach --force 1 xvdg" and scene.fake.bound() == []

    async def test_a_vm_that_ends_meanwhile_has_let_go(self, begin: Begin) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")
            await scene.xen.attach(work.vm.id, OUTGOING, scene.image())
            scene.fake.before["block-detach"] = lambda: scene.fake.end(work)
            await scene.xen.detach(work.vm.id, OUTGOING)
            assert scene.fake.bound() == []

    @pytest.mark.usefixtures("hasty")
    async def test_a_vm_that_has_ended_holds_the_image_as_long_as_its_backend_is_there(self, begin: Begin) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")
            await scene.xen.attach(work.vm.id, OUTGOING, scene.image())
            await scene.store.rm(keys.home(work.id))
            with pytest.raises(HypervisorError, match="within"):
                await scene.xen.detach(work.vm.id, OUTGOING)
            detaching = asyncio.create_task(scene.xen.detach(work.vm.id, OUTGOING))
            await scene.fake._remove_backend(nodes.backend(work.id, OUTGOING.value))
            await detaching

    async def test_a_disk_that_is_not_ours_is_neither_told_nor_taken(self, begin: Begin, tmp_path_factory: pytest.TempPathFactory) -> None:
        async with begin() as scene:
            work, theirs = await scene.fake.start("work"), tmp_path_factory.mktemp("theirs") / "disk"
            await scene.foreign(work, OUTGOING, theirs)
            assert await scene.xen.attached(work.vm.id) == {}
            await scene.xen.detach(work.vm.id, OUTGOING)
            with pytest.raises(HypervisorError, match="another image"):
                await scene.xen.attach(work.vm.id, OUTGOING, scene.image())
            assert await scene.backend(work, OUTGOING)

    async def test_a_loop_device_that_its_script_forgot_is_freed(self, begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loops, "CLEAR_AFTER_S", 0.05)
        async with begin() as scene:
            work = await scene.fake.start("work")
            await scene.xen.attach(work.vm.id, OUTGOING, scene.image())
            scene.fake.loops_lag = True
            await scene.xen.detach(work.vm.id, OUTGOING)
            assert scene.fake.cleared == ["loop0"]

    async def test_what_a_detaching_that_was_broken_off_left_bound_is_freed_by_the_next(
        self, begin: Begin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")
            await scene.xen.attach(work.vm.id, OUTGOING, scene.image())
            scene.fake.loops_lag = True
            detaching = asyncio.create_task(scene.xen.detach(work.vm.id, OUTGOING))
            while await scene.backend(work, OUTGOING):
                await scene.store.exists("/")
            detaching.cancel()
            await asyncio.gather(detaching, return_exceptions=True)
            monkeypatch.setattr(loops, "CLEAR_AFTER_S", 0.05)
            await scene.xen.detach(work.vm.id, OUTGOING)
            assert scene.fake.cleared == ["loop0"]

    async def test_what_a_vm_has_and_what_was_kept_and_is_mounted_by_hand_is_left_alone(self, begin: Begin) -> None:
        async with begin() as scene:
            work, personal = await scene.fake.start("work"), await scene.fake.start("personal")
            await scene.xen.attach(personal.vm.id, OUTGOING, scene.image())
            scene.fake.bind("loop7", str(scene.home.kept / "image"))
            await scene.xen.detach(work.vm.id, OUTGOING)
            assert scene.fake.bound() == ["loop0", "loop7"]

    async def test_of_other_files_of_ours_only_a_disposable_vms_disk_is_freed_and_none_is_waited_for(self, begin: Begin) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")
            for number, file in enumerate(("vms/disp1/volatile.img", "vms/work/private.img", "savefiles/0a/disk")):
                scene.fake.bind(f"loop{7 + number}", str(scene.home.data / file))
            scene.fake.frees = False
            await scene.xen.detach(work.vm.id, OUTGOING)
            assert scene.fake.cleared == ["loop7"]

    async def test_a_device_that_is_another_files_by_now_is_left_alone(self, begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
        async with begin() as scene:
            work, images = await scene.fake.start("work"), nodes.images
            scene.fake.bind("loop7", str(scene.home.data / "vms/disp1/volatile.img"))

            async def meanwhile(store: Store) -> list[tuple[DomainId, Path]]:
                scene.fake.free("loop7")
                scene.fake.bind("loop7", str(scene.home.data / "vms/work/private.img"))
                return await images(store)

            monkeypatch.setattr(nodes, "images", meanwhile)
            await scene.xen.detach(work.vm.id, OUTGOING)
            assert scene.fake.cleared == [] and scene.fake.bound() == ["loop7"]


class TestOrders:
    """xl starts a VM of somebody's again with all the disks that it had."""

    async def restarted(self, scene: Scene, work: Domain, image: Path) -> Domain:
        await scene.fake.end(work)
        return await scene.fake.start("work", settings={"disk": [config.disk("xvdg", image, writable=True)]})

    async def test_one_that_xl_starts_again_gets_nothing_in_a_pendrives_place(self, begin: Begin) -> None:
        async with begin() as scene:
            work, personal, image = await scene.fake.start("work"), await scene.fake.start("personal"), scene.image()
            await scene.xen.attach(work.vm.id, OUTGOING, image)
            again = await self.restarted(scene, work, image)
            assert await scene.xen.attached(again.vm.id) == {} and scene.fake.loops().holding(image) == []
            await scene.xen.detach(again.vm.id, OUTGOING)
            await scene.xen.attach(personal.vm.id, INCOMING, image)
            assert len(scene.fake.loops().holding(image)) == 1

    async def test_nothing_makes_way_for_a_pendrive(self, begin: Begin) -> None:
        async with begin() as scene:
            work, image = await scene.fake.start("work"), scene.image()
            await scene.xen.attach(work.vm.id, OUTGOING, image)
            again = await self.restarted(scene, work, image)
            await scene.xen.attach(again.vm.id, OUTGOING, scene.image("other"))
            assert await scene.xen.attached(again.vm.id) == {OUTGOING: scene.home.spool / "other"}

    async def test_nothing_is_forced_away_from_a_vm_that_does_not_let_go_of_it(self, begin: Begin) -> None:
        async with begin() as scene:
            work, image = await scene.fake.start("work"), scene.image()
            await scene.xen.attach(work.vm.id, OUTGOING, image)
            again = await self.restarted(scene, work, image)
            again.lets_go = False
            await scene.xen.attach(again.vm.id, OUTGOING, scene.image("other"))
            assert await scene.xen.attached(again.vm.id) == {OUTGOING: scene.home.spool / "other"}

    async def test_a_pendrive_whose_image_was_deleted_makes_way_too(self, begin: Begin) -> None:
        async with begin() as scene:
            work, image = await scene.fake.start("work"), scene.image()
            await scene.xen.attach(work.vm.id, OUTGOING, image)
            image.unlink()
            await scene.xen.attach(work.vm.id, OUTGOING, scene.image("other"))
            assert await scene.xen.attached(work.vm.id) == {OUTGOING: scene.home.spool / "other"} and len(scene.fake.bound()) == 1

    async def test_an_order_is_there_while_xl_attaches_and_not_longer(self, begin: Begin) -> None:
        async with begin() as scene:
            work, image = await scene.fake.start("work"), scene.image()
            seen = []

            async def look() -> None:
                seen.append((orders.folder(scene.home) / image.name).read_text())

            scene.fake.before["block-attach"] = look
            await scene.xen.attach(work.vm.id, OUTGOING, image)
            scene.fake.before.clear()
            scene.fake.fails.add("block-attach")
            with pytest.raises(HypervisorError):
                await scene.xen.attach(work.vm.id, INCOMING, scene.image("other"))
            assert seen == ["1/51808\n"] and list(orders.folder(scene.home).iterdir()) == []

    async def test_where_an_order_is_lost_the_attachment_is_an_error(self, begin: Begin) -> None:
        async with begin() as scene:
            work, image = await scene.fake.start("work"), scene.image()

            async def lose() -> None:
                (orders.folder(scene.home) / image.name).unlink()

            scene.fake.before["block-attach"] = lose
            with pytest.raises(HypervisorError, match="by somebody else"):
                await scene.xen.attach(work.vm.id, OUTGOING, image)
            assert scene.fake.loops().holding(image) == []

    async def test_what_a_killed_daemon_has_left_goes(self, begin: Begin) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")
            orders.folder(scene.home).mkdir()
            for name, order in (("stays", "1/51808"), ("ended", "9/51808"), ("deleted", "1/51824"), ("unread", "")):
                (orders.folder(scene.home) / name).write_text(order)
                if name != "deleted":
                    scene.image(name)
            assert list(await scene.xen.running()) == [work.id]
            assert sorted(order.name for order in orders.folder(scene.home).iterdir()) == ["stays", "unread"]


class TestBlockScript:
    """The script itself, with programs that note what they are asked."""

    @pytest.fixture
    def script(self, tmp_path: Path) -> Callable[..., str]:
        programs, noted = tmp_path / "bin", tmp_path / "noted"
        programs.mkdir()
        device = tmp_path / "sys/loop5"
        device.mkdir(parents=True)
        (device / "dev").write_text("7:5\n")
        (device / "diskseq").write_text("40\n")
        (tmp_path / "keys").mkdir()
        for name, body in (
            ("xenstore-read", f'for key; do cat "{tmp_path}/keys/${{key##*/}}" || exit 1; done'),
            ("xenstore-write", f'echo "$*" >> {noted}'),
            ("losetup", f'echo "losetup $*" >> {noted}; echo /dev/loop5'),
        ):
            (programs / name).write_text(f"#!/bin/sh\n{body}\n")
            (programs / name).chmod(0o755)
        text = config.BLOCK_SCRIPT.read_text()
        for ours, here in (("/var/lib/qfilexchg", "data"), ("/run/qfilexchg", "run"), ("/sys/block", "sys")):
            assert ours in text
            text = text.replace(ours, str(tmp_path / here))
        script = tmp_path / "block"
        script.write_text(text)

        def run(verb: str, keys: Mapping[str, object]) -> str:
            for key, value in keys.items():
                (tmp_path / "keys" / key).write_text(f"{value}\n")
            environment = {"PATH": f"{programs}:{os.environ['PATH']}", "XENBUS_PATH": "backend/vbd/3/51808"}
            subprocess.run(["/bin/sh", str(script), verb], env=environment, check=True, timeout=20)
            said = noted.read_text() if noted.exists() else ""
            noted.unlink(missing_ok=True)
            return said

        return run

    @pytest.fixture
    def bind(self, script: Callable[..., str]) -> Callable[[Path], str]:
        return lambda file: script("add", {"params": file, "mode": "w"})

    def test_a_pendrive_goes_to_the_disk_that_its_order_names_and_to_no_other(self, tmp_path: Path, bind: Callable[[Path], str]) -> None:
        pendrive, nothing = tmp_path / "data/spool/pen.img", tmp_path / "data/nothing"
        order = tmp_path / "run/orders/pen.img"
        order.parent.mkdir(parents=True)
        pendrive.parent.mkdir(parents=True)
        order.write_text("3/51808\n")
        said = bind(pendrive)
        assert f"losetup --find --show -- {pendrive}\n" in said and f"/params {pendrive} " in said and "/mode w " in said
        assert not nothing.exists()
        for other in ("2/51808\n", "3/51824\n", "", None):
            order.unlink(missing_ok=True)
            if other is not None:
                order.write_text(other)
            said = bind(pendrive)
            assert f"losetup --read-only --find --show -- {nothing}\n" in said and f"/params {nothing} " in said and "/mode r " in said
            assert "physical-device 7:5" in said and "/loop-diskseq 40 " in said and "hotplug-status connected" in said
        assert nothing.stat().st_size == 1 << 20 and nothing.stat().st_blocks == 0 and nothing.stat().st_mode & 0o777 == 0o600

    def frees(self, tmp_path: Path, script: Callable[..., str], bound: str | None, more: Mapping[str, object]) -> bool:
        """Whether "remove" frees the device, which has the file ``bound`` below the home's data."""
        (tmp_path / "sys/loop5/loop").mkdir()
        if bound:
            (tmp_path / "sys/loop5/loop/backing_file").write_text(f"{tmp_path}/data/{bound}\n")
        said = script("remove", {"node": "/dev/loop5", "params": tmp_path / "data/spool/pen.img", **more})
        assert said in {"", "losetup --detach /dev/loop5\n"}
        return bool(said)

    @pytest.mark.parametrize("bound", ["spool/pen.img", "spool/pen.img (deleted)", "vms/work/private.img"])
    @pytest.mark.parametrize(("binding", "freed"), [(40, True), (38, False)])
    def test_a_device_that_was_bound_anew_since_is_not_freed(
        self, tmp_path: Path, script: Callable[..., str], bound: str, binding: int, freed: bool
    ) -> None:
        assert self.frees(tmp_path, script, bound, {"loop-diskseq": binding}) is freed

    def test_a_device_that_has_no_file_any_more_is_not_freed_again(self, tmp_path: Path, script: Callable[..., str]) -> None:
        assert not self.frees(tmp_path, script, None, {"loop-diskseq": 40})

    @pytest.mark.parametrize(
        ("bound", "freed"),
        [
            ("spool/pen.img", True),
            ("spool/pen.img (deleted)", True),
            ("spool/other.img", False),
            ("template/root.img", True),
            (None, False),
        ],
    )
    def test_one_that_an_earlier_version_has_bound_is_not_freed_where_it_is_another_pendrives(
        self, tmp_path: Path, script: Callable[..., str], bound: str | None, freed: bool
    ) -> None:
        assert self.frees(tmp_path, script, bound, {}) is freed

    def test_other_files_need_no_order(self, tmp_path: Path, bind: Callable[[Path], str]) -> None:
        assert f"losetup --find --show -- {tmp_path}/data/vms/work/private.img\n" in bind(tmp_path / "data/vms/work/private.img")


class TestKill:
    async def test_a_loop_device_that_a_killed_vm_left_is_freed(self, begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loops, "CLEAR_AFTER_S", 0.05)
        async with begin() as scene:
            work = await scene.fake.start("work")
            await scene.xen.attach(work.vm.id, OUTGOING, scene.image())
            scene.fake.loops_lag = True
            await scene.xen.kill(work.vm.id)
            assert scene.fake.cleared == ["loop0"]

    async def test_it_does_not_wait_for_the_pendrive_of_another_that_hangs_and_frees_what_is_forgotten(self, begin: Begin) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")
            await scene.xen.attach(work.vm.id, INCOMING, scene.image())
            scene.fake.bind("loop7", str(scene.image("mounted")))
            scene.fake.bind("loop8", str(scene.home.data / "vms/disp1/volatile.img"))
            scene.fake.frees = False
            async with asyncio.timeout(20):
                await scene.xen.kill(work.vm.id)
            assert scene.fake.domains == {} and scene.fake.bound() == ["loop7", "loop8"] and scene.fake.cleared == ["loop8"]

    async def test_it_returns_when_the_vm_and_its_disks_are_gone(self, begin: Begin) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")
            await scene.xen.attach(work.vm.id, INCOMING, scene.image())
            await scene.xen.kill(work.vm.id)
            assert scene.fake.asked[-1] == "destroy 1" and scene.fake.bound() == []

    async def test_one_that_has_ended_or_is_another_now_is_a_success(self, begin: Begin) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")
            await scene.xen.kill(VmId(work.id, uuid4()))
            await scene.fake.end(work)
            await scene.xen.kill(work.vm.id)
            assert not any(asked.startswith("destroy") for asked in scene.fake.asked)

    @pytest.mark.parametrize("dying", [False, True])
    async def test_what_was_half_destroyed_is_destroyed_whole(self, begin: Begin, dying: bool) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")
            await scene.fake.half_end(work)
            work.dying = dying
            await scene.xen.kill(work.vm.id)
            assert scene.fake.domains == {} and scene.fake.asked == ["list -v", "destroy 1"]

    async def test_another_run_of_the_same_vm_is_left_alone(self, begin: Begin) -> None:
        async with begin() as scene:
            first = await scene.fake.start("work")
            await scene.fake.end(first)
            again = await scene.fake.start("work", first.uuid)
            await scene.xen.kill(first.vm.id)
            assert scene.fake.domains == {again.id: again}

    async def test_cancelled_it_lets_xl_come_to_its_end(self, begin: Begin) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")
            asked, go_on, over = asyncio.Event(), asyncio.Event(), asyncio.Event()

            async def wait() -> None:
                asked.set()
                await go_on.wait()
                asyncio.get_running_loop().call_soon(over.set)

            scene.fake.before["destroy"] = wait
            killing = asyncio.create_task(scene.xen.kill(work.vm.id))
            await asked.wait()
            killing.cancel()
            await asyncio.gather(killing, return_exceptions=True)
            go_on.set()
            async with asyncio.timeout(20):
                await scene.xen.kill(work.vm.id)
            assert over.is_set() and scene.fake.domains == {}

    async def test_when_xl_fails_and_the_vm_is_there_it_is_an_error(self, begin: Begin) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")
            scene.fake.fails.add("destroy")
            with pytest.raises(HypervisorError, match="refused by the test"):
                await scene.xen.kill(work.vm.id)

    async def test_it_waits_for_a_backend_that_goes_after_the_vm(self, begin: Begin) -> None:
        async with begin() as scene:
            work = await scene.fake.start("work")
            await scene.fake.end(work)
            await scene.store.write(f"{nodes.BACKENDS}/{work.id}/51712/state", b"6")
            killing = asyncio.create_task(scene.xen.kill(work.vm.id))
            done, _ = await asyncio.wait({killing}, timeout=0.1)
            assert not done
            await scene.store.rm(f"{nodes.BACKENDS}/{work.id}/51712")
            await killing


async def _nothing() -> None:
    return


class TestWhileXlLists:
    """What is compared with its list may be another by the time that it is there."""

    async def test_an_order_that_is_given_anew_is_not_stale(self, begin: Begin) -> None:
        async with begin() as scene:
            sender, receiver = await scene.fake.start("work"), await scene.fake.start("personal")
            image = scene.image("pen.img")
            with ExitStack() as under_way:
                first = orders.given(scene.home, image, receiver.id, "xvdh")
                first.__enter__()

                async def meanwhile() -> None:
                    await scene.fake.end(receiver)
                    first.__exit__(None, None, None)
                    under_way.enter_context(orders.given(scene.home, image, sender.id, "xvdg"))

                scene.fake.before["list"] = meanwhile
                await scene.xen.running()
                assert (orders.folder(scene.home) / image.name).exists()

    async def test_the_record_of_the_next_run_stays(self, begin: Begin) -> None:
        async with begin() as scene:
            vm = await scene.fake.start("work")
            with records.making(scene.home, vm.vm.name, vm.uuid, {}) as making:
                await making.made(scene.store, vm.id)
            await scene.fake.end(vm)
            with ExitStack() as under_way:

                async def meanwhile() -> None:
                    under_way.enter_context(records.making(scene.home, vm.vm.name, vm.uuid, {}))

                scene.fake.before["list"] = meanwhile
                await scene.xen.release(vm.id)
                assert records.get(scene.home, vm.uuid) is not None
