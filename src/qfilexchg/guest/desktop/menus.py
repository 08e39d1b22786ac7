"""The entries of file managers that are asked for them in Python: Nautilus and Caja, whose extensions call :func:`entries`.

This runs inside of the file manager, so it looks at nothing but what it is given, and starts a program with an argument list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import gi  # type: ignore[import-not-found]

gi.require_version("Gio", "2.0")
from gi.repository import Gio  # type: ignore[import-not-found]  # noqa: E402

SEND: Final = "/usr/lib/qubes/send-to-vm-window"
OPEN: Final = "/usr/lib/qubes/open-in-dvm-window"


def entries(make: Callable[..., Any], files: Sequence[Any]) -> list[Any]:
    """The entries for what is selected, made with the file manager's own class. None for what is not of this VM."""
    if not files or any(file.get_uri_scheme() != "file" for file in files):
        return []
    paths = [file.get_location().get_path() for file in files]
    if None in paths:
        return []
    chosen = [("Qfilexchg::SendToVm", "Send to VM…", "Copy files and folders to another VM", SEND)]
    if not any(file.is_directory() for file in files):
        chosen.append(("Qfilexchg::OpenInDvm", "Open in DisposableVM", "Open documents in VMs that are thrown away afterwards", OPEN))
    items = []
    for name, label, tip, program in chosen:
        item = make(name=name, label=label, tip=tip)
        item.connect("activate", _start, program, paths)
        items.append(item)
    return items


def _start(_item: Any, program: str, paths: Sequence[str]) -> None:
    Gio.Subprocess.new([program, *paths], Gio.SubprocessFlags.NONE)
