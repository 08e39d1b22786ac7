"""The packages, built as for a release: what is in them, and what Debian's own programs say of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qfilexchg.dom0 import configuration
from qfilexchg.dom0.cli.commands import COMMANDS
from qfilexchg.dom0.exchange import policy
from qfilexchg.dom0.platform import CAPABILITIES, HYPERVISOR, NotDom0
from qfilexchg.dom0.vms.recipe import INSTALLED_PACKAGE
from tests.calls import CALLS, NOT_ON_XEN

TOP = Path(__file__).resolve().parents[2]
CODE = "usr/lib/qfilexchg/python"
SOURCES = ("LICENSE", "docs", "packaging", "pyproject.toml", "src", *sorted(path.name for path in TOP.glob("*.md")))
BUILD_DEADLINE_S = 300
without_xen = pytest.mark.skipif(CAPABILITIES.exists() or HYPERVISOR.exists(), reason="this computer runs Xen")


@dataclass(frozen=True)
class Package:
    """A built package, and where it has been unpacked."""

    deb: Path
    root: Path

    def files(self, below: str = "") -> set[str]:
        """Its files and links, relative to the root or to the folder ``below`` it."""
        folder = self.root / below
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}

    def conffiles(self) -> set[str]:
        return set(run("dpkg-deb", "-I", str(self.deb), "conffiles").split())


def run(*command: str) -> str:
    """What a program prints, which has to succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_DEADLINE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(checkout: Path, folder: Path) -> dict[str, Path]:
    """The packages of ``checkout``, by name."""
    printed = run(str(checkout / "packaging/build-debs"), str(folder)).split()
    assert sorted(printed) == sorted(str(path) for path in folder.iterdir())
    return {Path(path).name.partition("_")[0]: Path(path) for path in printed}


def copy(checkout: Path, to: Path) -> Path:
    """What of a checkout goes into packages."""
    to.mkdir()
    for name in SOURCES:
        if (checkout / name).is_dir():
            shutil.copytree(checkout / name, to / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(checkout / name, to / name)
    return to


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packages")


@pytest.fixture(scope="module")
def checkout(folder: Path) -> Path:
    """One state of the sources for all tests, whoever works on them meanwhile."""
    return copy(TOP, folder / "checkout")


@pytest.fixture(scope="module")
def packages(checkout: Path, folder: Path) -> dict[str, Package]:
    built = {}
    for name, deb in build(checkout, folder / "debs").items():
        run("dpkg-deb", "-x", str(deb), str(folder / name))
        built[name] = Package(deb, folder / name)
    return built


@pytest.fixture(scope="module")
def dom0(packages: dict[str, Package]) -> Package:
    return packages["qfilexchg-dom0"]


@pytest.fixture(scope="module")
def wheel(checkout: Path, folder: Path) -> Path:
    sources = copy(checkout, folder / "for the wheel")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--wheel-dir", str(folder / "wheel"))
    run(sys.executable, "-m", "pip", "wheel", *options, str(sources))
    (built,) = (folder / "wheel").iterdir()
    return built


def test_the_same_sources_give_the_same_packages_wherever_and_whenever(
    packages: dict[str, Package], checkout: Path, tmp_path: Path
) -> None:
    elsewhere = copy(checkout, tmp_path / "elsewhere")
    for number, path in enumerate(sorted(elsewhere.rglob("*"))):
        os.utime(path, (number, 10**9 + number))
    again = build(elsewhere, tmp_path / "debs")
    assert {name: package.deb.read_bytes() for name, package in packages.items()} == {name: deb.read_bytes() for name, deb in again.items()}


def test_the_vm_side_alone_is_the_same_package(packages: dict[str, Package], checkout: Path, tmp_path: Path) -> None:
    printed = Path(run(str(checkout / "packaging/build-vm-deb"), str(tmp_path)).strip())
    assert list(tmp_path.iterdir()) == [printed]
    assert printed.read_bytes() == packages["qfilexchg-vm"].deb.read_bytes()


def test_what_dom0_builds_templates_from_is_that_package(packages: dict[str, Package]) -> None:
    nested = packages["qfilexchg-dom0"].root / INSTALLED_PACKAGE.relative_to("/")
    assert nested.read_bytes() == packages["qfilexchg-vm"].deb.read_bytes()


def test_lintian_finds_nothing_but_that_commands_have_a_help_instead_of_a_manual_page(packages: dict[str, Package]) -> None:
    debs = [str(package.deb) for package in packages.values()]
    said = run("lintian", "--fail-on", "error,warning", "--suppress-tags", "no-manual-page", *debs)
    assert not [line for line in said.splitlines() if line.startswith(("E:", "W:"))]


def test_every_command_of_dom0_is_there(dom0: Package) -> None:
    commands = {
        path.name: path.resolve().relative_to(dom0.root.resolve())
        for place in ("usr/bin", "usr/sbin", "usr/lib/qubes")
        for path in (dom0.root / place).iterdir()
    }
    assert set(commands) == set(COMMANDS) - NOT_ON_XEN
    assert {str(program) for program in commands.values()} == {"usr/lib/qfilexchg/command"}


def test_the_code_is_that_of_the_rooms_of_dom0_without_qemu_and_nothing_else(dom0: Package, checkout: Path) -> None:
    source = checkout / "src"
    rooms = [source / "qfilexchg/__init__.py", source / "qfilexchg/errors.py"]
    for room in ("dom0", "protocol", "xenstore"):
        rooms += (path for path in (source / "qfilexchg" / room).rglob("*") if path.is_file())
    qemu = {path for path in rooms if path.name == "doctor_qemu.py" or path.is_relative_to(source / "qfilexchg/dom0/vms/qemu")}
    assert len(qemu) > 1
    expected = {str(path.relative_to(source)): path.read_bytes() for path in rooms if path not in qemu}
    assert {name: (dom0.root / CODE / name).read_bytes() for name in dom0.files(CODE)} == expected


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - NOT_ON_XEN))
def test_a_command_says_what_it_is_for_with_debians_python_alone(dom0: Package, name: str) -> None:
    assert run(*unpacked(dom0, name), "--help").startswith(f"usage: {name}")


