"""``qvm-copy-in`` and ``qvm-copy-out``: files between the person at the host and a VM.

Into a VM goes a tar stream that the host makes and the VM unpacks. Out of a VM come bytes: the host puts them into one file whose
name the person typed, and never unpacks or reads them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from qfilexchg.dom0 import programs
from qfilexchg.dom0.cli.arguments import parser, vm_name
from qfilexchg.dom0.consent.wording import printable
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.machines import Machines
from qfilexchg.errors import CallerError, VmError
from qfilexchg.protocol.names import VmName

_STDERR_MAX = 4096
_PIECE_BYTES = 256 << 10


class NoSuchFile(CallerError):
    """A file that is not there, or has no name."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


class FileExists(CallerError):
    """A file that would have been overwritten."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path} exists already, and was left as it is: move it away, or go to another folder"


class CopyFailed(VmError):
    """The VM's side of a copy failed. ``said`` is the VM's own text, and is made harmless when shown."""

    def __init__(self, name: VmName, said: bytes) -> None:
        super().__init__(name, said)
        self.name = name
        self.said = said

    def __str__(self) -> str:
        said = printable(self.said.decode("utf-8", "replace").strip())
        return f"{self.name} could not: {said}" if said else f"{self.name} could not, and gave no reason"


def copy_in(arguments: Sequence[str]) -> int:
    """``qvm-copy-in``."""
    args = parser("qvm-copy-in", "Copy files and folders from the host into a VM's /home/user. Existing files there are not overwritten.")
    args.add_argument("name", type=vm_name, metavar="NAME")
    args.add_argument("files", nargs="+", metavar="FILE")
    options = args.parse_args(arguments)
    sources = [_source(file) for file in options.files]
    asyncio.run(_copy_in(options.name, sources))
    return 0


def _source(text: str) -> Path:
    """The file as (an existing folder)/(its name): ``.`` and ``x/..`` have names too."""
    path = Path(text)
    if not path.exists() and not path.is_symlink():
        raise NoSuchFile(text, "there is no such file")
    absolute = path.absolute() if path.name not in ("", "..") else path.resolve()
    if not absolute.name:
        raise NoSuchFile(text, "it has no name: name what is in it")
    return absolute


async def _copy_in(name: VmName, sources: Sequence[Path]) -> None:
    machines = Machines(Home.from_environment())
    await machines.running_id(name)  # before anything is packed
    words = [word for source in sources for word in ("-C", str(source.parent), f"./{source.name}")]
    packing = await asyncio.create_subprocess_exec(
        programs.find_program("tar"), "--format=pax", "-cf", "-", *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    assert packing.stdout
    said = bytearray()
    unpack = ["tar", "--no-same-owner", "--keep-old-files", "-xf", "-"]
    try:
        async with machines.run(name, unpack) as session:
            feeding = asyncio.create_task(session.feed(Pieces(packing.stdout)))
            try:
                status = await session.output(_drop, _keep_last(said))
            finally:
                feeding.cancel()
        if status:
            raise CopyFailed(name, bytes(said))
    finally:
        if packing.returncode is None and not packing.stdout.at_eof():
            packing.kill()
        status = await packing.wait()
    if status:
        raise programs.ProgramFailed(("tar",), f"failed with exit status {status}", status)


class Pieces:
    """A stream as a command's input."""

    def __init__(self, stream: asyncio.StreamReader) -> None:
        self._stream = stream

    async def read(self) -> bytes:
        return await self._stream.read(_PIECE_BYTES)


class Nothing:
    """An empty input."""

    async def read(self) -> bytes:
        return b""


def copy_out(arguments: Sequence[str]) -> int:
    """``qvm-copy-out``."""
    args = parser(
        "qvm-copy-out",
        "Copy files from a VM into this folder. FILE is a path in the VM, from /home/user. A file arrives under its own name; a folder as "
        "NAME.tar, which is not unpacked: a VM made it. Existing files are not overwritten.",
    )
    args.add_argument("name", type=vm_name, metavar="NAME")
    args.add_argument("files", nargs="+", metavar="FILE")
    options = args.parse_args(arguments)
    for file in options.files:
        if PurePosixPath(file).name in ("", ".."):
            raise NoSuchFile(file, "it has no name of its own")
    asyncio.run(_copy_out(options.name, options.files))
    return 0


async def _copy_out(name: VmName, files: Sequence[str]) -> None:
    machines = Machines(Home.from_environment())
    for file in files:
        path = PurePosixPath(file)
        status = await _fetch(machines, name, ["test", "-d", file], None, bytearray())
        if status == 0:
            command, target = ["tar", "--format=pax", "-cf", "-", "-C", str(path.parent), f"./{path.name}"], Path(f"{path.name}.tar")
        else:
            command, target = ["cat", "--", file], Path(path.name)
        await _fetch_file(machines, name, command, target)


async def _fetch_file(machines: Machines, name: VmName, command: Sequence[str], target: Path) -> None:
    with _whole(target) as output:
        said = bytearray()
        if await _fetch(machines, name, command, output, said):
            raise CopyFailed(name, bytes(said))


@contextlib.contextmanager
def _whole(target: Path) -> Iterator[IO[bytes]]:
    """A file that becomes ``target`` when the body is done, and is gone when it fails. Raises :exc:`FileExists`."""
    if target.exists() or target.is_symlink():
        raise FileExists(target)
    with tempfile.NamedTemporaryFile(prefix=".qvm-copy-out-", dir=".", delete=False) as output:
        aside = Path(output.name)
        try:
            yield output
            output.flush()
            umask = os.umask(0)
            os.umask(umask)
            aside.chmod(0o666 & ~umask)
            target.hardlink_to(aside)
        except FileExistsError:
            raise FileExists(target) from None
        finally:
            aside.unlink()


async def _fetch(machines: Machines, name: VmName, command: Sequence[str], output: IO[bytes] | None, said: bytearray) -> int:
    async with machines.run(name, command) as session:
        feeding = asyncio.create_task(session.feed(Nothing()))
        try:
            return await session.output(output.write if output else _drop, _keep_last(said))
        finally:
            feeding.cancel()


def _drop(_data: bytes) -> None:
    """For output that nobody wants."""


def _keep_last(kept: bytearray) -> Callable[[bytes], None]:
    """Collects the end of what a VM's command complains of."""

    def keep(data: bytes) -> None:
        kept.extend(data)
        del kept[:-_STDERR_MAX]

    return keep
