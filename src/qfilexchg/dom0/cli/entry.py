"""The commands as programs of their own, as a package installs them: what one is called as is the command that runs."""

from __future__ import annotations

import os.path
import sys

from qfilexchg.dom0.cli import __main__


def main() -> int:
    """Run the command that this process is named for, with its arguments, and return its exit status."""
    return __main__.main([os.path.basename(sys.argv[0]), *sys.argv[1:]])  # noqa: PTH119 - pathlib for one name is slow to import
