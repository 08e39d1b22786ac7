from __future__ import annotations

import os
import pwd
import time
from pathlib import Path

import pytest

from qfilexchg.dom0 import platform, viewer
from qfilexchg.dom0.cli import doctor, doctor_qemu, doctor_xen
from qfilexchg.dom0.cli.findings import Check, Verdict
from qfilexchg.dom0.debian import Release
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.platform import NotDom0, Platform
from qfilexchg.dom0.vms import template
from qfilexchg.dom0.vms.qemu import acceleration
from qfilexchg.dom0.vms.template import Contents


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "data", tmp_path / "run", tmp_path / "cache")


def found(home: Home) -> dict[str, Check]:
    return {check.what: check for check in doctor.checks(home)}


def test_an_empty_home_lacks_a_template_and_is_left_empty(home: Home, tmp_path: Path) -> None:
    checks = found(home)
    assert checks["template"].verdict is Verdict.BAD
    assert "qvm-template build" in checks["template"].said
    assert checks["acceleration"].verdict is Verdict.NOTE
    assert "qvm-start" in checks["qxenstored"].said
    assert not list(tmp_path.iterdir())


def test_a_missing_program_is_bad_and_names_its_package(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.PROGRAMS, Platform.QEMU, ("no-such-program",))
    monkeypatch.setitem(doctor.BUILD_PROGRAMS, Platform.QEMU, ())
    assert found(home)["no-such-program"].verdict is Verdict.BAD


@pytest.mark.parametrize(("installed", "verdict"), [("/usr/bin/viewer", Verdict.GOOD), (None, Verdict.NOTE)])
def test_where_vms_have_screens_it_is_said_what_shows_them(
    home: Home, monkeypatch: pytest.MonkeyPatch, installed: str | None, verdict: Verdict
) -> None:
    monkeypatch.setattr(acceleration, "choose", _emulated)
    monkeypatch.setattr(viewer, "program", lambda: installed)
    home.make()
    made = template.Template(home.cache / "made")
    made.folder.mkdir()
    template.use(home, made)
    assert "screens" not in {check.what for check in doctor_qemu.checks(home)}
    made.describe(Contents(Release.TRIXIE, desktop=True), time.time())
    (screens,) = (check for check in doctor_qemu.checks(home) if check.what == "screens")
    assert screens.verdict is verdict and (installed or viewer.PACKAGE) in screens.said


async def _emulated(_home: Home, _template: template.Template) -> acceleration.Choice:
    return acceleration.Choice(acceleration.Accelerator.TCG, "it is so here")


@pytest.mark.parametrize("root", [True, False])
def test_before_the_computer_runs_xen_that_is_the_first_finding_and_the_rest_is_what_needs_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: bool
) -> None:
    def here() -> Platform:
        raise NotDom0(under_xen=False)

    monkeypatch.setattr(platform, "here", here)
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    monkeypatch.setattr(doctor_xen, "RULES", tmp_path / "missing.rules")
    first, *others = doctor.checks()
    assert first == Check("Xen", Verdict.BAD, str(NotDom0(under_xen=False)))
    if root:
        names = {check.what for check in others}
        assert {"python", "xl", "disk", "template", "udev rules", "loop devices"} <= names
        assert not names & {"qemu-system-x86_64", "savefile", "qfilexchgd", "xenstored", "keys", "agent"}
    else:
        assert ["put sudo before it" in check.said for check in others] == [True]


def test_a_full_disk_is_bad(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TEMPLATE_BYTES", 1 << 60)
    assert found(home)["disk"].verdict is Verdict.BAD


@pytest.mark.parametrize(
    ("subuid", "switch", "verdict"),
    [
        (f"{os.getuid()}:100000:65536\n", "1", Verdict.GOOD),
        (f"{pwd.getpwuid(os.getuid()).pw_name}:100000:65536\n", None, Verdict.GOOD),
        (f"{os.getuid()}:100000:65536\n", "0", Verdict.BAD),
        ("somebody:100000:65536\n", "1", Verdict.BAD),
        (None, "1", Verdict.BAD),
    ],
)
def test_building_without_root_needs_ids_and_a_willing_kernel(
    subuid: str | None, switch: str | None, verdict: Verdict, tmp_path: Path
) -> None:
    for name, content in (("subuid", subuid), ("switch", switch)):
        if content is not None:
            (tmp_path / name).write_text(content)
    assert doctor.subordinate_ids("building", tmp_path / "subuid", tmp_path / "switch").verdict is verdict


def test_a_savefile_that_is_missing_is_no_fault_and_a_setting_that_is_none_is(home: Home) -> None:
    booted = home.cache / "template"
    booted.mkdir(parents=True)
    for name in ("root.img", "kernel"):
        (booted / name).touch()
    home.data.mkdir()
    home.template.symlink_to(booted)
    assert found(home)["savefile"].verdict is Verdict.NOTE and "when a document is opened" in found(home)["savefile"].said
    home.configuration.write_text("disposable_memory_mb = 1\n")
    assert found(home)["savefile"].verdict is Verdict.BAD


def test_the_report_is_a_table_and_its_status_tells_whether_something_is_bad(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [Check("one", Verdict.GOOD, "fine"), Check("second", Verdict.NOTE, "well")]
    monkeypatch.setattr(doctor, "checks", lambda: checks)
    assert doctor.report() == 0
    assert capsys.readouterr().out == "ok    one     fine\nnote  second  well\n"
    checks.append(Check("third", Verdict.BAD, "mend it"))
    assert doctor.report() == 1
