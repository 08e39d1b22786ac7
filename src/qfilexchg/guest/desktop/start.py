"""How the programs of the desktop start: with Debian's GTK, or with a plain word of what is missing.

They are started by a file manager, so standard error is seen by nobody. What is missing is told by whatever can show a message.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

from qfilexchg.guest.outcome import BROKEN, DONE, USAGE
from qfilexchg.guest.programs import NotStarted, ProgramFailed, run

DEBIANS: Final = "/usr/lib/python3/dist-packages"
"""Debian's own Python modules, which the tools of a VM are started without. Only root can write there."""
MESSENGERS: Final = (("/usr/bin/kdialog", "--error"), ("/usr/bin/zenity", "--error", "--no-markup", "--text"), ("/usr/bin/xmessage",))
MESSAGE_S: Final = 600.0

SEND_HELP: Final = """\
usage: send-to-vm-window FILE|FOLDER|URI…

Asks in a window for the VM that these are to go to, and shows how they are sent by qvm-copy-to-vm. File managers start this. Only
files of this VM itself are taken. The exit status is that of qvm-copy-to-vm.
"""
OPEN_HELP: Final = """\
usage: open-in-dvm-window FILE|URI…

Opens each document in a new DisposableVM by qvm-open-in-dvm, and shows in a window how far that is. File managers start this. Only
files of this VM itself are taken. The exit status is that of the last qvm-open-in-dvm that failed.
"""


def send_to_vm(arguments: Sequence[str] | None = None) -> int:
    return _start("send-to-vm-window", SEND_HELP, sys.argv[1:] if arguments is None else arguments, "SendToVm")


def open_in_dvm(arguments: Sequence[str] | None = None) -> int:
    return _start("open-in-dvm-window", OPEN_HELP, sys.argv[1:] if arguments is None else arguments, "OpenInDvm")


def _start(command: str, text: str, arguments: Sequence[str], program: str) -> int:
    if list(arguments) in (["--help"], ["-h"]):
        sys.stdout.write(text)
        return DONE
    if not arguments:
        sys.stderr.write(f"{command}: name at least one file; see {command} --help\n")
        return USAGE
    if DEBIANS not in sys.path:
        sys.path.append(DEBIANS)
    sys.argv = sys.argv[:1]  # GTK would look for options of its own among the names of files
    try:
        from qfilexchg.guest.desktop import programs
    except (ImportError, ValueError) as error:  # ValueError: gi has no GTK of this version
        return _lacking(command, f"there is no GTK 3 in this VM ({error}): install python3-gi and gir1.2-gtk-3.0")
    if not programs.can_show():
        return _lacking(command, "there is no display that a window could be shown on")
    run: int = getattr(programs, program)(arguments).run()
    return run


def _lacking(command: str, what: str) -> int:
    instead = "; or use qvm-copy-to-vm and qvm-open-in-dvm in a terminal"
    sys.stderr.write(f"{command}: {what}{instead}\n")
    for messenger in MESSENGERS:
        if os.access(messenger[0], os.X_OK):
            try:
                run(*messenger, f"{what}{instead}", deadline_s=MESSAGE_S)
            except NotStarted:
                continue
            except ProgramFailed:
                pass  # it was shown: some tell by their status how the person closed it
            break
    return BROKEN
