"""Debian's own Python modules, which no virtual environment has: GTK by ``gi``, D-Bus by ``jeepney``.

The commands run in an environment of their own, or without Python's search for installed modules. What goes to a desktop is looked
for last in Debian's folder, where only root can write, and only by Debian's Python: another one could not load it.
"""

from __future__ import annotations

import sys
from typing import Final

FOLDER: Final = "/usr/lib/python3/dist-packages"


def find_debians() -> None:
    """Let modules be imported from Debian's folder from now on, after all others."""
    if sys.base_prefix == "/usr" and FOLDER not in sys.path:
        sys.path.append(FOLDER)
