"""What the benchmarks share: a home of their own with VMs in it, and tables of results.

Each home uses the template from the cache, and everything in it is stopped and removed at the end.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from qfilexchg.dom0.debian import host_release
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import recipe

TOP = Path(__file__).parents[1]
DEADLINE_S = 600


def command(name: str, *arguments: str) -> list[str]:
    """The argument list of one of our commands."""
    return [str(TOP / "bin" / name), *arguments]


def run(name: str, *arguments: str, input: bytes | None = None) -> bytes:
    """Run one of our commands, which must succeed, and return its output."""
    argv = command(name, *arguments)
    return subprocess.run(argv, input=input or b"", stdout=subprocess.PIPE, check=True, timeout=DEADLINE_S).stdout


@contextmanager
def stand(*vms: str) -> Iterator[Home]:
    """A home in which ``vms`` run."""
    with tempfile.TemporaryDirectory(prefix="qx-") as folder:
        os.environ["QFILEXCHG_HOME"] = folder
        home = Home.from_environment()
        recipe.build(home, host_release(), lambda line: print(line, file=sys.stderr))
        try:
            for vm in vms:
                run("qvm-create", vm)
                run("qvm-start", vm)
            yield home
        finally:
            run("qfilexchg", "down")


def logged_at(home: Home, ending: str) -> float:
    """When the daemon's log last had a line that ends so, on the host's clock."""
    lines = (home.log / "qfilexchgd.log").read_text(encoding="utf-8").splitlines()
    last = next(line for line in reversed(lines) if line.endswith(ending))
    stamp = re.match(r"(\S+ \S+),(\d+) ", last)
    assert stamp
    return datetime.fromisoformat(f"{stamp[1]}.{stamp[2]}").timestamp()


def host() -> str:
    return f"{len(os.sched_getaffinity(0))} processors, load {os.getloadavg()[0]:.1f}"


def heading(title: str) -> None:
    print(f"{title}, {host()}")
    print(f"{'':48}{'median':>9}{'least':>9}{'most':>9}{'':5}{'ratio':>8}")


def row(title: str, values: Sequence[float], unit: str = "s", of: float | None = None) -> None:
    """One result; its ratio is that of the median to ``of``."""
    ratio = f"{statistics.median(values) / of:8.2f}" if of else ""
    print(f"{title:48}{statistics.median(values):9.2f}{min(values):9.2f}{max(values):9.2f} {unit:4}{ratio}".rstrip())
