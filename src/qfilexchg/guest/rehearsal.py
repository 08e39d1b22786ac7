"""What is done in a VM before its savefile is taken, so that a document opens at once in all that are restored from it."""

from __future__ import annotations

import os
import time

from qfilexchg.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Final

    from qfilexchg.guest.scope import Scope

SCRIPT: Final = "/etc/qubes/dvm-prerun"
"""A script of the person's that dom0 has put here: it may start programs, or choose those for a type of document."""
SCRIPT_S: Final = 300.0
_STEP_S: Final = 0.05
USUAL_TYPES: Final = (
    *("text/plain", "text/html", "application/pdf", "image/png", "image/jpeg", "audio/mpeg", "video/mp4"),
    *("application/vnd.oasis.opendocument.text", "application/vnd.oasis.opendocument.spreadsheet"),
    *("application/vnd.openxmlformats-officedocument.wordprocessingml.document", "application/msword"),
)

_LOADER: Final = "/lib64/ld-linux-x86-64.so.2"
_ELF: Final = b"\x7fELF"
_SPARE_KIB: Final = 64 << 10
"""Memory that is left free for the document's own needs."""
_READ_BYTES: Final = 1 << 20


class ScriptFailed(HostError):
    """The person's script did not succeed, so what it was to prepare is not prepared."""

    def __init__(self, status: int | None) -> None:
        super().__init__(status)
        self.status = status

    def __str__(self) -> str:
        if self.status is None:
            return f"the script had not ended after {SCRIPT_S:.0f} s; let it start what takes long in the background"
        return f"the script ended with status {self.status}"


def run_script(scope: Scope) -> None:
    """Run the person's script, if there is one. What it leaves running stays in the scope. Raises :exc:`ScriptFailed`, CannotRun."""
    if not os.path.exists(SCRIPT):
        return
    script = scope.start((SCRIPT,), os.environ.get("HOME"))
    end = time.monotonic() + SCRIPT_S
    while time.monotonic() < end:
        pid, status = os.waitpid(script, os.WNOHANG)
        if pid:
            if code := os.waitstatus_to_exitcode(status):
                raise ScriptFailed(code)
            return
        time.sleep(_STEP_S)
    raise ScriptFailed(None)


def warm(programs: Iterable[str]) -> None:
    """Read the files of ``programs`` into the kernel's cache, as far as there is room."""
    for program in programs:
        for path in (program, *_libraries(program)):
            if memory_kib()[1] < _SPARE_KIB:
                return
            _read(path)


def _read(path: str) -> None:
    try:
        with open(path, "rb", buffering=0) as file:
            while file.read(_READ_BYTES):
                pass
    except OSError:
        return  # it would not have been found later either


def _libraries(program: str) -> Iterator[str]:
    """What the dynamic loader would load for ``program`` (ld.so(8), ``--list``); nothing for a script."""
    try:
        with open(program, "rb") as file:
            if file.read(len(_ELF)) != _ELF:
                return
    except OSError:
        return
    reader, writer = os.pipe2(os.O_CLOEXEC)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_DUP2, null, 2)]
    pid = os.posix_spawn(_LOADER, (_LOADER, "--list", program), os.environ, file_actions=actions)
    os.close(writer)
    os.close(null)
    with open(reader, encoding="utf-8", errors="replace") as listing:
        for line in listing:
            words = line.split()
            if "=>" in words and len(words) > 2:
                yield words[2]
    os.waitpid(pid, 0)


def memory_kib() -> tuple[int, int]:
    """Memory in use and memory that is free, by /proc/meminfo."""
    with open("/proc/meminfo", encoding="ascii") as file:
        fields = {line.partition(":")[0]: int(line.split()[1]) for line in file}
    return fields["MemTotal"] - fields["MemAvailable"], fields["MemAvailable"]
