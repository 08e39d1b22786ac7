"""qubes_restore: a DisposableVM from a savefile. It is made whole, or nothing of it is left."""

from __future__ import annotations

import shutil

from qfilexchg.dom0 import programs
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.collection import Collection, Label, NoSuchVm
from qfilexchg.dom0.vms.hypervisor import RunningVm
from qfilexchg.dom0.vms.savefile import Savefile
from qfilexchg.dom0.vms.toolstack import Basis, Toolstack
from qfilexchg.protocol.names import VmName

_COPY_DEADLINE_S = 60.0


async def restore(
    home: Home,
    collection: Collection,
    toolstack: Toolstack,
    saved: Savefile,
    made_of: Basis,
    label: Label,
    *,
    asker: VmName | None = None,
    preloaded: bool = False,
) -> RunningVm:
    """Record a new DisposableVM and give it what ``saved`` holds; it does not run before it is woken.

    Raises a HostError, and leaves nothing then. ``saved`` must have been checked.
    """
    vm = collection.add_new_disposablevm(label, made_of.memory_mib, asker=asker, preloaded=preloaded)
    try:
        home.vm(vm.name).mkdir(mode=0o700, parents=True)
        disk = home.volatile(vm.name)
        await programs.run("cp", "--sparse=always", "--", str(saved.disk), str(disk), deadline_s=_COPY_DEADLINE_S)
        return await toolstack.restore(vm, disk, saved, made_of)
    except BaseException:
        forget(home, collection, vm.name)
        raise


async def end(home: Home, collection: Collection, toolstack: Toolstack, vm: RunningVm) -> None:
    """Destroy a DisposableVM, and leave nothing of it. One that has ended is a success."""
    await toolstack.end(vm)
    forget(home, collection, vm.name)


def forget(home: Home, collection: Collection, name: VmName) -> None:
    """Remove the record and the files of a DisposableVM that has ended. One that is not known is a success."""
    shutil.rmtree(home.vm(name), ignore_errors=True)
    try:
        collection.remove(name)
    except NoSuchVm:
        return
