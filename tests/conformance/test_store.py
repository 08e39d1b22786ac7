"""qxenstored, as the programs that Debian ships with Xen see it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qfilexchg.protocol.names import DomainId
from qfilexchg.xenstore.client import Store
from tests.conformance import xen_utils
from tests.python import PYTHON

DEADLINE_S = 60
RANDOM_S = 5
TESTS = ("read 1", "read 2000", "write 1", "write 2000", "dir", "rm node", "rm dir")
TRANSACTIONS = ("ta empty", "ta empty x", "ta rmw", "ta rmw x", "ta err")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def rundir() -> Iterator[Path]:
    """The folder of a server of its own."""
    with tempfile.TemporaryDirectory(prefix="qxs") as name:
        command = [*PYTHON, "-m", "qfilexchg.xenstore.server", "--rundir", name]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "src"}) as server:
            assert server.stderr is not None
            assert "serving" in server.stderr.readline()
            yield Path(name)
            server.terminate()
            assert server.wait(DEADLINE_S) == 0


def environment(path: Path) -> dict[str, str]:
    return {**os.environ, "XENSTORED_PATH": os.fspath(path)}


@pytest.fixture
def run(rundir: Path) -> Run:
    """Runs a program as dom0, or ``as_domain``."""

    def run(*command: str | Path, as_domain: int | None = None) -> subprocess.CompletedProcess[str]:
        path = rundir / "socket" if as_domain is None else rundir / "domain" / str(as_domain)
        return subprocess.run(command, env=environment(path), capture_output=True, text=True, timeout=DEADLINE_S, check=False)

    return run


@pytest.mark.parametrize("test", [*TESTS, *TRANSACTIONS])
def test_every_test_of_test_xenstore_succeeds(run: Run, test: str) -> None:
    done = run(xen_utils.program(), "--iterations", "50", "--test", test)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(test)


def test_test_xenstore_has_no_other_tests(run: Run) -> None:
    listed = run(xen_utils.program(), "--list-tests").stdout
    assert tuple(line.partition(":")[0].strip() for line in listed.splitlines()) == TESTS + TRANSACTIONS


def test_the_random_mode_of_test_xenstore_succeeds(run: Run) -> None:
    done = run(xen_utils.program(), "--random", str(RANDOM_S))
    assert done.returncode == 0, done.stdout + done.stderr


def test_keys_are_written_read_listed_and_removed(run: Run) -> None:
    assert run("xenstore-write", "/stock/a/b", "hello", "/stock/c", "").returncode == 0
    assert run("xenstore-read", "/stock/a/b").stdout == "hello\n"
    assert run("xenstore-read", "-p", "/stock/a/b").stdout == "/stock/a/b: hello\n"
    assert run("xenstore-list", "/stock").stdout == "a\nc\n"
    assert run("xenstore-exists", "/stock/a").returncode == 0
    assert run("xenstore-ls", "/stock").stdout == 'a = ""\n b = "hello"\nc = ""\n'
    assert run("xenstore-ls", "-f", "/stock/a").stdout == '/stock/a/b = "hello"\n'
    assert run("xenstore-rm", "/stock/a").returncode == 0
    assert run("xenstore-exists", "/stock/a").returncode == 1
    failed = run("xenstore-read", "/stock/a")
    assert failed.returncode == 1
    assert "couldn't read path /stock/a" in failed.stderr


def test_permissions_are_set_and_shown(run: Run) -> None:
    run("xenstore-write", "/stock/p/below", "x")
    assert run("xenstore-chmod", "/stock/p", "n0", "r5", "b6").returncode == 0
    assert [line.split()[-1] for line in run("xenstore-ls", "-p", "/stock/p").stdout.splitlines()] == ["(n0)"]
    assert [line.split()[-1] for line in run("xenstore-ls", "-p", "/stock").stdout.splitlines() if line.startswith("p ")] == ["(n0,r5,b6)"]
    assert run("xenstore-chmod", "-r", "/stock/p", "r0").returncode == 0
    assert run("xenstore-ls", "-p", "/stock/p").stdout.split()[-1] == "(r0)"


def test_a_directory_longer_than_a_message_is_listed_whole(run: Run) -> None:
    names = [f"{number:0500}" for number in range(20)]
    for name in names:
        assert run("xenstore-write", f"/stock/long/{name}", "").returncode == 0
    assert run("xenstore-list", "/stock/long").stdout.split() == names


def test_a_watch_hears_of_changes(rundir: Path, run: Run) -> None:
    watching = subprocess.Popen(
        ["xenstore-watch", "-n", "3", "/stock/w"], env=environment(rundir / "socket"), stdout=subprocess.PIPE, text=True
    )
    with watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == "/stock/w\n"
        run("xenstore-write", "/stock/w", "x")
        assert watching.stdout.readline() == "/stock/w\n"
        run("xenstore-write", "/stock/w/below", "x")
        assert watching.stdout.readline() == "/stock/w/below\n"
        assert watching.wait(DEADLINE_S) == 0


async def introduce(path: Path, domain: DomainId) -> None:
    async with await Store.connect(path) as store:
        await store.introduce(domain)


def test_a_domain_is_itself_through_its_own_socket(rundir: Path, run: Run) -> None:
    asyncio.run(introduce(rundir / "socket", DomainId(5)))
    run("xenstore-write", "/local/domain/5", "", "/local/domain/6/secret", "x")
    run("xenstore-chmod", "/local/domain/5", "n5")
    with socket.socket(socket.AF_UNIX) as held:
        held.connect(os.fspath(rundir / "domain" / "5"))
        assert run("xenstore-write", "key", "x", as_domain=5).returncode == 0
        assert run("xenstore-read", "/local/domain/5/key").stdout == "x\n"
        assert run("xenstore-ls", "-p", "key", as_domain=5).returncode == 0
        assert "(n5)" in run("xenstore-ls", "-p", "/local/domain/5", as_domain=5).stdout
        secret = "/local/domain/6/secret"
        for program, *arguments in (("read", secret), ("write", secret, "y"), ("rm", secret), ("chmod", "/local", "b5")):
            assert run(f"xenstore-{program}", *arguments, as_domain=5).returncode == 1
        assert run("xenstore-read", secret).stdout == "x\n"


def test_a_domain_ends_with_its_last_connection(rundir: Path, run: Run) -> None:
    asyncio.run(introduce(rundir / "socket", DomainId(7)))
    with subprocess.Popen(
        ["xenstore-watch", "-n", "2", "@releaseDomain"], env=environment(rundir / "socket"), stdout=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == "@releaseDomain\n"
        run("xenstore-read", "key", as_domain=7)
        assert watching.stdout.readline() == "@releaseDomain\n"
    assert not (rundir / "domain" / "7").exists()
