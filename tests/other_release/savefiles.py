"""A savefile that is made with one QEMU and used with another, in a home and with a template that both have.

Not collected by itself: it is run on the host, in the tree, and on the host again. ``$QFILEXCHG_SHARED`` is the folder that travels. It
has the home, the template, and the version of the QEMU that made the savefile last.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from qfilexchg.dom0.vms import template
from qfilexchg.dom0.vms.qemu.command import PROGRAM
from qfilexchg.dom0.vms.savefile import current
from tests.machines import EDITOR, EVIDENCE
from tests.vm.lab import Lab
from tests.vm.person import Person

SHARED = Path(os.environ["QFILEXCHG_SHARED"])
VERSION = SHARED / "version"


@pytest.fixture
def lab() -> Iterator[Lab]:
    """The home that travels. What its daemons and VMs have said is kept, whatever comes of the test."""
    lab = Lab(SHARED / "home")
    yield lab
    with suppress(subprocess.TimeoutExpired):  # of a VM that says nothing any more
        lab.save_evidence(EVIDENCE / "savefiles")
    lab.down()
    assert lab.processes() == []


def version() -> str:
    return subprocess.run((PROGRAM, "--version"), capture_output=True, text=True, check=True).stdout


def stamp(lab: Lab) -> dict[str, str | int]:
    return dict(json.loads(current(lab.home).made.read_text())["stamp"])


def edit(lab: Lab) -> None:
    """Open a document, which has to come back edited."""
    work = lab.vm("work")
    work.output("sh", "-c", "echo append >letter.txt")
    work.output("qvm-open-in-dvm", "letter.txt")
    assert "edited in disp" in work.output("cat", "letter.txt")


def test_a_savefile_is_made_and_used_where_it_was_made(lab: Lab) -> None:
    lab.home.make()
    lab.build_template()
    built = template.current(lab.home).folder
    shared = SHARED / "template" / built.name
    shutil.copytree(built, shared)  # with its times: a template's root disk is known by them
    lab.succeed("qvm-template", "use", shared)
    lab.vm("work")
    lab.succeed("qvm-create-default-dvm", "--default-template", EDITOR)
    made = current(lab.home)
    edit(lab)
    assert current(lab.home) == made
    VERSION.write_text(version())


def test_that_of_another_qemu_is_stale_by_qemu_alone_and_made_again(lab: Lab) -> None:
    before, stamp_before = current(lab.home), stamp(lab)
    assert VERSION.read_text() != version(), "the same QEMU here and there tells nothing"
    lab.vm("work")
    with Person(lab.home.agent_socket) as person:
        edit(lab)
        assert person.notice("stale").endswith("the savefile is stale, as it was made with another QEMU")
    assert current(lab.home) != before and not before.folder.exists()
    assert {key for key, value in stamp(lab).items() if value != stamp_before.get(key)} == {"QEMU"}
    made = current(lab.home)
    edit(lab)
    assert current(lab.home) == made, "the new one is used"
    VERSION.write_text(version())
