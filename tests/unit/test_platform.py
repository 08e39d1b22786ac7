from __future__ import annotations

from pathlib import Path

import pytest

from qfilexchg.dom0.platform import Platform, here


@pytest.mark.parametrize(("content", "platform"), [("control_d\n", Platform.XEN), ("", Platform.QEMU), (None, Platform.QEMU)])
def test_only_the_domain_that_controls_xen_is_on_the_xen_platform(content: str | None, platform: Platform, tmp_path: Path) -> None:
    file = tmp_path / "capabilities"
    if content is not None:
        file.write_text(content)
    assert here(file) is platform
