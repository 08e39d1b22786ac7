"""The QEMU platform: one detached QEMU process a VM, spoken to by QMP.

A VM that runs has a folder, ``Home.domain(N)``, with its name and UUID, its process and its sockets; nothing else has to be
remembered, so whoever comes later finds everything again. QEMU serves one QMP client at a time, so each operation makes its own
short connection, and waits for its turn within its deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, QMPClient

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.hypervisor import HypervisorError, RunningVm, Slot, VmGone, VmId
from qfilexchg.dom0.vms.processes import Process
from qfilexchg.dom0.vms.qemu import command, state
from qfilexchg.protocol import keys
from qfilexchg.protocol.names import BadDomainId, BadName, DomainId, VmName
from qfilexchg.xenstore.client import Store
from qfilexchg.xenstore.errors import NoEntry, StoreLost

ATTACH_DEADLINE_S = 30.0
DETACH_DEADLINE_S = 60.0
"""The VM's kernel must let go of the disk; one that is starting or short of time takes a while."""
QUERY_DEADLINE_S = 30.0
QUIT_DEADLINE_S = 10.0
SAVE_DEADLINE_S = 60.0
RESTORE_DEADLINE_S = 30.0
_DYING_S = 1.0
"""For a QEMU that is killed to be gone: its connections break a little earlier."""
_KILL_DEADLINE_S = 10.0
_STEP_S = 0.01

_RECORD, _PROCESS = "vm", "process"

# What a connection has to say is in the exceptions; a VM that ends while one is open is no news.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Record:
    """What the folder of a domain says. ``process`` is None when QEMU has ended, or was never started."""

    vm: RunningVm
    process: Process | None

    def save(self, home: Home) -> None:
        """Write the record down, for the VM whose folder is there already."""
        folder = home.domain(self.vm.id.domain)
        (folder / _RECORD).write_text(json.dumps({"name": self.vm.name, "uuid": str(self.vm.id.uuid)}), encoding="ascii")
        if self.process:
            self.process.save(folder / _PROCESS)


def domains(home: Home) -> list[DomainId]:
    """Every domain that has a folder, whether it runs or not."""
    found = []
    for folder in home.domains.glob("*"):
        try:
            found.append(DomainId.parse(folder.name))
        except BadDomainId:
            continue
    return sorted(found)


def record(home: Home, domain: DomainId) -> Record | None:
    """The record of a domain; None where there is none."""
    folder = home.domain(domain)
    try:
        fields = json.loads((folder / _RECORD).read_text(encoding="ascii"))
        vm = RunningVm(VmId(domain, UUID(fields["uuid"])), VmName.parse(fields["name"]))
    except (FileNotFoundError, ValueError, KeyError, BadName):
        return None
    return Record(vm, Process.load(folder / _PROCESS))


def running(home: Home) -> dict[VmName, Record]:
    """The VMs that have a process, by name."""
    records = (record(home, domain) for domain in domains(home))
    return {found.vm.name: found for found in records if found and found.process}


