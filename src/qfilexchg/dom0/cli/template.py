"""``qvm-template``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from qfilexchg.dom0.cli.arguments import parser
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import template


def main(arguments: Sequence[str]) -> int:
    """``qvm-template``."""
    args = parser("qvm-template", "The system that all VMs boot from.")
    actions = args.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("build", help="make it from Debian's packages and the VM side, or find it in the cache; prints its folder")
    actions.add_parser("show", help="print its folder")
    home = Home.from_environment()
    if args.parse_args(arguments).action == "build":
        print(template.build(home, lambda line: print(f"qvm-template: {line}", file=sys.stderr)).folder)
    else:
        print(template.current(home).folder)
    return 0
