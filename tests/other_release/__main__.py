"""Runs the tests on the other release of Debian, and the way of a savefile from one QEMU to the other.

    python -m tests.other_release

Each part is tried, also when one before it has failed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qfilexchg.dom0.debian import Release, host_release
from qfilexchg.dom0.home import Home
from qfilexchg.errors import HostError
from tests.machines import CHECKOUT, EVIDENCE
from tests.other_release.trees import PERSON, REPORTS, WORKPLACE, Failed, NoRoot, Root, StillMounted, Tree, archive
from tests.tiers import ONCE_MORE, counted

FREE_BYTES = 8 << 30
"""What has to be free on the disk. A tree with all that ./test installs, its templates and its VMs takes most of it."""
ANNOUNCEMENT = """\
Debian {host} is here, so this is run in a tree of Debian {other}: ./test --fast, ./quickstart as root and as a user with sudo, the tier
conformance, and of the tier vm those tests that are marked other_release. Then a savefile goes from one QEMU to the other and back.
It takes about 25 minutes on two processors, 7 GB in {run} while it runs, and keeps 0.3 GB in {cache}.
"""
PART_DEADLINE_S = 2700.0
MARK = "other_release"
SAVEFILES = "tests/other_release/savefiles.py"
MADE, STALE = "test_a_savefile_is_made_and_used_where_it_was_made", "test_that_of_another_qemu_is_stale_by_qemu_alone_and_made_again"


def other_than(host: Release) -> Release:
    """Return the release that is tried where ``host`` is what the host runs."""
    return Release.BOOKWORM if host is Release.TRIXIE else Release.TRIXIE


def judged(status: int, report: Path | None) -> Counter[str]:
    """Return what a part has come to, by its exit status and the report that it had to write.

    A part without reports is one test. A part that ended badly has a failure, also where no test says so, and a part without a test
    that was executed has one, too.
    """
    if report is None:
        return Counter(passed=int(status == 0), failed=int(status != 0))
    counts = counted(report) if report.exists() else Counter[str]()
    if not counts["failed"] and (status != 0 or not counts["passed"]):
        counts["failed"] += 1
    return counts


class Run:
    """One run: its folder, its trees, and what each part came to."""

    def __init__(self, folder: Path, root: Root) -> None:
        self.folder = folder
        self.root = root
        self.shared = folder / "shared"
        self.parts: list[tuple[str, Counter[str], float]] = []

    def part(self, name: str, do: Callable[[], Counter[str]]) -> None:
        print(f"\n==> {name}", flush=True)
        start = time.monotonic()
        try:
            counts = do()
        except (Failed, StillMounted) as failure:
            print(failure, flush=True)
            counts = Counter(failed=1)
        self.parts.append((name, counts, time.monotonic() - start))

    def in_tree(self, tree: Tree, *command: str, report: str | None = None, user: str = "root", **variables: str) -> Counter[str]:
        """Run a command in a tree; ``report`` is the name of the report that it writes, if it writes one."""
        written = (f"--junitxml={REPORTS / report}",) if report else ()
        status = tree.run(*command, *written, deadline_s=PART_DEADLINE_S, user=user, **variables)
        return judged(status, tree.path(REPORTS / report) if report else None)

    def here(self, test: str) -> Counter[str]:
        """Run a test of the savefile's way on the host."""
        report = self.folder / "report.xml"
        report.unlink(missing_ok=True)
        command = (sys.executable, "-m", "pytest", f"{SAVEFILES}::{test}", f"--junitxml={report}")
        environment = {**os.environ, "QFILEXCHG_SHARED": str(self.shared)}
        try:
            status = subprocess.run(command, cwd=CHECKOUT, env=environment, timeout=PART_DEADLINE_S, check=False).returncode
        except subprocess.TimeoutExpired:
            status = 1
        finally:
            down = (CHECKOUT / "bin/qfilexchg", "down")
            subprocess.run(down, env={**os.environ, "QFILEXCHG_HOME": str(self.shared / "home")}, capture_output=True, check=False)
        return judged(status, report)

    def there(self, tree: Tree, test: str) -> Counter[str]:
        """Run a test of the savefile's way in a tree: the shared folder is copied there, and copied back to its place."""
        place = tree.path(self.shared)
        self.root.run("mkdir", "-p", place.parent)
        self.root.run("cp", "-a", self.shared, place)
        self.root.run("chown", "-R", "0:0", place)
        command = (".venv/bin/python", "-m", "pytest", f"{SAVEFILES}::{test}")
        counts = self.in_tree(tree, *command, report="savefiles.xml", QFILEXCHG_SHARED=str(self.shared))
        shutil.rmtree(self.shared)
        self.root.run("cp", "-a", place, self.shared)
        self.root.run("chown", "-R", f"{os.getuid()}:{os.getgid()}", self.shared)
        return counts

    def keep_evidence(self, tree: Tree) -> None:
        """Copy to the host what failed tests have left in a tree."""
        left, kept = tree.path(WORKPLACE / ".ci/out"), EVIDENCE / "other-release"
        if left.exists():
            kept.mkdir(parents=True, exist_ok=True)
            self.root.run("cp", "-r", f"{left}/.", kept)
            self.root.run("chown", "-R", f"{os.getuid()}:{os.getgid()}", kept)

    def summary(self) -> int:
        total: Counter[str] = Counter()
        print()
        for name, counts, seconds in self.parts:
            total += counts
            print(f"{seconds / 60:5.1f} min  {counts['passed']:5} passed, {counts['failed']} failed, {counts['skipped']} skipped  {name}")
        print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
        return 1 if total["failed"] else 0


