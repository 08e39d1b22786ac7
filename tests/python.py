"""How a test runs a Python program of ours: a warning is an error there, as it is in pytest's own process.

It is not set for all that a test runs: programs of others, such as pip and what Debian's packages run, are not ours to mend.
"""

from __future__ import annotations

import sys

PYTHON = (sys.executable, "-Werror")
"""How such a program's command begins. The option holds also where ``-I`` or ``-E`` has the environment ignored."""
WARNINGS = {"PYTHONWARNINGS": "error"}
"""The same in the environment of a program of ours that starts Python itself."""
