"""What this host has and lacks, for ``qfilexchg doctor``. Changes nothing; each finding says what to do about it."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import assert_never

from qfilexchg.dom0 import configuration, programs
from qfilexchg.dom0.cli.findings import Check, Verdict
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.platform import NotDom0, Platform
from qfilexchg.dom0.vms import choice, savefile, services, template
from qfilexchg.dom0.vms.packed import UNPACKERS
from qfilexchg.dom0.vms.template import Template
from qfilexchg.errors import CallerError, QfilexchgError

PROGRAMS = {Platform.QEMU: ("qemu-system-x86_64", "mke2fs", "mkfs.fat"), Platform.XEN: ("xl", "mke2fs", "mkfs.fat")}
BUILD_PROGRAMS = {
    Platform.QEMU: ("mmdebstrap", "fakeroot", "tar", *UNPACKERS, "cpio", "modprobe", "dh", "dpkg-buildpackage"),
    # Where the package of the VM side comes along, and the template may be built on another computer.
    Platform.XEN: ("mmdebstrap", "fakeroot", "tar", *UNPACKERS, "cpio", "modprobe"),
}
PYTHON = (3, 11)
TEMPLATE_BYTES = 2 << 30
"""What building a template needs at most, with the archive and the unpacked tree beside the image."""


def checks(home: Home | None = None) -> list[Check]:
    """Everything that is looked at, in the order in which it is needed. May take the seconds of a probe of KVM."""
    try:
        found = home or Home.from_environment()
    except NotDom0 as error:
        return [Check("Xen", Verdict.BAD, str(error)), *_before_xen()]
    return [*_host(found), *_template(found), *_services(found), *_platform(found)]


def _before_xen() -> Iterator[Check]:
    """What can be looked at before the computer runs Xen."""
    from qfilexchg.dom0.cli import doctor_xen

    try:
        home = Home.from_environment(on=Platform.XEN)
    except CallerError as error:
        yield Check("the rest", Verdict.NOTE, str(error))
        return
    yield from _host(home)
    yield next(_template(home))  # only Xen can tell whether the savefile is fresh
    yield from asyncio.run(doctor_xen.installed(home))


def _host(home: Home) -> Iterator[Check]:
    yield from _python()
    yield from _programs(home.platform)
    yield _rooms(home)
    yield _user_namespaces()


def _platform(home: Home) -> list[Check]:
    """What only this platform has. The other's module may not even be importable."""
    match home.platform:
        case Platform.QEMU:
            from qfilexchg.dom0.cli import doctor_qemu

            return list(doctor_qemu.checks(home))
        case Platform.XEN:
            from qfilexchg.dom0.cli import doctor_xen

            return asyncio.run(doctor_xen.checks(home))
        case _:
            assert_never(home.platform)


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= PYTHON
    yield Check("python", Verdict.GOOD if good else Verdict.BAD, version if good else f"{version} is too old: install Python 3.11 or newer")


def _programs(platform: Platform) -> Iterator[Check]:
    for name in PROGRAMS[platform]:
        yield _program(name, Verdict.BAD)
    for name in BUILD_PROGRAMS[platform]:
        yield _program(name, Verdict.BAD if platform is Platform.QEMU else Verdict.NOTE)


def _program(name: str, where_missing: Verdict) -> Check:
    try:
        return Check(name, Verdict.GOOD, programs.find_program(name))
    except programs.ProgramMissing as error:
        return Check(name, where_missing, str(error))


def _rooms(home: Home) -> Check:
    folder = _nearest(home.cache)
    free_bytes = shutil.disk_usage(folder).free
    free = f"{free_bytes / (1 << 30):.1f} GiB are free in {folder}"
    if free_bytes < TEMPLATE_BYTES:
        return Check("disk", Verdict.BAD, f"{free}; building a template takes {TEMPLATE_BYTES >> 30}")
    return Check("disk", Verdict.GOOD, free)


def _nearest(folder: Path) -> Path:
    """The folder itself, or the first above it that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder


def _user_namespaces() -> Check:
    what = "building without root"
    if os.geteuid() == 0:
        return Check(what, Verdict.GOOD, "not needed: this is root")
    try:
        programs.find_program("newuidmap")
    except programs.ProgramMissing as error:
        return Check(what, Verdict.BAD, str(error))
    return subordinate_ids(what, Path("/etc/subuid"), Path("/proc/sys/kernel/unprivileged_userns_clone"))


def subordinate_ids(what: str, subuid: Path, switch: Path) -> Check:
    """Whether mmdebstrap can use a user namespace: the kernel allows it, and this user has ids to use in it."""
    if switch.exists() and switch.read_text(encoding="ascii").strip() != "1":
        return Check(what, Verdict.BAD, f"the kernel denies user namespaces to users: write 1 into {switch}, or build as root")
    names = {str(os.getuid()), pwd.getpwuid(os.getuid()).pw_name}
    lines = subuid.read_text(encoding="utf-8").splitlines() if subuid.exists() else []
    if not any(line.split(":")[0] in names for line in lines):
        return Check(what, Verdict.BAD, f"{subuid} gives this user no ids: install the Debian package uidmap, or build as root")
    return Check(what, Verdict.GOOD, "by a user namespace")


def _template(home: Home) -> Iterator[Check]:
    try:
        found = template.current(home)
    except QfilexchgError as error:
        yield Check("template", Verdict.BAD, str(error))
        return
    old = filter(None, (Template(folder).stale(time.time()) for folder in template.used(home)))
    said = "; ".join(old)
    yield Check("template", Verdict.NOTE if said else Verdict.GOOD, said or str(found.folder))
    yield _savefile(home)


def _savefile(home: Home) -> Check:
    try:
        settings = configuration.load((configuration.SYSTEM_FILE, home.configuration))
        made_of = asyncio.run(choice.toolstack(home).basis(settings.disposable_memory_mb))
        savefile.current(home).check(made_of.stamp)
    except savefile.NoSavefile as error:
        return Check("savefile", Verdict.NOTE, f"{error.why}; it is made when a document is opened, or by qvm-create-default-dvm")
    except QfilexchgError as error:
        return Check("savefile", Verdict.BAD, str(error))
    return Check("savefile", Verdict.GOOD, f"fresh, in {savefile.current(home).folder}")


def _services(home: Home) -> Iterator[Check]:
    for service in services.services(home):
        serves = services.serves(service)
        said = f"serves {service.socket}" if serves else "does not run; qvm-start starts it"
        yield Check(service.name, Verdict.GOOD if serves else Verdict.NOTE, said)


def report() -> int:
    """Print all findings; 1 if one of them is bad, else 0."""
    findings = checks()
    width = max(len(check.what) for check in findings)
    for check in findings:
        print(f"{check.verdict.value:<4}  {check.what:<{width}}  {check.said}")
    return int(any(check.verdict is Verdict.BAD for check in findings))
