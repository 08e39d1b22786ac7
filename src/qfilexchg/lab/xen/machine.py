"""The Xen machine: a QEMU in which genuine Xen boots, with a Debian dom0 that can be given commands.

It is always emulated, with a processor model on which Xen and dom0 are stable: "max" crashes dom0, and without SMAP and SMEP programs
in it die at random. So it runs on any host, and no faster on a better one. What it writes goes into a layer over the disk that it was
started with, and it can be saved while it runs: any number of others go on from there, each with layers of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, QMPClient

from qfilexchg.dom0 import programs
from qfilexchg.dom0.vms import run
from qfilexchg.dom0.vms.hypervisor import HypervisorError
from qfilexchg.dom0.vms.processes import Process
from qfilexchg.dom0.vms.qemu import channels, state
from qfilexchg.lab.xen.disk import Disk
from qfilexchg.protocol.channels import RUN_PORTS

PROGRAM = "qemu-system-x86_64"
MEMORY_BYTES = 3 << 30
"""Of the machine: dom0 has one gigabyte of it, the VMs and Xen the rest."""
BOOT_DEADLINE_S = 300.0
_QMP_DEADLINE_S = 60.0
_COMMAND_DEADLINE_S = 60.0
_STEP_S = 0.02
# One processor: with two, those of dom0 and of VMs spin while they wait for one that the host has just taken away, so two machines on a
# host with two processors come to a halt.
_XEN_ARGUMENTS = "console=com1 com1=115200,8n1 dom0_mem=1G,max:1G dom0_max_vcpus=1 bootscrub=off xpti=false pv-l1tf=false spec-ctrl=false"
"""Memory that nobody has used yet is not scrubbed: so it stays a hole in its file. What guards against a real processor's mistakes
is off: emulation does not make them, and pays for each of the many changes of address space that guarding takes.
"""
_KERNEL_ARGUMENTS = "console=hvc0 quiet systemd.show_status=0 mitigations=off cryptomgr.notests audit=0"
_TCG_CACHE_MIB = 768
"""Less is full after a few commands in dom0 and the VMs, and then all is translated anew: with 256 they take a quarter longer."""
_SAID_MAX = 4096


class MachineFailed(HypervisorError):
    """The Xen machine did not do what it should. ``detail`` is the end of its console or of QEMU's log."""

    def __str__(self) -> str:
        lines = self.detail.splitlines()[-20:]
        return "\n".join((f"{self.what}{'; the last it said:' if lines else ''}", *(ascii(line)[1:-1] for line in lines)))


@dataclass(frozen=True, slots=True)
class Stage:
    """A machine that was saved while it ran, in a folder of the cache."""

    folder: Path

    @property
    def memory(self) -> Path:
        return self.folder / "memory"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def layer(self) -> Path:
        """What it had written to its disk when it was saved."""
        return self.folder / "layer.qcow2"


