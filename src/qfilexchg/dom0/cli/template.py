"""``qvm-template``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from qfilexchg.dom0.cli.arguments import add_release, parser
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import template


def main(arguments: Sequence[str]) -> int:
    """``qvm-template``."""
    args = parser("qvm-template", "The system that all VMs boot from.")
    actions = args.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="make it from Debian's packages and the VM side, or find it in the cache; prints its folder")
    what = "with a small X desktop, for VMs with a screen ('qvm-start --screen'): a file manager, an editor, viewers"
    build.add_argument("--desktop", action="store_true", help=what)
    add_release(build, "of the template")
    actions.add_parser("show", help="print its folder")
    use = actions.add_parser("use", help="let VMs boot from one that was built elsewhere")
    use.add_argument("folder", type=Path, metavar="FOLDER", help="what 'qvm-template build' has printed there, or a copy of it")
    options = args.parse_args(arguments)
    home = Home.from_environment()
    match options.action:
        case "build":
            found = template.build(home, _say, release=options.release, desktop=options.desktop)
        case "use":
            found = template.existing(options.folder)
            home.make()
            template.use(home, found)
        case _:
            found = template.current(home)
    print(found.folder)
    return 0


def _say(line: str) -> None:
    print(f"qvm-template: {line}", file=sys.stderr)
