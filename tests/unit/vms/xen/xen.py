"""Xen without machines: an ``xl`` whose work is done in this process, on a real store, and loop devices that are files.

The program that is put into PATH only hands on its arguments, so a test can say how a domain behaves, let a command hang, and look at
what was asked for.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.hypervisor import RunningVm, VmId
from qfilexchg.dom0.vms.xen import nodes, orders
from qfilexchg.dom0.vms.xen.loops import LoopDevices
from qfilexchg.protocol import keys
from qfilexchg.protocol.names import DomainId, VmName
from qfilexchg.xenstore.client import Store
from qfilexchg.xenstore.errors import NoEntry
from qfilexchg.xenstore.server import Server

_PROGRAM = """#!{python} -SE
import json, socket, sys
xen = socket.socket(socket.AF_UNIX)
xen.connect({socket!r})
xen.sendall(json.dumps(sys.argv[1:]).encode() + b"\\n")
answer = b""
while piece := xen.recv(65536):
    answer += piece
status, out, err = json.loads(answer)
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(status)
"""

INFO = """host                   : dom0
nr_cpus                : 4
hw_caps                : 078bfbff:80202001
virt_caps              : {virt_caps}
free_memory            : {free_mib}
xen_version            : 4.17.7
xen_commandline        : placeholder dom0_mem=1G,max:1G
"""


def _fields(disk: str) -> dict[str, str]:
    """A disk's words. The target comes last, and may hold commas."""
    words, _, target = disk.partition(",target=")
    return {**dict(word.split("=", 1) for word in words.split(",")), "target": target}


class Failure(Exception):
    """xl fails, and says so."""


@dataclass
class Domain:
    """One VM, and how its kernel behaves."""

    id: DomainId
    uuid: UUID
    name: str
    paused: bool = True
    dying: bool = False
    shutdown: str = ""
    """The letter of the reason, once it has shut down."""
    connects: bool = True
    closes: bool = False
    """It refuses the disk."""
    lets_go: bool = True
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def vm(self) -> RunningVm:
        return RunningVm(VmId(self.id, self.uuid), VmName.parse(self.name))


