"""A QEMU VM's saved state: written to a file and read back, beside a memory file that QEMU leaves alone.

With the capability ``x-ignore-shared`` a migration carries devices and processors but not the memory, which lies in the file that
the VM was started with (QEMU's docs/devel/migration.rst and qapi/migration.json). So the state is some hundred kilobytes, and a VM
goes on within a tenth of a second.

QEMU gets the file as a descriptor: its sandbox lets it start no program, and it need not find any path.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from qemu.qmp import QMPClient

from qfilexchg.dom0.vms.hypervisor import HypervisorError

_NAME = "state"
_CAPABILITIES = [{"capability": "x-ignore-shared", "state": True}]
_STEP_S = 0.005


async def save(qmp: QMPClient, file: Path) -> None:
    """Stop the VM and write its state to ``file``, which must not exist. The VM can only be ended then."""
    await qmp.execute("stop")
    await _move(qmp, "migrate", os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


async def load(qmp: QMPClient, file: Path) -> None:
    """Read the state of a VM that waits for one. It is stopped then; ``cont`` lets it go on. Raises :exc:`HypervisorError`."""
    await _move(qmp, "migrate-incoming", os.open(file, os.O_RDONLY | os.O_CLOEXEC))


async def _move(qmp: QMPClient, command: str, descriptor: int) -> None:
    try:
        await qmp.execute("migrate-set-capabilities", {"capabilities": _CAPABILITIES})
        qmp.send_fd_scm(descriptor)
        await qmp.execute("getfd", {"fdname": _NAME})
    finally:
        os.close(descriptor)
    await qmp.execute(command, {"uri": f"fd:{_NAME}"})
    # Asked, not listened for: a QEMU that cannot read a state ends, which a question notices and no event tells.
    while True:
        progress = await qmp.execute("query-migrate")
        assert isinstance(progress, dict)
        match progress.get("status"):
            case "completed":
                return
            case "failed" | "cancelled" as status:
                raise HypervisorError(f"QEMU's {command} {status}", str(progress.get("error-desc", "")))
        await asyncio.sleep(_STEP_S)