def unpacked(dom0: Package, name: str) -> tuple[str, ...]:
    """The command ``name`` of the package where it has been unpacked, by Debian's Python."""
    program = (dom0.root / "usr/lib/qfilexchg/command").read_text()
    assert program.startswith("#!/usr/bin/python3 -IS\n") and f'"/{CODE}"' in program
    here = program.replace(f'"/{CODE}"', repr(str(dom0.root / CODE))).replace("import sys\n", f"import sys\nsys.argv[0] = {name!r}\n", 1)
    return "/usr/bin/python3", "-IS", "-B", "-c", here


@pytest.fixture
def terminal() -> Iterator[int]:
    """A terminal, as a person has one before them."""
    ours, theirs = os.openpty()
    yield theirs
    os.close(ours)
    os.close(theirs)


@without_xen
@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_before_the_reboot_into_xen_a_command_says_that_it_does_not_run_and_what_to_do(
    dom0: Package, call: tuple[str, ...], terminal: int
) -> None:
    # Before, each ended in a traceback, as the platform was then QEMU, whose library the package has not.
    name, *arguments = call
    command = [*unpacked(dom0, name), *arguments]
    done = subprocess.run(command, stdin=terminal, stdout=terminal, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (125 if name in ("qvm-run", "qvm-console") else 1, f"{name}: {NotDom0(under_xen=False)}\n")


@without_xen
def test_before_the_reboot_into_xen_the_doctor_finds_that_first(dom0: Package) -> None:
    done = subprocess.run([*unpacked(dom0, "qfilexchg"), "doctor"], capture_output=True, text=True, timeout=60, check=False)
    first, *others = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (1, "")
    assert re.fullmatch(rf"BAD   Xen +{re.escape(str(NotDom0(under_xen=False)))}", first)
    assert others and "qemu" not in done.stdout.lower()


def test_both_packages_can_be_installed_beside_each_other(packages: dict[str, Package]) -> None:
    assert not packages["qfilexchg-dom0"].files() & packages["qfilexchg-vm"].files()


def test_what_a_person_may_change_is_kept_over_an_upgrade(dom0: Package) -> None:
    assert {str(configuration.SYSTEM_FILE), f"{policy.SYSTEM_FOLDER}/yours.policy"} < dom0.conffiles()


def test_units_rules_and_documentation_are_where_debian_looks_for_them(dom0: Package) -> None:
    documentation = {name.removesuffix(".gz") for name in dom0.files("usr/share/doc/qfilexchg-dom0")}
    assert {"README.md", "ARCHITECTURE.md", "PROTOCOL.md", "SECURITY.md", "CHANGELOG.md", "README.Debian", "copyright"} < documentation
    assert {
        "usr/lib/systemd/system/qfilexchg-vms.service",
        "usr/lib/systemd/system/qfilexchgd.service",
        "usr/lib/qfilexchg/python/qfilexchg/dom0/vms/xen/block",
        "usr/lib/systemd/user/qfilexchg-agent.service",
        "usr/lib/udev/rules.d/59-qfilexchg-dom0.rules",
        "usr/lib/modprobe.d/qfilexchg-dom0.conf",
        "etc/xdg/autostart/qfilexchg-agent.desktop",
    } < dom0.files()


def test_no_file_is_named_by_a_link_of_merged_usr(packages: dict[str, Package]) -> None:
    # lintian of Debian 12 does not look for it.
    names = {name for package in packages.values() for name in package.files()}
    assert not [name for name in names if name.startswith(("bin/", "lib/", "lib64/", "sbin/"))]


@pytest.mark.parametrize("name", ["qfilexchg-dom0", "qfilexchg-vm"])
def test_what_is_installed_enables_the_units_that_are_to_be_enabled(packages: dict[str, Package], name: str) -> None:
    # debhelper of Debian 12 sees no units below /usr/lib by itself.
    units = packages[name].root / "usr/lib/systemd/system"
    wanted = {unit.name for unit in units.glob("*.service") if "[Install]" in unit.read_text()}
    script = run("dpkg-deb", "-I", str(packages[name].deb), "postinst")
    assert wanted and {unit for unit in wanted if f"deb-systemd-helper enable '{unit}'" in script} == wanted


def test_the_entries_of_file_managers_are_where_each_looks_and_start_programs_that_are_there(packages: dict[str, Package]) -> None:
    vm = packages["qfilexchg-vm"]
    entries = {
        "usr/share/Thunar/sendto/thunar-send-to-vm.desktop",
        "usr/share/Thunar/sendto/thunar-open-in-dvm.desktop",
        "usr/share/caja-python/extensions/qfilexchg_caja.py",
        "usr/share/file-manager/actions/pcmanfm-send-to-vm.desktop",
        "usr/share/file-manager/actions/pcmanfm-open-in-dvm.desktop",
        "usr/share/kio/servicemenus/dolphin-send-to-vm.desktop",
        "usr/share/kio/servicemenus/dolphin-open-in-dvm.desktop",
        "usr/share/nautilus-python/extensions/qfilexchg_nautilus.py",
        "usr/share/nemo/actions/send-to-vm.nemo_action",
        "usr/share/nemo/actions/open-in-dvm.nemo_action",
    }
    assert entries < vm.files()
    code = vm.root / "usr/lib/qubes/python/qfilexchg/guest/desktop/menus.py"
    texts = [(vm.root / entry).read_text() for entry in entries] + [code.read_text()]
    programs = {name for text in texts for name in re.findall(r"/usr/lib/qubes/[a-z][a-z-]*-window", text)}
    assert len(programs) == 2
    for program in programs:
        assert os.access(vm.root / program.removeprefix("/"), os.X_OK)


@pytest.mark.parametrize(
    "unit",
    [
        "usr/lib/systemd/system/qfilexchgd.service",
        "usr/lib/systemd/system/qfilexchg-vms.service",
        "usr/lib/systemd/user/qfilexchg-agent.service",
    ],
)
def test_systemd_understands_every_line_of_a_unit(dom0: Package, unit: str, tmp_path: Path) -> None:
    text = (dom0.root / unit).read_text()
    for program in ("/usr/sbin/qfilexchgd", "/usr/bin/qfilexchg", "/usr/lib/qfilexchg/agent-window"):
        text = text.replace(f"={program}", "=/bin/true")
    copy = tmp_path / Path(unit).name
    copy.write_text(text.replace("Documentation=file:", "Documentation=https:"))
    scope = "--user" if "/user/" in unit else "--system"
    # It fails by what else there is on this host, and says so of other units.
    said = subprocess.run(["systemd-analyze", scope, "verify", str(copy)], capture_output=True, text=True, timeout=60, check=False)
    assert copy.name not in said.stderr


def test_the_agents_window_ends_quietly_where_it_could_show_nothing(dom0: Package) -> None:
    window = dom0.root / "usr/lib/qfilexchg/agent-window"
    done = subprocess.run([window], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("qfilexchg-agent: ") and len(done.stderr.splitlines()) == 1


def test_the_wheel_has_the_same_code_as_the_packages_and_the_same_units_and_rules(
    packages: dict[str, Package], checkout: Path, wheel: Path
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    for name, code in (("qfilexchg-dom0", CODE), ("qfilexchg-vm", "usr/lib/qubes/python")):
        package = packages[name]
        for file in package.files(code):
            assert content[file] == (package.root / code / file).read_bytes()
    shared = {name.partition("/data/share/")[2]: data for name, data in content.items() if ".data/data/share/" in name}
    installed = [path for side in ("dom0", "vm") for path in (checkout / "packaging" / side).rglob("*") if path.is_file()]
    by_name = {path.name: path.read_bytes() for path in installed if path.name != "command"}
    assert {Path(name).name: data for name, data in shared.items()} == by_name


def test_a_command_of_the_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    pip = (sys.executable, "-m", "pip", "--python", str(tmp_path / "venv/bin/python"))
    run(*pip, "--quiet", "--disable-pip-version-check", "install", "--no-deps", "--no-index", str(wheel))
    assert {path.name for path in (tmp_path / "venv/bin").iterdir()} > set(COMMANDS)
    assert run(str(tmp_path / "venv/bin/qfilexchg"), "--help").startswith("usage: qfilexchg")