def do_all(run: Run, packed: Path, other: Release) -> None:
    """Do all parts. Raises :exc:`Failed` where there is no tree to do them in."""
    run.shared.mkdir()
    tree = Tree.unpack(run.root, packed, run.folder / "tree")
    on = f"on Debian {other.value}"
    again = " ".join(ONCE_MORE)
    run.part(f"./test --fast, {on}, as the first command there", lambda: run.in_tree(tree, "./test", "--fast", report="fast.xml"))
    run.part(f"./quickstart --yes, {on}, as root", lambda: run.in_tree(tree, "./quickstart", "--yes"))
    conformance = ("./test", "tests/conformance", *ONCE_MORE)
    run.part(f"./test tests/conformance {again}, {on}", lambda: run.in_tree(tree, *conformance, report="conformance.xml"))
    vm = ("./test", "tests/vm", "-m", MARK, *ONCE_MORE)
    run.part(f"./test tests/vm -m {MARK} {again}, {on}", lambda: run.in_tree(tree, *vm, report="vm.xml"))
    run.part("a savefile of this host's QEMU is made and used here", lambda: run.here(MADE))
    run.part(f"it is stale by QEMU alone {on}, and made again there", lambda: run.there(tree, STALE))
    run.part("that one is stale by QEMU alone here, and made again", lambda: run.here(STALE))
    run.keep_evidence(tree)
    run.root.delete(tree.folder)

    def as_person() -> Counter[str]:
        tree = Tree.unpack(run.root, packed, run.folder / "tree")
        tree.add_person()
        return run.in_tree(tree, "./quickstart", "--yes", user=PERSON)

    run.part(f"./quickstart --yes, {on}, as a user with sudo", as_person)


@contextmanager
def run_folder(root: Root) -> Iterator[Path]:
    """The one folder in which a run works. What a killed run has left in it is deleted, and so is what this one leaves.

    Raises :exc:`Failed` while another run has it.
    """
    folder = Path("/var/tmp", f"qfilexchg-other-release-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise Failed(f"{folder} is somebody else's: have it removed")
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Failed(f"another run is under way in {folder}: wait for its end") from None
    try:
        for left in folder.iterdir():
            root.delete(left)
        yield folder
    finally:
        root.delete(folder)
        os.close(handle)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    host, home = host_release(), Home.from_environment()
    other = other_than(host)
    try:
        with Root() as root, run_folder(root) as folder:
            print(ANNOUNCEMENT.format(host=host.value, other=other.value, run=folder.parent, cache=home.cache / "releases"), flush=True)
            if (free_bytes := shutil.disk_usage(folder).free) < FREE_BYTES:
                raise Failed(f"{folder.parent} has {free_bytes >> 30} GiB left, and {FREE_BYTES >> 30} are needed: make room")
            packed = archive(home, other)
            run = Run(folder, root)
            do_all(run, packed, other)
        return run.summary()
    except NoRoot:
        print("--other-release enters a system of another release, for which it needs root: run it as root or with sudo.", file=sys.stderr)
    except (Failed, StillMounted, HostError) as failure:
        print(f"--other-release: {failure}", file=sys.stderr)
    except KeyboardInterrupt:
        print("--other-release: interrupted; nothing is left of it", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
