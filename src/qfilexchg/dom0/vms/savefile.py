"""The savefile: a booted DisposableVM, saved so that any number of others go on from there.

It is a folder with the VM's memory, the state of its devices, the disk that it had written to, the script that prepared it, and
``made.json``, by what it was made. Memory is mapped copy-on-write, the disk is copied as it is sparse, the state is read: no clone
changes any of it. A savefile is used only where everything is as it was made by: the template, the hypervisor, the processor,
the machine and its memory. Which that is, its stamp, is the platform's to say. Otherwise it is stale, and made again.

A savefile is built aside, tried, and takes the place of the last by the change of one link, so there is always one or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qfilexchg.dom0.home import Home
from qfilexchg.errors import HostError

FORMAT = 1
"""Changes with what a DisposableVM is, so that savefiles of an older qfilexchg are stale."""

Stamp = Mapping[str, str | int]
"""By what a savefile is made. Two are compared as a whole."""


class NoSavefile(HostError):
    """There is no savefile that can be used. ``why`` says what is wrong with the one that is there, if there is one."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"{self.why}: make one by 'qvm-create-default-dvm --default-template'"


@dataclass(frozen=True, slots=True)
class Savefile:
    """One savefile, or one that is being made."""

    folder: Path

    @property
    def memory(self) -> Path:
        return self.folder / "memory"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def disk(self) -> Path:
        """What the VM had written when it was saved: an ext4 filesystem, mostly holes."""
        return self.folder / "disk"

    @property
    def script(self) -> Path:
        """What the person had run in it. There need be none."""
        return self.folder / "script"

    @property
    def made(self) -> Path:
        return self.folder / "made.json"

    def sync(self) -> None:
        """Have it on the host's disk: the memory is known to be whole by its size alone, which comes there before what it holds."""
        for path in (self.memory, self.state, self.disk):
            with path.open("rb") as file:
                os.fsync(file.fileno())

    def record(self, stamp: Stamp) -> None:
        """Write down by what it was made, and what it is. It is complete then."""
        self.made.write_text(json.dumps({"stamp": dict(stamp), "files": self._files()}), encoding="ascii")

    def _files(self) -> dict[str, str | int]:
        """By this a savefile is known to be whole. The state is small enough to be read each time."""
        return {
            "memory_bytes": self.memory.stat().st_size,
            "disk_bytes": self.disk.stat().st_size,
            "state_sha256": hashlib.sha256(self.state.read_bytes()).hexdigest(),
        }

    def check(self, wanted: Stamp) -> None:
        """Raise :exc:`NoSavefile` if it cannot be used where ``wanted`` holds."""
        try:
            record = json.loads(self.made.read_text(encoding="ascii"))
            stamp, files = dict(record["stamp"]), dict(record["files"])
            whole = files == self._files()
        except FileNotFoundError:
            raise NoSavefile("there is no savefile of DisposableVMs") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NoSavefile(f"the savefile cannot be read ({error})") from error
        if not whole:
            raise NoSavefile("the savefile is damaged")
        if changed := sorted(key for key in wanted.keys() | stamp.keys() if wanted.get(key) != stamp.get(key)):
            raise NoSavefile(f"the savefile is stale, as it was made with another {' and '.join(changed)}")

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def current(home: Home) -> Savefile:
    """The savefile that DisposableVMs of this home are made from, if it is there. Not checked."""
    return Savefile(home.current_savefile.resolve())


def identity(file: Path) -> str:
    """Changes when the file is another one, as after an upgrade."""
    status = file.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def processor(cpuinfo: str) -> str:
    """What the first processor of /proc/cpuinfo is and can, without what changes from one moment to the next."""
    wanted = {"vendor_id", "cpu family", "model", "model name", "stepping", "flags"}
    lines = cpuinfo.partition("\n\n")[0].splitlines()
    return hashlib.sha256("\n".join(line for line in lines if line.partition(":")[0].strip() in wanted).encode()).hexdigest()
