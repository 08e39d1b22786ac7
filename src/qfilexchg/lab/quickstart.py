"""The main job, as a new user sees it: files go from one real VM to another, a document is opened and edited in a VM that is made for
it and thrown away, and all that was started goes away again.

Everything is done by the project's own commands, which are shown as they run. ``--keep`` leaves the VMs running in the usual
home; else a home is made for this one run and removed at its end, however it ends.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import savefile
from qfilexchg.dom0.vms.machines import Machines
from qfilexchg.errors import HostError

BIN = Path(__file__).resolve().parents[3] / "bin"
SENDER, RECEIVER = "work", "personal"
EDITOR = Path(__file__).with_name("editor")
"""What the demonstration's DisposableVMs are prepared with."""
TREE, DOCUMENT = "qx-tree", "qx-contract.txt"
"""What is made in the sender's home. With --keep that is a person's, where nothing is likely to have these names."""
RULE_FILE = "50-quickstart.policy"
DEADLINE_S = 900
"""Of any one command. The first build of the template is the longest."""
MOUNT_DEADLINE_S = 60


class StepFailed(HostError):
    """A command of the demonstration failed; it has said why."""


class Tour:
    """One run. Keeps the time of each step, and what it has made."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self.times: list[tuple[str, float]] = []
        self.made: list[str] = []
        self.made_savefile = False

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        print(f"\n==> {text}", flush=True)
        start = time.monotonic()
        yield
        self.times.append((text, time.monotonic() - start))

    def run(self, *command: str) -> None:
        """Run one of our commands with its output on the screen. What is typed is not for it, but for the agent."""
        self._show(command)
        argv = self._argv(command)
        self._check(subprocess.run(argv, env=self._environment, stdin=subprocess.DEVNULL, timeout=DEADLINE_S, check=False), command)

    def output(self, *command: str, stdin: bytes = b"") -> str:
        """Run one of our commands and return what it prints."""
        done = subprocess.run(
            self._argv(command), env=self._environment, input=stdin, stdout=subprocess.PIPE, timeout=DEADLINE_S, check=False
        )
        self._check(done, command)
        return done.stdout.decode("utf-8", "backslashreplace")

    def run_with_agent(self, *command: str) -> None:
        """Run one of our commands while an agent asks on this terminal."""
        agent_command = ("qfilexchg-agent", "--tty")
        self._show(agent_command)
        with subprocess.Popen(self._argv(agent_command), env=self._environment) as agent:
            try:
                self.run(*command)
            finally:
                agent.terminate()

    def _argv(self, command: Sequence[str]) -> list[str]:
        return [str(BIN / command[0]), *command[1:]]

    def _show(self, command: Sequence[str]) -> None:
        print(f"$ {' '.join(command)}", flush=True)

    def _check(self, done: subprocess.CompletedProcess[bytes], command: Sequence[str]) -> None:
        if done.returncode:
            raise StepFailed(f"'{' '.join(command)}' ended with status {done.returncode}; what it said is above")


def checksums(tour: Tour, vm: str, folder: str) -> dict[str, str]:
    """The SHA-256 of every file below ``folder`` in a VM, by path."""
    listing = tour.output("qvm-run", vm, "sh", "-c", 'cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum -z', "sh", folder)
    return {line[66:]: line[:64] for line in listing.split("\0") if line}


def show(tour: Tour, home: Home, *, rule: bool) -> None:
    """The demonstration. Raises :exc:`StepFailed`."""
    with tour.step("Build the template from which the VMs boot, or find it built"):
        tour.run("qvm-template", "build")
    with tour.step(f"Make and start two VMs, {SENDER} and {RECEIVER}"):
        machines = Machines(home)
        existing = {vm.name for vm in machines.collection.list()}
        for name, label in ((SENDER, "green"), (RECEIVER, "blue")):
            if name not in existing:
                tour.run("qvm-create", name, "--label", label)
                tour.made.append(name)
        start(tour, {SENDER, RECEIVER} - set(asyncio.run(machines.running())))
        tour.run("qvm-ls")
    with tour.step(f"Make a realistic tree of files in {SENDER}"):
        tour.run("qvm-run", SENDER, "rm", "-rf", TREE)
        source = Path(__file__).with_name("tree.py").read_bytes()
        files, size_bytes = map(int, tour.output("qvm-run", SENDER, "python3", "-", TREE, stdin=source).split())
        print(f"{files} files, {size_bytes / (1 << 20):.1f} MiB")
    sums = checksums(tour, SENDER, TREE)
    copy = ("qvm-run", SENDER, "qvm-copy-to-vm", RECEIVER, TREE)
    if rule:
        print(f"\n--yes: this rule lets the files go without a question (in {home.policy / RULE_FILE}):\n    {SENDER} {RECEIVER} allow")
        (home.policy / RULE_FILE).write_text(f"# Written by ./quickstart --yes\n{SENDER} {RECEIVER} allow\n", encoding="utf-8")
    with tour.step(f"Copy it to {RECEIVER}: typed in {SENDER}, decided here"):
        if rule:
            tour.run(*copy)
        else:
            tour.run_with_agent(*copy)
    with tour.step(f"Verify every file in {RECEIVER}, and eject the pendrive"):
        wait = f"for i in $(seq {MOUNT_DEADLINE_S * 5}); do mountpoint -q /mnt/incoming && exit; sleep 0.2; done; exit 1"
        tour.output("qvm-run", RECEIVER, "sh", "-c", wait)
        received = checksums(tour, RECEIVER, f"/mnt/incoming/{TREE}")
        if received != sums:
            wrong = sorted(set(sums.items()) ^ set(received.items()))
            raise StepFailed(f"{len(wrong)} files differ, the first is {wrong[0][0]!a}")
        print(f"{len(received)} files, all SHA-256 equal")
        tour.run("qvm-run", RECEIVER, "umount", "/mnt/incoming")
        wait_until_gone(home)
        print("The pendrive is deleted.")
    show_document(tour, home)


def show_document(tour: Tour, home: Home) -> None:
    """A document that comes back edited. Raises :exc:`StepFailed`."""
    if has_savefile_of_its_own(home):
        print(f"\nDisposableVMs are not shown: {home.current_savefile} is yours, and would have to make room for the demonstration's.")
        return
    with tour.step("Make the savefile of DisposableVMs; here their program for text edits by itself"):
        tour.run("qvm-create-default-dvm", "--default-template", os.path.relpath(EDITOR))
        tour.made_savefile = True
    with tour.step(f"Open a document of {SENDER} in a DisposableVM, and have the edit back"):
        tour.output("qvm-run", SENDER, "tee", DOCUMENT, stdin=b"We sell you the Eiffel Tower.\n")
        tour.run("qvm-run", SENDER, "qvm-open-in-dvm", DOCUMENT)
        tour.run("qvm-run", SENDER, "cat", DOCUMENT)
        if "Read and approved in disp" not in tour.output("qvm-run", SENDER, "cat", DOCUMENT):
            raise StepFailed("the edit is not in the document")
        tour.run("qvm-ls")


def has_savefile_of_its_own(home: Home) -> bool:
    """Whether the home has a savefile that no quickstart has made."""
    saved = savefile.current(home)
    return saved.made.exists() and not (saved.script.exists() and saved.script.read_bytes() == EDITOR.read_bytes())


def start(tour: Tour, names: Iterable[str]) -> None:
    """Start VMs at the same time; their boots are most of the wait."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: tour.run("qvm-start", name), sorted(names)))


