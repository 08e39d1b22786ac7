"""The port to the hypervisor: what the exchange needs of every platform.

Each platform is an adapter behind :class:`Hypervisor`, and keeps what is promised here.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import UUID

from qfilexchg.errors import HostError
from qfilexchg.protocol.names import DomainId, VmName


class Slot(enum.Enum):
    """The two places of a VM where a pendrive can be; the value is the disk's name in the VM."""

    OUTGOING = "xvdg"
    INCOMING = "xvdh"


@dataclass(frozen=True, slots=True)
class VmId:
    """One run of one VM. Domain ids are reused and a VM restarts under a new one: only the pair means the same for ever."""

    domain: DomainId
    uuid: UUID


@dataclass(frozen=True, slots=True)
class RunningVm:
    """A VM that runs now."""

    id: VmId
    name: VmName


class HypervisorError(HostError):
    """The hypervisor did not do what it was asked. ``what`` is our sentence; ``detail`` the hypervisor's, escaped when shown."""

    def __init__(self, what: str, detail: str = "") -> None:
        super().__init__(what, detail)
        self.what = what
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.what}: {self.detail[:400]!a}" if self.detail else self.what


class VmGone(HypervisorError):
    """The VM that was meant does not run any more."""


class NoDisposable(HypervisorError):
    """A DisposableVM could not be made. ``word`` is what the VM that asked is told: it learns no more of the host."""

    def __init__(self, what: str, detail: str = "", *, word: str = "no-disposable") -> None:
        super().__init__(what, detail)
        self.word = word
        """``no-disposable``, ``no-memory`` or ``no-savefile``."""


class Hypervisor(Protocol):
    """What qfilexchgd asks of a platform. Every call has a deadline of its own and raises :exc:`HypervisorError` past it."""

    async def running(self) -> Mapping[DomainId, RunningVm]:
        """Every VM that runs now, dom0 excepted."""
        ...

    async def attach(self, vm: VmId, slot: Slot, image: Path) -> None:
        """Give ``vm`` the raw disk ``image``, read and write, as the slot's disk.

        Returns when the VM has the device. If it raises, the image is attached nowhere. Attaching the image that the slot
        already holds is a success; another image there is an error. The image's content is never looked at.
        """
        ...

    async def detach(self, vm: VmId, slot: Slot) -> None:
        """Take the slot's disk away; returns when no process of the VM's has the image open any more.

        A slot that is empty, or a VM that does not run, is a success. If it raises, the VM may still have the disk.
        """
        ...

    async def attached(self, vm: VmId) -> Mapping[Slot, Path]:
        """The images in the VM's slots, by what the hypervisor says now."""
        ...

    async def kill(self, vm: VmId) -> None:
        """End the VM at once; returns when it is gone. A VM that does not run is a success."""
        ...

    async def screen(self, vm: VmId) -> Path | None:
        """The Unix socket at which the VM's screen is served by VNC; None where it has no screen, or does not run any more."""
        ...

    async def release(self, domain: DomainId) -> None:
        """Clean up what is left of a domain that has ended (its keys in the store, its sockets)."""
        ...


class DisposableMaker(Protocol):
    """What qfilexchgd asks of those who make DisposableVMs. They are ended by :meth:`Hypervisor.kill`."""

    async def make(self, asker: RunningVm, preparing: Callable[[str], None]) -> RunningVm:
        """A new DisposableVM for ``asker``; returns when it runs.

        ``preparing`` is called, with how far it is, if the savefile must be made again first. Cancelled or failed, it leaves
        nothing. Raises :exc:`NoDisposable`.
        """
        ...

    async def forget(self, vm: VmId) -> None:
        """Remove what is left of a DisposableVM that has ended: its record and its files. One that is not known is a success."""
        ...

    async def sweep(self, known: Collection[VmId]) -> None:
        """End what a daemon that died had half made: each DisposableVM for a document, or kept ready for one, that is not of ``known``.

        Those of a person's own commands are left alone. One that cannot be ended is passed over.
        """
        ...