class Qemu:
    """:class:`~qfilexchg.dom0.vms.hypervisor.Hypervisor` for the VMs of one home."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._children: dict[DomainId, Process] = {}

    def adopt(self, domain: DomainId, process: Process) -> None:
        """``process`` is a child of ours: when it has ended, :meth:`release` leaves no zombie, even if others have cleaned up before."""
        self._children[domain] = process

    async def running(self) -> Mapping[DomainId, RunningVm]:
        """A domain runs from the moment the store knows it until the store has seen it end, as on Xen.

        Its process is there a little later than that, and goes a little later, and no event tells of either.
        """
        try:
            async with await Store.connect(self._home.store_socket) as store:
                records = [record(self._home, domain) for domain in domains(self._home)]
                return {found.vm.id.domain: found.vm for found in records if found and await store.is_introduced(found.vm.id.domain)}
        except StoreLost as error:  # not "none": the exchange would take pendrives away from VMs that run
            raise HypervisorError("the store cannot be asked which VMs run", str(error)) from error

    async def attach(self, vm: VmId, slot: Slot, image: Path) -> None:
        begun = False
        try:
            async with self._session(vm, f"attach {slot.value}", ATTACH_DEADLINE_S) as qmp:
                held = await _image(qmp, slot)
                if held is not None and held != image:
                    raise HypervisorError(f"domain {vm.domain} has another image as {slot.value}", str(held))
                if held is not None and await _has_disk(qmp, slot):
                    return
                begun = True
                if held is None:
                    await qmp.execute("blockdev-add", _node(slot, image))
                await qmp.execute("device_add", _disk(slot))
        except BaseException:
            if begun:
                await self._undo(vm, slot)
            raise

    async def _undo(self, vm: VmId, slot: Slot) -> None:
        """Take back a half-made attachment. A VM that cannot even be asked is killed: the image must be in one place only."""
        try:
            await self.detach(vm, slot)
        except HypervisorError:
            await self.kill(vm)

    async def detach(self, vm: VmId, slot: Slot) -> None:
        try:
            async with self._session(vm, f"detach {slot.value}", DETACH_DEADLINE_S) as qmp:
                await _unplug(qmp, slot)
                for node in (command.pendrive_node(slot), command.pendrive_file_node(slot)):
                    await _delete_node(qmp, node)
        except VmGone:
            return

    async def attached(self, vm: VmId) -> Mapping[Slot, Path]:
        try:
            async with self._session(vm, "list the disks", QUERY_DEADLINE_S) as qmp:
                images = {slot: await _image(qmp, slot) for slot in Slot}
        except VmGone:
            return {}
        return {slot: image for slot, image in images.items() if image is not None}

    async def kill(self, vm: VmId) -> None:
        found = self._record(vm)
        if found is None or found.process is None:
            return
        try:
            async with self._session(vm, "quit", QUIT_DEADLINE_S) as qmp:
                await qmp.execute("quit")
        except HypervisorError:
            term_s = 0.0
        else:
            term_s = QUIT_DEADLINE_S
        if not (term_s and await asyncio.to_thread(found.process.wait, term_s)) and not await asyncio.to_thread(
            found.process.end, term_s=0, kill_s=_KILL_DEADLINE_S
        ):
            raise HypervisorError(f"domain {vm.domain} does not end: process {found.process.pid} has been killed and is still there")

    async def screen(self, vm: VmId) -> Path | None:
        path = command.screen_socket(self._home, vm.domain)
        found = self._record(vm)
        return path if found and found.process and path.is_socket() else None

    async def release(self, domain: DomainId) -> None:
        found = record(self._home, domain)
        # QEMU closes its sockets, by which the store learns of the end, a moment before its process is gone.
        if found and found.process and not await asyncio.to_thread(found.process.wait, _KILL_DEADLINE_S):
            raise HypervisorError(f"domain {domain} runs still")
        if child := self._children.get(domain):
            await asyncio.to_thread(child.wait, _KILL_DEADLINE_S)
            self._children.pop(domain, None)
        async with await Store.connect(self._home.store_socket) as store:
            for path in (keys.home(domain), *((vm_path(found.vm.id.uuid),) if found else ())):
                with contextlib.suppress(NoEntry):
                    await store.rm(path)
            if await store.is_introduced(domain):
                await store.release(domain)
        shutil.rmtree(self._home.domain(domain), ignore_errors=True)

    async def save(self, vm: VmId, file: Path) -> None:
        """Stop the VM, write its state to the new ``file``, and end it. Its memory is in the file that it was started with."""
        async with self._session(vm, "save its state", SAVE_DEADLINE_S) as qmp:
            await state.save(qmp, file)
        await self.kill(vm)

    async def restore(self, vm: VmId, file: Path) -> None:
        """Give a VM that was started to be restored its state. It is stopped then, until :meth:`resume`."""
        async with self._session(vm, "restore its state", RESTORE_DEADLINE_S) as qmp:
            await state.load(qmp, file)

    async def resume(self, vm: VmId) -> None:
        """Let a restored VM run."""
        async with self._session(vm, "let it run", QUERY_DEADLINE_S) as qmp:
            await qmp.execute("cont")

    async def paused(self, vm: VmId) -> bool:
        """Whether the VM waits for :meth:`resume`."""
        async with self._session(vm, "ask whether it runs", QUERY_DEADLINE_S) as qmp:
            status = await qmp.execute("query-status")
            assert isinstance(status, dict)
            return not status["running"]

    async def console(self, vm: VmId) -> str:
        """The end of what the VM has said on its serial console: its own text, to be shown escaped."""
        async with self._session(vm, "read the console", QUERY_DEADLINE_S) as qmp:
            arguments = {"device": command.CONSOLE, "size": 64 << 10, "format": "utf8"}
            return str(await qmp.execute("ringbuf-read", arguments))

    def _record(self, vm: VmId) -> Record | None:
        found = record(self._home, vm.domain)
        return found if found and found.vm.id == vm else None

    @contextlib.asynccontextmanager
    async def _session(self, vm: VmId, purpose: str, deadline_s: float) -> AsyncIterator[QMPClient]:
        """A QMP connection for one operation. Raises :exc:`VmGone`, or :exc:`HypervisorError` for all that goes wrong in it."""
        what = f"domain {vm.domain}: cannot {purpose}"
        found = self._record(vm)
        if found is None or found.process is None:
            raise VmGone(f"domain {vm.domain} does not run any more")
        qmp = QMPClient(f"domain {vm.domain}")
        try:
            async with asyncio.timeout(deadline_s):
                await _connect(qmp, command.qmp_socket(self._home, vm.domain), found.process)
                yield qmp
        except ExecuteError as error:
            raise HypervisorError(what, str(error)) from error
        except (ConnectError, ExecInterruptedError, OSError, EOFError) as error:
            # TimeoutError is an OSError; QEMU may have ended meanwhile, which also breaks a connection.
            wait_s = 0.0 if isinstance(error, TimeoutError) else _DYING_S
            if await asyncio.to_thread(found.process.wait, wait_s):
                raise VmGone(f"domain {vm.domain} has ended") from error
            why = f"no answer within {deadline_s:g} s" if isinstance(error, TimeoutError) else str(error)
            raise HypervisorError(what, why) from error
        finally:
            await _disconnect(qmp)


def vm_path(uuid: UUID) -> str:
    """The store's path of what does not change from one run of a VM to the next."""
    return f"/vm/{uuid}"


