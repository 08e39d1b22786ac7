from __future__ import annotations

from pathlib import Path

import pytest

from qfilexchg.dom0.platform import NotDom0, Platform, here


@pytest.mark.parametrize(("content", "platform"), [("control_d\n", Platform.XEN), ("", Platform.QEMU), (None, Platform.QEMU)])
def test_only_the_domain_that_controls_xen_is_on_the_xen_platform(content: str | None, platform: Platform, tmp_path: Path) -> None:
    file = tmp_path / "capabilities"
    if content is not None:
        file.write_text(content)
    assert here(file) is platform


@pytest.mark.parametrize(
    ("capabilities", "hypervisor", "said"),
    [
        (None, None, "does not run Xen: run 'apt install xen-system-amd64'"),
        (None, "xen\n", "run 'systemctl start xen'"),
        ("", "xen\n", "install qfilexchg-vm here"),
    ],
)
def test_without_the_code_for_qemu_a_computer_that_is_not_dom0_has_no_platform(
    capabilities: str | None, hypervisor: str | None, said: str, tmp_path: Path
) -> None:
    files = {"capabilities": capabilities, "type": hypervisor}
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_text(content)
    with pytest.raises(NotDom0, match=said):
        here(tmp_path / "capabilities", tmp_path / "missing", tmp_path / "type")


def test_dom0_needs_no_code_for_qemu(tmp_path: Path) -> None:
    (tmp_path / "capabilities").write_text("control_d\n")
    assert here(tmp_path / "capabilities", tmp_path / "missing") is Platform.XEN
