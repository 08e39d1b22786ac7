"""The VMs that this person has sent something to, kept by this VM itself: no VM learns from dom0 which others there are.

One name a line, the latest first, in ``~/.local/share/qfilexchg/destinations``. It is a convenience: what cannot be read is no name,
and where it cannot be written, it is not.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Final

from qfilexchg.protocol.names import DISPOSABLE, BadName, VmName

NAMES_MAX: Final = 50
_FILE_MAX: Final = 64 << 10
"""Bytes that are read. Keeps a file that is none of ours from filling the memory."""


class Destinations:
    """The names in one file."""

    def __init__(self, path: str) -> None:
        self._path = path

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Destinations:
        """Those of the person whose session has this environment."""
        data = environment.get("XDG_DATA_HOME", "")
        if not data.startswith("/"):  # the specification of the XDG folders says so
            data = os.path.join(os.path.expanduser("~"), ".local/share")
        return cls(os.path.join(data, "qfilexchg/destinations"))

    def names(self) -> list[VmName]:
        """All of them, the latest first."""
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                lines = os.read(file, _FILE_MAX).decode("ascii", "replace").splitlines()
            finally:
                os.close(file)
        except OSError:
            return []
        names: list[VmName] = []
        for line in lines:
            with contextlib.suppress(BadName):
                names.append(VmName.parse(line))
        return list(dict.fromkeys(names))[:NAMES_MAX]

    def remember(self, name: VmName) -> None:
        """It comes first from now on."""
        self._write([name, *(other for other in self.names() if other != name)])

    def forget(self, name: VmName) -> None:
        self._write([other for other in self.names() if other != name])

    def _write(self, names: Sequence[VmName]) -> None:
        new = f"{self._path}.{os.getpid()}.new"
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(self._path), 0o700, exist_ok=True)
            with open(new, "w", encoding="ascii") as file:
                file.writelines(f"{name}\n" for name in names[:NAMES_MAX])
            os.replace(new, self._path)


def matching(names: Sequence[VmName], typed: str) -> list[VmName]:
    """Those that what was typed may be the beginning of; then those that have it elsewhere."""
    wanted = typed.casefold()
    first = [name for name in names if name.casefold().startswith(wanted)]
    return first + [name for name in names if wanted in name.casefold() and name not in first]


def chosen(typed: str) -> tuple[VmName | None, str]:
    """The VM that was typed, or None and what is to be said about it; nothing is said of what is not finished."""
    if typed == DISPOSABLE:
        return None, "A DisposableVM opens documents: use Open in DisposableVM."
    if not typed:
        return None, ""
    try:
        return VmName.parse(typed), ""
    except BadName:
        return None, "A VM's name has letters, digits, _ and -, begins with a letter, and is at most 64 long."
