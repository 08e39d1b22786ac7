"""The hypervisors' suite, run in dom0 by Debian's own pytest against the installed package."""

from __future__ import annotations

import io
import tarfile
from xml.etree import ElementTree

from tests.machines import CHECKOUT
from tests.xen.dom0 import Dom0

SUITE = CHECKOUT / "tests/conformance/hypervisor"
FILES = ("conftest.py", "real.py", "test_hypervisor.py", "world.py", "xen.py")
REPORT = "/srv/report.xml"
_FATES = ("failure", "error", "skipped")
_DEADLINE_S = 1500.0
_PYTEST = """
cd /srv/suite
PYTHONPATH=/usr/lib/qfilexchg/python exec python3 -m pytest tests/conformance/hypervisor --platform=xen --vms=work,personal \\
    --import-mode=importlib -p no:cacheprovider -q --junitxml="$1"
"""


def packed() -> bytes:
    """The suite as an archive, at its place."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in FILES:
            tar.add(SUITE / name, f"tests/conformance/hypervisor/{name}")
    return archive.getvalue()


def test_xen_keeps_what_the_port_promises(dom0: Dom0) -> None:
    dom0.output("sh", "-c", "mkdir /srv/suite && tar -xC /srv/suite", input=packed())
    done = dom0.run("sh", "-c", _PYTEST, "sh", REPORT, deadline_s=_DEADLINE_S)
    cases = list(ElementTree.fromstring(dom0.output("cat", REPORT)).iter("testcase"))
    for case in cases:
        print(f"{float(case.get('time', 0)):7.1f} s  {case.get('name')}", *(child.tag for child in case if child.tag in _FATES))
    assert done.returncode == 0, done.stdout.decode()[-8000:]
    assert len(cases) > 20, "the suite has not been found"
