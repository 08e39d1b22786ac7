"""What the packages install, held against the code that it belongs to. What needs a build is in ``tests/conformance``."""

from __future__ import annotations

import os
import subprocess
import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest

from qfilexchg.dom0 import configuration
from qfilexchg.dom0.cli import entry
from qfilexchg.dom0.cli.commands import COMMANDS
from qfilexchg.dom0.exchange import policy
from qfilexchg.dom0.home import XEN_DATA, XEN_RUN, Home
from qfilexchg.dom0.platform import CAPABILITIES
from qfilexchg.dom0.vms.xen import orders

TOP = Path(__file__).resolve().parents[2]
DOM0 = TOP / "packaging/dom0"


def uncommented(file: Path, sign: str) -> str:
    """The lines that are examples: they begin with ``#`` and go on at once with what is no sentence."""
    lines = (line[1:] for line in file.read_text().splitlines() if line.startswith("#") and not line.startswith("# "))
    return "\n".join(line for line in lines if sign in line)


def test_the_example_of_settings_sets_each_to_what_holds_without_it() -> None:
    assert tomllib.loads(uncommented(DOM0 / "qfilexchg.toml", "=")) == asdict(configuration.Configuration())
    assert tomllib.loads((DOM0 / "qfilexchg.toml").read_text()) == {}


def test_the_example_of_rules_ends_with_those_that_are_shipped() -> None:
    examples = policy.parse(uncommented(DOM0 / "yours.policy", " "), "examples")
    shipped = policy.default_rules()
    assert [(rule.source, rule.target, rule.action) for rule in examples[-len(shipped) :]] == [
        (rule.source, rule.target, rule.action) for rule in shipped
    ]
    assert len(examples) > len(shipped)
    assert policy.parse((DOM0 / "yours.policy").read_text(), "yours.policy") == ()


def test_the_rules_of_udev_and_the_unit_name_the_folders_of_a_home_on_xen() -> None:
    rules = (DOM0 / "59-qfilexchg-dom0.rules").read_text()
    assert f'ATTRS{{loop/backing_file}}=="{XEN_DATA}/*"' in rules
    unit = (DOM0 / "qfilexchgd.service").read_text().splitlines()
    assert f"RuntimeDirectory={XEN_RUN.relative_to('/run')}" in unit
    assert f"StateDirectory={XEN_DATA.relative_to('/var/lib')}" in unit


@pytest.mark.parametrize("unit", sorted(DOM0.glob("*.service")), ids=lambda unit: unit.name)
def test_a_unit_is_not_tried_where_the_computer_is_not_dom0(unit: Path) -> None:
    lines = unit.read_text().splitlines()
    assert {f"ConditionPathExists={CAPABILITIES}", f"ExecCondition=/bin/grep -q control_d {CAPABILITIES}"} < set(lines)


def test_a_vm_without_a_desktop_gets_no_gtk_and_the_template_with_one_has_it() -> None:
    last = (TOP / "packaging/debian/control").read_text().split("\n\n")[-1]
    fields = dict(line.split(": ", 1) for line in last.splitlines() if ": " in line)
    gtk = {"gir1.2-gtk-3.0", "python3-gi"}
    assert fields["Package"] == "qfilexchg-vm" and "Recommends" not in fields
    assert gtk <= set(fields["Suggests"].split(", "))
    assert gtk <= set((TOP / "src/qfilexchg/dom0/vms/desktop/packages").read_text().split())


def test_the_wheel_has_every_command() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == dict.fromkeys(COMMANDS, f"{entry.__name__}:{entry.main.__name__}")


def test_a_program_is_the_command_that_it_is_called_as(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/qfilexchg-agent", "--nonsense"])
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: qfilexchg-agent")
    monkeypatch.setattr("sys.argv", ["/usr/bin/qfilexchg-nothing"])
    assert entry.main() == 2


@pytest.mark.parametrize("theirs", [None, "vms/work", "kept/pendrive.img", "spool/pendrive.img"])
def test_a_purge_leaves_what_is_a_persons_and_nothing_else(tmp_path: Path, theirs: str | None) -> None:
    script = (TOP / "packaging/debian/qfilexchg-dom0.postrm").read_text()
    for folder in ("/var/lib/", "/var/cache/", "/run/", "/etc/"):
        assert folder in script
        script = script.replace(folder, f"{tmp_path}{folder}")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "getent").write_text("#!/bin/sh\nexit 2\n")
    (programs / "getent").chmod(0o755)
    home = Home(tmp_path / "var/lib/qfilexchg", tmp_path / "run/qfilexchg", tmp_path / "var/cache/qfilexchg")
    home.make()
    for file in (home.collection, home.journal, orders.nothing(home)):
        file.touch()
    if theirs:
        (home.data / theirs).parent.mkdir(exist_ok=True)
        (home.data / theirs).touch()
    path = f"{programs}:{os.environ['PATH']}"
    said = subprocess.run(["/bin/sh", "-c", script, "postrm", "purge"], env={"PATH": path}, check=True, timeout=20, capture_output=True)
    if theirs:
        assert b"holds what is yours" in said.stdout and (home.data / theirs).exists()
    else:
        assert said.stdout == b"" and not home.data.exists()
    assert not orders.nothing(home).exists() and not home.run.exists() and not home.cache.exists()


def test_bytecode_is_removed_when_nothing_of_the_package_runs_any_more() -> None:
    # Before, what ends the VMs wrote it once more, and its folders outlived the package.
    script = (TOP / "packaging/debian/qfilexchg-dom0.prerm").read_text()
    assert script.index("#DEBHELPER#") < script.index("py3clean")
