"""What a VM tool imports before its first request: under emulation each module costs tens of milliseconds."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.python import PYTHON

CHECKOUT = Path(__file__).parents[3]
DEAR = {
    "argparse",
    "asyncio",
    "collections",
    "contextlib",
    "dataclasses",
    "enum",
    "hashlib",
    "pathlib",
    "re",
    "socket",
    "subprocess",
    "tarfile",
    "typing",
}

COMMANDS = [path for folder in ("bin", "libexec") for path in sorted((CHECKOUT / "packaging/vm" / folder).iterdir())]


@pytest.mark.parametrize("tool", ["penctl", "copy_to_vm", "incoming", "open_in_dvm", "pendrive_script", "returning", "volume_name"])
def test_it_is_little(tool: str) -> None:
    program = f"import sys; sys.path.insert(0, 'src'); import qfilexchg.guest.{tool}; print(*sys.modules)"
    result = subprocess.run([*PYTHON, "-IS", "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    modules = set(result.stdout.split())
    assert not modules & DEAR
    assert not {module for module in modules if module.startswith(("qfilexchg.dom0", "qfilexchg.lab"))}
    assert len(modules) < 70


@pytest.mark.parametrize("wrapper", COMMANDS, ids=lambda path: path.name)
def test_each_command_starts_without_site_and_environment(wrapper: Path) -> None:
    first, *rest = wrapper.read_text().splitlines()
    assert first == "#!/usr/bin/python3 -IS"
    assert 'sys.path.insert(0, "/usr/lib/qubes/python")' in rest
    assert wrapper.stat().st_mode & 0o111 == 0o111
