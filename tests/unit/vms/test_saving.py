from __future__ import annotations

import os
from pathlib import Path

import pytest

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import saving
from qfilexchg.dom0.vms.collection import Collection
from qfilexchg.dom0.vms.qemu.toolstack import QemuToolstack
from qfilexchg.dom0.vms.savefile import Savefile
from qfilexchg.dom0.vms.template import Template
from qfilexchg.dom0.vms.toolstack import Basis, Toolstack


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
