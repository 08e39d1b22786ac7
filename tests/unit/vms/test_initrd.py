from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from qfilexchg.dom0.vms import initrd

DEPENDENCIES = """\
kernel/fs/fat/vfat.ko: kernel/fs/fat/fat.ko
kernel/fs/fat/fat.ko:
kernel/drivers/virtio/virtio-rng.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_ring.ko:
"""


def test_each_module_comes_after_what_it_needs_and_once() -> None:
    order = [Path(module).stem for module in initrd.load_order(DEPENDENCIES, ("virtio_rng", "virtio", "vfat"))]
    assert order == ["virtio_ring", "virtio", "virtio-rng", "fat", "vfat"]


def test_a_module_that_the_kernel_lacks_is_an_error() -> None:
    with pytest.raises(KeyError, match="nosuch"):
        initrd.load_order(DEPENDENCIES, ("nosuch",))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An unpacked system with one kernel, whose modules need nothing."""
    modules = tmp_path / "lib/modules/6.1.0"
    modules.mkdir(parents=True)
    names = {*initrd.COMMON, *(name for own in initrd.PLATFORMS.values() for name in own)}
    for name in names:
        (modules / f"{name}.ko").write_text(name)
    (modules / "modules.dep").write_text("".join(f"{name}.ko:\n" for name in names))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/busybox").write_bytes(b"busy")
    return tmp_path


def test_the_archive_is_one_that_cpio_reads(root: Path, tmp_path: Path) -> None:
    target = tmp_path / "unpacked"
    target.mkdir()
    subprocess.run(["cpio", "-id", "--quiet"], input=initrd.build(root, b"#!init"), cwd=target, check=True)
    assert {path.name for path in target.iterdir()} == {"init", *initrd.FOLDERS}
    assert ((target / "init").read_bytes(), (target / "init").stat().st_mode & 0o777) == (b"#!init", 0o755)
    assert (target / "bin/busybox").read_bytes() == b"busy"
    assert {path.name for path in (target / "modules").glob("*.ko")} == {path.name for path in (root / "lib/modules/6.1.0").glob("*.ko")}


@pytest.mark.parametrize("platform", ["qemu", "xen"])
def test_each_platform_has_its_own_modules_and_not_the_others(root: Path, tmp_path: Path, platform: str) -> None:
    target = tmp_path / "unpacked"
    target.mkdir()
    subprocess.run(["cpio", "-id", "--quiet"], input=initrd.build(root, b"#!init"), cwd=target, check=True)
    assert (target / "modules" / platform).read_text().split() == [f"{name}.ko" for name in (*initrd.PLATFORMS[platform], *initrd.COMMON)]


def test_a_filesystem_that_is_a_module_is_loaded_before_the_root_is_mounted(root: Path, tmp_path: Path) -> None:
    modules = root / "lib/modules/6.1.0"
    (modules / "kernel/fs").mkdir(parents=True)
    (modules / "kernel/fs/ext4.ko").write_text("ext4")
    with (modules / "modules.dep").open("a") as file:
        file.write("kernel/fs/ext4.ko:\n")
    target = tmp_path / "unpacked"
    target.mkdir()
    subprocess.run(["cpio", "-id", "--quiet"], input=initrd.build(root, b"#!init"), cwd=target, check=True)
    for platform in initrd.PLATFORMS:
        assert "ext4.ko" in (target / "modules" / platform).read_text().split()


def test_the_same_input_gives_the_same_bytes(root: Path) -> None:
    assert initrd.build(root, b"init") == initrd.build(root, b"init")
    assert initrd.build(root, b"init") != initrd.build(root, b"other")
