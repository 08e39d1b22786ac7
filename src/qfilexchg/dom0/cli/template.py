"""``qvm-template``."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from qfilexchg.dom0.cli.arguments import add_release, parser
from qfilexchg.dom0.cli.tables import NOTHING, duration, table
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import recipe, template
from qfilexchg.dom0.vms.collection import Collection
from qfilexchg.dom0.vms.template import Contents, Template

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
"""The name of a package (Debian Policy, 5.6.1)."""


def main(arguments: Sequence[str]) -> int:
    """``qvm-template``."""
    args = parser("qvm-template", "The system that all VMs boot from.")
    actions = args.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="make it from Debian's packages and the VM side, or find it in the cache; prints its folder")
    what = "with a small X desktop, for VMs with a screen ('qvm-start --screen'): a file manager, an editor, viewers"
    build.add_argument("--desktop", action="store_true", help=what)
    add_release(build, "of the template")
    what = "make it anew of Debian's packages of today, with all security updates; VMs boot from that at their next start"
    actions.add_parser("update", help=what)
    install = actions.add_parser("install", help="add packages of Debian's to it; VMs have them at their next start")
    install.add_argument("packages", nargs="+", type=_package, metavar="PACKAGE")
    actions.add_parser("list", help="list the templates, their releases and how old they are")
    actions.add_parser("show", help="print its folder")
    use = actions.add_parser("use", help="let VMs boot from one that was built elsewhere")
    use.add_argument("folder", type=Path, metavar="FOLDER", help="what 'qvm-template build' has printed there, or a copy of it")
    options = args.parse_args(arguments)
    home = Home.from_environment()
    home.make()
    match options.action:
        case "build":
            shown = [recipe.build(home, Contents(options.release, options.desktop), _say)]
        case "update":
            shown = update(home, _say)
        case "install":
            shown = [recipe.install(home, template.current(home), options.packages, _say)]
        case "use":
            shown = [template.existing(options.folder)]
            template.use(home, shown[0])
        case "list":
            print("\n".join(table(_rows(home))))
            return 0
        case _:
            shown = [template.current(home)]
    for found in shown:
        print(found.folder)
    return 0


def _package(word: str) -> str:
    if not _PACKAGE.fullmatch(word):
        raise argparse.ArgumentTypeError(f"{word[:64]!a} is no name of a package of Debian's")
    return word


def update(home: Home, say: Callable[[str], None]) -> list[Template]:
    """Make all of the home's templates anew, and say which packages are another version now."""
    template.current(home)
    updated = []
    for folder in template.used(home):
        old = _versions(Template(folder))
        new = recipe.update(home, Template(folder), say)
        updated.append(new)
        for line in changes(old, _versions(new)):
            say(line)
    return updated


def _versions(of: Template) -> dict[str, str]:
    """The versions of its packages, by name; nothing where the template does not say."""
    if not of.versions.exists():
        return {}
    lines = of.versions.read_text(encoding="ascii").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def changes(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Return a line for each package that is another version in ``new`` or was not in ``old``; one line if there is none.

    A kernel's update is a new package.
    """
    changed = [f"{name} {old.get(name, '(new)')} → {version}" for name, version in sorted(new.items()) if old.get(name) != version]
    return changed or ["no package is newer"]


def _rows(home: Home) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("RELEASE", "DESKTOP", "AGE", "ADDED", "FOR", "FOLDER")]
    vms = Collection(home.collection).list()
    for folder, releases in template.used(home).items():
        found = Template(folder)
        contents = found.contents
        release, desktop, added = (
            (contents.release.value, "yes" if contents.desktop else "no", " ".join(contents.packages) or NOTHING)
            if contents
            else (NOTHING, NOTHING, NOTHING)
        )
        users = ["all others"] if None in releases else []
        users = [vm.name for vm in vms if vm.release in releases and vm.release] + users
        rows.append((release, desktop, duration(time.time() - found.made_s), added, ", ".join(users) or NOTHING, str(folder)))
    return rows


def _say(line: str) -> None:
    print(f"qvm-template: {line}", file=sys.stderr)
