"""The machines that tests start from: the templates of the VMs, and genuine Xen.

    python -m tests.machines

makes those that are missing in the cache, beside tests that need none. A test that wants one makes it, or waits for it.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qfilexchg.dom0.debian import host_release
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import recipe
from qfilexchg.dom0.vms.template import Contents
from qfilexchg.lab.xen import stages

CHECKOUT = Path(__file__).resolve().parents[1]
EVIDENCE = CHECKOUT / ".ci/out"
EDITOR = CHECKOUT / "tests/vm/editor"
"""What prepares the DisposableVMs of tests."""


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
    return stages.build(home, host_release(), EDITOR, _say)


def main() -> None:
    with home_of_its_own() as home:
        recipe.make(home, Contents(host_release()), _say)
        xen_machine(home)
        recipe.make(home, Contents(host_release(), desktop=True), _say)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
