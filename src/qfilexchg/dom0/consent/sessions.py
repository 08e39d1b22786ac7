"""Which login session a process belongs to, and which sessions people have before them: by the kernel's and by logind's word.

A program that was started from a session's terminal is in the session's own cgroup. What systemd starts for the user, such as an
agent by its user unit, is in none; it counts to the session that has the user's display. Where there is no logind there are no
sessions.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from qfilexchg.dom0 import programs
from qfilexchg.errors import HostError

LOGIND_WITHIN_S: Final = 3.0

_SESSION = re.compile(r"/session-([A-Za-z0-9]+)\.scope(?:/|$)")
_USER = re.compile(r"/user-(\d+)\.slice/user@\1\.service(?:/|$)")


async def of_process(process: int, proc: Path = Path("/proc")) -> str | None:
    """The session of a process, or None."""
    try:
        cgroups = (proc / str(process) / "cgroup").read_text(errors="replace")
    except OSError:
        return None
    if session := session_in(cgroups):
        return session
    user = user_in(cgroups)
    return (await _logind("show-user", "--property=Display", "--value", "--", user)).strip() or None if user else None


async def active(sessions: Iterable[str]) -> set[str]:
    """Those of ``sessions`` that are active: on the screen of their seat, or logged in from elsewhere."""
    names = sorted(sessions)
    said = await asyncio.gather(*(_logind("show-session", "--property=Active", "--value", "--", name) for name in names))
    return {name for name, word in zip(names, said, strict=True) if word.strip() == "yes"}


def session_in(cgroups: str) -> str | None:
    """The session that a process with these lines in ``/proc/PID/cgroup`` belongs to by its cgroup."""
    found = _SESSION.search(_path(cgroups))
    return found[1] if found else None


def user_in(cgroups: str) -> str | None:
    """The id of the user whose manager has started it."""
    found = _USER.search(_path(cgroups))
    return found[1] if found else None


def _path(cgroups: str) -> str:
    """That of the hierarchy that systemd manages: ``0::PATH``, on older systems ``N:name=systemd:PATH``."""
    for line in cgroups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path != "/" and ((number == "0" and not controllers) or controllers == "name=systemd"):
            return path
    return ""


async def _logind(*words: str) -> str:
    try:
        return (await programs.run("loginctl", *words, deadline_s=LOGIND_WITHIN_S)).decode("utf-8", "replace")
    except HostError:  # there is no logind, or no such session any more
        return ""
