"""The rules of the house, as tests: the linters, the types, and which room may know which."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qfilexchg.dom0.exchange.phases import diagram

TOP = Path(__file__).resolve().parents[2]
SOURCE = TOP / "src"

ROOMS = {
    "qfilexchg.protocol": {"qfilexchg.errors", "qfilexchg.protocol"},
    "qfilexchg.xenstore": {"qfilexchg.errors", "qfilexchg.protocol", "qfilexchg.xenstore"},
    "qfilexchg.guest": {"qfilexchg.errors", "qfilexchg.protocol", "qfilexchg.xenstore", "qfilexchg.guest"},
    "qfilexchg.dom0": {"qfilexchg.errors", "qfilexchg.protocol", "qfilexchg.xenstore", "qfilexchg.dom0"},
}
"""What each room may import of ours. ``qfilexchg`` itself, which holds the version, is free to all."""

DOM0_ROOMS = {
    "qfilexchg.dom0.vms": {"qfilexchg.dom0.exchange", "qfilexchg.dom0.consent", "qfilexchg.dom0.cli"},
    "qfilexchg.dom0.consent": {"qfilexchg.dom0.exchange", "qfilexchg.dom0.vms", "qfilexchg.dom0.cli"},
    "qfilexchg.dom0.exchange": {"qfilexchg.dom0.cli"},
}
"""What a room of dom0 must not import: cli → exchange → vms, consent."""

PLATFORMS = {
    "qfilexchg.dom0.vms.qemu": {"qfilexchg.dom0.vms.choice", "qfilexchg.dom0.cli.doctor_qemu"},
    "qfilexchg.dom0.vms.xen": {"qfilexchg.dom0.vms.choice", "qfilexchg.dom0.cli.doctor_xen"},
}
"""Who in dom0, beside itself, may import a platform's room. The rest works through the ports."""

PURE = (
    "qfilexchg.protocol",
    "qfilexchg.xenstore.wire",
    "qfilexchg.xenstore.paths",
    "qfilexchg.xenstore.permissions",
    "qfilexchg.xenstore.tree",
    "qfilexchg.xenstore.watches",
    "qfilexchg.xenstore.store",
    "qfilexchg.dom0.consent.dialog",
    "qfilexchg.dom0.consent.protocol",
    "qfilexchg.dom0.consent.wording",
    "qfilexchg.dom0.exchange.documents",
    "qfilexchg.dom0.exchange.machine",
    "qfilexchg.dom0.exchange.messages",
    "qfilexchg.dom0.exchange.moves",
    "qfilexchg.dom0.exchange.phases",
    "qfilexchg.dom0.exchange.recovery",
    "qfilexchg.dom0.exchange.state",
    "qfilexchg.guest.desktop.opening",
    "qfilexchg.guest.desktop.sending",
    "qfilexchg.guest.desktop.showing",
)
PYTHONS = ("3.11", "3.14")
"""The oldest that we run on, and the newest that the type checker knows: what was deprecated or removed in between is an error."""

DESKTOP = "qfilexchg.guest.desktop"
WINDOWS = {f"{DESKTOP}.{name}" for name in ("destination_window", "menus", "programs", "progress_window", "running", "widgets")}
"""What of the VM side may use GTK."""

IMPURE = {"asyncio", "socket", "subprocess", "time", "random", "secrets", "threading", "select", "logging"}

OTHERS_PYTHON = {
    "tests/conformance/test_packages.py",  # pip
    "tests/desktop/vm_tools.py",  # windows, whose warnings are PyGObject's
    "tests/other_release/__main__.py",  # pytest
    "tests/other_release/trees.py",  # pip
    "tests/tiers.py",  # pytest, and what makes machines with Debian's programs
    "tests/unit/test_house.py",  # the linters
}
"""Where a test runs a Python program of others, or one of ours that starts such programs: their warnings are not ours to mend."""

FAST = ("qfilexchg.protocol", "qfilexchg.errors", "qfilexchg.xenstore.wire", "qfilexchg.xenstore.errors", "qfilexchg.xenstore.blocking")
SLOW = {"asyncio", "dataclasses", "typing", "enum", "re", "argparse", "subprocess", "logging", "json", "inspect"}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted((SOURCE / "qfilexchg").rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path


def imports(path: Path) -> Iterator[str]:
    """Every module that is imported at run time."""
    tree = ast.parse(path.read_text())
    for_types = {
        node
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and isinstance(test.test, ast.Name) and test.test.id == "TYPE_CHECKING"
        for node in ast.walk(test)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


MODULES = list(modules())


@pytest.mark.parametrize(("name", "path"), MODULES, ids=[name for name, _ in MODULES])
def test_a_module_imports_only_what_its_room_may_know(name: str, path: Path) -> None:
    ours = {module for module in imports(path) if within(module, "qfilexchg") and module not in {"qfilexchg", "qfilexchg.__version__"}}
    for room, allowed in ROOMS.items():
        if within(name, room):
            assert not {module for module in ours if not any(within(module, other) for other in allowed)}
    for room, forbidden in DOM0_ROOMS.items():
        if within(name, room):
            assert not {module for module in ours if any(within(module, other) for other in forbidden)}
    for platform, allowed in PLATFORMS.items():
        if within(name, "qfilexchg.dom0") and not within(name, platform) and name not in allowed:
            assert not {module for module in ours if within(module, platform)}
    if not within(name, "qfilexchg.lab"):
        assert not {module for module in ours if within(module, "qfilexchg.lab")}
    known = set(imports(path))
    if any(within(name, pure) for pure in PURE):
        assert not known & IMPURE
    if any(within(name, fast) for fast in FAST):
        assert not known & SLOW
    if within(name, "qfilexchg.guest") or within(name, "qfilexchg.protocol") or within(name, "qfilexchg.xenstore"):
        foreign = {module.partition(".")[0] for module in known} - sys.stdlib_module_names - {"qfilexchg", "__future__"}
        assert not foreign - ({"gi"} if name in WINDOWS else set()), "the VM side uses the standard library alone"
        assert within(name, DESKTOP) or not {module for module in ours if within(module, DESKTOP)}, "a VM needs no desktop"


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("ruff", "check", "--no-cache", "."), id="ruff"),
        *(pytest.param(("mypy", "--no-error-summary", "--python-version", version), id=f"mypy-{version}") for version in PYTHONS),
    ],
)
def test_a_linter_finds_nothing(command: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=TOP, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_python_program_of_ours_is_run_with_warnings_as_errors() -> None:
    commands = re.compile(r"[\[(]sys\.executable,")
    starting = {str(path.relative_to(TOP)) for path in (TOP / "tests").rglob("*.py") if commands.search(path.read_text())}
    assert starting == OTHERS_PYTHON | {"tests/python.py"}, "begin the command with tests.python.PYTHON"


def test_nothing_of_a_developers_machine_stands_in_the_tree() -> None:
    paths = r"(^|[^A-Za-z_.])/(work|root|farm|tmp/(brief|bash))/"
    grep = ("git", "grep", "-nIE", paths, "--", ":!tests/unit/test_house.py")
    found = subprocess.run(grep, cwd=TOP, capture_output=True, text=True, check=False)
    assert found.returncode == 1, found.stdout


def test_the_diagram_in_the_documentation_is_that_of_the_table() -> None:
    assert f"```mermaid\n{diagram()}```" in (TOP / "PROTOCOL.md").read_text()
