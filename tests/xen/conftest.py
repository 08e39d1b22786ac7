"""Fixtures for tests on genuine Xen.

``dom0``
    (function) A :class:`tests.xen.dom0.Dom0` of a Xen machine of the test's own, pristine: qfilexchgd is ready, ``work`` and
    ``personal`` run, there is a savefile, no rule but the package's. Nothing is left of it after the test.
``work``, ``personal``
    (function) A :class:`tests.xen.vm.XenVm` each, of that machine.

When a test fails, what was said and how the machine was then is in ``.ci/out/`` under the test's name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from qfilexchg.lab.xen import runs, stages
from qfilexchg.protocol.names import VmName
from tests.machines import EVIDENCE, home_of_its_own, xen_machine
from tests.xen.dom0 import Dom0
from tests.xen.running import event_loop
from tests.xen.vm import XenVm

_running: list[Dom0] = []


@pytest.fixture(scope="session")
def ready() -> stages.Ready:
    with home_of_its_own() as home:
        return xen_machine(home)


@pytest.fixture(scope="session")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with event_loop() as loop:
        yield loop


@pytest.fixture
def dom0(ready: stages.Ready, loop: asyncio.AbstractEventLoop) -> Iterator[Dom0]:
    with home_of_its_own() as home:
        name = VmName.parse("xen")
        try:
            machine = asyncio.run(runs.up(home, name, ready))
            dom0 = Dom0(machine, loop)
            _running.append(dom0)
            yield dom0
        finally:
            _running.clear()
            machine = runs.machine(home, name)
            process = machine.process()
            asyncio.run(runs.down(machine))
            assert process is None or not process.running
            assert not machine.folder.exists() and not machine.run_folder.exists()


@pytest.fixture
def work(dom0: Dom0) -> XenVm:
    return XenVm(dom0, "work")


@pytest.fixture
def personal(dom0: Dom0) -> XenVm:
    return XenVm(dom0, "personal")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A command that a test has left, by failing or with its VM, is collected by Python in the middle of another test."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for dom0 in _running:
            dom0.save_evidence(EVIDENCE / item.name)
    return report
