"""``qfilexchg``: what concerns the installation as a whole."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from qfilexchg.dom0.cli import doctor, history, monitor, policy, status
from qfilexchg.dom0.cli.arguments import parser
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import services
from qfilexchg.dom0.vms.machines import Machines


def main(arguments: Sequence[str]) -> int:
    args = parser("qfilexchg", "Look after this installation of qfilexchg.")
    commands = args.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("doctor", help="check all that is needed, and say how to mend what is missing")
    commands.add_parser("up", help="start the daemons of this home where they do not run; 'qvm-start' does so too")
    commands.add_parser("restart", help="stop qfilexchgd and start it again, as after a change of its settings; nothing gets lost")
    down = commands.add_parser("down", help="stop all VMs of this home, and its daemons")
    down.add_argument("--vms", action="store_true", help="stop only the VMs")
    policy.add_arguments(commands.add_parser("policy", help="list the rules; 'policy forget SOURCE TARGET' undoes an answer 'Always'"))
    for name, what in (("status", "what is where now"), ("monitor", "the same, as it changes, until Ctrl-C")):
        commands.add_parser(name, help=what).add_argument("--json", action="store_true", help="for programs: a JSON object a line")
    history.add_arguments(commands.add_parser("history", help="what became of the transfers of the past, the newest first"))
    options = args.parse_args(arguments)
    match options.command:
        case "doctor":
            return doctor.report()
        case "policy":
            return policy.run(options)
        case "status":
            return status.show(json=options.json)
        case "history":
            return history.show(options.since, options.number, json=options.json)
        case "monitor":
            return monitor.run(json=options.json)
        case "up" | "restart" as command:
            home = Home.from_environment()
            home.make()
            with services.toolstack_lock(home):
                if command == "restart":
                    services.services(home)[-1].stop()
                for name in services.start(home):
                    _say(f"{name} started")
        case _:
            machines = Machines(Home.from_environment())
            asyncio.run(machines.down_vms(_say) if options.vms else machines.down(_say))
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr)