async def _connect(qmp: QMPClient, path: Path, process: Process) -> None:
    """Connect to QEMU, which makes its socket a moment after its process is there; nothing tells when."""
    while True:
        try:
            await qmp.connect(str(path))
            return
        except ConnectError as error:
            if not isinstance(error.exc, FileNotFoundError | ConnectionRefusedError) or not process.running:
                raise
        await asyncio.sleep(_STEP_S)


async def _disconnect(qmp: QMPClient) -> None:
    with contextlib.suppress(OSError, EOFError, ConnectError):  # it was broken already
        await qmp.disconnect()


def _node(slot: Slot, image: Path) -> dict[str, object]:
    """The image as raw bytes: its content is the VM's, and must never be taken for an image format."""
    file = {
        "driver": "file",
        "node-name": command.pendrive_file_node(slot),
        "filename": str(image),
        "locking": "on",
        "discard": "unmap",
        # A pendrive is a copy that is deleted after one use: it need not survive the host's power, so nobody waits for the host's disk.
        "cache": {"direct": False, "no-flush": True},
    }
    return {
        "driver": "raw",
        "node-name": command.pendrive_node(slot),
        "discard": "unmap",
        "cache": {"direct": False, "no-flush": True},
        "file": file,
    }


def _disk(slot: Slot) -> dict[str, object]:
    return {
        "driver": "virtio-blk-pci",
        "id": command.pendrive_disk(slot),
        "bus": command.pendrive_bus(slot),
        "drive": command.pendrive_node(slot),
        "serial": slot.value,
        # The default would stop the whole VM when the host's disk is full. The VM is to see the error.
        "werror": "report",
        "rerror": "report",
    }


async def _nodes(qmp: QMPClient) -> dict[str, Any]:
    nodes = await qmp.execute("query-named-block-nodes", {"flat": True})
    assert isinstance(nodes, list)
    return {node["node-name"]: node for node in nodes}


async def _image(qmp: QMPClient, slot: Slot) -> Path | None:
    """The image of a slot, whether its disk is complete or only half there."""
    nodes = await _nodes(qmp)
    node = nodes.get(command.pendrive_node(slot)) or nodes.get(command.pendrive_file_node(slot))
    return Path(node["file"]) if node else None


async def _has_disk(qmp: QMPClient, slot: Slot) -> bool:
    devices = await qmp.execute("qom-list", {"path": "/machine/peripheral"})
    assert isinstance(devices, list)
    return any(device["name"] == command.pendrive_disk(slot) for device in devices)


async def _unplug(qmp: QMPClient, slot: Slot) -> None:
    """Return when the VM's kernel has let go of the disk."""
    disk = command.pendrive_disk(slot)

    def gone(event: Mapping[str, Any]) -> bool:
        return bool(event["data"].get("device") == disk)

    with qmp.listener("DEVICE_DELETED", gone) as deleted:
        if not await _has_disk(qmp, slot):
            return
        try:
            await qmp.execute("device_del", {"id": disk})
        except ExecuteError as error:
            # Somebody, perhaps an earlier life of ours, has asked before; it may also be gone this very moment.
            if error.error_class == "DeviceNotFound":
                return
            if "unplug" not in str(error):
                raise
        await deleted.get()


async def _delete_node(qmp: QMPClient, node: str) -> None:
    """Close an image. QEMU tells of a device's end a moment before the last reference to its disk is dropped; no event follows."""
    end = time.monotonic() + QUERY_DEADLINE_S
    while node in await _nodes(qmp):
        try:
            await qmp.execute("blockdev-del", {"node-name": node})
        except ExecuteError as error:
            if "in use" not in str(error) or time.monotonic() > end:
                raise
            await asyncio.sleep(_STEP_S)
