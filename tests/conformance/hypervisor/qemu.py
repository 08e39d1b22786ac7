"""QEMU, with two VMs in a home of their own."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

from qfilexchg.dom0.vms.hypervisor import Hypervisor, RunningVm
from qfilexchg.dom0.vms.processes import Process
from qfilexchg.dom0.vms.qemu.hypervisor import Qemu, record
from tests.conformance.hypervisor.real import RealVms
from tests.machines import CHECKOUT
from tests.vm.lab import Lab

_STOP_DEADLINE_S = 10.0


class QemuWorld(RealVms):
    """:class:`~tests.conformance.hypervisor.world.World` on QEMU."""

    def __init__(self) -> None:
        self._lab = Lab(Path(tempfile.mkdtemp(prefix="qx-", dir="/tmp")))
        super().__init__(self._lab.home, ("first", "second"), CHECKOUT / "bin", self._lab.environment)
        self.folder = self._lab.home.spool
        self.hypervisor = self.hypervisor_anew()

    def open(self) -> None:
        self._lab.home.make()
        self._lab.build_template()
        for name in self._names:
            self._lab.succeed("qvm-create", name)
        self._lab.succeed("qfilexchg", "up")

    def close(self) -> None:
        try:
            self._lab.down()
            assert self._lab.processes() == []
        finally:
            self.runner.close()
            self._lab.command("qfilexchg", "down")
            shutil.rmtree(self._lab.home.data, ignore_errors=True)

    def hypervisor_anew(self) -> Hypervisor:
        return Qemu(self._lab.home)

    async def start(self, name: str) -> None:
        await super().start(name)
        daemon = Process.load(self._lab.home.run / "qfilexchgd.process")
        assert daemon is None or daemon.end(term_s=_STOP_DEADLINE_S, kill_s=_STOP_DEADLINE_S)

    async def vanish(self, vm: RunningVm) -> None:
        self._process(vm).end(term_s=0, kill_s=_STOP_DEADLINE_S)

    async def freeze(self, vm: RunningVm) -> None:
        os.kill(self._process(vm).pid, signal.SIGSTOP)

    def _process(self, vm: RunningVm) -> Process:
        found = record(self._lab.home, vm.id.domain)
        assert found and found.vm == vm and found.process
        return found.process

    async def leftovers(self, vm: RunningVm) -> list[str]:
        folder = self._lab.home.domain(vm.id.domain)
        return [*await super().leftovers(vm), *([str(folder)] if folder.exists() else [])]

    def save_evidence(self, test: str) -> None:
        self._lab.save_evidence(CHECKOUT / ".ci/out" / test / self._lab.home.data.name)
