"""Templates on real VMs: both releases of Debian side by side, and what a template's owner does with it over the years."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from qfilexchg.dom0.debian import Release
from qfilexchg.dom0.programs import find_program
from qfilexchg.dom0.vms import template
from qfilexchg.dom0.vms.template import Template
from qfilexchg.lab.quickstart import EDITOR
from tests.vm.lab import Lab, Vm
from tests.vm.steps import rule, spool_is_empty, until

PACKAGE, PROGRAM = "hello", "/usr/bin/hello"


@pytest.fixture
def by_release(lab_of_its_own: Lab) -> dict[Release, Vm]:
    """A VM of each release, which runs. VMs that name none are of the newest."""
    for release in Release:
        lab_of_its_own.succeed("qvm-template", "build", "--release", release.value)
        lab_of_its_own.succeed("qvm-create", release.value, "--release", release.value)
    rule(lab_of_its_own, "* * allow")
    return {release: lab_of_its_own.vm(release.value) for release in Release}


def test_vms_of_both_releases_exchange_files_and_documents_side_by_side(by_release: dict[Release, Vm], lab_of_its_own: Lab) -> None:
    for release, vm in by_release.items():
        assert f"VERSION_CODENAME={release.value}\n" in vm.output("cat", "/etc/os-release")
    lab_of_its_own.succeed("qvm-create-default-dvm", "--default-template", EDITOR)
    for sender, receiver in ((by_release[here], by_release[there]) for here in Release for there in Release if here is not there):
        sender.output("sh", "-c", "mkdir -p tree/deep && head -c 3000000 /dev/urandom > tree/deep/data && ln -sf data tree/deep/link")
        sender.output("qvm-copy-to-vm", "--archive", receiver.name, "tree")
        until(lambda vm=receiver: vm.run("mountpoint", "-q", "/mnt/incoming").returncode == 0, "the archive arrives")  # type: ignore[misc]
        receiver.output("sh", "-c", "rm -rf tree; tar -xf /mnt/incoming/*.tar; umount /mnt/incoming")
        sums = [vm.output("sh", "-c", "sha256sum tree/deep/data; readlink tree/deep/link") for vm in (sender, receiver)]
        assert sums[0] == sums[1]
        spool_is_empty(lab_of_its_own)
        sender.output("sh", "-c", "echo before > letter.txt; qvm-open-in-dvm letter.txt")
        assert sender.output("cat", "letter.txt").startswith("before\nRead and approved in disp")
        spool_is_empty(lab_of_its_own)


def test_nothing_of_the_host_is_in_a_template(lab: Lab) -> None:
    disk = template.current(lab.home).root
    for path in ("/etc/hostname", "/etc/resolv.conf", "/etc/apt/sources.list", "/etc/apt/apt.conf.d/99mmdebstrap"):
        done = subprocess.run([find_program("debugfs"), "-R", f"stat {path}", disk], capture_output=True, text=True, check=True)
        assert "File not found" in done.stderr, path


def test_a_package_that_is_added_is_there_at_the_next_start_and_after_an_update(lab_of_its_own: Lab) -> None:
    lab = lab_of_its_own
    vm = lab.vm("work")
    first = template.current(lab.home)
    lab.succeed("qvm-template", "install", PACKAGE)
    added = template.current(lab.home)
    assert first != added and added.contents and added.contents.packages == (PACKAGE,)
    assert first.folder.exists(), "the plain one may be asked for again"
    assert vm.run("test", "-e", PROGRAM).returncode == 1, "a VM that runs keeps its template"
    restart(vm)
    assert vm.output(PROGRAM) == "Hello, world!\n"

    contents, made_s = added.contents, added.made_s
    lab.succeed("qvm-template", "update")
    updated = template.current(lab.home)
    assert updated != added and updated.made_s > made_s and updated.contents == contents
    vm.output("md5sum", PROGRAM)  # a VM that runs keeps the files of a template that is gone
    restart(vm)
    assert vm.output(PROGRAM) == "Hello, world!\n"
    assert not added.folder.exists()


def test_what_debian_does_not_have_changes_nothing_and_is_said_in_a_sentence(lab_of_its_own: Lab) -> None:
    before = template.current(lab_of_its_own.home)
    done = lab_of_its_own.command("qvm-template", "install", "no-such-package-at-all")
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and b"nothing was changed" in said and b"The mirrors: " in said
    assert template.current(lab_of_its_own.home) == before


def test_an_old_template_is_named_when_a_vm_starts_and_by_the_doctor(lab_of_its_own: Lab, tmp_path: Path) -> None:
    lab = lab_of_its_own
    old = aged(template.current(lab.home), tmp_path, days=31)
    lab.succeed("qvm-template", "use", old.folder)
    lab.made("work")
    started = lab.command("qvm-start", "work")
    assert started.returncode == 0 and b" is 31 days old" in started.stderr
    assert b"note  template" in (said := lab.command("qfilexchg", "doctor").stdout) and b"'qvm-template update'" in said
    assert b"31 d" in lab.succeed("qvm-template", "list")


def aged(template: Template, folder: Path, days: int) -> Template:
    """The same template, made so many days before."""
    copy = Template(folder)
    for file in template.folder.iterdir():
        if file != template.about:
            (folder / file.name).symlink_to(file)
    assert template.contents
    copy.describe(template.contents, template.made_s - days * 86400)
    return copy


def restart(vm: Vm) -> None:
    vm.lab.succeed("qvm-shutdown", vm.name)
    vm.lab.succeed("qvm-start", vm.name)
