"""``qvm-start --screen``, with a real home and without machines."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qfilexchg.dom0 import viewer
from qfilexchg.dom0.cli import __main__, vms
from qfilexchg.dom0.debian import Release
from qfilexchg.dom0.vms import template
from qfilexchg.dom0.vms.collection import Label
from qfilexchg.dom0.vms.hypervisor import VmId
from qfilexchg.dom0.vms.machines import Machines, NotRunning
from qfilexchg.dom0.vms.template import Contents
from qfilexchg.protocol.names import DomainId, VmName

WORK = VmName.parse("work")
SOCKET = Path("/run/domain/7/screen")


class Scene:
    """A home with the VM ``work``; what was started and shown."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, *, desktop: bool) -> None:
        patch.setenv("QFILEXCHG_HOME", str(folder))
        self.machines = vms._machines()
        self.machines.collection.add(WORK, Label.GREEN, 512)
        made = template.Template(folder / "made")
        made.folder.mkdir()
        if desktop:
            made.describe(Contents(Release.TRIXIE, desktop=True), time.time())
        template.use(self.machines._home, made)
        self.runs = False
        self.started = 0
        self.shown: list[Path] = []
        patch.setattr(viewer, "show", self.shown.append)
        patch.setattr(Machines, "screen", self._screen)
        patch.setattr(Machines, "start", self._start)

    async def _screen(self, name: VmName) -> Path:
        if not self.runs:
            raise NotRunning(name)
        return SOCKET

    async def _start(self, name: VmName, _say: Callable[[str], None]) -> VmId:
        self.runs = True
        self.started += 1
        return VmId(DomainId(7), self.machines.collection.get(name).uuid)


@pytest.mark.parametrize("runs", [False, True])
def test_the_screen_is_shown_and_a_vm_that_runs_is_not_started(runs: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scene = Scene(monkeypatch, tmp_path, desktop=True)
    scene.runs = runs
    assert __main__.main(["qvm-start", "--screen", "work"]) == 0
    assert (scene.started, scene.shown) == (0 if runs else 1, [SOCKET])


def test_a_vm_that_would_have_no_screen_is_not_started_for_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = Scene(monkeypatch, tmp_path, desktop=False)
    assert __main__.main(["qvm-start", "--screen", "work"]) == 1
    assert (scene.started, scene.shown) == (0, []) and "qvm-template build --desktop" in capsys.readouterr().err


def test_without_the_option_nothing_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scene = Scene(monkeypatch, tmp_path, desktop=True)
    assert __main__.main(["qvm-start", "work"]) == 0
    assert (scene.started, scene.shown) == (1, [])
