"""``qvm-create-default-dvm`` and ``qubes_restore``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from qfilexchg.dom0 import configuration
from qfilexchg.dom0.cli.arguments import parser, vm_name
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import choice, restoring, saving, services, template
from qfilexchg.dom0.vms.collection import Collection, Label
from qfilexchg.dom0.vms.disposables import require_memory
from qfilexchg.dom0.vms.savefile import Savefile
from qfilexchg.dom0.vms.template import Template
from qfilexchg.errors import CallerError
from qfilexchg.protocol.names import VmName

DEFAULT_SCRIPTS = (Path("/etc/qfilexchg/dvm-prerun"),)
SCRIPT_MAX = 1 << 20
"""Bytes; what is longer is no script."""


class BadScript(CallerError):
    """A script for the savefile that cannot be read, or is none."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"the script {self.path} cannot be used: {self.why}"


def create_default_dvm(arguments: Sequence[str]) -> int:
    """``qvm-create-default-dvm``."""
    args = parser(
        "qvm-create-default-dvm",
        "Make the savefile from which DisposableVMs are restored: boot a DisposableVM, prepare it, save it, and try it. It takes "
        "the place of the last one only when it works.",
    )
    args.usage = "qvm-create-default-dvm [-h] (--default-template | TEMPLATE) [--default-script | SCRIPT]"
    args.add_argument("--default-template", action="store_true", help="from the template of this home ('qvm-template show')")
    args.add_argument(
        "--default-script", action="store_true", help=f"run dvm-prerun of the home, or {DEFAULT_SCRIPTS[0]}, in it before it is saved"
    )
    what = "TEMPLATE: from the template in this folder, which becomes this home's when it works. SCRIPT: run this in it, as its user, first"
    args.add_argument("words", nargs="*", type=Path, metavar="WORD", help=what)
    options = args.parse_args(arguments)
    words: list[Path] = options.words
    folder = None if options.default_template else words.pop(0) if words else None
    if folder is None and not options.default_template:
        args.error("name a TEMPLATE, or say --default-template")
    script = None if options.default_script else words.pop(0) if words else None
    if words:
        args.error(f"one word too many: {words[0]}")
    home = Home.from_environment()
    home.make()
    prepared = read_script(default_script(home) if options.default_script else script)
    return asyncio.run(_create(home, template.existing(folder) if folder else None, prepared))


async def _create(home: Home, named: Template | None, script: bytes | None) -> int:
    collection = Collection(home.collection)
    settings = configuration.load((configuration.SYSTEM_FILE, home.configuration))
    toolstack = choice.toolstack(home)
    made_of = await toolstack.basis(settings.disposable_memory_mb, named)
    await require_memory(toolstack, made_of.memory_mib)
    _start_services(home)
    saved = await saving.make(home, collection, toolstack, made_of, script, _say)
    if named:
        template.use(home, named)
    print(saved.folder)
    return 0


def default_script(home: Home) -> Path:
    """Raises :exc:`BadScript` where there is none."""
    for path in (home.default_script, *DEFAULT_SCRIPTS):
        if path.exists():
            return path
    raise BadScript(home.default_script, f"it does not exist, nor does {DEFAULT_SCRIPTS[0]}")


def read_script(path: Path | None) -> bytes | None:
    """Raises :exc:`BadScript`."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            data = file.read(SCRIPT_MAX + 1)
    except OSError as error:
        raise BadScript(path, error.strerror or str(error)) from error
    if len(data) > SCRIPT_MAX:
        raise BadScript(path, f"it is longer than {SCRIPT_MAX} bytes")
    if not data.startswith((b"#!", b"\x7fELF")):
        raise BadScript(path, "it begins neither with '#!' nor as a program does")
    return data


def restore(arguments: Sequence[str]) -> int:
    """``qubes_restore``."""
    args = parser("qubes_restore", "Make a DisposableVM from a savefile and let it run; prints its name. 'qvm-kill' ends it.")
    args.add_argument("savefile", type=Path, metavar="SAVEFILE", help="what 'qvm-create-default-dvm' has printed")
    args.add_argument("--asker", type=vm_name, metavar="VM", help="give it the label of this VM")
    options = args.parse_args(arguments)
    home = Home.from_environment()
    home.make()
    return asyncio.run(_restore(home, Savefile(options.savefile.resolve()), options.asker))


async def _restore(home: Home, saved: Savefile, asker: VmName | None) -> int:
    collection = Collection(home.collection)
    settings = configuration.load((configuration.SYSTEM_FILE, home.configuration))
    label = collection.get(asker).label if asker else Label.RED
    toolstack = choice.toolstack(home)
    made_of = await toolstack.basis(settings.disposable_memory_mb)
    saved.check(made_of.stamp)
    await require_memory(toolstack, made_of.memory_mib)
    _start_services(home)
    restored = await restoring.restore(home, collection, toolstack, saved, made_of, label)
    try:
        await toolstack.wake(restored)
    except BaseException:
        await restoring.end(home, collection, toolstack, restored)
        raise
    print(restored.name)
    return 0


def _start_services(home: Home) -> None:
    with services.toolstack_lock(home):
        for name in services.start(home):
            _say(f"{name} started")


def _say(line: str) -> None:
    print(line, file=sys.stderr)
