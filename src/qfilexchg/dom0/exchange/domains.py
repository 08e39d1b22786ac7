"""The VMs as the store shows them: which run, what they ask for, what they are told.

A watch event says only that something may have happened, so everything is read again. A request is taken, that is read and
emptied in one transaction: it is served once, and never again by a daemon that was restarted. One task for each VM takes its
requests, one after another and not faster than :data:`PAUSE_S` allows, so a VM that writes without end delays only itself.

A VM that gets another name has ended, and another one runs: rules and questions go by names, and what was asked of the one is not
said of the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from qfilexchg.dom0.exchange.messages import PendriveId, Requested, VmStarted, VmStopped
from qfilexchg.dom0.exchange.pendrives import new_id
from qfilexchg.dom0.vms.hypervisor import Hypervisor, HypervisorError, RunningVm, VmId
from qfilexchg.errors import QfilexchgError
from qfilexchg.protocol import keys
from qfilexchg.protocol.names import BadDomainId, DomainId, VmName
from qfilexchg.protocol.qpen import NO_ID, BadReply, BadRequest, Reply, parse_reply, parse_request
from qfilexchg.protocol.stages import BadStage, Stage, parse_stage
from qfilexchg.xenstore.client import Store
from qfilexchg.xenstore.errors import Again, NoEntry, StoreLost

PAUSE_S: Final = 0.05
"""Between two looks at the request key of one VM. Stops a VM from filling dom0's time and journal; attach and detach take longer anyway."""
BAD_PAUSE_S: Final = 1.0
"""After a request that is none, of which each is a line in the log."""
RETRY_S: Final = 1.0
"""After the hypervisor could not say what runs."""

_DOMAINS: Final = "domains"
_REQUESTS: Final = "requests"
_NAMES: Final = "names"

log = logging.getLogger(__name__)

Deliver = Callable[[VmStarted | VmStopped | Requested], None]


class _Line:
    """The request line of one running VM."""

    def __init__(self, vm: RunningVm) -> None:
        self.vm = vm
        self.written = asyncio.Event()
        self.server: asyncio.Task[None] | None = None


