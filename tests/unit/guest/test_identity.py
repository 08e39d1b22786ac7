"""What a restored VM takes from the host, and what it does without."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qfilexchg.guest import identity
from qfilexchg.guest.identity import NoRandomness, take_on
from qfilexchg.protocol.keys import NAME, RANDOM_SEED, VM_PATH
from tests.unit.guest.dom0 import Dom0

STALE = bytes(128)
FRESH = bytes(range(64))


class Kernel:
    """What the kernel is told, in order."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def ioctl(self, _file: object, request: int, argument: bytes = b"") -> None:
        self.told.append((request, argument))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Kernel:
    kernel = Kernel()
    (tmp_path / "hwrng").write_bytes(STALE + FRESH)
    monkeypatch.setattr(identity, "_HWRNG", str(tmp_path / "hwrng"))
    monkeypatch.setattr(identity, "_XEN_UUID", str(tmp_path / "uuid"))
    monkeypatch.setattr(identity.fcntl, "ioctl", kernel.ioctl)  # type: ignore[attr-defined]
    monkeypatch.setattr(identity, "seconds_behind", lambda: 100)
    monkeypatch.setattr(time, "clock_settime", lambda _, to_s: kernel.told.append(round(to_s - time.time())))
    monkeypatch.setattr(socket, "sethostname", kernel.told.append)
    monkeypatch.setattr(identity, "_rewrite", lambda path, line, _: kernel.told.append((path, line)))
    return kernel


@pytest.fixture
def store() -> Dom0:
    dom0 = Dom0()
    dom0.nodes |= {NAME: b"disp3", VM_PATH: b"/vm/01234567-89ab-cdef-0123-456789abcdef"}
    return dom0


def take(store: Dom0) -> list[str]:
    """Take on what the store says; what was logged."""
    log: list[str] = []
    assert take_on(store, log.append) == "disp3"  # type: ignore[arg-type]
    return log


def test_randomness_comes_before_all_else_and_none_that_the_savefile_had(kernel: Kernel, store: Dom0) -> None:
    assert take(store) == []
    assert kernel.told == [
        (0x40085203, struct.pack("ii", 512, 64) + FRESH),
        (0x5207, b""),
        100,
        "disp3",
        ("/etc/hostname", "disp3"),
        ("/etc/machine-id", "0123456789abcdef0123456789abcdef"),
    ]


@pytest.mark.parametrize("size_bytes", [0, 64, 128, 191])
def test_too_little_randomness_is_none(kernel: Kernel, store: Dom0, tmp_path: Path, size_bytes: int) -> None:
    (tmp_path / "hwrng").write_bytes((STALE + FRESH)[:size_bytes])
    with pytest.raises(NoRandomness, match="it ends too soon"):
        take(store)
    assert kernel.told == []


def test_a_vm_without_a_source_of_it_does_not_become_itself(kernel: Kernel, store: Dom0, tmp_path: Path) -> None:
    (tmp_path / "hwrng").unlink()
    with pytest.raises(NoRandomness, match="check that the VM has a virtio-rng device"):
        take(store)
    assert kernel.told == []


def failing(code: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_neither_does_one_whose_kernel_takes_none(kernel: Kernel, store: Dom0, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity.fcntl, "ioctl", failing(errno.EPERM))  # type: ignore[attr-defined]
    with pytest.raises(NoRandomness, match="Operation not permitted"):
        take(store)
    assert kernel.told == []


class TestOnXen:
    @pytest.fixture(autouse=True)
    def _xen(self, kernel: Kernel, store: Dom0, tmp_path: Path) -> None:
        (tmp_path / "uuid").write_text("01234567-89ab-cdef-0123-456789abcdef\n")
        (tmp_path / "hwrng").unlink()
        store.nodes[RANDOM_SEED] = FRESH.hex().encode()

    def test_dom0s_key_is_stirred_in_before_all_else_and_emptied(self, kernel: Kernel, store: Dom0) -> None:
        take(store)
        assert kernel.told[:3] == [(0x40085203, struct.pack("ii", 512, 64) + FRESH), (0x5207, b""), 100]
        assert store.nodes[RANDOM_SEED] == b""

    def test_a_key_serves_once(self, kernel: Kernel, store: Dom0) -> None:
        take(store)
        kernel.told.clear()
        with pytest.raises(NoRandomness, match="qubes_random_seed"):
            take(store)
        assert kernel.told == []

    @pytest.mark.parametrize(
        "value",
        [b"", b"00" * 63, b"00" * 65, b"0" * 127, b"0g" * 64, b"00 " * 64, b"00 " * 42 + b"00", b"\xff" * 128, b" " + b"0" * 127],
        ids=repr,
    )
    def test_what_is_not_64_bytes_in_digits_is_no_randomness(self, kernel: Kernel, store: Dom0, value: bytes) -> None:
        store.nodes[RANDOM_SEED] = value
        with pytest.raises(NoRandomness, match="it does not hold 64 bytes") as caught:
            take(store)
        assert kernel.told == []
        assert "00" not in str(caught.value), "a seed is not for the journal"

    def test_without_the_key_a_device_does_not_stand_in(self, kernel: Kernel, store: Dom0, tmp_path: Path) -> None:
        (tmp_path / "hwrng").write_bytes(STALE + FRESH)
        del store.nodes[RANDOM_SEED]
        with pytest.raises(NoRandomness, match="there is no such key"):
            take(store)
        assert kernel.told == []

    def test_a_kernel_that_takes_none_leaves_the_key(self, kernel: Kernel, store: Dom0, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(identity.fcntl, "ioctl", failing(errno.EPERM))  # type: ignore[attr-defined]
        with pytest.raises(NoRandomness, match="Operation not permitted"):
            take(store)
        assert (kernel.told, store.nodes[RANDOM_SEED]) == ([], FRESH.hex().encode())


def test_elsewhere_a_key_does_not_stand_in_for_the_device(kernel: Kernel, store: Dom0, tmp_path: Path) -> None:
    (tmp_path / "hwrng").unlink()
    store.nodes[RANDOM_SEED] = FRESH.hex().encode()
    with pytest.raises(NoRandomness, match="virtio-rng"):
        take(store)
    assert kernel.told == []


def test_a_clock_that_cannot_be_set_is_only_told(kernel: Kernel, store: Dom0, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "clock_settime", failing(errno.EPERM))
    assert take(store) == ["the clock cannot be set (Operation not permitted)"]
    assert "disp3" in kernel.told


def test_a_host_without_a_hardware_clock_is_not_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(identity, "_RTC", str(tmp_path / "none"))
    assert identity.seconds_behind() == 0
    (tmp_path / "rtc").write_text("9999999999\n")
    monkeypatch.setattr(identity, "_RTC", str(tmp_path / "rtc"))
    assert identity.seconds_behind() > 1_000_000
