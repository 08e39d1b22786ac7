from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.programs import ProgramFailed
from qfilexchg.dom0.vms.processes import boot_id
from qfilexchg.dom0.vms.qemu import acceleration
from qfilexchg.dom0.vms.qemu.acceleration import Accelerator, Choice
from qfilexchg.dom0.vms.template import Template


class Host:
    """A host whose processor and /dev/kvm a test describes; counts the guests that were tried."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = Home(folder, folder / "run", folder)
        self.cpuinfo = "processor\t: 0\nflags\t\t: fpu vmx sse\n"
        self.kvm = folder / "kvm"
        self.kvm.touch()
        self.guest_runs = True
        self.guests = 0
        monkeypatch.setattr(acceleration, "_cpuinfo", lambda: self.cpuinfo)
        monkeypatch.setattr(acceleration, "KVM_DEVICE", self.kvm)
        monkeypatch.setattr(acceleration, "run_probe", self._probe)

    async def _probe(self, _template: Template, _accelerator: Accelerator, *, deadline_s: float) -> None:
        self.guests += 1
        if not self.guest_runs:
            raise ProgramFailed(["qemu"], f"did not end within {deadline_s:g} s and was killed")

    def choose(self) -> Choice:
        return asyncio.run(acceleration.choose(self.home, Template(Path("/t"))))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_kvm_is_used_where_a_guest_has_run_and_proved_once_for_each_boot(host: Host) -> None:
    assert host.choose().accelerator is Accelerator.KVM
    assert host.choose() == host.choose()
    assert host.guests == 1
    known = json.loads((host.home.cache / "acceleration.json").read_text())
    (host.home.cache / "acceleration.json").write_text(json.dumps({**known, "boot": "another"}))
    assert host.choose().accelerator is Accelerator.KVM
    assert host.guests == 2


def test_kvm_that_hangs_is_not_used_and_the_reason_is_remembered(host: Host) -> None:
    host.guest_runs = False
    choice = host.choose()
    assert choice.accelerator is Accelerator.TCG
    assert "did not end within 5 s" in choice.why
    assert host.choose() == choice
    assert host.guests == 1


@pytest.mark.parametrize("flags", ["fpu sse", "fpu vmx_something svme"])
def test_a_processor_without_the_feature_is_not_tried(host: Host, flags: str) -> None:
    host.cpuinfo = f"processor\t: 0\nflags\t\t: {flags}\n"
    assert host.choose().accelerator is Accelerator.TCG
    assert host.guests == 0


def test_a_kvm_device_that_does_not_open_is_not_tried(host: Host) -> None:
    host.kvm.unlink()
    choice = host.choose()
    assert choice.accelerator is Accelerator.TCG
    assert str(host.kvm) in choice.why
    assert host.guests == 0


@pytest.mark.parametrize("remembered", ["", "{}", "[]", "nonsense", '{"boot": "BOOT", "accelerator": "magic", "why": ""}'])
def test_a_memory_that_makes_no_sense_is_replaced(host: Host, remembered: str) -> None:
    (host.home.cache / "acceleration.json").write_text(remembered.replace("BOOT", boot_id()))
    assert host.choose().accelerator is Accelerator.KVM
    assert host.guests == 1


def test_amd_and_intel_are_both_known() -> None:
    assert acceleration.has_virtualisation("flags : fpu svm\n")
    assert acceleration.has_virtualisation("flags : vmx\n")
    assert not acceleration.has_virtualisation("")
