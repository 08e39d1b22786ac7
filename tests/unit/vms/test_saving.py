from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import run, saving
from qfilexchg.dom0.vms.collection import SAVED_VM, Collection
from qfilexchg.dom0.vms.hypervisor import RunningVm, VmId
from qfilexchg.dom0.vms.qemu.toolstack import QemuToolstack
from qfilexchg.dom0.vms.savefile import Savefile
from qfilexchg.dom0.vms.template import Template
from qfilexchg.dom0.vms.toolstack import Basis, Toolstack
from qfilexchg.protocol.names import DomainId


async def test_a_savefile_is_on_the_disk_before_it_counts_as_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path, tmp_path / "run", tmp_path / "cache")
    home.make()
    synced: list[str] = []
    fsync = os.fsync

    async def boot(_home: Home, _toolstack: Toolstack, _made_of: Basis, saved: Savefile, *_: object) -> None:
        for file in (saved.memory, saved.state, saved.disk):
            file.write_bytes(b"")

    async def try_it(*_: object) -> None:
        assert not synced

    def note(descriptor: int) -> None:
        file = Path(f"/proc/self/fd/{descriptor}").readlink()
        if file.parent.parent == home.savefiles:
            assert not Savefile(file.parent).made.exists()
            synced.append(file.name)
        fsync(descriptor)

    monkeypatch.setattr(saving, "_boot_and_save", boot)
    monkeypatch.setattr(saving, "_try", try_it)
    monkeypatch.setattr(os, "fsync", note)
    made_of = Basis(Template(tmp_path / "a-template"), 256, {"format": 1})
    saved = await saving.make(home, Collection(home.collection), QemuToolstack(home), made_of, None, lambda _: None)
    saved.check(made_of.stamp)
    assert sorted(synced) == ["disk", "memory", "state"]


class Silent(QemuToolstack):
    """Commands in its VMs begin, and never end."""

    @asynccontextmanager
    async def run(self, *_: object, **__: object) -> AsyncIterator[run.Session]:
        await asyncio.Event().wait()
        yield NotImplemented


async def test_a_vm_that_does_not_take_the_script_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "REHEARSAL_DEADLINE_S", 0.05)
    home = Home(tmp_path, tmp_path / "run", tmp_path / "cache")
    home.make()
    saved = Savefile(home.savefiles / "0a")
    saved.folder.mkdir()
    vm = RunningVm(VmId(DomainId(1), uuid4()), SAVED_VM)
    with pytest.raises(saving.SavingFailed, match=r"did not take the script within 0\.05 s"):
        await saving._put_script(Silent(home), vm, saved, b"#!/bin/sh\n")
