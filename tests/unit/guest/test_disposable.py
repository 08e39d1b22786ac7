from __future__ import annotations

from pathlib import Path

import pytest

from qfilexchg.guest import identity
from qfilexchg.guest.disposable import disk


class TestDisk:
    @pytest.fixture
    def block(self, tmp_path: Path) -> Path:
        for name, serial in (("vda", "root"), ("vdb", "volatile"), ("loop0", None)):
            (tmp_path / name).mkdir()
            if serial:
                (tmp_path / name / "serial").write_text(f"{serial}\n")
        return tmp_path

    def test_on_qemu_it_is_known_by_its_serial(self, block: Path) -> None:
        assert disk("xvdh", str(block)) is None
        (block / "vdc").mkdir()
        (block / "vdc/serial").write_text("xvdh")
        assert disk("xvdh", str(block)) == "/dev/vdc"
        assert disk("xvdg", str(block)) is None

    def test_on_xen_it_is_known_by_its_name(self, block: Path) -> None:
        (block / "xvdh").mkdir()
        assert disk("xvdh", str(block)) == "/dev/xvdh"

    def test_a_serial_that_is_no_text_is_no_disk_of_ours(self, block: Path) -> None:
        (block / "vda/serial").write_bytes(b"\xff\xfe")
        assert disk("xvdh", str(block)) is None


def test_a_host_without_a_hardware_clock_is_not_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(identity, "_RTC", str(tmp_path / "none"))
    assert identity.seconds_behind() == 0
    (tmp_path / "rtc").write_text("9999999999\n")
    monkeypatch.setattr(identity, "_RTC", str(tmp_path / "rtc"))
    assert identity.seconds_behind() > 1_000_000
