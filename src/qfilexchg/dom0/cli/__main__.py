"""``python -m qfilexchg.dom0.cli NAME ARGUMENT…`` runs the command NAME.

What every command has in common is here: an error of ours is one plain line and exit status 1, and Ctrl-C is 130. Status 2 is
argparse's, for arguments that are not understood.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from qfilexchg.dom0.cli.commands import COMMANDS
from qfilexchg.errors import QfilexchgError

FAILED = 1
MISUSED = 2
INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Run the command that ``argv`` names, with the rest as its arguments, and return its exit status."""
    if not argv or argv[0] not in COMMANDS:
        print(f"usage: python -m qfilexchg.dom0.cli {{{','.join(sorted(COMMANDS))}}} ...", file=sys.stderr)
        return MISUSED
    name, *arguments = argv
    module, _, function = COMMANDS[name].partition(":")
    command: Callable[[Sequence[str]], int] = getattr(importlib.import_module(module), function)
    try:
        return command(arguments)
    except QfilexchgError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
