from __future__ import annotations

from pathlib import Path

import pytest

from qfilexchg.dom0.cli import __main__ as dispatcher
from qfilexchg.dom0.cli import disposables
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import saving, template
from qfilexchg.dom0.vms.collection import Collection
from qfilexchg.dom0.vms.qemu import acceleration
from qfilexchg.dom0.vms.qemu.acceleration import Accelerator, Choice
from qfilexchg.dom0.vms.savefile import Savefile
from qfilexchg.dom0.vms.saving import SavingFailed
from qfilexchg.dom0.vms.template import Template
from qfilexchg.dom0.vms.toolstack import Basis, Toolstack


def a_template(folder: Path) -> Template:
    folder.mkdir()
    made = Template(folder)
    for file in (made.root, made.kernel, made.initrd):
        file.write_bytes(b"")
    return made


@pytest.mark.parametrize("works", [True, False])
def test_a_template_that_is_named_becomes_the_homes_when_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    monkeypatch.setenv("QFILEXCHG_HOME", str(tmp_path / "h"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    home = Home.from_environment()
    home.make()
    old, new = a_template(tmp_path / "old"), a_template(tmp_path / "new")
    template.use(home, old)
    tried: list[Template] = []

    async def choose(*_: object) -> Choice:
        return Choice(Accelerator.TCG, "")

    async def make(_home: Home, _collection: Collection, _toolstack: Toolstack, made_of: Basis, *_: object) -> Savefile:
        tried.append(made_of.template)
        assert template.current(home) == old
        if not works:
            raise SavingFailed("as the VM ended before it was ready")
        return Savefile(home.savefiles / "0a")

    monkeypatch.setattr(acceleration, "choose", choose)
    monkeypatch.setattr(saving, "make", make)
    monkeypatch.setattr(disposables, "_start_services", lambda _: None)
    assert dispatcher.main(["qvm-create-default-dvm", str(new.folder)]) == (0 if works else 1)
    assert tried == [new] and template.current(home) == (new if works else old)
