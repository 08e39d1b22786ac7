"""Scripts on hosts that a test describes by stand-ins for the host's programs: ``bin/.setup``, which ./quickstart and ./test begin with,
and ``agent-window``, by which a session starts its agent."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]


class Host:
    """A host whose every program is a script of a line or two; ``called`` are those that were noted, in their order."""

    def __init__(self, folder: Path) -> None:
        self._programs = folder / "bin"
        self._programs.mkdir()
        self._called = folder / "called"
        for real in ("cat", "mktemp", "rm", "sha256sum", "tail"):
            (self._programs / real).symlink_to(f"/usr/bin/{real}")
        self.program("id", "echo 1000")
        known = 'here) echo "install ok installed" ;; removed) echo "deinstall ok config-files" ;; *) exit 1 ;;'
        self.program("dpkg-query", f"case $3 in {known} esac")
        self.noted("apt-get")

    def program(self, name: str, script: str) -> None:
        file = self._programs / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    def noted(self, name: str, script: str = "") -> None:
        """A program whose calls are noted."""
        self.program(name, f'echo "{name} $*" >>{self._called}\n{script}')

    def run(self, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Without a terminal."""
        environment["PATH"] = str(self._programs)
        return subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)

    def need(self, *packages: str) -> subprocess.CompletedProcess[str]:
        """What a script does that needs ``packages``."""
        return self.run("/bin/sh", "-c", f"set -eu; . {TOP}/bin/.setup; need_packages {' '.join(packages)}")

    @property
    def called(self) -> list[str]:
        return self._called.read_text().splitlines() if self._called.exists() else []


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_where_nothing_is_missing_nothing_is_done(host: Host) -> None:
    done = host.need("here", "here")
    assert (done.returncode, done.stdout + done.stderr, host.called) == (0, "", [])


@pytest.mark.parametrize("sudo", [None, "exit 1"])
def test_whoever_cannot_install_is_told_exactly_what_and_nothing_is_changed(host: Host, sudo: str | None) -> None:
    if sudo:
        host.program("sudo", sudo)
    done = host.need("here", "missing", "removed")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("apt-get install --no-install-recommends missing removed")
    assert host.called == []


def test_root_installs_what_is_missing_and_nothing_else(host: Host) -> None:
    host.program("id", "echo 0")
    host.program("env", 'shift; exec "$@"')
    done = host.need("here", "missing")
    assert done.returncode == 0, done.stderr
    assert host.called == ["apt-get update -q", "apt-get install -q -y --no-install-recommends missing"]


def test_a_failure_of_apt_is_shown_and_ends_it(host: Host) -> None:
    host.program("id", "echo 0")
    host.program("apt-get", "echo no such package; exit 100")
    done = host.need("missing")
    assert done.returncode == 1
    assert "no such package" in done.stderr and "apt-get failed" in done.stderr


def test_the_virtual_environment_is_made_again_when_the_systems_python_is_another(host: Host, tmp_path: Path) -> None:
    """Its packages are below the old version's name, and the record of what it was made by said nothing of that."""
    (tmp_path / "pyproject.toml").touch()
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    made = f"cd {tmp_path}; set -eu; . {TOP}/bin/.setup; need_python test"
    for version, installs in (("3.11.2", 1), ("3.11.2", 0), ("3.13.5", 1), ("3.13.5", 0)):
        host.noted("python", f"echo Python {version}")
        python.unlink(missing_ok=True)
        python.symlink_to(tmp_path / "bin/python")
        before = len(host.called)
        done = host.run("/bin/sh", "-c", made)
        assert done.returncode == 0, done.stderr
        assert sum("pip install" in call for call in host.called[before:]) == installs


@pytest.mark.parametrize("arguments", [(), ("--keep",)])
def test_quickstart_asks_for_yes_where_there_is_no_terminal_before_it_does_anything(arguments: tuple[str, ...]) -> None:
    command = (str(TOP / "quickstart"), *arguments)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "use --yes" in done.stderr


@pytest.mark.parametrize(("script", "options"), [("quickstart", ("--yes", "--keep")), ("test", ("--fast", "--other-release"))])
def test_the_scripts_have_a_help(script: str, options: tuple[str, ...]) -> None:
    done = subprocess.run([TOP / script, "--help"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: ./") and all(option in done.stdout for option in options)


class TestAgentWindow:
    @pytest.fixture
    def dom0(self, host: Host) -> Host:
        host.program("grep", "exit 0")
        host.program("id", "echo 0")
        host.noted("qfilexchg-agent")
        host.noted("sleep")
        return host

    def start(self, dom0: Host) -> None:
        done = dom0.run(str(TOP / "packaging/dom0/libexec/agent-window"), DISPLAY=":0")
        assert (done.returncode, done.stderr) == (0, "")

    def test_asks_at_once_where_there_is_no_gui_daemon_to_come(self, dom0: Host) -> None:
        self.start(dom0)
        assert dom0.called == ["qfilexchg-agent "]

    def test_waits_on_qubes_for_the_first_gui_daemon(self, dom0: Host, tmp_path: Path) -> None:
        runs = tmp_path / "runs"
        dom0.program("qubes_guid", "exit 1")
        dom0.program("pgrep", f'test "$*" = "-x qubes_guid" -a -e {runs}')
        dom0.noted("sleep", f": >{runs}")
        self.start(dom0)
        assert dom0.called == ["sleep 5", "qfilexchg-agent "]

    def test_asks_also_where_no_gui_daemon_ever_runs(self, dom0: Host) -> None:
        dom0.program("qubes_guid", "exit 1")
        dom0.program("pgrep", "exit 1")
        self.start(dom0)
        assert dom0.called == ["sleep 5"] * 12 + ["qfilexchg-agent "]
