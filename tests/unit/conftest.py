"""What the unit tests share: a host whose QEMU none of them runs, and whose cache none of them sees."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from qfilexchg.dom0.vms.qemu import command


@pytest.fixture(scope="session", autouse=True)
def installed_qemu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A QEMU that is installed and starts nothing, whether or not this computer has one."""
    folder = tmp_path_factory.mktemp("programs")
    program = folder / command.PROGRAM
    program.write_text("#!/bin/sh\necho 'a unit test starts no virtual machine' >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        yield


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
