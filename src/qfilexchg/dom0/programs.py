"""The one way in which dom0 runs another program to its end: an argument list, a deadline, and a report of what went wrong.

A program that is :func:`run` gets a session of its own, the C locale, and no input but what it is given. When that raises, at the
deadline or because nobody waits for the program any more, its whole process group has been killed. :func:`run_in_sight` is for the
long ones that a person watches, in whose terminal they stay. (What outlives us is in ``vms/processes.py``.)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from qfilexchg.errors import HostError

OUTPUT_MAX = 4 << 20
"""Bytes of standard output. A program that goes mad fills no memory."""
STDERR_MAX = 4096
"""Bytes of standard error that are kept, the last ones."""
_KILLED_WITHIN_S = 5.0
"""A killed process ends at once unless the kernel holds it in a broken disk's queue; then it is left to the kernel."""

_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Debian keeps mkfs.fat and its like here, outside of an ordinary user's PATH."""

_PACKAGES = {
    "apt-get": "apt",
    "cpio": "cpio",
    "mkfs.fat": "dosfstools",
    "dh": "debhelper",
    "dpkg-buildpackage": "dpkg-dev",
    "dpkg-query": "dpkg",
    "fakeroot": "fakeroot",
    "gzip": "gzip",
    "lz4": "lz4",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "modprobe": "kmod",
    "newuidmap": "uidmap",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "systemctl": "systemd",
    "udevadm": "udev",
    "xl": "xen-utils-common",
    "xz": "xz-utils",
    "zstd": "zstd",
}


class ProgramMissing(HostError):
    """A program that is not installed."""

    def __init__(self, program: str) -> None:
        super().__init__(program)
        self.program = program

    def __str__(self) -> str:
        package = _PACKAGES.get(self.program)
        remedy = f"install the Debian package {package}" if package else "install it, or put its folder into PATH"
        return f"the program {self.program} is missing: {remedy}"


class ProgramFailed(HostError):
    """A program that could not be started, failed, or did not end in time.

    ``how`` is our phrase, ``status`` the exit status (negative: the signal; None: it was killed by us or never ran).
    """

    def __init__(self, argv: Sequence[str], how: str, status: int | None = None, stderr: bytes = b"") -> None:
        super().__init__(argv, how, status, stderr)
        self.argv = tuple(argv)
        self.how = how
        self.status = status
        self.stderr = stderr

    def __str__(self) -> str:
        said = f": {self.stderr.strip()[-400:].decode('ascii', 'backslashreplace')!a}" if self.stderr.strip() else ""
        return f"{' '.join(word if word.isprintable() else ascii(word) for word in self.argv)} {self.how}{said}"


def find_program(name: str) -> str:
    """The path of a program of the host's. Raises :exc:`ProgramMissing`."""
    program = shutil.which(name, path=_search_path())
    if program is None:
        raise ProgramMissing(name)
    return program


def _search_path() -> str:
    return os.pathsep.join((os.environ.get("PATH", os.defpath), *_SYSTEM_FOLDERS))


async def run(*argv: str, deadline_s: float, input: bytes | None = None) -> bytes:
    """Run ``argv`` to its end and return its standard output.

    ``input`` is fed to its standard input, which is empty otherwise. Raises :exc:`ProgramMissing`, or :exc:`ProgramFailed` when
    the exit status is not 0, the deadline passes, or the output is longer than :data:`OUTPUT_MAX`.
    """
    program = find_program(argv[0])
    try:
        transport, conversation = await asyncio.get_running_loop().subprocess_exec(
            _Conversation,
            program,
            *argv[1:],
            stdin=asyncio.subprocess.PIPE if input else asyncio.subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PATH": _search_path(), "LC_ALL": "C.UTF-8"},
        )
    except OSError as error:
        raise ProgramFailed(argv, f"could not be started ({error.strerror})") from error
    try:
        if input:
            stdin = transport.get_pipe_transport(0)
            assert isinstance(stdin, asyncio.WriteTransport)
            stdin.write(input)
            stdin.write_eof()
        await asyncio.wait({conversation.over}, timeout=deadline_s)
        in_time = conversation.over.done()
    finally:
        await _end(transport, conversation)
    if conversation.flooded:
        raise ProgramFailed(argv, f"wrote more than {OUTPUT_MAX} bytes and was killed", None, bytes(conversation.stderr))
    if not in_time:
        raise ProgramFailed(argv, f"did not end within {deadline_s:g} s and was killed", None, bytes(conversation.stderr))
    status = transport.get_returncode()
    if status != 0:
        raise ProgramFailed(argv, f"failed with exit status {status}", status, bytes(conversation.stderr))
    return bytes(conversation.stdout)


def run_in_sight(*argv: str, deadline_s: float, env: Mapping[str, str] | None = None) -> None:
    """Run ``argv`` to its end, with no input; what it says goes to our standard error as it comes, so to the person.

    ``env`` is added to our environment. Raises :exc:`ProgramMissing` or :exc:`ProgramFailed`.
    """
    program = find_program(argv[0])
    try:
        status = subprocess.run(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            env={**os.environ, **(env or {})},
            timeout=deadline_s,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        raise ProgramFailed(argv, f"did not end within {deadline_s:g} s and was killed") from None
    if status != 0:
        raise ProgramFailed(argv, f"failed with exit status {status}", status)


def output(*argv: str, deadline_s: float, input: bytes = b"") -> bytes:
    """Run ``argv`` to its end and return its standard output, of whatever length: for programs and input that are trusted.

    Raises :exc:`ProgramMissing`, or :exc:`ProgramFailed` when the exit status is not 0 or the deadline passes.
    """
    program = find_program(argv[0])
    try:
        environment = {**os.environ, "PATH": _search_path(), "LC_ALL": "C.UTF-8"}
        done = subprocess.run([program, *argv[1:]], input=input, capture_output=True, env=environment, timeout=deadline_s, check=False)
    except OSError as error:
        raise ProgramFailed(argv, f"could not be started ({error.strerror})") from error
    except subprocess.TimeoutExpired:
        raise ProgramFailed(argv, f"did not end within {deadline_s:g} s and was killed") from None
    if done.returncode != 0:
        raise ProgramFailed(argv, f"failed with exit status {done.returncode}", done.returncode, done.stderr)
    return done.stdout


async def _end(transport: asyncio.SubprocessTransport, conversation: _Conversation) -> None:
    """Leave neither a process of the group nor an open pipe behind."""
    try:
        if not conversation.over.done():
            _kill_group(transport)
            # Only then close(): it would reap the child behind the event loop's back, and the exit status would be lost.
            await asyncio.wait({conversation.exited}, timeout=_KILLED_WITHIN_S)
    finally:
        transport.close()


def _kill_group(transport: asyncio.SubprocessTransport) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(transport.get_pid(), signal.SIGKILL)


class _Conversation(asyncio.SubprocessProtocol):
    """What a program says.

    ``exited`` is set when the program has ended, ``over`` when also nobody it left behind can write to its pipes any more.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.flooded = False
        self.exited: asyncio.Future[None] = loop.create_future()
        self.over: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self.stderr += data
            del self.stderr[:-STDERR_MAX]
        elif len(self.stdout) + len(data) <= OUTPUT_MAX:
            self.stdout += data
        elif not self.flooded:
            self.flooded = True
            _kill_group(self._transport)

    def process_exited(self) -> None:
        self.exited.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set_result(None)
