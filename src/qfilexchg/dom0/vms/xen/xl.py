"""Runs xl, the one program by which dom0 makes, changes and ends VMs on Xen, and reads the two lists that it prints (xl(1)).

What xl says is for people, so what is read of it is little and read strictly: a line that is not understood is an error, and never
a VM that does not run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from qfilexchg.dom0 import programs
from qfilexchg.dom0.programs import ProgramFailed, ProgramMissing
from qfilexchg.dom0.vms.hypervisor import HypervisorError, VmId
from qfilexchg.protocol.names import BadDomainId, DomainId

QUERY_DEADLINE_S = 20.0
"""For xl to print a list, on a busy host under emulation."""

_LISTED = re.compile(
    r"(?P<name>.*) +(?P<domain>\d+) +\d+ +\d+ +[r-][b-](?P<paused>[p-])(?P<shutdown>[s-])(?P<reason>.)(?P<dying>[d-]) +[0-9.]+ +"
    r"(?P<uuid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}) +\S+ +\S+\s*"
)
_SUSPENDED = "s"
"""The reason of a VM that is shut down because it is being saved. It goes on running, or is destroyed by who saves it."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One domain as Xen knows it, dom0 and those that are about to go included."""

    id: VmId
    name: str
    """Whatever the store says; ``(null)`` where it says nothing."""
    paused: bool
    shut_down: bool
    """It has ended by itself, and is still to be destroyed."""
    dying: bool

    @property
    def runs(self) -> bool:
        return not self.shut_down and not self.dying


@dataclass(frozen=True, slots=True)
class Info:
    """What ``xl info`` says of the computer. Memory is in MiB."""

    free_memory_mib: int
    virt_caps: frozenset[str]
    xen_version: str
    xen_commandline: str
    processors: int
    processor_flags: str
    """Words of Xen's own, which a saved VM depends on."""


async def run(*arguments: str, deadline_s: float) -> str:
    """The output of xl with ``arguments``. Raises :exc:`~qfilexchg.dom0.vms.hypervisor.HypervisorError`, its detail in xl's own words."""
    try:
        output = await programs.run("xl", *arguments, deadline_s=deadline_s)
    except ProgramMissing as error:
        raise HypervisorError("the program xl is missing: install the Debian package xen-utils-common") from error
    except ProgramFailed as error:
        raise HypervisorError(f"xl {arguments[0]} {error.how}", _last_words(error.stderr)) from error
    return output.decode("utf-8", "backslashreplace")


def _last_words(stderr: bytes) -> str:
    """The end of what xl said, whose last lines are the ones that count."""
    return stderr.decode("utf-8", "backslashreplace").strip()[-400:]


async def list_domains() -> list[Listed]:
    """Every domain."""
    return parse_list(await run("list", "-v", deadline_s=QUERY_DEADLINE_S))


async def info() -> Info:
    """What the computer is and has left."""
    return parse_info(await run("info", deadline_s=QUERY_DEADLINE_S))


def parse_list(text: str) -> list[Listed]:
    """What ``xl list -v`` printed. Raises HypervisorError for anything that it does not print."""
    header, *lines = text.splitlines() or [""]
    if not header.startswith("Name ") or " UUID " not in header:
        raise HypervisorError("xl list has printed something that is no list", header)
    return [_listed(line) for line in lines]


def _listed(line: str) -> Listed:
    found = _LISTED.fullmatch(line)
    try:
        if found is None:
            raise ValueError
        vm = VmId(DomainId.parse(found["domain"]), UUID(found["uuid"]))
    except (ValueError, BadDomainId) as error:
        raise HypervisorError("xl list has printed a line that is not understood", line) from error
    shut_down = found["shutdown"] == "s" and found["reason"] != _SUSPENDED
    return Listed(vm, found["name"].rstrip(" "), found["paused"] == "p", shut_down, found["dying"] == "d")


def parse_info(text: str) -> Info:
    """What ``xl info`` printed. Raises HypervisorError where something is missing."""
    fields: Mapping[str, str] = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    try:
        return Info(
            free_memory_mib=int(fields["free_memory"]),
            virt_caps=frozenset(fields["virt_caps"].split()),
            xen_version=fields["xen_version"],
            xen_commandline=fields["xen_commandline"],
            processors=int(fields["nr_cpus"]),
            processor_flags=fields["hw_caps"],
        )
    except (KeyError, ValueError) as error:
        raise HypervisorError("xl info has printed something that is not understood", str(error)) from error
