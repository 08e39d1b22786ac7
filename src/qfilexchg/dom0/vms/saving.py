"""How a savefile is made: a DisposableVM is booted from the template, prepared, rehearsed and saved, and one restored from it is tried.

While it is made the VM has the key ``qubes_save_request``. In ``device/qubes_used_mem`` it says first how the rehearsal went
(``rehearsed``, or what went wrong), and then its memory in use in KiB, which means that it can be saved. It is no destination for
files, and stands in no collection.
"""

from __future__ import annotations

import asyncio
import fcntl
import shutil
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from qfilexchg.dom0 import programs
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import restoring, run, services
from qfilexchg.dom0.vms.collection import SAVED_VM, Collection, Kind, Label, Vm
from qfilexchg.dom0.vms.hypervisor import RunningVm, Slot
from qfilexchg.dom0.vms.savefile import Savefile
from qfilexchg.dom0.vms.toolstack import Basis, Toolstack, or_end
from qfilexchg.errors import HostError
from qfilexchg.protocol import dvm_header, keys
from qfilexchg.protocol.names import DOM0
from qfilexchg.xenstore.client import Store
from qfilexchg.xenstore.errors import NoEntry

DISK_BYTES = 64 << 30
"""All that a DisposableVM may write. A hole on the host, until it does; and it has no name there, so what it takes df shows and du not."""
REHEARSAL_DEADLINE_S = 600.0
"""The person's script, which has half of it, and the reading of programs, under emulation."""
SETTLE_S = 2.0
"""Before the VM is saved, for what its start has left to do: what is done then, no clone does again."""
_FORMAT_DEADLINE_S = 60.0
_SCRIPT = "/etc/qubes/dvm-prerun"
_REHEARSED = b"rehearsed"
_SAID_MAX = 400
_LOCK_STEP_S = 0.1
_SERVICE = "qubes-dvm.service"
_STAND_S = 3.0
"""A restored VM without a document learns by its clock that it was saved, and the clock counts whole seconds."""
_TRIAL_DEADLINE_S = 60.0
_TRIAL = f'for i in $(seq 200); do [ "$(hostname)" = "$1" ] && exec systemctl is-active --quiet {_SERVICE}; sleep 0.1; done; exit 1'


class SavingFailed(HostError):
    """No savefile could be made. The one that was there before is still there. ``said`` is the VM's own, shown escaped."""

    def __init__(self, why: str, said: str = "") -> None:
        super().__init__(why, said)
        self.why = why
        self.said = said

    def __str__(self) -> str:
        said = f": {self.said[:_SAID_MAX].encode('unicode_escape').decode('ascii')}" if self.said else ""
        return f"the savefile could not be made, {self.why}{said}"


async def make(
    home: Home, collection: Collection, toolstack: Toolstack, made_of: Basis, script: bytes | None, say: Callable[[str], None]
) -> Savefile:
    """Make a savefile, try it, and put it in the place of the last; one at a time is made in a home.

    ``script`` is run in the VM as its user before it is saved. ``say`` gets a line at each step. Raises :exc:`SavingFailed` or
    another HostError; then nothing has changed, and nothing is left.
    """
    async with _turn(home, say):
        await _clean_up(home, collection, toolstack)
        saved = Savefile(home.savefiles / f".{uuid.uuid4().hex}")
        saved.folder.mkdir(mode=0o700)
        try:
            say("booting a DisposableVM")
            await _boot_and_save(home, toolstack, made_of, saved, script, say)
            say("trying the savefile")
            await _try(home, collection, toolstack, made_of, saved)
            await asyncio.to_thread(saved.sync)
            saved.record(made_of.stamp)
            return _publish(home, saved)
        except BaseException:
            saved.remove()
            raise


@asynccontextmanager
async def _turn(home: Home, say: Callable[[str], None]) -> AsyncIterator[None]:
    with (home.savefiles / ".lock").open("w") as lock:
        told = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    say("another savefile is being made; waiting for it")
                told = True
                await asyncio.sleep(_LOCK_STEP_S)
        yield


