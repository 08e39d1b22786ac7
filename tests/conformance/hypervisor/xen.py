"""Xen, in its dom0: two VMs of the template that run already, and the commands of the installed package."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.platform import Platform
from qfilexchg.dom0.vms.hypervisor import Hypervisor, RunningVm
from qfilexchg.dom0.vms.xen.hypervisor import Xen
from tests.conformance.hypervisor.real import COMMAND_DEADLINE_S, RealVms

_COMMANDS = Path("/usr/bin")
_DAEMON = "qfilexchgd.service"


class XenWorld(RealVms):
    """:class:`~tests.conformance.hypervisor.world.World` on Xen. qfilexchgd is stopped meanwhile, and runs again afterwards."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(Home.from_environment(), names, _COMMANDS, os.environ)
        self.folder = self._home.spool
        self.hypervisor = self.hypervisor_anew()
        self._runs_daemon = False
        self._starting = asyncio.Lock()

    def open(self) -> None:
        assert self._home.platform is Platform.XEN, "this computer is no dom0 of Xen's"
        self._home.make()
        self._runs_daemon = self.runner.run(_succeeds("systemctl", "is-active", "--quiet", _DAEMON))
        assert self.runner.run(_succeeds("systemctl", "stop", _DAEMON)), "the package qfilexchg-dom0 is to be installed"

    def close(self) -> None:
        if self._runs_daemon:
            self.runner.run(_succeeds("systemctl", "start", "--no-block", _DAEMON))
        self.runner.close()

    def hypervisor_anew(self) -> Hypervisor:
        return Xen(self._home)

    async def start(self, name: str) -> None:
        async with self._starting:
            await _succeeds("systemctl", "start", _DAEMON)
            await super().start(name)
            await _succeeds("systemctl", "stop", _DAEMON)

    async def vanish(self, vm: RunningVm) -> None:
        assert await _succeeds("xl", "destroy", str(int(vm.id.domain)))

    async def freeze(self, vm: RunningVm) -> None:
        assert await _succeeds("xl", "pause", str(int(vm.id.domain)))

    def save_evidence(self, test: str) -> None:
        """Whoever runs the machine keeps its logs."""


async def _succeeds(*argv: str) -> bool:
    process = await asyncio.create_subprocess_exec(*argv, stdin=asyncio.subprocess.DEVNULL)
    async with asyncio.timeout(COMMAND_DEADLINE_S):
        return await process.wait() == 0
