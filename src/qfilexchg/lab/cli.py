"""``qfilexchg-lab``: machines for those who work on qfilexchg.

``qfilexchg-lab xen`` is a computer with genuine Xen, inside QEMU: dom0 with qfilexchg installed from its Debian packages, two AppVMs that
run, and a savefile. The first ``up`` builds it, which takes some minutes; any other is there in a second, and as it was.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence

from qfilexchg.dom0.cli import run as commands
from qfilexchg.dom0.cli.arguments import add_release, parser, vm_name
from qfilexchg.dom0.debian import Release
from qfilexchg.dom0.home import Home
from qfilexchg.errors import QfilexchgError
from qfilexchg.lab.xen import runs
from qfilexchg.protocol.names import VmName

PROGRAM = "qfilexchg-lab"


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser(PROGRAM, "Machines for those who work on qfilexchg.")
    machines = args.add_subparsers(dest="machine", required=True, metavar="MACHINE")
    actions = machines.add_parser("xen", help="a computer with genuine Xen, inside QEMU").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--name", type=vm_name, default=VmName.parse("xen"), help="which of several machines (default: xen)")
    built = argparse.ArgumentParser(add_help=False)
    add_release(built, "of its dom0 and its VMs")
    actions.add_parser("build", parents=[built], help="make the saved machine that all go on from, or find it made")
    actions.add_parser("up", parents=[common, built], help="start a machine, which is as it was saved")
    run = actions.add_parser("run", parents=[common], help="run a command in its dom0, as root")
    run.add_argument("--user", default="root", help="run it as this user of dom0 (default: root)")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...")
    console = actions.add_parser("console", parents=[common], help="a shell in its dom0, on this terminal; Ctrl-] leaves it")
    console.add_argument("--user", default="root", help="whose shell (default: root)")
    actions.add_parser("down", parents=[common], help="end a machine and remove all it has written")
    options = args.parse_args(arguments)
    home = Home.from_environment()
    home.make()
    try:
        match options.action:
            case "build":
                runs.build(home, options.release, _say)
            case "up":
                asyncio.run(_up(home, options.name, options.release))
            case "run":
                if not options.command:
                    run.error("the following arguments are required: COMMAND")
                return commands.run_in(runs.running(home, options.name).session, options.command, options.user, PROGRAM)
            case "console":
                return commands.console_in(runs.running(home, options.name).session, options.user, PROGRAM)
            case _:
                asyncio.run(runs.down(runs.machine(home, options.name)))
    except QfilexchgError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


async def _up(home: Home, name: VmName, release: Release) -> None:
    if runs.machine(home, name).process():
        _say(f"{name} runs already; 'qfilexchg-lab xen down' ends it")
        return
    ready = await asyncio.to_thread(runs.build, home, release, _say)
    begun = time.monotonic()
    await runs.up(home, name, ready)
    _say(f"{name} is up, after {time.monotonic() - begun:.1f} s: try 'qfilexchg-lab xen run qvm-ls'")


def _say(line: str) -> None:
    print(f"{PROGRAM}: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
