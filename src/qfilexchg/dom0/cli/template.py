"""``qvm-template``."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

from qfilexchg.dom0 import debian
from qfilexchg.dom0.cli.arguments import add_release, parser, release
from qfilexchg.dom0.cli.tables import NOTHING, duration, table
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import recipe, template
from qfilexchg.dom0.vms.collection import Collection
from qfilexchg.dom0.vms.template import Template


def main(arguments: Sequence[str]) -> int:
    """``qvm-template``."""
    args = parser("qvm-template", "The system that VMs boot from. What changes it is there at a VM's next start.")
    actions = args.add_subparsers(dest="action", required=True, metavar="ACTION")
    what = "make one of Debian's packages and the VM side, or find it in the cache, and let VMs boot from it; prints its folder"
    build = actions.add_parser("build", help=what)
    what = "with a small X desktop, for VMs with a screen ('qvm-start --screen'): a file manager, an editor, viewers"
    build.add_argument("--desktop", action="store_true", help=what)
    add_release(build, "of the template")
    actions.add_parser("update", help="rebuild all of this home's with Debian's current packages, security updates among them")
    _packages(actions.add_parser("install", help="add Debian packages; updates keep them"))
    _packages(actions.add_parser("remove", help="leave out packages that were added"))
    actions.add_parser("list", help="list the templates of this home, their releases and how old they are")
    actions.add_parser("show", help="print the folder of the one that VMs boot from")
    use = actions.add_parser("use", help="let VMs boot from one that was built elsewhere")
    use.add_argument("folder", type=Path, metavar="FOLDER", help="what 'qvm-template build' has printed there, or a copy of it")
    options = args.parse_args(arguments)
    home = Home.from_environment()
    home.make()
    match options.action:
        case "list":
            print("\n".join(table(_rows(home))))
        case "update":
            for found, changes in recipe.update(home, _say):
                for line in changes:
                    _say(line)
                print(found.folder, flush=True)
        case "build":
            print(recipe.build(home, options.release, _say, desktop=options.desktop).folder)
        case "install":
            print(recipe.change(home, options.release, set(options.packages), set(), _say).folder)
        case "remove":
            print(recipe.change(home, options.release, set(), set(options.packages), _say).folder)
        case "use":
            template.use(home, template.existing(options.folder))
            print(template.current(home).folder)
        case _:
            print(template.current(home).folder)
    return 0


def _packages(action: ArgumentParser) -> None:
    what = "in the template of VMs that name this release (default: of those that name none)"
    action.add_argument("--release", type=release, metavar="RELEASE", help=what)
    action.add_argument("packages", nargs="+", type=_package, metavar="PACKAGE")


def _package(word: str) -> str:
    try:
        return debian.package_name(word)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def _rows(home: Home) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("RELEASE", "DESKTOP", "AGE", "ADDED", "FOR", "FOLDER")]
    vms = Collection(home.collection).list()
    for folder, releases in template.used(home).items():
        found = Template(folder)
        what = (NOTHING, NOTHING)
        added = ""
        if contents := found.contents:
            what = (contents.release.value, "yes" if contents.desktop else "no")
            added = " ".join(contents.packages)
        users = [vm.name for vm in vms if vm.release and vm.release in releases] + (["all others"] if None in releases else [])
        age = duration(time.time() - found.made_s)
        rows.append((*what, age, added or NOTHING, ", ".join(users) or NOTHING, str(folder)))
    return rows


def _say(line: str) -> None:
    print(f"qvm-template: {line}", file=sys.stderr)
