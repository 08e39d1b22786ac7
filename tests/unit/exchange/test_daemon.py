"""The real daemon between a real store, real sockets, real images and a hypervisor that is not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from qfilexchg.dom0.configuration import Configuration
from qfilexchg.dom0.consent.agents import Agents
from qfilexchg.dom0.consent.protocol import Answer, FromDaemon, Hello, Notice, Question, Screen, Withdraw, encode, parse_from_daemon
from qfilexchg.dom0.exchange import daemon as module
from qfilexchg.dom0.exchange import remembered
from qfilexchg.dom0.exchange.daemon import Daemon
from qfilexchg.dom0.exchange.domains import Domains
from qfilexchg.dom0.exchange.journal import Journal
from qfilexchg.dom0.exchange.messages import Fate, VmStopped
from qfilexchg.dom0.exchange.phases import Phase
from qfilexchg.dom0.exchange.status import Status, parse
from qfilexchg.dom0.exchange.watchers import socket_path
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.hypervisor import HypervisorError, NoDisposable, RunningVm, Slot, VmId
from qfilexchg.protocol import keys
from qfilexchg.protocol.names import DomainId, VmName
from qfilexchg.protocol.qpen import FINAL_STATES, Reply, parse_reply
from qfilexchg.xenstore.client import Store
from qfilexchg.xenstore.server import Server
from tests.fakes.hypervisor import FakeDisposables, FakeHypervisor, Hold

CONFIGURATION = Configuration(question_timeout_s=30)


class Vm:
    """A VM's side of the store, played by the test."""

    def __init__(self, vm: RunningVm, store: Store) -> None:
        self.vm = vm
        self.store = store
        self.ids = 0

    async def write(self, request: str) -> None:
        """Write a request when dom0 has made the key, and taken the last request."""
        while True:
            perms = await self.store.get_perms(keys.REQUEST) if await self.store.exists(keys.REQUEST) else ()
            if perms[1:] == (f"b{self.vm.id.domain}",) and not await self.store.read(keys.REQUEST):
                break
            assert await self.store.events.get()
        await self.store.write(keys.REQUEST, request.encode())

    async def replies(self, request: str) -> AsyncIterator[Reply]:
        """Make a request and yield each new reply to it."""
        self.ids += 1
        request_id = f"{self.vm.name}{self.ids}"
        await self.write(f"{request} id={request_id}")
        last = None
        while True:
            reply = parse_reply(await self.store.read(keys.REPLY) or b"- accepted")
            if reply.request_id == request_id and reply != last:
                last = reply
                yield reply
            assert await self.store.events.get()

    async def until(self, request: str, state: str) -> str:
        """Make a request and return its first reply in ``state``, without the id."""
        async for reply in self.replies(request):
            if reply.state == state:
                return reply.encode().decode().partition(" ")[2]
            assert reply.state not in FINAL_STATES, reply
        raise AssertionError

    async def last(self, request: str) -> str:
        """Make a request and return its last reply, without the id."""
        async for reply in self.replies(request):
            if reply.state in FINAL_STATES:
                return reply.encode().decode().partition(" ")[2]
        raise AssertionError


