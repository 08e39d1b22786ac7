"""What ``qfilexchg doctor`` looks at in Xen's dom0."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from qfilexchg.dom0 import programs
from qfilexchg.dom0.cli.findings import Check, Verdict
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import choice
from qfilexchg.dom0.vms.hypervisor import RunningVm
from qfilexchg.dom0.vms.xen import xl
from qfilexchg.errors import HostError
from qfilexchg.protocol import keys
from qfilexchg.xenstore.client import Store
from qfilexchg.xenstore.errors import NoEntry

RULES = Path("/usr/lib/udev/rules.d/59-qfilexchg-dom0.rules")
BLOCK_DEVICES = Path("/sys/block")
SOCKETS = Path("/proc/net/unix")
_PROBED = ("ID_FS_", "ID_PART_")
_CONNECTED = "03"
_QUERY_DEADLINE_S = 10.0


async def checks(home: Home) -> list[Check]:
    """In the order in which things are needed."""
    found = [check async for check in _store(home)]
    return [*found, await _xl(), *await installed(home), agents(home.agent_socket, SOCKETS)]


async def installed(home: Home) -> list[Check]:
    """What keeps dom0 from looking at what VMs write, for which Xen need not run."""
    return [_rules(RULES), await loop_devices(home.data, BLOCK_DEVICES)]


async def _xl() -> Check:
    try:
        info = await xl.info()
    except HostError as error:
        return Check("xl", Verdict.BAD, f"{error}: see 'systemctl status xen' and /var/log/xen")
    return Check("xl", Verdict.GOOD, f"Xen {info.xen_version}, {info.free_memory_mib} MiB of memory are free")


async def _store(home: Home) -> AsyncIterator[Check]:
    """xenstored, and the keys in it by which VMs ask."""
    try:
        async with await Store.connect(home.store_socket) as store:
            yield Check("xenstored", Verdict.GOOD, f"serves {home.store_socket}")
            yield await _keys(home, store)
    except HostError as error:
        yield Check("xenstored", Verdict.BAD, f"{error}, as by 'systemctl start xen'")


async def _keys(home: Home, store: Store) -> Check:
    try:
        vms = list((await choice.toolstack(home).hypervisor.running()).values())
    except HostError as error:
        return Check("keys", Verdict.BAD, f"cannot be looked at, as the VMs cannot be listed: {error}")
    return await permissions(store, vms)


async def permissions(store: Store, vms: list[RunningVm]) -> Check:
    """Whether each VM can write its requests and nothing else of ours."""
    what = "keys"
    wrong = []
    for vm in vms:
        domain = vm.id.domain
        for key, wanted in ((keys.REQUEST, keys.writable_by(domain)), (keys.REPLY, keys.readable_by(domain))):
            try:
                found = await store.get_perms(keys.absolute(domain, key))
            except NoEntry:
                wrong.append(f"{vm.name} has no {key}")
                continue
            if found != wanted:
                wrong.append(f"{vm.name}'s {key} is {','.join(found)} and not {','.join(wanted)}")
    if wrong:
        cure = "qfilexchgd makes them when a VM starts, so see that it serves, and start the VM again"
        return Check(what, Verdict.BAD, f"{'; '.join(wrong)}: {cure}")
    return Check(what, Verdict.GOOD, f"of {len(vms)} VMs can be written by whom they should be")


def _rules(file: Path) -> Check:
    what = "udev rules"
    if not file.exists():
        return Check(what, Verdict.BAD, f"{file} is missing, so dom0 looks into the disks of VMs: install qfilexchg-dom0 again")
    return Check(what, Verdict.GOOD, str(file))


async def loop_devices(data: Path, block_devices: Path) -> Check:
    """Whether udev has looked into a file of ours that a VM writes to."""
    what = "loop devices"
    ours = list(_loops(data, block_devices))
    try:
        probed = [device for device in ours if await _is_probed(device)]
    except HostError as error:
        return Check(what, Verdict.BAD, str(error))
    if probed:
        cure = "udevadm control --reload, and end the VMs that have these disks; then see what else in /etc/udev/rules.d sets ID_FS_*"
        return Check(what, Verdict.BAD, f"udev has looked into {', '.join(probed)}, which VMs write: {cure}")
    return Check(what, Verdict.GOOD, f"nothing in dom0 has looked into the {len(ours)} that are in use")


def _loops(data: Path, block_devices: Path) -> Iterator[str]:
    for file in sorted(block_devices.glob("loop*/loop/backing_file")):
        with contextlib.suppress(OSError):  # it has just been freed
            if Path(file.read_text(encoding="utf-8", errors="surrogateescape").rstrip("\n")).is_relative_to(data):
                yield file.parts[-3]


async def _is_probed(device: str) -> bool:
    said = await programs.run("udevadm", "info", "--query=property", f"--name=/dev/{device}", deadline_s=_QUERY_DEADLINE_S)
    return any(line.startswith(_PROBED) for line in said.decode("utf-8", "replace").splitlines())


def agents(socket: Path, sockets: Path) -> Check:
    """How many agents are connected, by the kernel's own list (proc(5)): the daemon's ends bear the name of its socket."""
    what = "agent"
    lines = (line.split(maxsplit=7) for line in sockets.read_text(encoding="utf-8", errors="replace").splitlines()[1:])
    connected = sum(1 for fields in lines if len(fields) == 8 and fields[7] == str(socket) and fields[5] == _CONNECTED)
    if not connected:
        cure = "start qfilexchg-agent in the session of a member of the group qfilexchg (adduser USER qfilexchg)"
        return Check(what, Verdict.NOTE, f"none is connected, so whatever is to be asked is denied: {cure}")
    return Check(what, Verdict.GOOD, f"{connected} connected")
