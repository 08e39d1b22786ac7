"""What a file manager hands over, as paths of this VM's own files.

It gives absolute paths or URIs. Only what lies on a filesystem of this VM is taken: anything else (a wastebasket, a share, a camera)
would be read from elsewhere while it is sent, with no end that anybody could promise.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

from qfilexchg.errors import CallerError
from qfilexchg.guest.desktop.showing import short
from qfilexchg.guest.progress import printable

_URI: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")
_LOCAL: Final = ("file:///", "file://localhost/")
_NAMED_MAX: Final = 10
"""Things that a message names; the rest is a number."""


class NotLocal(CallerError):
    """Some of what was chosen is no file of this VM."""

    def __init__(self, things: Sequence[str]) -> None:
        super().__init__(things)
        self.things = tuple(things)

    def __str__(self) -> str:
        named = ", ".join(short(printable(thing)) for thing in self.things[:_NAMED_MAX])
        more = len(self.things) - _NAMED_MAX
        return f"only files of this VM itself can be taken; copy these into it first: {named}{f' and {more} more' if more > 0 else ''}"


def local_paths(arguments: Sequence[str], runtime_folder: str) -> list[str]:
    """The absolute paths that ``arguments`` mean. Raises :exc:`NotLocal` if any means none.

    ``runtime_folder`` is where the session mounts what is elsewhere (gvfs), so that it only looks like a file.
    """
    paths = [_path(argument) for argument in arguments]
    elsewhere = (os.path.join(runtime_folder, "gvfs"), os.path.expanduser("~/.gvfs"))
    foreign = [
        argument
        for argument, path in zip(arguments, paths, strict=True)
        if path is None or any(_is_below(os.path.realpath(path), folder) for folder in elsewhere)
    ]
    if foreign:
        raise NotLocal(foreign)
    return [path for path in paths if path is not None]


def _path(argument: str) -> str | None:
    if not argument or "\0" in argument:
        return None
    if not _URI.match(argument):
        return os.path.abspath(argument) if not argument.endswith("/") else os.path.abspath(argument) + "/"
    for prefix in _LOCAL:
        if argument.lower().startswith(prefix):
            data = unquote_to_bytes(os.fsencode(argument[len(prefix) - 1 :]))
            return None if b"\0" in data else os.fsdecode(data)
    return None


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")