class Domains:
    """The store's side of the daemon. Events go to ``deliver``, in the order in which they happened."""

    def __init__(self, store: Store, hypervisor: Hypervisor, deliver: Deliver) -> None:
        self._store = store
        self._hypervisor = hypervisor
        self._deliver = deliver
        self._lines: dict[VmId, _Line] = {}
        self._named: set[str] = set()
        """The domains whose names are watched."""
        self._arrived = asyncio.Condition()
        self._releases: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Set the watches and deliver every VM that runs. Raises when the hypervisor cannot say."""
        await self._store.watch(keys.INTRODUCE_DOMAIN, _DOMAINS)
        await self._store.watch(keys.RELEASE_DOMAIN, _DOMAINS)
        await self._synchronise()

    async def serve(self) -> None:
        """Deliver what happens, until the store is lost: raises :exc:`StoreLost` then."""
        async with asyncio.TaskGroup() as tasks:
            for line in self._lines.values():
                line.server = tasks.create_task(self._serve(line))
            while (event := await self._store.events.get()) is not None:
                if event.token.startswith(_REQUESTS):
                    self._wake(event.path)
                    continue
                if event.token.startswith(_NAMES) and not await self._is_renamed(event.path):
                    continue
                try:
                    await self._synchronise()
                except HypervisorError as error:
                    log.error("the list of VMs is not to be had, trying again: %s", error)
                    asyncio.get_running_loop().call_later(RETRY_S, self._store.events.put_nowait, event)
                for line in self._lines.values():
                    line.server = line.server or tasks.create_task(self._serve(line))
            raise StoreLost("it ended while qfilexchgd was connected")

    async def tell(self, vm: VmId, reply: Reply) -> None:
        """Write a VM's reply key. A VM that has ended is passed over."""
        await self._write(vm, {keys.REPLY: reply.encode()})

    async def announce(self, receiver: VmId, source: VmName, seq: int, *, view_only: bool) -> None:
        """Tell the receiver of the pendrive that comes next: who sent it, its sequence number, whether it may be sent back."""
        values = {
            keys.BLOCK_SOURCE: source.encode("ascii"),
            keys.TRANSACTION_SEQ: str(seq).encode("ascii"),
            keys.VIEW_ONLY: b"1" if view_only else b"0",
        }
        await self._write(receiver, values)

    async def show(self, asker: VmId, seq: int, stage: Stage | None) -> None:
        """Write, or with None remove, the key that tells a VM how far its document is. A VM that has ended is passed over."""
        if stage is not None:
            await self._write(asker, {keys.DOCUMENTS: b"", keys.document(seq): stage.encode()})
        elif asker in self._lines:
            try:
                await self._store.rm(keys.absolute(asker.domain, keys.document(seq)))
            except NoEntry:
                log.debug("domain %d has no keys of documents any more", asker.domain)

    async def welcomed(self, vm: VmId) -> None:
        """Return once the VM runs as far as this side knows, and has been delivered. For how long to wait is the caller's to say."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: vm in self._lines)

    async def _write(self, vm: VmId, values: dict[str, bytes]) -> None:
        async def body(tx: int) -> None:
            await self._store.read(keys.absolute(vm.domain, keys.NAME), tx)  # else a domain that ended would get its home again
            for key, value in values.items():
                path = keys.absolute(vm.domain, key)
                await self._store.write(path, value, tx)
                await self._store.set_perms(path, keys.readable_by(vm.domain), tx)

        if vm in self._lines:
            try:
                await self._store.transaction(body)
            except NoEntry:
                log.info("domain %d has ended and is not told", vm.domain)
            except Again:
                log.warning("domain %d is not told: its keys change all the time", vm.domain)

    async def _synchronise(self) -> None:
        running = {vm.id: vm for vm in (await self._hypervisor.running()).values()}
        ended = {vm_id for vm_id, line in self._lines.items() if running.get(vm_id) != line.vm}
        # On Xen a VM can end and start between two looks, with the UUID and even the domain id that it had. But not with our keys.
        again = {vm_id for vm_id in self._lines.keys() - ended if not await self._store.exists(keys.absolute(vm_id.domain, keys.REPLY))}
        for vm_id in ended | again:
            await self._part(vm_id, runs_on=vm_id in running.keys() - again)
        for vm_id in sorted(running.keys() - self._lines.keys(), key=lambda vm_id: vm_id.domain):
            await self._welcome(running[vm_id])
        await self._watch_names()
        for vm_id in (ended | again) - self._lines.keys():
            release = asyncio.create_task(self._release(vm_id.domain))
            self._releases.add(release)
            release.add_done_callback(self._releases.discard)

    async def _watch_names(self) -> None:
        """Of every domain: one that cannot be called by the name that it has may get another."""
        there = set(await self._store.directory(keys.DOMAINS)) - {"0"} if await self._store.exists(keys.DOMAINS) else set()
        for domain in self._named - there:
            with contextlib.suppress(NoEntry):
                await self._store.unwatch(f"{keys.DOMAINS}/{domain}/{keys.NAME}", f"{_NAMES} {domain}")
        for domain in there - self._named:
            await self._store.watch(f"{keys.DOMAINS}/{domain}/{keys.NAME}", f"{_NAMES} {domain}")
        self._named = there

    async def _part(self, vm_id: VmId, *, runs_on: bool) -> None:
        line = self._lines.pop(vm_id)
        if line.server:
            line.server.cancel()
        with contextlib.suppress(NoEntry):
            await self._store.unwatch(keys.absolute(vm_id.domain, keys.REQUEST), f"{_REQUESTS} {vm_id.domain}")
        log.info("%s (domain %d) %s", line.vm.name, vm_id.domain, "has another name" if runs_on else "has ended")
        self._deliver(VmStopped(vm_id, runs_on))

    async def _release(self, domain: DomainId) -> None:
        """Beside the rest: a VM that is slow to end must not keep others waiting."""
        try:
            await self._hypervisor.release(domain)
        except QfilexchgError as error:
            log.error("domain %d is not cleaned up: %s", domain, error)

    async def _make_keys(self, domain: DomainId) -> None:
        """Make the keys by which a VM can ask, as the toolstack leaves ``device`` read-only to it. Raises NoEntry if it has ended."""

        async def make(tx: int) -> None:
            await self._store.read(keys.absolute(domain, keys.NAME), tx)
            for key, perms in ((keys.REPLY, keys.readable_by(domain)), (keys.REQUEST, keys.writable_by(domain))):
                path = keys.absolute(domain, key)
                # Looked at from outside: from then on a VM that writes to its key without end would undo every attempt.
                if await self._store.exists(path):
                    continue
                await self._store.write(path, b"", tx)
                await self._store.set_perms(path, perms, tx)

        await self._store.transaction(make)

    async def _welcome(self, vm: RunningVm) -> None:
        domain = vm.id.domain
        try:
            await self._make_keys(domain)
            last = await self._store.read(keys.absolute(domain, keys.REPLY))
            disposable = await self._read(domain, keys.VM_TYPE) == keys.DISPOSABLE_TYPE
            numbers = sorted(int(seq) for seq in await self._children(domain, keys.DOCUMENTS) if seq.isdecimal())
            shown = {seq: _stage(await self._read(domain, keys.document(seq))) for seq in numbers}
        except NoEntry:
            return  # it ended meanwhile; an event will say so
        self._lines[vm.id] = _Line(vm)
        log.info("%s runs as domain %d", vm.name, domain)
        self._deliver(VmStarted(vm, _reply(last), disposable, shown))
        async with self._arrived:
            self._arrived.notify_all()
        await self._store.watch(keys.absolute(domain, keys.REQUEST), f"{_REQUESTS} {domain}")

    async def _read(self, domain: DomainId, key: str) -> bytes:
        path = keys.absolute(domain, key)
        return await self._store.read(path) if await self._store.exists(path) else b""

    async def _children(self, domain: DomainId, key: str) -> list[str]:
        path = keys.absolute(domain, key)
        return await self._store.directory(path) if await self._store.exists(path) else []

    def _of(self, path: str) -> list[_Line]:
        """The lines of the VM whose key this is."""
        try:
            domain = DomainId.parse(path.removeprefix(f"{keys.DOMAINS}/").partition("/")[0])
        except BadDomainId:
            return []
        return [line for line in self._lines.values() if line.vm.id.domain == domain]

    def _wake(self, path: str) -> None:
        for line in self._of(path):
            line.written.set()

    async def _is_renamed(self, path: str) -> bool:
        """Spares a look at all VMs where the name is the same: so is it when the watch is set. Of an end another event tells."""
        try:
            name = await self._store.read(path)
        except NoEntry:
            return False
        return [line.vm.name.encode("ascii") for line in self._of(path)] != [name]

    async def _serve(self, line: _Line) -> None:
        while True:
            await line.written.wait()
            line.written.clear()
            request = await self._take(line)
            understood = not request or await self._hear(line.vm, request)
            await asyncio.sleep(PAUSE_S if understood else BAD_PAUSE_S)

    async def _take(self, line: _Line) -> bytes:
        path = keys.absolute(line.vm.id.domain, keys.REQUEST)

        async def body(tx: int) -> bytes:
            request = await self._store.read(path, tx)
            if request:
                await self._store.write(path, b"", tx)
            return request

        try:
            return await self._store.transaction(body, attempts=1)
        except Again:
            line.written.set()  # by the VM, most likely: one that writes without end gets one attempt after each pause
            return b""
        except NoEntry:
            # The VM has removed the key, unless it has ended.
            with contextlib.suppress(NoEntry):
                await self._make_keys(line.vm.id.domain)
            return b""

    async def _hear(self, vm: RunningVm, line: bytes) -> bool:
        """Deliver a request; whether it was one."""
        try:
            request = parse_request(line)
        except BadRequest as error:
            log.warning("%s: %s", vm.name, error)
            await self.tell(vm.id, Reply(NO_ID, "failed", "bad-request"))
            return False
        log.debug("%s: %r", vm.name, request)
        self._deliver(Requested(vm.id, request, PendriveId(new_id())))
        return True


def _stage(value: bytes) -> Stage | None:
    try:
        return parse_stage(value)
    except BadStage:
        return None


def _reply(value: bytes) -> Reply | None:
    try:
        return parse_reply(value)
    except BadReply:
        return None
