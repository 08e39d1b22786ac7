"""What a check of ``qfilexchg doctor`` finds."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Verdict(enum.Enum):
    """How a check ended."""

    GOOD = "ok"
    NOTE = "note"
    """Works, and the person may want to know."""
    BAD = "BAD"
    """VMs cannot be built, started or used before this is mended."""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. ``said`` is a sentence for a person, and names the cure where one is needed."""

    what: str
    verdict: Verdict
    said: str
