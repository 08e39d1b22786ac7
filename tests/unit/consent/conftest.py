from __future__ import annotations

from pathlib import Path

import pytest

from qfilexchg.dom0.consent.protocol import Kind, Question
from qfilexchg.protocol.names import VmName


@pytest.fixture
def question() -> Question:
    return Question(
        id=7,
        kind=Kind.COPY,
        source=VmName.parse("work"),
        source_label="green",
        target=VmName.parse("personal"),
        size_bytes=1 << 20,
        deadline_s=30,
    )


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    """A path short enough for a socket, however deep pytest's folder is."""
    path = tmp_path / "s"
    assert len(str(path)) < 100
    return path
