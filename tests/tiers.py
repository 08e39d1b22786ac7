"""Runs every tier of the tests, and says at the end what came of all of them.

    python -m tests.tiers [PYTEST-ARGUMENT…]

A Xen machine emulates one processor, whatever the host has. So of those, which belong to one test each, as many run beside each other as
the host has processors, up to two; nothing else runs meanwhile.

What fails on real machines, or with real programs on a screen, is run once more, and pytest's summary names it: an emulator may crash (QEMU
7.2 has been seen to, as it unplugged a disk), a program may not find the accessibility bus. What fails twice has failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

MACHINES_MAX = 2
"""Memory for this many Xen machines is what a small computer has."""
ONCE_MORE = ("--reruns", "1", "-rR")
TIERS = (
    (("tests/unit", "tests/conformance"), ()),
    (("tests/desktop", "tests/vm"), ONCE_MORE),
    (("tests/xen",), (*ONCE_MORE, "-n", str(min(MACHINES_MAX, os.cpu_count() or 1)), "--dist", "worksteal")),
)
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


def main(arguments: list[str]) -> int:
    total: Counter[str] = Counter()
    statuses = []
    with tempfile.TemporaryDirectory() as folder:
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
