"""Configurations, as xl reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from qfilexchg.dom0.vms.collection import Kind
from qfilexchg.dom0.vms.hypervisor import HypervisorError
from qfilexchg.dom0.vms.template import Template
from qfilexchg.dom0.vms.xen.config import GuestType, Machine, disk, fingerprint, serialise, settings
from qfilexchg.protocol.names import VmName

TEMPLATE = Template(Path("/cache/template"))
WORK = Machine(VmName.parse("work"), UUID(int=1), Kind.APP, 300, 2, Path("/vms/work/private.img"), TEMPLATE, GuestType.PV)
DISPOSABLE = replace(WORK, kind=Kind.DISPOSABLE, disk=Path("/vms/disp1/volatile.img"))


def test_an_appvm_has_the_templates_root_and_a_private_disk_and_nothing_else() -> None:
    text = serialise(settings(WORK))
    assert 'name = "work"\n' in text and "memory = 300\n" in text and "vif = []\n" in text
    root, private = disk("xvda", TEMPLATE.root, writable=False), disk("xvdb", WORK.disk, writable=True)
    assert f'disk = ["{root}", "{private}"]\n' in text


def test_a_disposablevm_has_a_volatile_disk() -> None:
    assert f'"{disk("xvdc", DISPOSABLE.disk, writable=True)}"]\n' in serialise(settings(DISPOSABLE))


def test_however_a_vm_ends_it_is_destroyed() -> None:
    text = serialise(settings(WORK))
    for way in ("poweroff", "reboot", "watchdog", "crash", "soft_reset"):
        assert f'on_{way} = "destroy"\n' in text


def test_nobody_but_the_run_agent_is_on_the_console() -> None:
    cmdline = str(settings(WORK)["cmdline"]).split()
    assert {"console=hvc0", "quiet", "systemd.getty_auto=0", "systemd.hostname=work"} <= set(cmdline)


@pytest.mark.parametrize("path", ['/a"b', "/a'b", "/a\\b", "/a\nb", "/a\tb", "/ä"])
def test_what_would_have_to_be_quoted_is_refused(path: str) -> None:
    with pytest.raises(HypervisorError, match="takes only paths"):
        disk("xvdg", Path(path), writable=True)
    with pytest.raises(HypervisorError):
        serialise({"kernel": path})


def test_a_disk_is_raw_and_its_path_comes_last_as_it_may_hold_commas_and_blanks() -> None:
    text = disk("xvdg", Path("/a, b"), writable=True)
    assert text.startswith("format=raw,vdev=xvdg,access=rw,") and text.endswith(",target=/a, b")
    assert ",access=ro," in disk("xvda", Path("/root.img"), writable=False)


def test_the_fingerprint_changes_with_the_machine_and_not_with_the_vm() -> None:
    known = fingerprint(TEMPLATE, GuestType.PV, 300, 2)
    assert known == fingerprint(TEMPLATE, GuestType.PV, 300, 2)
    others = {
        fingerprint(TEMPLATE, GuestType.PVH, 300, 2),
        fingerprint(TEMPLATE, GuestType.PV, 301, 2),
        fingerprint(TEMPLATE, GuestType.PV, 300, 1),
        fingerprint(Template(Path("/cache/other")), GuestType.PV, 300, 2),
    }
    assert len(others) == 4 and known not in others
