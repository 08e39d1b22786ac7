from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def time_zone() -> Iterator[Callable[[str], None]]:
    """Let this computer's clock be one of that time zone."""
    with pytest.MonkeyPatch.context() as patch:

        def change(name: str) -> None:
            patch.setenv("TZ", name)
            time.tzset()

        yield change
    time.tzset()
