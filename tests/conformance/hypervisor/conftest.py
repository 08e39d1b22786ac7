"""Fixtures of the hypervisors' suite.

``world``
    (module) A :class:`tests.conformance.hypervisor.world.World`, for each platform that is to be tested: the one of ``--platform``, or
    ``fake``, the unit tests' own, ``xl``, the Xen platform with the unit tests' xl, and ``qemu``, real VMs. A test that wants it may be
    a coroutine function.
``image``
    A function that makes an image: zeros, or what it is given at the start. They are deleted after the test, which has detached them.
``vms``
    The two VMs of the world. Their slots are empty when the test begins, and are emptied after it.

On Xen, as root in dom0, where two VMs of the template run. What is needed of ``tests`` is this folder, at its place::

    python3 -m pytest tests/conformance/hypervisor --platform=xen --vms=work,personal
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from qfilexchg.dom0.vms.hypervisor import RunningVm, Slot
from tests.conformance.hypervisor.world import World, run

DEADLINE_S = 600.0
"""Above what any test takes, a VM's start under emulation included: it only turns a hang into a failure."""
IMAGE_BYTES = 4 << 20

MakeImage = Callable[..., Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--platform", choices=("fake", "xl", "qemu", "xen"), help="test this hypervisor alone")
    parser.addoption("--patient", action="store_true", help="test the deadlines of calls too, which takes minutes")
    parser.addoption("--vms", default="work,personal", help="on Xen, two VMs of the template that run (default: %(default)s)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "world" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("platform", None)
        metafunc.parametrize("world", [chosen] if chosen else ["fake", "xl", "qemu"], indirect=True, scope="module")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("patient", False):
        impatient = [item for item in items if not item.get_closest_marker("patient")]
        config.hook.pytest_deselected(items=[item for item in items if item not in impatient])
        items[:] = impatient


def _world(platform: str, config: pytest.Config) -> World:
    if platform == "xen":
        from tests.conformance.hypervisor.xen import XenWorld

        return XenWorld(config.getoption("vms").split(","))
    if platform == "qemu":
        from tests.conformance.hypervisor.qemu import QemuWorld

        return QemuWorld()
    if platform == "xl":
        from tests.conformance.hypervisor.fake_xl import FakeXlWorld

        return FakeXlWorld()
    from tests.conformance.hypervisor.fake import FakeWorld

    return FakeWorld()


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    world = _world(request.param, request.config)
    try:
        world.open()
        yield world
    finally:
        world.close()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function in the world's event loop."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    run(cast(World, pyfuncitem.funcargs["world"]), pyfuncitem.obj(**arguments), DEADLINE_S)
    return True


@pytest.fixture
def image(world: World) -> Iterator[MakeImage]:
    numbers = itertools.count()
    made: list[Path] = []

    def make(start: bytes = b"", *, name: str = "", size_bytes: int = IMAGE_BYTES) -> Path:
        path = world.folder / (name or f"image{next(numbers)}.img")
        with path.open("xb") as file:
            file.write(start)
            file.truncate(size_bytes)
        path.chmod(0o600)
        made.append(path)
        return path

    yield make
    for path in made:
        path.unlink(missing_ok=True)


async def both(world: World) -> tuple[RunningVm, RunningVm]:
    """The VMs of the world, of which those are started that do not run."""
    first, second = await asyncio.gather(world.vm(0), world.vm(1))
    return first, second


@pytest.fixture
def vms(world: World, image: MakeImage) -> Iterator[tuple[RunningVm, RunningVm]]:
    async def emptied() -> None:
        await asyncio.gather(*(world.hypervisor.detach(vm.id, slot) for vm in pair for slot in Slot))

    pair = run(world, both(world), DEADLINE_S)
    yield pair
    run(world, emptied(), DEADLINE_S)


def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    if world := getattr(node, "funcargs", {}).get("world"):
        world.save_evidence(node.name)