@dataclass(frozen=True, slots=True)
class Machine:
    """One run, whose files are in ``folder`` and whose sockets in ``run_folder``, which must have a short path."""

    folder: Path
    run_folder: Path

    @property
    def layer(self) -> Path:
        return self.folder / "layer.qcow2"

    @property
    def memory(self) -> Path:
        """Of a machine that was booted to be saved."""
        return self.folder / "memory"

    @property
    def console_log(self) -> Path:
        """What Xen and dom0's kernel have said on the serial line."""
        return self.folder / "console.log"

    @property
    def log(self) -> Path:
        return self.folder / "qemu.log"

    def process(self) -> Process | None:
        """Its QEMU, if it runs."""
        return Process.load(self.folder / "process")

    async def boot(self, disk: Disk, parcel: Path) -> None:
        """Start it from its disk; returns when dom0 takes commands."""
        await self._start(disk, parcel, disk.root, "raw", ())
        await self.wait_until_ready()

    async def restore(self, disk: Disk, parcel: Path, stage: Stage, *, to_save: bool = False) -> None:
        """Let it go on where ``stage`` was saved. ``to_save`` is for one that is to be saved itself: its memory is a copy."""
        if to_save:
            await programs.run("cp", "--sparse=always", "--", str(stage.memory), str(self.memory), deadline_s=_QMP_DEADLINE_S)
        await self._start(disk, parcel, stage.layer, "qcow2", ("-incoming", "defer"), None if to_save else stage.memory)
        async with self._qmp() as qmp:
            await state.load(qmp, stage.state)
            await qmp.execute("cont")

    async def save(self, stage: Stage) -> None:
        """Save it into ``stage``'s folder, and end it. It must have been booted, or restored to be saved."""
        async with self._qmp() as qmp:
            await state.save(qmp, stage.state)
        await self.end()
        self.memory.rename(stage.memory)
        self.layer.rename(stage.layer)

    async def _start(
        self, disk: Disk, parcel: Path, below: Path, format: str, more: Sequence[str], private_memory: Path | None = None
    ) -> None:
        for folder in (self.folder, self.run_folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        create = ("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(below), "-F", format, str(self.layer))
        await programs.run(*create, deadline_s=_QMP_DEADLINE_S)
        argv = [programs.find_program(PROGRAM), *self._command(disk, parcel, private_memory), *more]
        if private_memory is None:  # one that is only to be saved is of no use when whoever builds is killed
            argv = [programs.find_program("setpriv"), "--pdeathsig", "KILL", "--", *argv]
        process = Process.start(argv, log=self.log)
        if process is None:
            raise MachineFailed("QEMU ended at once", self.log.read_text(encoding="utf-8", errors="replace"))
        process.save(self.folder / "process")

    def _command(self, disk: Disk, parcel: Path, private_memory: Path | None) -> list[str]:
        memory = {
            "qom-type": "memory-backend-file",
            "id": "memory",
            "size": MEMORY_BYTES,
            "mem-path": str(private_memory or self.memory),
            "share": private_memory is None,
        }
        modules = f"{_escaped(disk.kernel)} {_KERNEL_ARGUMENTS.replace(',', ',,')},{_escaped(disk.initrd)}"
        console = f"socket,id=console,path={self._socket('console')},server=on,wait=off,logfile={_escaped(self.console_log)},logappend=on"
        ports = []
        for number, name in enumerate(RUN_PORTS):
            path = self._socket(f"run.{number}.socket")
            ports += ["-chardev", f"socket,id=run{number},path={path},server=on,wait=off"]
            ports += ["-device", f"virtserialport,bus=channels.0,chardev=run{number},name={name}"]
        return [
            *("-no-user-config", "-nodefaults", "-no-reboot", "-display", "none", "-name", "guest=xen,process=qemu-xen"),
            *("-machine", "q35,usb=off,memory-backend=memory", "-object", json.dumps(memory)),
            *("-accel", f"tcg,thread=multi,tb-size={_TCG_CACHE_MIB}", "-cpu", "Nehalem", "-smp", "1", "-m", f"{MEMORY_BYTES >> 20}M"),
            *("-rtc", "base=utc", "-kernel", str(disk.xen), "-append", _XEN_ARGUMENTS, "-initrd", modules),
            *("-chardev", console, "-serial", "chardev:console"),
            *("-chardev", f"socket,id=qmp,path={self._socket('qmp')},server=on,wait=off", "-mon", "qmp,mode=control"),
            *_disk("root", {"driver": "qcow2", "file": {"driver": "file", "filename": str(self.layer)}, "cache": {"no-flush": True}}),
            *_disk("parcel", {"driver": "raw", "read-only": True, "file": {"driver": "file", "filename": str(parcel)}}),
            *("-device", f"virtio-serial-pci,id=channels,max_ports={len(RUN_PORTS) + 1}", *ports),
        ]

    def _socket(self, name: str) -> str:
        return _escaped(self.run_folder / name)

    async def wait_until_ready(self) -> None:
        """Return when dom0's agent answers."""
        process = self.process()
        try:
            async with asyncio.timeout(BOOT_DEADLINE_S):
                while process and process.running:
                    with contextlib.suppress(run.NoAnswer):
                        async with self.session([], user="root") as session:
                            await session.output(run.ignore, run.ignore)
                            return
                    await asyncio.sleep(_STEP_S)
        except TimeoutError:
            pass
        said = self.console_log.read_text(encoding="utf-8", errors="replace") if self.console_log.exists() else ""
        runs = process is not None and process.running
        raise MachineFailed(f"dom0 was not ready within {BOOT_DEADLINE_S:g} s" if runs else "the machine has ended", said)

    def session(
        self, argv: Sequence[str], *, user: str = "user", window: tuple[int, int] | None = None, deadline_s: float | None = None
    ) -> contextlib.AbstractAsyncContextManager[run.Session]:
        """Begin a command in dom0, as in a VM on QEMU."""
        return channels.session(self.run_folder, argv, user=user, window=window, deadline_s=deadline_s)

    async def command(self, argv: Sequence[str], deadline_s: float = _COMMAND_DEADLINE_S) -> bytes:
        """What a command of root's in dom0 prints. Raises :exc:`MachineFailed` with what it said if it fails or is late."""
        said, printed = bytearray(), bytearray()

        def hear(data: bytes) -> None:
            said.extend(data)
            del said[:-_SAID_MAX]

        def take(data: bytes) -> None:
            printed.extend(data)
            hear(data)

        try:
            async with asyncio.timeout(deadline_s), self.session(argv, user="root") as session:
                how = f"ended with status {status}" if (status := await session.output(take, hear)) else ""
        except TimeoutError:
            how = f"did not end within {deadline_s:g} s"
        if how:
            raise MachineFailed(f"'{argv[0]}' in dom0 {how}", said.decode("utf-8", "backslashreplace"))
        return bytes(printed)

    async def end(self) -> None:
        """End it at once. One that has ended is a success."""
        if (process := self.process()) and not await asyncio.to_thread(process.end, term_s=10, kill_s=10):
            raise MachineFailed(f"the machine (process {process.pid}) does not end")

    @contextlib.asynccontextmanager
    async def _qmp(self) -> AsyncIterator[QMPClient]:
        process = self.process()
        qmp = QMPClient("xen")
        try:
            async with asyncio.timeout(_QMP_DEADLINE_S):
                while True:
                    try:
                        await qmp.connect(str(self.run_folder / "qmp"))
                        break
                    except ConnectError:
                        if process is None or not process.running:
                            raise
                    await asyncio.sleep(_STEP_S)
                yield qmp
        except (ConnectError, ExecuteError, ExecInterruptedError, OSError, EOFError) as error:
            said = self.log.read_text(encoding="utf-8", errors="replace") or str(error)
            raise MachineFailed("QEMU does not answer", said) from error
        finally:
            with contextlib.suppress(OSError, EOFError, ConnectError):
                await qmp.disconnect()


def _escaped(path: Path) -> str:
    """QEMU splits option values at commas; two stand for one."""
    return str(path).replace(",", ",,")


def _disk(name: str, node: dict[str, object]) -> tuple[str, ...]:
    device = {"driver": "virtio-blk-pci", "drive": name, "serial": name}
    return ("-blockdev", json.dumps({"node-name": name, "discard": "unmap", **node}), "-device", json.dumps(device))
