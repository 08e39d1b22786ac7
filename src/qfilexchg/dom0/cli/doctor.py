"""What this host has and lacks, for ``qfilexchg doctor``. Changes nothing; each finding says what to do about it."""

from __future__ import annotations

import asyncio
import enum
import os
import pwd
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qfilexchg.dom0 import configuration, programs
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import acceleration, savefile, services, template
from qfilexchg.errors import QfilexchgError

PROGRAMS = ("qemu-system-x86_64", "mke2fs", "mkfs.fat")
BUILD_PROGRAMS = ("mmdebstrap", "fakeroot", "tar", "dh", "dpkg-buildpackage")
PYTHON = (3, 11)
TEMPLATE_BYTES = 2 << 30
"""What building a template needs at most, with the archive and the unpacked tree beside the image."""


class Verdict(enum.Enum):
    """How a check ended."""

    GOOD = "ok"
    NOTE = "note"
    """Works, and the person may want to know."""
    BAD = "BAD"
    """VMs cannot be built, started or used before this is mended."""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. ``said`` is a sentence for a person."""

    what: str
    verdict: Verdict
    said: str


def checks(home: Home | None = None) -> list[Check]:
    """Everything that is looked at, in the order in which it is needed. May take the seconds of a probe of KVM."""
    found = home or Home.from_environment()
    return [*_python(), *_programs(), _rooms(found), _user_namespaces(), *_template_and_acceleration(found), *_services(found)]


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= PYTHON
    yield Check("python", Verdict.GOOD if good else Verdict.BAD, version if good else f"{version} is too old: install Python 3.11 or newer")


def _programs() -> Iterator[Check]:
    for name in (*PROGRAMS, *BUILD_PROGRAMS):
        try:
            yield Check(name, Verdict.GOOD, programs.find_program(name))
        except programs.ProgramMissing as error:
            yield Check(name, Verdict.BAD, str(error))


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


def _template_and_acceleration(home: Home) -> Iterator[Check]:
    try:
        found = template.current(home)
    except QfilexchgError as error:
        yield Check("template", Verdict.BAD, str(error))
        yield Check("acceleration", Verdict.NOTE, "not known before there is a template, whose kernel proves it")
        return
    yield Check("template", Verdict.GOOD, str(found.folder))
    choice = asyncio.run(acceleration.choose(home, found))
    fast = choice.accelerator is acceleration.Accelerator.KVM
    yield Check("acceleration", Verdict.GOOD if fast else Verdict.NOTE, f"{'KVM' if fast else 'TCG (emulation, slower)'}: {choice.why}")
    yield _savefile(home, found, choice.accelerator)


def _savefile(home: Home, booted: template.Template, accelerator: acceleration.Accelerator) -> Check:
    try:
        settings = configuration.load((configuration.SYSTEM_FILE, home.configuration))
        savefile.current(home).check(savefile.stamp(booted, accelerator, settings.disposable_memory_mb))
    except savefile.NoSavefile as error:
        return Check("savefile", Verdict.NOTE, f"{error.why}; it is made when a document is opened, or by qvm-create-default-dvm")
    except QfilexchgError as error:
        return Check("savefile", Verdict.BAD, str(error))
    return Check("savefile", Verdict.GOOD, f"fresh, in {savefile.current(home).folder}")


def _services(home: Home) -> Iterator[Check]:
    for service in services.services(home):
        said = f"serves {service.socket}" if service.serves() else "does not run; qvm-start starts it"
        yield Check(service.name, Verdict.GOOD if service.serves() else Verdict.NOTE, said)


def report() -> int:
    """Print all findings; 1 if one of them is bad, else 0."""
    findings = checks()
    width = max(len(check.what) for check in findings)
    for check in findings:
        print(f"{check.verdict.value:<4}  {check.what:<{width}}  {check.said}")
    return int(any(check.verdict is Verdict.BAD for check in findings))
