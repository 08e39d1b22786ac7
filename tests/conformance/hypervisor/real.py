"""What worlds with real VMs have in common: a look into a VM is a command in it, and on the host one at descriptors and loop devices."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.choice import toolstack
from qfilexchg.dom0.vms.hypervisor import Hypervisor, RunningVm, Slot
from qfilexchg.protocol import keys
from qfilexchg.xenstore.client import Store
from qfilexchg.xenstore.errors import NoEntry
from tests.conformance.hypervisor.world import Disk

COMMAND_DEADLINE_S = 300.0
"""For a command of ours, a VM's start under emulation on a busy machine included."""
_VM_DEADLINE_S = 60
"""For a VM's kernel and udev to find a disk, or to see it go."""

_QUIET = "systemctl mask --runtime qubes-pendrive@.service"
_DISK = f'udevadm wait --timeout={_VM_DEADLINE_S} "$0" && blockdev --getsize64 "$0" && sha256sum < "$0"'
_WRITE = f'udevadm wait --timeout={_VM_DEADLINE_S} "$0" && dd of="$0" bs=64K seek="$1" oflag=seek_bytes conv=notrunc,fsync status=none'
_NO_DISK = f'udevadm wait --removed --timeout={_VM_DEADLINE_S} "$0"'


class RealVms:
    """The part of a world that is the same wherever ``qvm-start`` and ``qvm-run`` work."""

    hypervisor: Hypervisor

    def __init__(self, home: Home, names: Sequence[str], commands: Path, environment: Mapping[str, str]) -> None:
        self.runner = asyncio.Runner()
        self._home = home
        self._toolstack = toolstack(home)
        self._names = names
        self._commands = commands
        self._environment = environment
        self._quiet: set[RunningVm] = set()

    async def vm(self, number: int) -> RunningVm:
        vm = await self._named(self._names[number])
        if vm is None:
            await self.start(self._names[number])
            vm = await self._named(self._names[number])
            assert vm, "qvm-start returns when it runs"
        if vm not in self._quiet:
            await self.in_vm(vm, _QUIET)
            self._quiet.add(vm)
        return vm

    async def start(self, name: str) -> None:
        """Start a VM that does not run."""
        await self.command("qvm-start", name)

    async def _named(self, name: str) -> RunningVm | None:
        return next((vm for vm in (await self.hypervisor.running()).values() if vm.name == name), None)

    async def command(self, program: str, *arguments: str) -> None:
        """Run a command of ours, which must succeed."""
        process = await asyncio.create_subprocess_exec(
            self._commands / program, *arguments, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, env=self._environment
        )
        try:
            async with asyncio.timeout(COMMAND_DEADLINE_S):
                _, error = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, f"{program} {arguments}: status {process.returncode}, {error!r}"

    async def in_vm(self, vm: RunningVm, script: str, *arguments: str, input: bytes = b"") -> str:
        """The output of a shell script that root runs in the VM, which must succeed; the first of its arguments is ``$0``."""
        output, error = bytearray(), bytearray()
        argv = ("sh", "-c", script, *arguments)
        async with (
            asyncio.timeout(COMMAND_DEADLINE_S),
            self._toolstack.run(vm.id, argv, user="root", deadline_s=COMMAND_DEADLINE_S) as command,
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(command.feed(_Bytes(input)))
            status = await command.output(output.extend, error.extend)
        assert status == 0, f"{script} {arguments} in {vm.name}: status {status}, {bytes(error)!r}"
        return output.decode()

    async def disk(self, vm: RunningVm, slot: Slot) -> Disk:
        size, digest, _ = (await self.in_vm(vm, _DISK, f"/dev/{slot.value}")).split()
        return Disk(int(size), digest)

    async def write(self, vm: RunningVm, slot: Slot, start: int, data: bytes) -> None:
        await self.in_vm(vm, _WRITE, f"/dev/{slot.value}", str(start), input=data)

    async def no_disk(self, vm: RunningVm, slot: Slot) -> None:
        await self.in_vm(vm, _NO_DISK, f"/dev/{slot.value}")

    def holders(self, image: Path) -> list[str]:
        return [*_loop_devices(image), *_descriptors(image)]

    async def leftovers(self, vm: RunningVm) -> list[str]:
        async with await Store.connect(self._home.store_socket) as store:
            try:
                return await store.directory(keys.home(vm.id.domain))
            except NoEntry:
                return []


class _Bytes:
    """What is given to a command at once."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self) -> bytes:
        data, self._data = self._data, b""
        return data


def _loop_devices(image: Path) -> list[str]:
    """Xen gives a file to a VM through a loop device, which holds it without a descriptor."""
    wanted = os.path.realpath(image)
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            name = os.fsdecode(backing.read_bytes()).rstrip("\n")
        except OSError:  # it has just been let go
            continue
        if name.removesuffix(" (deleted)") == wanted:
            found.append(backing.parts[3])
    return found


def _descriptors(image: Path) -> list[str]:
    wanted = image.stat()
    found = []
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            status = descriptor.stat()
        except OSError:  # the process has just ended, or is another user's
            continue
        if os.path.samestat(status, wanted):
            found.append(f"process {descriptor.parts[2]}")
    return found
