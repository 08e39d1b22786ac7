"""The machines that tests start from: the templates of the VMs, and genuine Xen.

    python -m tests.machines

makes those that are missing in the cache, beside tests that need none. A test that wants one makes it, or waits for it.

They are of the host's own release of Debian, or of the one that QFILEXCHG_TEST_RELEASE names.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qfilexchg.dom0.debian import Release, host_release
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import recipe
from qfilexchg.dom0.vms.template import Contents
from qfilexchg.lab.xen import stages

CHECKOUT = Path(__file__).resolve().parents[1]
EVIDENCE = CHECKOUT / ".ci/out"
EDITOR = CHECKOUT / "tests/vm/editor"
"""What prepares the DisposableVMs of tests."""
RELEASE = Release(os.environ.get("QFILEXCHG_TEST_RELEASE") or host_release())
"""Of every VM that a test starts, and of the Xen machine's dom0."""


@contextmanager
def home_of_its_own() -> Iterator[Home]:
    """In a path that is short enough for sockets, with the cache of everybody's."""
    folder = Path(tempfile.mkdtemp(prefix="qx-", dir="/tmp"))
    try:
        home = Home.from_environment({**os.environ, "QFILEXCHG_HOME": str(folder)})
        home.make()
        yield home
    finally:
        shutil.rmtree(folder)


def xen_machine(home: Home) -> stages.Ready:
    return stages.build(home, RELEASE, EDITOR, _say)


def main() -> None:
    with home_of_its_own() as home:
        recipe.make(home, Contents(RELEASE), _say)
        xen_machine(home)
        recipe.make(home, Contents(RELEASE, desktop=True), _say)
        for release in Release:
            recipe.make(home, Contents(release), _say)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
