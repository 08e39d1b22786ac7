from __future__ import annotations

import os
from pathlib import Path

import pytest

from qfilexchg.dom0.vms.qemu.acceleration import Accelerator
from qfilexchg.dom0.vms.qemu.stamp import accelerator, stamp
from qfilexchg.dom0.vms.template import Template


@pytest.fixture
def template(tmp_path: Path) -> Template:
    folder = tmp_path / "template"
    folder.mkdir()
    (folder / "root.img").write_bytes(b"root")
    return Template(folder)


def test_it_changes_with_the_templates_root(template: Template) -> None:
    before = stamp(template, Accelerator.TCG, 256)
    assert stamp(template, Accelerator.TCG, 256) == before
    os.utime(template.root, (1, 1))
    assert {key for key, value in stamp(template, Accelerator.TCG, 256).items() if value != before[key]} == {"template"}


def test_it_changes_with_the_accelerator_and_the_memory(template: Template) -> None:
    before = stamp(template, Accelerator.TCG, 256)
    for other in (stamp(template, Accelerator.KVM, 256), stamp(template, Accelerator.TCG, 512)):
        assert other["machine"] != before["machine"]


@pytest.mark.parametrize("how", Accelerator)
def test_it_names_the_accelerator(template: Template, how: Accelerator) -> None:
    assert accelerator(stamp(template, how, 256)) is how
