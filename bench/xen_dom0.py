"""Runs in dom0 of the Xen machine, for ``bench/xen.py``: what qfilexchg takes, beside the xl commands that it must wait for.

    xen_dom0.py ROUNDS

The requests are written as the VM ``work`` would write them, and timed until the reply: so what a VM's own tools take, which is slow under
emulation, is not in it. Plain xl goes first in every round. Prints one JSON object, of seconds for each round.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, "/usr/lib/qfilexchg/python")

from qfilexchg.dom0 import configuration, programs
from qfilexchg.dom0.exchange import pendrives
from qfilexchg.dom0.exchange.messages import PendriveId
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import savefile
from qfilexchg.dom0.vms.collection import Collection, Kind
from qfilexchg.dom0.vms.disposables import Disposables
from qfilexchg.dom0.vms.hypervisor import RunningVm
from qfilexchg.dom0.vms.xen import config, nodes, orders, xl
from qfilexchg.dom0.vms.xen.toolstack import XenToolstack
from qfilexchg.protocol import keys
from qfilexchg.protocol.names import VmName
from qfilexchg.xenstore.client import Store

DEADLINE_S = 120.0
SPARE = "xvdf"
"""A disk that no VM does anything with when it comes."""
WORK, PERSONAL = VmName.parse("work"), VmName.parse("personal")


class Bench:
    def __init__(self, home: Home, store: Store, vms: dict[VmName, RunningVm]) -> None:
        self.home = home
        self.store = store
        self.vms = vms
        self.times: dict[str, list[float]] = {}

    @contextlib.asynccontextmanager
    async def timed(self, what: str) -> AsyncIterator[None]:
        start = time.monotonic()
        yield
        self.times.setdefault(what, []).append(time.monotonic() - start)

    async def until(self, path: str, *, gone: bool = False, holds: bytes = b"") -> None:
        """Return when a key does not exist any more, or begins with ``holds``."""
        await self.store.watch(path, path)
        async with asyncio.timeout(DEADLINE_S):
            while True:
                value = await nodes.read(self.store, path)
                if (value is None) if gone else (value or b"").startswith(holds):
                    break
                await self.store.events.get()
        await self.store.unwatch(path, path)

    async def plain_attach(self, vm: VmName, image: Path, *, stock: bool = False) -> None:
        domain = self.vms[vm].id.domain
        spec = config.disk(SPARE, image, writable=True)
        if stock:
            spec = spec.replace(f"script={config.BLOCK_SCRIPT},", "")
        with orders.given(self.home, image, domain, SPARE):
            await xl.run("block-attach", str(domain), spec, deadline_s=DEADLINE_S)
        await self.until(f"{nodes.backend(domain, SPARE)}/state", holds=b"4")

    async def plain_detach(self, vm: VmName) -> None:
        domain = self.vms[vm].id.domain
        await xl.run("block-detach", str(domain), SPARE, deadline_s=DEADLINE_S)
        await self.until(f"{nodes.backend(domain, SPARE)}/state", gone=True)

    async def request(self, vm: VmName, words: str, answer: str) -> None:
        domain, token = self.vms[vm].id.domain, uuid.uuid4().hex[:12]
        await self.store.write(keys.absolute(domain, keys.REQUEST), f"{words} id={token}".encode())
        await self.until(keys.absolute(domain, keys.REPLY), holds=f"{token} {answer}".encode())

    async def copy(self) -> None:
        """A pendrive's whole way, and the same disks by plain commands."""
        settings = configuration.Configuration()
        plain = PendriveId(pendrives.new_id())
        await pendrives.create(self.home.spool, plain, settings.pendrive_size_bytes, WORK)
        image = pendrives.image_path(self.home.spool, plain)
        async with self.timed("mkfs.fat"):
            layout = pendrives._layout(settings.pendrive_size_bytes)
            await programs.run("mkfs.fat", *layout, "-n", WORK, "--", str(image), deadline_s=DEADLINE_S)
        async with self.timed("xl attach"):
            await self.plain_attach(WORK, image)
        async with self.timed("xl detach"):
            await self.plain_detach(WORK)
        async with self.timed("stock attach"):
            await self.plain_attach(WORK, image, stock=True)
        async with self.timed("stock detach"):
            await self.plain_detach(WORK)
        await pendrives.delete(image)
        async with self.timed("new"):
            await self.request(WORK, "new", "attached")
        async with self.timed("hand-over"):
            await self.request(WORK, f"send {PERSONAL}", "delivered")
        backend = nodes.backend(self.vms[PERSONAL].id.domain, "xvdh")
        # It mounts and stays; what the person does is done here.
        while b"/mnt/incoming" not in (await programs.run("qvm-run", PERSONAL, "cat", "/proc/mounts", deadline_s=DEADLINE_S)):
            pass
        await programs.run("qvm-run", PERSONAL, "umount", "/mnt/incoming", deadline_s=DEADLINE_S)
        await self.until(f"{backend}/state", gone=True)

    async def disposable(self) -> None:
        """A DisposableVM until it runs, and what xl does of that."""
        collection, toolstack = Collection(self.home.collection), XenToolstack(self.home)
        settings = configuration.load((configuration.SYSTEM_FILE, self.home.configuration))
        made_of = await toolstack.basis(settings.disposable_memory_mb)
        saved = savefile.current(self.home)
        folder = self.home.data / "bench"
        folder.mkdir(exist_ok=True)
        disk = folder / "volatile.img"
        await programs.run("cp", "--sparse=always", str(saved.disk), str(disk), deadline_s=DEADLINE_S)
        name, memory_mib = VmName.parse("bench"), made_of.memory_mib
        vm = replace(collection.get(WORK), name=name, uuid=uuid.uuid4(), kind=Kind.DISPOSABLE, memory_mib=memory_mib)
        machine = await toolstack._machine(vm, disk, made_of)
        file = folder / "bench.cfg"
        file.write_text(config.serialise(config.settings(machine)))
        async with self.timed("xl restore"):
            await xl.run("restore", "-p", str(file), str(saved.memory), deadline_s=DEADLINE_S)
            await xl.run("unpause", "bench", deadline_s=DEADLINE_S)
        await xl.run("destroy", "bench", deadline_s=DEADLINE_S)
        shutil.rmtree(folder)
        maker = Disposables(self.home, collection, toolstack, settings.disposable_memory_mb)
        async with self.timed("DisposableVM"):
            made = await maker.make(self.vms[WORK], lambda _: None)
        await toolstack.end(made)
        await maker.forget(made.id)


async def main(rounds: int) -> None:
    os.umask(0o077)
    home = Home.from_environment()
    async with await Store.connect(home.store_socket) as store:
        names = {vm.name: vm for vm in (await XenToolstack(home).running()).values()}
        bench = Bench(home, store, names)
        for _ in range(rounds):
            await bench.copy()
            await bench.disposable()
    print(json.dumps(bench.times))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
