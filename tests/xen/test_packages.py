"""The package of dom0 on a computer that is used: it is upgraded while VMs have pendrives, and removed when they have none."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.machines import CHECKOUT
from tests.xen.documents import make, sha256
from tests.xen.dom0 import HOME, UNIT, Dom0
from tests.xen.running import DEADLINE_S
from tests.xen.vm import XenVm

PACKAGE = "qfilexchg-dom0"
UDEV_RULES = "/usr/lib/udev/rules.d/59-qfilexchg-dom0.rules"
NEXT = "99.0"
_BUILD_DEADLINE_S = 300


@pytest.fixture(scope="module")
def upgrade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of a later version."""
    folder = tmp_path_factory.mktemp("upgrade")
    checkout = folder / "checkout"
    checkout.mkdir()
    for name in ("src", "packaging", "docs"):
        shutil.copytree(CHECKOUT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for page in CHECKOUT.glob("*.md"):
        shutil.copy(page, checkout)
    changelog = checkout / "packaging/debian/changelog"
    present = changelog.read_text()
    version = present.partition("(")[2].partition(")")[0]
    changelog.write_text(present.replace(version, NEXT, 1))
    subprocess.run([checkout / "packaging/build-debs", folder / "debs"], check=True, capture_output=True, timeout=_BUILD_DEADLINE_S)
    (deb,) = (folder / "debs").glob("qfilexchg-dom0_*.deb")
    return deb


def managed(dom0: Dom0, *command: str) -> tuple[int, str]:
    """A package manager as a script would run it: without a terminal, and with nobody to answer it."""
    done = dom0.run("env", "-u", "TERM", *command, deadline_s=2 * DEADLINE_S)
    return done.returncode, (done.stdout + done.stderr).decode()


def test_an_upgrade_loses_no_pendrive_and_a_removal_waits_until_no_vm_has_one(
    dom0: Dom0, work: XenVm, personal: XenVm, upgrade: Path
) -> None:
    dom0.rule("work personal allow")
    digest = make(work, "1M", "data")
    work.output("qvm-copy-to-vm", "personal", "data")
    personal.sh("until mountpoint -q /mnt/incoming; do sleep 0.1; done")
    deb = f"/srv/{upgrade.name}"
    dom0.write(deb, upgrade.read_bytes())
    before = dom0.daemon()
    status, said = managed(dom0, "apt-get", "-q", "-y", "install", deb)
    assert status == 0, said
    assert dom0.output("dpkg-query", "-W", "-f", "${Version}", PACKAGE) == NEXT
    assert dom0.daemon() not in (before, "0")
    assert [vm.domain for vm in (work, personal)] == [dom0.output("xl", "domid", vm.name).strip() for vm in (work, personal)]
    assert sha256(personal, "/mnt/incoming/data") == digest

    status, said = managed(dom0, "dpkg", "--remove", PACKAGE)
    assert status != 0 and "VMs still have disks of qfilexchg" in said, said
    assert dom0.output("systemctl", "is-active", UNIT) == "active\n"
    personal.output("umount", "/mnt/incoming")
    dom0.nothing_left()
    for vm in (work, personal):
        vm.destroy()
    dom0.until("! losetup -a | grep -q private.img")
    status, said = managed(dom0, "dpkg", "--remove", PACKAGE)
    assert status == 0, said
    installed = dom0.run("sh", "-c", f"ls -d /usr/lib/qfilexchg /usr/bin/qvm-* {UDEV_RULES}; pgrep -f '[q]filexchgd'")
    assert installed.stdout == b"", installed
    assert dom0.output("ls", f"{HOME}/vms").split() == ["personal", "work"]

    dom0.output("touch", f"{HOME}/kept/theirs")
    dom0.output("touch", f"{HOME}/nothing")  # what a VM that was restored has in a pendrive's place
    status, said = managed(dom0, "dpkg", "--purge", PACKAGE)
    assert status == 0 and f"{HOME} holds what is yours" in said, said
    assert set(dom0.output("ls", HOME).split()) == {"collection.sqlite", "journal.sqlite", "kept", "qfilexchg.toml", "policy.d", "vms"}
    gone = dom0.run("sh", "-c", "ls -d /run/qfilexchg /var/cache/qfilexchg /etc/qfilexchg; getent group qfilexchg")
    assert gone.stdout == b"", gone