async def clean_up(home: Home, collection: Collection, toolstack: Toolstack) -> None:
    """Remove what somebody who was killed had half made, unless a savefile is being made."""
    with (home.savefiles / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        await _clean_up(home, collection, toolstack)


async def _clean_up(home: Home, collection: Collection, toolstack: Toolstack) -> None:
    """Nobody else is at work: the lock is ours."""
    for folder in home.savefiles.glob(".[0-9a-f]*"):
        shutil.rmtree(folder, ignore_errors=True)
    tried = {vm.uuid: vm.name for vm in collection.list() if vm.asker == SAVED_VM}
    for vm in (await toolstack.running()).values():
        if vm.name == SAVED_VM or vm.id.uuid in tried:
            await toolstack.end(vm)
    for name in (SAVED_VM, *tried.values()):
        restoring.forget(home, collection, name)


async def make_disk(path: Path) -> None:
    """Make the disk that a DisposableVM writes to."""
    with path.open("xb") as image:
        image.truncate(DISK_BYTES)
    # Few inodes, and no journal: nobody mounts it a second time.
    options = ("-m", "0", "-i", "65536", "-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard")
    await programs.run("mke2fs", "-q", "-F", "-t", "ext4", *options, "--", str(path), deadline_s=_FORMAT_DEADLINE_S)


async def _boot_and_save(
    home: Home, toolstack: Toolstack, made_of: Basis, saved: Savefile, script: bytes | None, say: Callable[[str], None]
) -> None:
    await make_disk(saved.disk)
    home.vm(SAVED_VM).mkdir(mode=0o700, parents=True, exist_ok=True)
    vm = Vm(SAVED_VM, uuid.uuid4(), Kind.DISPOSABLE, Label.RED, made_of.memory_mib, datetime.now(UTC))
    order = {keys.SAVE_REQUEST: "1", keys.BLOCK_SOURCE: DOM0, keys.TRANSACTION_SEQ: "1", keys.VIEW_ONLY: "0"}
    async with services.toolstack_turn(home):
        running = await toolstack.start(vm, saved.disk, made_of, order, save_to=saved)
    async with or_end(toolstack, running), await Store.connect(home.store_socket) as store:
        path = keys.absolute(running.id.domain, keys.USED_MEMORY)
        await store.write(path, b"")
        await store.set_perms(path, keys.writable_by(running.id.domain))
        await store.watch(path, "")
        await toolstack.wait_for_hello(running)
        if script is not None:
            await _put_script(toolstack, running, saved, script)
        say("rehearsing")
        await _rehearse(toolstack, running, saved, store, path)
        await asyncio.sleep(SETTLE_S)
        say("saving it")
        await toolstack.save(running.id, saved)
        await toolstack.end(running)
    shutil.rmtree(home.vm(SAVED_VM), ignore_errors=True)


async def _put_script(toolstack: Toolstack, running: RunningVm, saved: Savefile, script: bytes) -> None:
    saved.script.write_bytes(script)
    argv = ("install", "-D", "-m", "0755", "/dev/stdin", _SCRIPT)
    try:
        async with asyncio.timeout(REHEARSAL_DEADLINE_S), toolstack.run(running.id, argv, user="root") as session:
            feeding = asyncio.create_task(session.feed(_Bytes(script)))
            try:
                status = await session.output(run.ignore, run.ignore)
            finally:
                feeding.cancel()
    except TimeoutError:
        raise SavingFailed(f"as the VM did not take the script within {REHEARSAL_DEADLINE_S:g} s") from None
    if status:
        raise SavingFailed("as the script could not be put into the VM")


class _Bytes:
    """A command's whole input."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self) -> bytes:
        data, self._data = self._data, b""
        return data


async def _rehearse(toolstack: Toolstack, running: RunningVm, saved: Savefile, store: Store, path: str) -> None:
    """Give the VM a document to open, and return when it can be saved. Raises :exc:`SavingFailed`."""
    document = b"A document that is opened before any other.\n"
    image = saved.folder / "rehearsal"
    image.write_bytes(dvm_header.encode("rehearsal.txt", len(document)) + document)
    with image.open("r+b") as file:
        file.truncate(1 << 20)
    hypervisor = toolstack.hypervisor
    await hypervisor.attach(running.id, Slot.INCOMING, image)
    said = await _hear(store, path, b"")
    if said != _REHEARSED:
        raise SavingFailed("as the rehearsal failed", said.decode("utf-8", "backslashreplace"))
    await hypervisor.detach(running.id, Slot.INCOMING)
    image.unlink()
    said = await _hear(store, path, _REHEARSED)
    if not said.isdigit():
        raise SavingFailed("as the VM does not say that it is ready", said.decode("utf-8", "backslashreplace"))


async def _hear(store: Store, path: str, last: bytes) -> bytes:
    """What the VM says next, after ``last``."""
    try:
        async with asyncio.timeout(REHEARSAL_DEADLINE_S):
            while (said := await store.read(path)) == last:
                if await store.events.get() is None:
                    raise SavingFailed("as the store has ended")
            return said
    except NoEntry:
        raise SavingFailed("as the VM ended before it was ready") from None
    except TimeoutError:
        raise SavingFailed(f"as the VM was not ready within {REHEARSAL_DEADLINE_S:g} s") from None


async def _try(home: Home, collection: Collection, toolstack: Toolstack, made_of: Basis, saved: Savefile) -> None:
    """Restore one DisposableVM, and see whether it becomes a VM of its own. Raises :exc:`SavingFailed`, or what a restore raises."""
    restored = await restoring.restore(home, collection, toolstack, saved, made_of, Label.RED, asker=SAVED_VM)
    try:
        await asyncio.sleep(_STAND_S)
        await toolstack.wake(restored)
        await toolstack.wait_for_hello(restored)
        argv = ("sh", "-c", _TRIAL, "sh", restored.name)
        async with asyncio.timeout(_TRIAL_DEADLINE_S), toolstack.run(restored.id, argv, user="root") as session:
            if await session.output(run.ignore, run.ignore):
                raise SavingFailed("as one that was restored does not become itself, or waits for no document")
    except TimeoutError:
        raise SavingFailed(f"as one that was restored did not answer within {_TRIAL_DEADLINE_S:g} s") from None
    finally:
        await restoring.end(home, collection, toolstack, restored)


def _publish(home: Home, saved: Savefile) -> Savefile:
    """Make ``saved`` the current one, in one step, and remove those before it. VMs that run keep the memory that they have mapped."""
    named = saved.folder.with_name(saved.folder.name.removeprefix("."))
    saved.folder.rename(named)
    link = home.savefiles / f".link-{named.name}"
    link.symlink_to(named.name)
    link.rename(home.current_savefile)
    for other in home.savefiles.glob("[0-9a-f]*"):
        if other.is_dir() and not other.is_symlink() and other != named:
            shutil.rmtree(other, ignore_errors=True)
    return Savefile(named)
