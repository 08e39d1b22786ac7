"""What xenstore says of a VM and its disks, read only where no VM can write: under dom0's own backends, and the keys that libxl owns.

The paths are those of Xen's docs/misc/xenstore-paths.pandoc; the numbers of disks those of xen-vbd-interface(7), the states those of
xen/include/public/io/xenbus.h.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from qfilexchg.dom0.vms.hypervisor import VmId
from qfilexchg.protocol import keys
from qfilexchg.protocol.names import BadDomainId, BadName, DomainId, VmName
from qfilexchg.xenstore.client import Store
from qfilexchg.xenstore.errors import NoEntry

BACKENDS = f"{keys.DOMAINS}/0/backend/vbd"
CONNECTED, CLOSING, CLOSED = 4, 5, 6
"""States of a backend."""
_XVD_MAJOR = 202
_PARTITIONS = 16
_VM_PREFIX = "/vm/"


@dataclass(frozen=True, slots=True)
class Disk:
    """The backend of one disk of a VM. ``image`` is None where the backend does not say."""

    image: Path | None
    state: int
    online: bool
    """Whether it is to stay: someone has begun to take an offline one away."""


def number(disk: str) -> int:
    """What libxl calls the disk ``xvdX``."""
    return _XVD_MAJOR << 8 | _PARTITIONS * (ord(disk.removeprefix("xvd")) - ord("a"))


def backends(domain: DomainId) -> str:
    """Below this path are the backends of all disks of a VM."""
    return f"{BACKENDS}/{int(domain)}"


def backend(domain: DomainId, disk: str) -> str:
    return f"{backends(domain)}/{number(disk)}"


async def read(store: Store, path: str) -> bytes | None:
    """None where there is no such key."""
    try:
        return await store.read(path)
    except NoEntry:
        return None


async def children(store: Store, path: str) -> list[str]:
    try:
        return await store.directory(path)
    except NoEntry:
        return []


async def uuid(store: Store, domain: DomainId) -> UUID | None:
    """Which VM has this domain id now; None when nobody has, or what stands there is nothing that libxl writes."""
    path = (await read(store, keys.absolute(domain, keys.VM_PATH)) or b"").decode("ascii", "replace")
    try:
        return UUID(path.removeprefix(_VM_PREFIX)) if path.startswith(_VM_PREFIX) else None
    except ValueError:
        return None


async def is_run(store: Store, vm: VmId) -> bool:
    """Whether this run of this VM goes on, as far as the store knows."""
    return await uuid(store, vm.domain) == vm.uuid


async def name(store: Store, domain: DomainId) -> VmName | None:
    """The VM's name; None for one by which the exchange cannot call it."""
    try:
        return VmName.parse((await read(store, keys.absolute(domain, keys.NAME)) or b"").decode("ascii", "replace"))
    except BadName:
        return None


async def identity(store: Store, domain: DomainId) -> tuple[UUID | None, VmName | None]:
    return await uuid(store, domain), await name(store, domain)


async def domains(store: Store) -> list[DomainId]:
    """Every domain that the store has a home of, dom0's excepted."""
    return [domain for domain in _domain_ids(await children(store, keys.DOMAINS)) if domain]


def _domain_ids(names: list[str]) -> list[DomainId]:
    """Those of the names that are a domain id."""
    found = []
    for name in names:
        with contextlib.suppress(BadDomainId):
            found.append(DomainId.parse(name))
    return found


async def find(store: Store, wanted: UUID) -> DomainId | None:
    """The domain id of a VM."""
    domains_now = await domains(store)
    uuids = await asyncio.gather(*(uuid(store, domain) for domain in domains_now))
    return next((domain for domain, found in zip(domains_now, uuids, strict=True) if found == wanted), None)


async def disk(store: Store, domain: DomainId, disk: str) -> Disk | None:
    """A disk of a VM; None when its backend is gone."""
    path = backend(domain, disk)
    if not await store.exists(path):
        return None
    kind, image, state, online = await asyncio.gather(*(read(store, f"{path}/{key}") for key in ("type", "params", "state", "online")))
    return Disk(_image(kind, image), int(state) if state and state.isdigit() else 0, online == b"1")


def _image(kind: bytes | None, params: bytes | None) -> Path | None:
    """The file of a backend: of the kernel's (``phy``) its name, of QEMU's (``qdisk``) with the format before it."""
    if kind == b"qdisk" and params:
        params = params.partition(b":")[2]
    return Path(os.fsdecode(params)) if params and params.startswith(b"/") else None


async def images(store: Store) -> list[tuple[DomainId, Path]]:
    """Every image that a VM has, with the VM's domain id."""
    found_domains = _domain_ids(await children(store, BACKENDS))
    devices = await asyncio.gather(*(children(store, backends(domain)) for domain in found_domains))
    disks = [(domain, f"{backends(domain)}/{device}") for domain, of_it in zip(found_domains, devices, strict=True) for device in of_it]
    values = await asyncio.gather(*(read(store, f"{path}/{key}") for _, path in disks for key in ("type", "params")))
    found = zip(disks, values[::2], values[1::2], strict=True)
    return [(domain, image) for (domain, _), kind, params in found if (image := _image(kind, params))]
