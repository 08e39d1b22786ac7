"""Runs every tier of the tests, and says at the end what came of all of them.

    python -m tests.tiers [PYTEST-ARGUMENT…]

What machines start from is made, where the cache has it not, beside the first tests, which need none. A Xen machine emulates one
processor, whatever the host has. So of those, which belong to one test each, as many run beside each other as the host has processors,
up to two; nothing else runs meanwhile.

What fails on real machines, or with real programs on a screen, is run once more, and pytest's summary names it: an emulator may crash (QEMU
7.2 has been seen to, as it unplugged a disk), a program may not find the accessibility bus. What fails twice has failed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from xml.etree import ElementTree

from tests.machines import EVIDENCE

MACHINES_MAX = 2
"""Memory for this many Xen machines is what a small computer has."""
ONCE_MORE = ("--reruns", "1", "-rR")
TIERS = (
    (("tests/unit",), ("-n", "2")),
    (("tests/desktop", "tests/conformance", "tests/vm"), ONCE_MORE),
    (("tests/xen",), (*ONCE_MORE, "-n", str(min(MACHINES_MAX, os.cpu_count() or 1)), "--dist", "worksteal")),
)
BUILD_LOG = EVIDENCE / "machines.log"
_NO_TESTS = 5
"""pytest's status where its arguments have chosen none of a tier's tests."""


def counted(report: Path) -> Counter[str]:
    """What a report in the form of JUnit tells: how many of what."""
    counts: Counter[str] = Counter()
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        tests, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
        failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
        counts.update(passed=tests - skipped - failed, failed=failed, skipped=skipped)
    return counts


@contextmanager
def machines_made() -> Iterator[None]:
    """Make the machines beside what is done meanwhile. Where that fails, the tests that want them do, and tell why."""
    BUILD_LOG.parent.mkdir(parents=True, exist_ok=True)
    print(f"making the machines that the cache has not, beside the first tests: see {BUILD_LOG}", flush=True)
    with BUILD_LOG.open("w") as said:
        command = (sys.executable, "-m", "tests.machines")
        maker = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
    try:
        yield
    finally:
        if maker.poll() is None:
            os.killpg(maker.pid, signal.SIGINT)
        maker.wait()


def main(arguments: list[str]) -> int:
    total: Counter[str] = Counter()
    statuses = []
    with tempfile.TemporaryDirectory() as folder, nullcontext() if arguments else machines_made():
        for paths, options in TIERS:
            report = Path(folder, "report.xml")
            command = (sys.executable, "-m", "pytest", *paths, *options, f"--junitxml={report}", *arguments)
            statuses.append(subprocess.run(command, check=False).returncode)
            if report.exists():
                total += counted(report)
                report.unlink()
    wrong = [status for status in statuses if status not in (0, _NO_TESTS)]
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return wrong[0] if wrong else max(statuses) if not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
