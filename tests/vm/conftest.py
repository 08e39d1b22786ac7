"""Fixtures for tests on real VMs.

``lab``
    (session) A :class:`tests.vm.lab.Lab`: a home of its own in a short path, with the template from the cache or built once. Its
    commands are those of ``bin/``. At the end everything in it is stopped, and no process may be left.
``work``, ``personal``
    A :class:`tests.vm.lab.Vm` each, which run when the test begins: they are started once, and again after a test that ended one.
    A test cleans up after itself in them, or asks for ``fresh_vm``.
``fresh_vm``
    A VM of the test's own, ``fresh``, removed after it.
``lab_of_its_own``
    (function) A second, empty lab, for tests that end daemons or everything.

When a test fails, the logs of the daemons, of QEMU and of the VMs are in ``.ci/out/`` under the test's name.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.machines import EVIDENCE
from tests.vm.lab import QUESTION_TIMEOUT_S, Lab, Vm

_labs: list[Lab] = []


@contextmanager
def laboratory(*options: str) -> Iterator[Lab]:
    """A lab, whose template is built with these options."""
    folder = Path(tempfile.mkdtemp(prefix="qx-", dir="/tmp"))
    lab = Lab(folder)
    lab.home.make()
    lab.home.configuration.write_text(f"question_timeout_s = {QUESTION_TIMEOUT_S}\n")
    _labs.append(lab)
    try:
        lab.build_template(*options)
        yield lab
        lab.down()
        assert lab.processes() == []
    finally:
        lab.command("qfilexchg", "down")
        _labs.remove(lab)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with laboratory() as lab:
        yield lab


@pytest.fixture
def lab_of_its_own() -> Iterator[Lab]:
    with laboratory() as lab:
        yield lab


@pytest.fixture
def work(lab: Lab) -> Vm:
    return lab.vm("work")


@pytest.fixture
def personal(lab: Lab) -> Vm:
    return lab.vm("personal")


@pytest.fixture
def fresh_vm(lab: Lab) -> Iterator[Vm]:
    vm = lab.vm("fresh")
    yield vm
    if vm.runs:
        lab.succeed("qvm-kill", vm.name)
    lab.succeed("qvm-remove", vm.name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for lab in _labs:
            lab.save_evidence(EVIDENCE / item.name / lab.home.data.name)
    return report