class FakeXen:
    """``hangs`` and ``fails`` name what xl does not come to an end with, or fails at. ``asked`` is every command, as a line."""

    def __init__(self, folder: Path, store: Store) -> None:
        self._store = store
        self._ids = itertools.count(1)
        self._loop_numbers = itertools.count()
        self._home = Home(folder, folder / "run", folder / "cache")
        self._sysfs = folder / "sysfs"
        self._changes: set[asyncio.Task[None]] = set()
        self.domains: dict[int, Domain] = {}
        self.asked: list[str] = []
        self.hangs: set[str] = set()
        self.hung = asyncio.Event()
        self.fails: set[str] = set()
        self.before: dict[str, Callable[[], Awaitable[None]]] = {}
        """What happens before a command is carried out."""
        self.half_way: dict[str, Callable[[], Awaitable[None]]] = {}
        """What happens when it has been carried out, and xl has not ended."""
        self.backend_stays = False
        self.loops_lag = False
        self.frees = True
        self.free_mib = 2000
        self.virt_caps = "pv hvm hap"
        self.cleared: list[str] = []

    def loops(self) -> LoopDevices:
        return LoopDevices(self._sysfs, self._clear)

    # What happens to VMs

    async def start(self, name: str, uuid: UUID | None = None, *, paused: bool = False, settings: dict[str, Any] | None = None) -> Domain:
        """A VM that somebody starts; what xl makes, too."""
        domain = Domain(DomainId(next(self._ids)), uuid or uuid4(), name, paused, settings=settings or {})
        await self.introduce(domain)
        for disk in domain.settings.get("disk", ()):
            fields = _fields(disk)
            await self._backend(domain, fields["vdev"], fields["target"], nodes.CONNECTED)
        return domain

    async def introduce(self, domain: Domain) -> None:
        self.domains[domain.id] = domain
        home = keys.home(domain.id)
        await self._store.write(f"{home}/vm", f"/vm/{domain.uuid}".encode())
        await self._store.write(f"{home}/name", domain.name.encode())
        await self._store.set_perms(home, keys.readable_by(domain.id))
        await self._store.introduce(domain.id)

    async def end(self, domain: Domain) -> None:
        """All of a VM goes, as when it is destroyed."""
        del self.domains[domain.id]
        for device in await nodes.children(self._store, nodes.backends(domain.id)):
            await self._remove_backend(f"{nodes.backends(domain.id)}/{device}")
        with suppress(NoEntry):
            await self._store.rm(nodes.backends(domain.id))
        with suppress(NoEntry):
            await self._store.rm(keys.home(domain.id))
        if await self._store.is_introduced(domain.id):
            await self._store.release(domain.id)

    async def half_end(self, domain: Domain) -> None:
        """An ``xl destroy`` is broken off: the store knows nothing of the VM any more, and Xen still has it."""
        await self.end(domain)
        self.domains[domain.id] = domain

    async def _backend(self, domain: Domain, disk: str, image: str, state: int) -> str:
        """With the block script's work, which puts a pendrive only where an order says so."""
        path = nodes.backend(domain.id, disk)
        if Path(image).parent == self._home.spool and not await asyncio.to_thread(self._is_ordered, domain.id, disk, image):
            image = str(orders.nothing(self._home))
        for key, value in {"type": "phy", "params": image, "online": "1", "state": str(state)}.items():
            await self._store.write(f"{path}/{key}", value.encode())
        loop = f"loop{next(self._loop_numbers)}"
        self.bind(loop, image)
        await self._store.write(f"{path}/node", f"/dev/{loop}".encode())
        return path

    def _is_ordered(self, domain: DomainId, disk: str, image: str) -> bool:
        order = orders.folder(self._home) / Path(image).name
        return order.exists() and order.read_text() == f"{domain}/{nodes.number(disk)}\n"

    async def _remove_backend(self, path: str) -> None:
        node = await nodes.read(self._store, f"{path}/node")
        if node and not self.loops_lag:
            self.free(Path(os.fsdecode(node)).name)
        await self._store.rm(path)

    def bind(self, loop: str, image: str) -> None:
        """A loop device gets a file."""
        folder = self._sysfs / loop / "loop"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "backing_file").write_text(f"{os.path.realpath(image)}\n")

    def bound(self) -> list[str]:
        """The loop devices that have an image."""
        return sorted(file.parts[-3] for file in self._sysfs.glob("loop*/loop/backing_file"))

    def free(self, loop: str) -> None:
        (self._sysfs / loop / "loop/backing_file").unlink(missing_ok=True)

    def _clear(self, loop: str) -> None:
        self.cleared.append(loop)
        if self.frees:
            self.free(loop)

    # xl

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if line := await reader.readline():  # else xl was killed before it had asked
            answer = await self._answer(json.loads(line))
            if answer is None:
                self.hung.set()
                await reader.read()  # until xl is killed
            else:
                writer.write(json.dumps(answer).encode())
        writer.close()

    async def _answer(self, arguments: Sequence[str]) -> tuple[int, str, str] | None:
        """Exit status, standard output and error; None from an xl that hangs."""
        command = arguments[0]
        self.asked.append(" ".join(arguments))
        if before := self.before.get(command):
            await before()
        if command in self.hangs:
            return None
        try:
            if command in self.fails:
                raise Failure(f"libxl: error: {command} is refused by the test")
            output = await self._carry_out(command, arguments[1:])
        except Failure as error:
            return 1, "", f"{error}\n"
        if half_way := self.half_way.get(command):
            await half_way()
            return None
        return 0, output, ""

    async def _carry_out(self, command: str, arguments: Sequence[str]) -> str:
        match command, *arguments:
            case "list", "-v":
                return self._list()
            case ["info"]:
                return INFO.format(virt_caps=self.virt_caps, free_mib=self.free_mib)
            case "create", "-p", file:
                await self._create(file)
            case "restore", "-p", file, memory:
                if not await asyncio.to_thread(Path(memory).exists):
                    raise Failure("Can't read checkpoint file")
                await self._create(file)
            case "unpause", number:
                self._domain(number).paused = False
            case "save", number, memory:
                await asyncio.to_thread(Path(memory).write_text, "all of its memory")
                await self.end(self._domain(number))
            case "destroy", number:
                await self.end(self._domain(number))
            case "shutdown", number:
                self._domain(number).shutdown = "-"
            case "block-attach", number, spec:
                await self._attach(self._domain(number), _fields(spec))
            case "block-detach", "--force", number, disk:
                await self._detach(self._domain(number), disk, force=True)
            case "block-detach", number, disk:
                await self._detach(self._domain(number), disk, force=False)
            case _:
                raise Failure(f"unknown: {command} {arguments}")
        return ""

    def _domain(self, number: str) -> Domain:
        if int(number) not in self.domains:
            raise Failure(f"libxl: error: Domain {number} does not exist")
        return self.domains[int(number)]

    def _list(self) -> str:
        lines = [f"{'Name':40} {'ID':>5}   Mem VCPUs\tState\tTime(s)   UUID                            Reason-Code\tSecurity Label"]
        dom0 = Domain(DomainId(0), UUID(int=0), "Domain-0", paused=False)
        for domain in (dom0, *self.domains.values()):
            shut_down = f"s{domain.shutdown}" if domain.shutdown else "--"
            letters = f"-b{'p' if domain.paused else '-'}{shut_down}{'d' if domain.dying else '-'}"
            reason = f"{1 if domain.shutdown else '-':>8}"
            lines.append(f"{domain.name:40} {domain.id:5d} {300:5d} {1:5d}     {letters}  {1.5:8.1f} {domain.uuid} {reason} {'-':>16}")
        return "".join(f"{line}\n" for line in lines)

    async def _create(self, file: str) -> None:
        text = await asyncio.to_thread(Path(file).read_text)
        settings = {name: json.loads(value) for name, value in (line.split(" = ", 1) for line in text.splitlines())}
        if any(domain.name == settings["name"] for domain in self.domains.values()):
            raise Failure(f'Domain with name "{settings["name"]}" already exists.')
        await self.start(settings["name"], UUID(settings["uuid"]), paused=True, settings=settings)

    async def _attach(self, domain: Domain, disk: dict[str, str]) -> None:
        if await self._store.exists(nodes.backend(domain.id, disk["vdev"])):
            raise Failure("libxl: error: device already exists in xenstore")
        if not await asyncio.to_thread(Path(disk["target"]).exists):
            raise Failure(f"libxl: error: failed to stat {disk['target']}: No such file or directory")
        path = await self._backend(domain, disk["vdev"], disk["target"], 2)
        if domain.connects or domain.closes:
            await self._later(f"{path}/state", str(nodes.CONNECTED if domain.connects else nodes.CLOSING))

    async def _later(self, path: str, value: str) -> None:
        """What a kernel does when xl may have ended already."""

        async def change() -> None:
            await self._store.write(path, value.encode())

        task = asyncio.create_task(change())
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)

    async def _detach(self, domain: Domain, disk: str, *, force: bool) -> None:
        path = nodes.backend(domain.id, disk)
        if not await self._store.exists(path):
            raise Failure(f"Error: Device {disk} not connected.")
        await self._store.write(f"{path}/online", b"0")
        await self._store.write(f"{path}/state", str(nodes.CLOSING).encode())
        if self.backend_stays or not (domain.lets_go or force):
            raise Failure(f"libxl: error: unable to remove device with path {path}")
        await self._remove_backend(path)


@asynccontextmanager
async def xen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[FakeXen, Home, Store]]:
    """A home on a computer with this xl."""
    home = Home(folder, folder / "run", folder / "cache")
    home.make()
    programs = folder / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    async with Server(home.store), await Store.connect(home.store_socket) as store:
        fake = FakeXen(folder, store)
        server = await asyncio.start_unix_server(fake.serve, folder / "xl.socket")
        program = programs / "xl"
        program.write_text(_PROGRAM.format(python=sys.executable, socket=str(folder / "xl.socket")))
        program.chmod(0o755)
        async with server:
            yield fake, home, store