class Person:
    """An agent whose person is the test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.notices: list[str] = []

    async def hear(self) -> FromDaemon:
        while True:
            message = parse_from_daemon(await self.reader.readuntil(b"\n"))
            if not isinstance(message, Notice):
                return message
            self.notices.append(message.text)

    async def question(self) -> Question:
        message = await self.hear()
        assert isinstance(message, Question), message
        return message

    def answer(self, question: Question, allow: bool, *, remember: bool = False) -> None:
        self.writer.write(encode(Answer(question.id, allow, remember)))


class Host:
    """A store, a hypervisor, and a daemon that can be killed and started."""

    def __init__(self, home: Home, stack: AsyncExitStack, store: Store) -> None:
        self.home = home
        self.stack = stack
        self.hypervisor = FakeHypervisor(store)
        self.disposables = FakeDisposables(self.hypervisor)
        self.journal: Journal | None = None
        self.task: asyncio.Task[None] | None = None

    async def start_daemon(self) -> None:
        ready = asyncio.Event()
        self.task = asyncio.create_task(self._daemon(ready))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({self.task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if self.task.done():
            waiting.cancel()
            await self.task

    async def _daemon(self, ready: asyncio.Event) -> None:
        with Journal(self.home.journal) as self.journal:
            async with await Store.connect(self.home.store_socket) as store, Agents.serve(self.home.agent_socket) as agents:
                labels = {"work": "green"}.get
                daemon = Daemon(self.home, CONFIGURATION, store, self.hypervisor, self.disposables, agents, self.journal, labels)
                await daemon.run(ready.set)

    async def kill_daemon(self) -> None:
        """It ends between two steps, as if it were killed; nothing is finished first."""
        assert self.task
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def start(self, name: str) -> Vm:
        return await self.enter(await self.hypervisor.start(name))

    async def enter(self, vm: RunningVm) -> Vm:
        """The VM's side of a VM that runs."""
        store = await self.stack.enter_async_context(await Store.connect(self.home.store_domain_socket(vm.id.domain)))
        await store.watch(keys.REQUEST, "request")
        await store.watch(keys.REPLY, "reply")
        return Vm(vm, store)

    async def disposable(self) -> Vm:
        """The only DisposableVM, once it has its pendrive."""
        while True:
            found = [vm for vm, slot in self.hypervisor.disks if slot is Slot.INCOMING and vm in self.disposables.records]
            if found:
                return await self.enter(self.hypervisor.vms[found[0]])
            await asyncio.sleep(0.01)  # no event tells a bystander of a disk

    async def no_disposables(self) -> None:
        while self.disposables.records:  # noqa: ASYNC110  no event tells a bystander that it is removed
            await asyncio.sleep(0.01)

    async def person(self) -> Person:
        reader, writer = await asyncio.open_unix_connection(self.home.agent_socket)
        self.stack.callback(writer.close)
        person = Person(reader, writer)
        writer.write(encode(Hello("test")))
        await person.hear()
        return person

    def allow(self, rule: str) -> None:
        self.home.policy.joinpath("10-test.policy").write_text(rule + "\n")

    def images(self) -> list[Path]:
        return sorted(self.home.spool.iterdir())

    async def no_images(self) -> None:
        while self.images():  # noqa: ASYNC110  no event tells a bystander that a file is gone
            await asyncio.sleep(0.01)


@asynccontextmanager
async def host(folder: Path, *, daemon: bool = True) -> AsyncIterator[Host]:
    home = Home(folder, folder / "run", folder / "cache")
    home.make()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(Server(home.store))
        store = await stack.enter_async_context(await Store.connect(home.store_socket))
        scene = Host(home, stack, store)
        if daemon:
            await scene.start_daemon()
        yield scene
        if scene.task:
            await scene.kill_daemon()


