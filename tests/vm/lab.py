"""A home of its own with VMs that run, and the commands of the checkout to use them as a person would."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.collection import Collection
from qfilexchg.dom0.vms.hypervisor import HypervisorError
from qfilexchg.dom0.vms.qemu.hypervisor import Qemu, Record, running
from qfilexchg.protocol.names import VmName
from tests.machines import CHECKOUT, RELEASE

COMMAND_DEADLINE_S = 240.0
"""For a command of ours, a VM's start under emulation on a busy machine included."""

QUESTION_TIMEOUT_S = 20
"""After which the labs' daemons take a question for denied: long enough for any test that answers, short for one that waits."""


class Lab:
    """One home. Its commands get the environment that points to it."""

    def __init__(self, folder: Path) -> None:
        self.environment = {**os.environ, "QFILEXCHG_HOME": str(folder)}
        self.home = Home.from_environment(self.environment)

    def command(
        self, name: str, *arguments: str | Path, input: bytes | None = None, cwd: Path | None = None, deadline_s: float = COMMAND_DEADLINE_S
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command of ours to its end, whatever its status. Without ``input`` its standard input is empty."""
        return subprocess.run(
            [CHECKOUT / "bin" / name, *arguments],
            input=input if input is not None else b"",
            capture_output=True,
            cwd=cwd,
            env=self.environment,
            timeout=deadline_s,
            check=False,
        )

    def succeed(self, name: str, *arguments: str | Path, cwd: Path | None = None) -> bytes:
        """Run a command that must succeed, and return its output."""
        done = self.command(name, *arguments, cwd=cwd)
        assert done.returncode == 0, f"{name} {arguments}: status {done.returncode}, {done.stderr.decode(errors='replace')}"
        return done.stdout

    def popen(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """A command of ours that goes on, with pipes. The caller ends it."""
        pipe = subprocess.PIPE
        return subprocess.Popen([CHECKOUT / "bin" / name, *arguments], stdin=pipe, stdout=pipe, stderr=pipe, env=self.environment)

    def build_template(self, *options: str) -> None:
        """Give this home its template, with these options."""
        self.succeed("qvm-template", "build", "--release", RELEASE.value, *options)

    def vm(self, name: str) -> Vm:
        """A VM that runs: made where it is not there, started where it does not run."""
        vm = self.made(name)
        if not vm.runs:
            self.succeed("qvm-start", name)
        return vm

    def made(self, name: str) -> Vm:
        """A VM that is there, whether it runs or not."""
        if name not in {known.name for known in Collection(self.home.collection).list()}:
            self.succeed("qvm-create", name, "--label", "blue")
        return Vm(self, VmName.parse(name))

    def down(self) -> None:
        """End everything of this home."""
        self.succeed("qfilexchg", "down")

    def processes(self) -> list[str]:
        """The command lines of all processes on this host that belong to this home."""
        mark = f"QFILEXCHG_HOME={self.home.data}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
        return found

    def save_evidence(self, folder: Path) -> None:
        """Copy all logs to ``folder``, and what the running VMs' kernels have said."""
        folder.mkdir(parents=True, exist_ok=True)
        for log in (*self.home.log.glob("*.log"), *self.home.data.glob("vms/*/qemu.log")):
            (folder / f"{log.parent.name}-{log.name}").write_bytes(log.read_bytes())
        for name, record in running(self.home).items():
            try:
                said = asyncio.run(Qemu(self.home).console(record.vm.id))
            except HypervisorError as error:
                said = str(error)
            (folder / f"{name}-console.log").write_text(said)
            journal = self.command("qvm-run", "--user", "root", name, "journalctl", "-b", "--no-pager", deadline_s=60)
            (folder / f"{name}-journal.log").write_bytes(journal.stdout + journal.stderr)


class Vm:
    """One VM of a lab."""

    def __init__(self, lab: Lab, name: VmName) -> None:
        self.lab = lab
        self.name = name

    @property
    def record(self) -> Record:
        """Of its present run."""
        return running(self.lab.home)[self.name]

    @property
    def runs(self) -> bool:
        return self.name in running(self.lab.home)

    def run(self, *argv: str, user: str = "user", input: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run a command in the VM to its end, whatever its status."""
        return self.lab.command("qvm-run", "--user", user, self.name, *argv, input=input)

    def output(self, *argv: str, user: str = "user") -> str:
        """What a command in the VM says, which must succeed."""
        return self.lab.succeed("qvm-run", "--user", user, self.name, *argv).decode()

    def copy_in(self, files: Sequence[Path]) -> None:
        self.lab.succeed("qvm-copy-in", self.name, *files)
