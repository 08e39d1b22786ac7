"""The port to the toolstack: how a platform makes, saves, restores and reaches VMs.

:mod:`qfilexchg.dom0.vms.hypervisor` is what the exchange needs of a platform; this is what ``qvm-start``, the savefile and
``qubes_restore`` need besides. What is made is made whole: a call that raises leaves nothing of the VM, and the files that it was
given are the caller's again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qfilexchg.dom0.vms.collection import Vm
from qfilexchg.dom0.vms.hypervisor import Hypervisor, HypervisorError, RunningVm, VmId
from qfilexchg.dom0.vms.run import Session
from qfilexchg.dom0.vms.savefile import Savefile, Stamp
from qfilexchg.dom0.vms.template import Template
from qfilexchg.protocol.names import VmName

START_DEADLINE_S = 180.0
"""For a VM to answer after its start. Under emulation, on a busy host."""
_CONSOLE_LINES = 20


class BootFailed(HypervisorError):
    """A VM that ended or fell silent before it was ready. ``detail`` is the end of what it said, or of its toolstack's log."""

    def __str__(self) -> str:
        lines = self.detail.splitlines()[-_CONSOLE_LINES:]
        return "\n".join((f"{self.what}{'; the last it said:' if lines else ''}", *(ascii(line)[1:-1] for line in lines)))


@dataclass(frozen=True, slots=True)
class Basis:
    """What VMs are made of, here and now. ``stamp`` names all of it: a savefile made by another one is stale."""

    template: Template
    memory_mib: int
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class Memory:
    """What the host can give to VMs, in MiB. Of ``available_mib``, VMs that run may still take ``promised_mib``."""

    available_mib: int
    promised_mib: int
    overhead_mib: int = 0
    """What one more VM takes beside its own memory."""


class Toolstack(Protocol):
    """What VMs are made by. Every call has a deadline of its own, and raises a HostError."""

    @property
    def hypervisor(self) -> Hypervisor:
        """The same VMs, as the exchange sees them."""
        ...

    async def basis(self, memory_mib: int, booted: Template | None = None) -> Basis:
        """``booted`` is the home's own template if it is not named; where it has a desktop, VMs may get more memory than asked for.

        Raises :exc:`~qfilexchg.dom0.vms.template.TemplateMissing`.
        """
        ...

    async def memory(self) -> Memory:
        """What is left for one more DisposableVM."""
        ...

    async def running(self) -> Mapping[VmName, RunningVm]:
        """The VMs of this home that have not ended, by name: on QEMU also one that has lost the store, and the exchange with it.

        Of a VM that somebody else has made it tells nothing: what is in it may be ended by ``qfilexchg down``.
        """
        ...

    async def start(self, vm: Vm, disk: Path, made_of: Basis, keys: Mapping[str, str], *, save_to: Savefile | None = None) -> RunningVm:
        """Start ``vm``, whose private or, for a DisposableVM, volatile disk is ``disk``, with the memory of its record.

        ``keys`` are relative, written before it runs, and readable to it. ``save_to`` is given for a VM that :meth:`save` will
        save there. Returns when it runs, which is before it answers. To be called with the toolstack's lock held.
        """
        ...

    async def wait_for_hello(self, vm: RunningVm) -> None:
        """Return when the VM's run agent answers. Raises :exc:`BootFailed` after :data:`START_DEADLINE_S`; the VM is left as it is."""
        ...

    def run(
        self, vm: VmId, argv: Sequence[str], *, user: str = "user", window: tuple[int, int] | None = None, deadline_s: float | None = None
    ) -> AbstractAsyncContextManager[Session]:
        """Begin a command in a running VM: :func:`qfilexchg.dom0.vms.run.session`, with the way to this VM's agent."""
        ...

    async def shut_down(self, vm: VmId, deadline_s: float) -> None:
        """Tell the VM to end in good order. It may not hear, or be on its way out already: what counts is whether it ends."""
        ...

    async def wait_for_end(self, vm: VmId, deadline_s: float) -> bool:
        """Return when the VM has ended, True, or when the deadline has passed, False. With a deadline of 0 it tells what is now."""
        ...

    async def save(self, vm: VmId, saved: Savefile) -> None:
        """Save the VM's memory and state into ``saved``, which was the ``save_to`` of its start, and end it."""
        ...

    async def restore(self, vm: Vm, disk: Path, saved: Savefile, made_of: Basis) -> RunningVm:
        """Make the DisposableVM ``vm`` of what ``saved`` holds, with the volatile disk ``disk``: it does not run before :meth:`wake`.

        The disk has no name on the host afterwards where the platform can do without one. Takes the toolstack's lock itself, where it
        needs it, for no longer than that.
        """
        ...

    async def wake(self, vm: RunningVm) -> None:
        """Tell a restored VM that it is complete, give it randomness of its own, and let it run."""
        ...

    async def paused(self, vm: VmId) -> bool:
        """Whether the VM was restored and waits for :meth:`wake`."""
        ...

    async def end(self, vm: RunningVm) -> None:
        """Destroy a VM and leave nothing of it but its record and its folder. One that has ended is a success."""
        ...

    async def sweep(self, ended: Callable[[RunningVm], None]) -> None:
        """Clean up after VMs that have ended by themselves, and tell of each. To be called with the toolstack's lock held."""
        ...

    def clear(self) -> None:
        """Remove what is left of any VM, now that none of this home runs and its daemons have been stopped."""
        ...


@asynccontextmanager
async def or_end(toolstack: Toolstack, vm: RunningVm) -> AsyncIterator[None]:
    """End the VM when the body fails."""
    try:
        yield
    except BaseException:
        await toolstack.end(vm)
        raise