def wait_until_gone(home: Home) -> None:
    """Return when no pendrive is left in the spool."""
    end = time.monotonic() + MOUNT_DEADLINE_S
    while any(home.spool.iterdir()):
        if time.monotonic() > end:
            raise StepFailed(f"the pendrive is still in {home.spool} after {MOUNT_DEADLINE_S} s; see {home.log}")
        time.sleep(0.05)


def main(arguments: Sequence[str] | None = None) -> int:
    what = "Set up qfilexchg, copy files between two real VMs, and open a document in a DisposableVM."
    parser = argparse.ArgumentParser(prog="quickstart", description=what)
    parser.add_argument("--yes", action="store_true", help="let the files go by a rule for this pair, instead of asking in the terminal")
    parser.add_argument("--keep", action="store_true", help="leave the VMs running at the end, and say what to try next")
    options = parser.parse_args(arguments)
    if not options.yes and not sys.stdin.isatty():
        print("quickstart: the copy needs your consent, and there is no terminal to ask you on: use --yes", file=sys.stderr)
        return 2
    try:
        return run(rule=options.yes, keep=options.keep)
    except HostError as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 1


def run(*, rule: bool, keep: bool) -> int:
    """Make a home, show, clean up; the exit status. Raises :exc:`HostError` where there can be no home, or it cannot be cleaned up."""
    environment = dict(os.environ)
    own = None if keep or "QFILEXCHG_HOME" in environment else Path(tempfile.mkdtemp(prefix="qfilexchg-", dir="/var/tmp"))
    if own:
        environment["QFILEXCHG_HOME"] = str(own)
    home = Home.from_environment(environment)
    home.make()
    tour = Tour(environment)
    try:
        show(tour, home, rule=rule)
    except (StepFailed, subprocess.TimeoutExpired) as error:
        print(f"\nquickstart: {error}\nThe logs of this home are in {home.log}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("\nquickstart: interrupted", file=sys.stderr)
        status = 130
    else:
        status = 0
        print("\nWhat took how long:")
        for text, took_s in tour.times:
            print(f"  {took_s:7.1f} s  {text}")
    if keep:
        print_next_steps(status)
    else:
        clean_up(tour, own, home, keep_logs=status == 1)
    return status


def clean_up(tour: Tour, own: Path | None, home: Home, *, keep_logs: bool) -> None:
    """Stop everything, and remove what this run has made, and nothing else."""
    print("\n==> Stop everything and clean up (--keep would leave it running)")
    tour.run("qfilexchg", "down")
    if own and keep_logs:
        print(f"The home of this run is left for you to look at: {own}")
    elif own:
        shutil.rmtree(own)
    else:
        (home.policy / RULE_FILE).unlink(missing_ok=True)
        for name in tour.made:
            tour.run("qvm-remove", name)
        if tour.made_savefile:
            savefile.current(home).remove()
            home.current_savefile.unlink()


def print_next_steps(status: int) -> None:
    if status == 0:
        print(
            f"""
The VMs still run. Things to try:
  bin/qvm-ls
  bin/qvm-console {SENDER}                       a shell in {SENDER}; there: qvm-copy-to-vm {RECEIVER} FILE
  bin/qfilexchg-agent --tty                  in another terminal: it asks you whether files may go
  bin/qvm-run {SENDER} qvm-open-in-dvm FILE      open a file of {SENDER} in a DisposableVM
  bin/qvm-create-default-dvm --default-template
                                             DisposableVMs without the demonstration's editor; add one by a SCRIPT
  bin/qvm-copy-in {SENDER} FILE                  give the VM a file of yours
  bin/qfilexchg down                         stop everything"""
        )


if __name__ == "__main__":
    sys.exit(main())