class TestCopy:
    async def test_files_go_from_one_vm_to_another_when_the_person_says_yes(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            work, personal = await here.start("work"), await here.start("personal")
            person = await here.person()
            assert await work.last("new size=67108864") == "attached"
            image = here.hypervisor.disks[work.vm.id, Slot.OUTGOING]
            with image.open("r+b") as disk:
                disk.seek(32 << 20)
                disk.write(bytes(range(256)) * 4096 * 4)
            sending = asyncio.create_task(work.last("send personal"))
            question = await person.question()
            assert (question.source, question.source_label, question.target, question.busy) == ("work", "green", "personal", False)
            assert 4 << 20 <= question.size_bytes < 5 << 20
            person.answer(question, True)
            assert await sending == "delivered"
            assert here.hypervisor.disks == {(personal.vm.id, Slot.INCOMING): image}
            assert await personal.store.read(keys.BLOCK_SOURCE) == b"work"
            assert await personal.store.read(keys.TRANSACTION_SEQ) == b"0"
            assert await personal.last("umount") == "detached"
            await here.no_images()
            assert here.journal
            (outcome,) = here.journal.history()
            assert (outcome.sender, outcome.receiver, outcome.text) == ("work", "personal", "delivered")
            assert 4 << 20 <= outcome.used_bytes < 5 << 20

    async def test_always_makes_a_rule_and_the_next_transfer_asks_nobody(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            work, personal, person = await here.start("work"), await here.start("personal"), await here.person()
            await work.last("new")
            sending = asyncio.create_task(work.last("send personal"))
            question = await person.question()
            assert question.can_remember
            person.answer(question, True, remember=True)
            assert await sending == "delivered"
            assert "work  personal  allow" in (here.home.policy / remembered.FILE).read_text()
            await personal.last("umount")
            await work.last("new")
            assert await work.last("send personal") == "delivered"

    async def test_always_is_a_plain_yes_where_a_rule_of_the_person_says_to_ask(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            here.allow("work personal ask")
            work, _, person = await here.start("work"), await here.start("personal"), await here.person()
            await work.last("new")
            sending = asyncio.create_task(work.last("send personal"))
            question = await person.question()
            assert not question.can_remember
            person.answer(question, True, remember=True)
            assert await sending == "delivered"
            assert not (here.home.policy / remembered.FILE).exists()

    async def test_always_that_cannot_be_written_is_a_yes_for_this_once(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            work, personal, person = await here.start("work"), await here.start("personal"), await here.person()
            await work.last("new")
            sending = asyncio.create_task(work.last("send personal"))
            question = await person.question()
            (here.home.policy / remembered.FILE).mkdir()
            person.answer(question, True, remember=True)
            assert await sending == "delivered"
            assert personal.vm.id in {vm for vm, _ in here.hypervisor.disks}

    async def test_a_rule_allows_without_a_question(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            here.allow("work personal allow")
            work, personal = await here.start("work"), await here.start("personal")
            await work.last("new")
            assert await work.last("send personal") == "delivered"
            assert personal.vm.id in {vm for vm, _ in here.hypervisor.disks}

    async def test_vms_that_started_before_the_daemon_are_served(self, tmp_path: Path) -> None:
        async with host(tmp_path, daemon=False) as here:
            work = await here.start("work")
            asking = asyncio.create_task(work.last("new"))
            await here.start_daemon()
            assert await asking == "attached"

    async def test_a_tool_of_2010_needs_no_id(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            work = await here.start("work")
            await work.write("new")
            while await work.store.read(keys.REPLY) != b"- attached":
                await work.store.events.get()

    async def test_the_permissions_of_the_keys(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            work = await here.start("work")
            assert await work.until("status", "accepted") == "accepted outgoing=none incoming=none"
            assert await work.store.get_perms(keys.REQUEST) == ("n0", "b1")
            assert await work.store.get_perms(keys.REPLY) == ("n0", "r1")

    async def test_a_key_that_the_vm_has_removed_is_made_again(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            work = await here.start("work")
            await work.until("status", "accepted")
            await work.store.rm(keys.REQUEST)
            await work.until("status", "accepted")
            assert await work.store.get_perms(keys.REQUEST) == ("n0", "b1")


class TestRefusals:
    async def test_the_person_says_no(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            work, _, person = await here.start("work"), await here.start("personal"), await here.person()
            await work.last("new")
            sending = asyncio.create_task(work.last("send personal"))
            person.answer(await person.question(), False)
            assert await sending == "denied"

    @pytest.mark.parametrize("rule", ["* * deny", "work personal maybe"])
    async def test_a_rule_says_no_or_cannot_be_understood(self, tmp_path: Path, rule: str) -> None:
        async with host(tmp_path) as here:
            here.allow(rule)
            work = await here.start("work")
            await here.start("personal")
            await work.last("new")
            begun_s = time.monotonic()
            assert await work.last("send personal") == "denied"
            assert time.monotonic() - begun_s >= module.REFUSED_S, "one that asks on and on is slowed down"

    async def test_nobody_can_be_asked(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            work = await here.start("work")
            await here.start("personal")
            await work.last("new")
            assert await work.last("send personal") == "denied"

    @pytest.mark.parametrize("target", ["nobody", "work", "dom0"])
    async def test_a_vm_that_cannot_be_a_destination_is_told_no_more_than_no(
        self, tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "DOUBT_S", (0.0, 0.1))
        async with host(tmp_path) as here:
            work, person = await here.start("work"), await here.person()
            await work.last("new")
            heard = []
            async for reply in work.replies(f"send {target}"):
                heard.append(reply.state)
                if reply.state in FINAL_STATES:
                    break
            assert heard == ["asking", "denied"]
            await work.last("cancel")
            waiting = asyncio.create_task(person.hear())
            while not person.notices:
                await asyncio.wait({waiting}, timeout=0.01)
            waiting.cancel()
            assert "denied" in person.notices[0]

    @pytest.mark.parametrize("line", ["format c:", "x" * 300, "send \x1b[2J", "send ../../etc"])
    async def test_a_bad_request_fails_and_the_next_good_one_is_served(self, tmp_path: Path, line: str) -> None:
        async with host(tmp_path) as here:
            work = await here.start("work")
            await work.write(line)
            while await work.store.read(keys.REPLY) != b"- failed bad-request":
                await work.store.events.get()
            assert await work.last("new") == "attached"

    async def test_a_cancelled_question_is_withdrawn(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            work, _, person = await here.start("work"), await here.start("personal"), await here.person()
            await work.last("new")
            await work.until("send personal", "asking")
            question = await person.question()
            assert await work.last("cancel") == "cancelled"
            assert await person.hear() == Withdraw(question.id)
            await here.no_images()


class TestDeaths:
    async def test_a_sender_that_ends_leaves_no_image(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            work = await here.start("work")
            await work.last("new")
            await here.hypervisor.end(work.vm)
            await here.no_images()

    async def test_a_receiver_that_ends_before_the_pendrive_arrives(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            here.allow("* * allow")
            work, personal = await here.start("work"), await here.start("personal")
            await work.last("new")
            detach = here.hypervisor.hold("detach", "work")
            sending = asyncio.create_task(work.last("send personal"))
            await detach.reached.wait()
            await here.hypervisor.end(personal.vm)
            detach.released.set()
            assert await sending in {"failed given-back", "failed receiver-ended"}
            assert {vm for vm, _ in here.hypervisor.disks} == {work.vm.id}


class TestAnotherRun:
    """A VM that ended and started between two looks, with the UUID and the domain id that it had."""

    async def reboot(self, here: Host, vm: RunningVm) -> None:
        async with await Store.connect(here.home.store_socket) as dom0:
            await dom0.rm(keys.home(vm.id.domain))
            await dom0.write(keys.absolute(vm.id.domain, keys.NAME), vm.name.encode())
            await dom0.set_perms(keys.home(vm.id.domain), keys.readable_by(vm.id.domain))
        here.hypervisor.disks = {key: path for key, path in here.hypervisor.disks.items() if key[0] != vm.id}
        await here.hypervisor.start(f"other{vm.id.domain}")  # which lets the daemon look

    async def test_a_receiver_that_was_asked_about_is_another_one_and_gets_nothing(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            work, personal, person = await here.start("work"), await here.start("personal"), await here.person()
            await work.last("new")
            sending = asyncio.create_task(work.last("send personal"))
            question = await person.question()
            await self.reboot(here, personal.vm)
            assert await person.hear() == Withdraw(question.id)
            person.answer(question, True)
            assert await sending == "denied"
            assert {vm for vm, _ in here.hypervisor.disks} == {work.vm.id}

    async def test_a_sender_that_asked_has_nothing_any_more_and_can_ask_again(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            work, person = await here.start("work"), await here.person()
            await here.start("personal")
            await work.last("new")
            await work.until("send personal", "asking")
            question = await person.question()
            await self.reboot(here, work.vm)
            assert await person.hear() == Withdraw(question.id)
            person.answer(question, True)
            await here.no_images()
            assert await work.last("new") == "attached"


class TestAnotherName:
    """A VM that xl gives another name while it runs, as at the end of a migration."""

    async def test_the_rules_and_the_person_know_it_by_the_new_one_at_once(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            here.allow("trusted personal allow")
            work, untrusted, person = await here.start("work"), await here.start("untrusted"), await here.person()
            personal = await here.start("personal--incoming")
            await here.hypervisor.rename(personal.vm, "personal")
            for vm in (work.vm, untrusted.vm):
                await here.hypervisor.rename(vm, {"work": "untrusted", "untrusted": "trusted"}[vm.name])
            await work.last("new")
            await work.until("send personal", "asking")
            question = await person.question()
            assert (question.source, question.target) == ("untrusted", "personal")
            await untrusted.last("new")
            assert await untrusted.last("send personal") == "delivered"
            assert {vm for vm, slot in here.hypervisor.disks if slot is Slot.INCOMING} == {personal.vm.id}

    async def test_what_was_asked_under_the_old_one_is_over(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            work, person = await here.start("work"), await here.person()
            await here.start("personal")
            await work.last("new")
            await work.until("send personal", "asking")
            question = await person.question()
            await here.hypervisor.rename(work.vm, "old")
            assert await person.hear() == Withdraw(question.id)
            person.answer(question, True)
            await here.no_images()
            assert await work.last("new") == "attached"

    async def test_a_name_that_stays_costs_no_look_at_all_vms(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with host(tmp_path) as here:
            looks = 0
            running = here.hypervisor.running

            async def count() -> Mapping[DomainId, RunningVm]:
                nonlocal looks
                looks += 1
                return await running()

            monkeypatch.setattr(here.hypervisor, "running", count)
            work = await here.start("work")
            await work.last("new")
            before = looks
            await here.hypervisor.rename(work.vm, "work")
            assert await work.until("status", "accepted") == "accepted outgoing=clean incoming=none"
            assert looks == before


class TestRestart:
    async def test_a_pendrive_that_lay_clean_can_be_sent(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            here.allow("* * allow")
            work, personal = await here.start("work"), await here.start("personal")
            await work.last("new")
            await here.kill_daemon()
            await here.start_daemon()
            assert await work.last("send personal") == "delivered"
            await here.kill_daemon()
            await here.start_daemon()
            assert await personal.last("umount") == "detached"
            await here.no_images()

    @pytest.mark.parametrize(("call", "name"), [("detach", "work"), ("attach", "personal")])
    async def test_a_transfer_that_was_under_way_is_finished(self, tmp_path: Path, call: str, name: str) -> None:
        async with host(tmp_path) as here:
            here.allow("* * allow")
            work, personal = await here.start("work"), await here.start("personal")
            await work.last("new")
            hold = here.hypervisor.hold(call, name)
            sending = asyncio.create_task(work.last("send personal"))
            await hold.reached.wait()
            await here.kill_daemon()
            here.hypervisor.held.clear()
            await here.start_daemon()
            assert await sending == "delivered"
            assert {vm for vm, _ in here.hypervisor.disks} == {personal.vm.id}

    async def test_an_open_question_is_put_again_and_is_a_no_where_nobody_can_be_asked(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            work, _ = await here.start("work"), await here.start("personal")
            person = await here.person()
            await work.last("new")
            sending = asyncio.create_task(work.last("send personal"))
            await person.question()
            await here.kill_daemon()
            await here.start_daemon()
            assert await sending == "denied"

    async def test_an_image_that_the_journal_does_not_know_is_kept_for_the_person(self, tmp_path: Path) -> None:
        async with host(tmp_path, daemon=False) as here:
            here.home.spool.joinpath("00ff.img").write_bytes(b"precious")
            await here.start_daemon()
            assert here.home.kept.joinpath("00ff.img").read_bytes() == b"precious"

    async def test_vms_that_ended_meanwhile_leave_nothing(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            work = await here.start("work")
            await work.last("new")
            await here.kill_daemon()
            await here.hypervisor.end(work.vm)
            await here.start_daemon()
            await here.no_images()


class TestStatus:
    async def watch(self, here: Host) -> AsyncIterator[Status]:
        reader, writer = await asyncio.open_unix_connection(socket_path(here.home))
        here.stack.callback(writer.close)
        while line := await reader.readline():
            yield parse(line)

    async def test_it_tells_what_is_where_as_it_changes(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            work, _, person = await here.start("work"), await here.start("personal"), await here.person()
            statuses = self.watch(here)
            await work.last("new")
            sending = asyncio.create_task(work.last("send personal"))
            question = await person.question()
            async for status in statuses:
                if status.questions:
                    break
            (pendrive,), (asked,) = status.pendrives, status.questions
            assert [(vm.name, vm.outgoing, vm.incoming) for vm in status.vms] == [
                ("work", pendrive.pendrive, None),
                ("personal", None, None),
            ]
            assert (pendrive.phase.value, pendrive.sender, pendrive.receiver) == ("asking", "work", "personal")
            assert pendrive.used_bytes == 0 and pendrive.since_s and pendrive.since_s <= status.time_s
            assert (asked.source, asked.target, asked.kind, asked.until_s - asked.since_s) == ("work", "personal", "copy", 30)
            person.answer(question, True)
            assert await sending == "delivered"
            async for status in statuses:
                if status.pendrives[0].phase is Phase.LOADED:
                    break
            assert not status.questions and [outcome.outcome for outcome in status.history] == ["delivered"]
            assert [(vm.outgoing, vm.incoming) for vm in status.vms] == [(None, None), (None, pendrive.pendrive)]
            assert status.pendrives[0].since_s and status.pendrives[0].since_s > pendrive.since_s

    async def test_documents_in_disposable_vms_are_in_it(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            work = await here.start("work")
            await work.last("new")
            assert await work.last("send disposable 7") == "delivered"
            vm = await here.disposable()
            async for status in self.watch(here):
                if status.documents and status.documents[0].fate is Fate.DELIVERED:
                    break
            (document,) = status.documents
            assert (document.vm, document.asker, document.number, document.view_only) == (vm.vm.name, "work", 7, False)
            assert [known.disposable for known in status.vms] == [False, True]

    async def test_that_nobody_can_watch_keeps_nobody_from_copying(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        async with host(tmp_path, daemon=False) as here:
            socket_path(here.home).mkdir()
            await here.start_daemon()
            here.allow("work personal allow")
            work, _ = await here.start("work"), await here.start("personal")
            await work.last("new")
            assert await work.last("send personal") == "delivered"
            assert "nobody can see what is where" in caplog.text


async def stage(asker: Vm, seq: int, *expected: str) -> str:
    """What dom0 tells of a document, as soon as it is one of ``expected``."""
    while True:
        key = keys.document(seq)
        found = (await asker.store.read(key)).decode() if await asker.store.exists(key) else ""
        if found in expected:
            return found
        await asyncio.sleep(0.01)


class TestDocuments:
    async def test_a_document_is_opened_changed_and_comes_back(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            work = await here.start("work")
            assert await work.last("new") == "attached"
            here.hypervisor.disks[work.vm.id, Slot.OUTGOING].write_bytes(b"before")
            assert await work.last("send disposable 7") == "delivered"
            disposable = await here.disposable()
            assert await disposable.store.read(keys.BLOCK_SOURCE) == b"work"
            assert await disposable.store.read(keys.TRANSACTION_SEQ) == b"7"
            assert await disposable.store.read(keys.VIEW_ONLY) == b"0"
            assert await work.store.read(keys.document(7)) == b"starting"
            assert await work.store.get_perms(keys.document(7)) == ("n0", f"r{work.vm.id.domain}")
            assert await work.store.get_perms(keys.DOCUMENTS) == ("n0", f"r{work.vm.id.domain}")
            assert await disposable.last("umount") == "detached"
            assert await work.store.read(keys.document(7)) == b"open disp1"
            assert await disposable.last("new") == "attached"
            here.hypervisor.disks[disposable.vm.id, Slot.OUTGOING].write_bytes(b"after")
            await disposable.write("send work 7")
            await stage(work, 7, "returned disp1")
            assert here.hypervisor.disks[work.vm.id, Slot.INCOMING].read_bytes() == b"after"
            assert await work.store.read(keys.BLOCK_SOURCE) == b"disp1"
            assert await work.store.read(keys.TRANSACTION_SEQ) == b"7"
            assert disposable.vm.id not in here.hypervisor.vms
            await here.no_disposables()
            assert await work.last("umount") == "detached"
            await here.no_images()
            assert here.journal
            told = [(outcome.sender, outcome.receiver, outcome.text) for outcome in here.journal.history()]
            assert told == [("disp1", "work", "returned"), ("work", "disp1", "delivered")]
            assert here.journal.documents() == []

    async def test_the_person_sees_the_screen_of_a_disposable_vm_that_has_one(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            work, person = await here.start("work"), await here.person()
            here.hypervisor.screens[VmName.parse("disp2")] = Path("/run/screen")
            for seq in (1, 2):
                await work.last("new")
                assert await work.last(f"send disposable {seq}") == "delivered"
            assert await person.hear() == Screen(VmName.parse("disp2"), "/run/screen")

    async def test_the_person_is_asked_where_a_rule_says_so(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            here.allow("work disposable ask")
            work, person = await here.start("work"), await here.person()
            await work.last("new")
            sending = asyncio.create_task(work.last("send disposable 1"))
            question = await person.question()
            assert (question.source, question.target, question.target_label) == ("work", None, None)
            person.answer(question, True)
            assert await sending == "delivered"

    async def test_a_rule_that_allows_every_vm_starts_none(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            here.allow("* disposable deny\n* * allow")
            work = await here.start("work")
            await work.last("new")
            assert await work.last("send disposable 1") == "denied"
            assert not here.disposables.records

    async def test_a_document_that_is_only_to_be_looked_at(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            work = await here.start("work")
            await work.last("new")
            await work.last("send disposable 1 view=only")
            disposable = await here.disposable()
            assert await disposable.store.read(keys.VIEW_ONLY) == b"1"
            await disposable.last("umount")
            await disposable.last("new")
            assert await disposable.last("send work 1") == "denied"
            await disposable.write("killme why=no-program")
            await stage(work, 1, "ended disp1 no-program")

    @pytest.mark.parametrize(
        ("error", "word"),
        [
            (NoDisposable("there is no memory", word="no-memory"), "no-memory"),
            (HypervisorError("it did not answer"), "no-disposable"),
            (ZeroDivisionError(), "no-disposable"),
        ],
    )
    async def test_where_none_can_be_made_one_word_says_why(self, tmp_path: Path, error: Exception, word: str) -> None:
        async with host(tmp_path) as here:
            here.disposables.fails = error
            work = await here.start("work")
            await work.last("new")
            assert await work.last("send disposable 1") == f"failed {word}"
            assert not await work.store.exists(keys.document(1))
            here.disposables.fails = None
            assert await work.last("send disposable 1") == "delivered"

    async def test_a_savefile_that_is_made_again_first_is_told(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            here.disposables.stale, here.disposables.hold = True, Hold()
            work = await here.start("work")
            await work.last("new")
            sending = asyncio.create_task(work.last("send disposable 1"))
            await stage(work, 1, "preparing")
            here.disposables.hold.released.set()
            assert await sending == "delivered"

    async def test_a_vm_that_is_being_made_is_not_waited_for_by_who_cancels(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            here.disposables.hold = Hold()
            work = await here.start("work")
            await work.last("new")
            await work.until("send disposable 1", "accepted")
            await here.disposables.hold.reached.wait()
            assert await work.last("cancel") == "cancelled"
            await here.no_images()
            assert not here.disposables.records

    async def test_an_asker_that_ends_as_its_vm_begins_to_be_made_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The machine hears of it before the making has made its first step."""

        async def end(self: Domains, asker: VmId, seq: int, stage: object) -> None:
            self._deliver(VmStopped(asker))

        monkeypatch.setattr(Domains, "show", end)
        async with host(tmp_path) as here:
            here.disposables.hold = Hold()
            work = await here.start("work")
            await work.last("new")
            await work.until("send disposable 1", "accepted")
            await here.no_images()
            assert not here.disposables.records

    async def test_a_vm_of_which_the_store_does_not_tell_is_destroyed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "WELCOME_S", 0.05)
        monkeypatch.setattr(module, "DETACH_AGAIN_S", 0.05)

        async def never(self: object, vm: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(Domains, "welcomed", never)
        async with host(tmp_path) as here:
            here.hypervisor.refused.add(("kill", VmName.parse("disp1")))
            work = await here.start("work")
            await work.last("new")
            await work.until("send disposable 1", "accepted")
            await here.hypervisor.has_refused.wait()
            await work.write("cancel id=c")  # which must not stop the destroying
            assert await work.until("status", "accepted") == "accepted outgoing=abandoning incoming=none"
            assert here.disposables.records
            here.hypervisor.refused.clear()
            await here.no_images()
            await here.no_disposables()
            assert set(here.hypervisor.vms) == {work.vm.id}

    async def test_one_that_was_made_too_late_is_destroyed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        reached = asyncio.Event()

        async def never(self: object, vm: object) -> None:
            reached.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(Domains, "welcomed", never)
        async with host(tmp_path) as here:
            work = await here.start("work")
            await work.last("new")
            await work.until("send disposable 1", "accepted")
            await reached.wait()
            assert await work.last("cancel") == "cancelled"
            await here.no_disposables()
            assert set(here.hypervisor.vms) == {work.vm.id}

    @pytest.mark.parametrize("error", [None, ZeroDivisionError()])
    async def test_a_vm_that_is_not_destroyed_at_once_is_destroyed_later(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
    ) -> None:
        monkeypatch.setattr(module, "DETACH_AGAIN_S", 0.01)
        async with host(tmp_path) as here:
            work = await here.start("work")
            await work.last("new")
            await work.last("send disposable 1")
            disposable = await here.disposable()
            here.hypervisor.refused.add(("kill", disposable.vm.name))
            here.hypervisor.refuses_with = error
            await disposable.write("killme why=unchanged")
            await here.hypervisor.has_refused.wait()
            assert disposable.vm.id in here.hypervisor.vms
            here.hypervisor.refused.clear()
            await stage(work, 1, "unchanged disp1")
            await here.no_disposables()

    async def test_what_is_left_of_one_that_cannot_be_removed_ends_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with host(tmp_path) as here:
            work = await here.start("work")
            await work.last("new")
            await work.last("send disposable 1")
            errors = [HypervisorError("the disk is full"), ZeroDivisionError()]

            async def fail(vm: object) -> None:
                raise errors.pop()

            monkeypatch.setattr(here.disposables, "forget", fail)
            for seq in (1, 2):
                assert await work.last(f"forget {seq}") == "cancelled"
                await stage(work, seq, f"ended disp{seq} killed")
                await work.last("new")
                await work.last(f"send disposable {seq + 1}")
            assert not errors

    async def test_an_asker_that_ends_takes_its_disposable_vms_along(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            work = await here.start("work")
            await work.last("new")
            await work.last("send disposable 1")
            await here.hypervisor.end(work.vm)
            await here.no_disposables()
            await here.no_images()

    async def test_a_disposable_vm_that_the_exchange_has_not_made_gets_nothing(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            spare = await here.enter(await here.hypervisor.start("spare", disposable=True))
            assert await spare.last("new") == "denied"

    async def test_a_document_is_open_over_a_restart_and_what_was_half_made_is_swept_away(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            work = await here.start("work")
            await work.last("new")
            await work.last("send disposable 1")
            disposable = await here.disposable()
            await disposable.last("umount")
            await here.kill_daemon()
            half_made = await here.disposables.make(work.vm, lambda _: None)
            await here.start_daemon()
            assert half_made.id not in here.hypervisor.vms and here.disposables.records == {disposable.vm.id}
            await disposable.last("new")
            await disposable.write("send work 1")
            await stage(work, 1, "returned disp1")

    async def test_a_sweep_that_fails_keeps_nobody_from_copying(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with host(tmp_path, daemon=False) as here:

            async def fail(known: object) -> None:
                raise HypervisorError("the disk is full")

            monkeypatch.setattr(here.disposables, "sweep", fail)
            await here.start_daemon()
            work = await here.start("work")
            assert await work.last("new") == "attached"

    async def test_a_restore_goes_on_after_a_restart(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            here.disposables.hold = Hold()
            work = await here.start("work")
            await work.last("new")
            sending = asyncio.create_task(work.last("send disposable 1"))
            await here.disposables.hold.reached.wait()
            await here.kill_daemon()
            here.disposables.hold = None
            await here.start_daemon()
            assert await sending == "delivered"

    async def test_a_key_that_is_to_be_removed_and_is_gone_already_is_no_trouble(self, tmp_path: Path) -> None:
        async with host(tmp_path) as here:
            here.disposables.hold = Hold()
            work = await here.start("work")
            await work.last("new")
            sending = asyncio.create_task(work.last("send disposable 1"))
            await stage(work, 1, "starting")
            domain = work.vm.id.domain
            async with await Store.connect(here.home.store_socket) as dom0:
                await dom0.rm(keys.absolute(domain, keys.DOCUMENTS))
            here.disposables.fails = NoDisposable("there is none", word="no-savefile")
            here.disposables.hold.released.set()
            assert await sending == "failed no-savefile"
