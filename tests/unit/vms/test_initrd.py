from __future__ import annotations

import lzma
import os
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from qfilexchg.dom0 import programs
from qfilexchg.dom0.programs import ProgramFailed
from qfilexchg.dom0.vms import initrd

RELEASE = "6.1.0"
WANTED = {*initrd.COMMON, *(name for own in initrd.PLATFORMS.values() for name in own)}


def module(*, provides: str = "", needs: tuple[str, ...] = ()) -> bytes:
    """A kernel module, as depmod(8) reads it: an ELF object that exports one symbol and refers to those of others."""
    names = b"\0" + b"".join(need.encode() + b"\0" for need in needs)
    symbols = bytes(24) + b"".join(struct.pack("<IBBHQQ", names.index(need.encode()), 0x10, 0, 0, 0, 0) for need in needs)
    sections = [
        (b"", 0, b"", 0, 0),
        (b".symtab", 2, symbols, 2, 24),
        (b".strtab", 3, names, 0, 0),
        (b"__ksymtab_strings", 1, provides.encode() + b"\0", 0, 0),
        (b".shstrtab", 3, b"\0.symtab\0.strtab\0__ksymtab_strings\0.shstrtab\0", 0, 0),
    ]
    at, body, headers = 64, b"", b""
    for name, kind, content, link, entry in sections:
        place = sections[-1][2].index(name + b"\0") if name else 0
        headers += struct.pack("<IIQQQQIIQQ", place, kind, 0, 0, at, len(content), link, 1 if kind == 2 else 0, 1, entry)
        body += content
        at += len(content)
    ident = b"\x7fELF\2\1\1" + bytes(9)
    count = len(sections)
    return ident + struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, at, 0, 64, 0, 0, 64, count, count - 1) + body + headers


def install(root: Path, modules: Mapping[str, bytes], *, builtin: tuple[str, ...] = ()) -> None:
    """Put modules, by their file names, beside those that the kernel of ``root`` has, and have them indexed."""
    folder = root / "lib/modules" / RELEASE
    for name, content in modules.items():
        (folder / name).write_bytes(content)
    (folder / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in builtin))
    (folder / "modules.order").touch()
    subprocess.run([programs.find_program("depmod"), "-b", root, RELEASE], check=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An unpacked system with one kernel, whose modules need nothing."""
    root = tmp_path / "root"
    (root / "lib/modules" / RELEASE).mkdir(parents=True)
    install(root, {f"{name}.ko": module(provides=name) for name in WANTED})
    (root / "boot").mkdir()
    (root / "boot" / f"vmlinuz-{RELEASE}").touch()
    (root / "bin").mkdir()
    (root / "bin/busybox").write_bytes(b"busy")
    return root


@pytest.fixture
def unpack(tmp_path: Path) -> Iterator[Callable[[bytes], Path]]:
    """What cpio makes of an archive."""

    def unpack(archive: bytes) -> Path:
        target = tmp_path / "unpacked"
        target.mkdir()
        subprocess.run(["cpio", "-id", "--quiet"], input=archive, cwd=target, check=True)
        return target

    yield unpack


def test_each_module_comes_after_what_it_needs_and_once(root: Path) -> None:
    ring, bus, fat = module(provides="ring"), module(provides="bus", needs=("ring",)), module(provides="fat")
    using = {"virtio-rng.ko": module(needs=("bus", "ring")), "vfat.ko": module(needs=("fat",))}
    install(root, {"virtio_ring.ko": ring, "virtio.ko": bus, "fat.ko": fat, **using})
    order = [path.stem for path in initrd.load_order(root, ("virtio_rng", "virtio", "vfat"))]
    assert order == ["virtio_ring", "virtio", "virtio-rng", "fat", "vfat"]


def test_what_is_part_of_the_kernel_is_not_loaded(root: Path) -> None:
    (root / "lib/modules" / RELEASE / "ext4.ko").unlink()
    install(root, {}, builtin=("ext4",))
    assert [path.stem for path in initrd.load_order(root, ("ext4", "vfat"))] == ["vfat"]


def test_options_on_the_hosts_kernel_command_line_are_no_part_of_a_modules_name(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "modprobe"
    program.write_text("#!/bin/sh\necho 'insmod /lib/ext4.ko.xz debug=1 '\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert initrd.load_order(root, ("ext4",)) == [Path("/lib/ext4.ko.xz")]


def test_a_module_that_the_kernel_lacks_is_an_error_that_names_it(root: Path) -> None:
    with pytest.raises(ProgramFailed, match="Module nosuch not found"):
        initrd.load_order(root, ("nosuch",))


def test_the_archive_is_one_that_cpio_reads(root: Path, unpack: Callable[[bytes], Path]) -> None:
    target = unpack(initrd.build(root, b"#!init"))
    assert {path.name for path in target.iterdir()} == {"init", *initrd.FOLDERS}
    assert ((target / "init").read_bytes(), (target / "init").stat().st_mode & 0o777) == (b"#!init", 0o755)
    assert (target / "bin/busybox").read_bytes() == b"busy"
    assert {path.stem for path in (target / "modules").glob("*.ko")} == WANTED


@pytest.mark.parametrize("platform", ["qemu", "xen"])
def test_each_platform_has_its_own_modules_and_not_the_others(root: Path, unpack: Callable[[bytes], Path], platform: str) -> None:
    target = unpack(initrd.build(root, b"#!init"))
    assert (target / "modules" / platform).read_text().split() == [f"{name}.ko" for name in (*initrd.PLATFORMS[platform], *initrd.COMMON)]


def test_a_module_that_is_packed_is_unpacked(root: Path, unpack: Callable[[bytes], Path]) -> None:
    (root / "lib/modules" / RELEASE / "vfat.ko").unlink()
    install(root, {"vfat.ko.xz": lzma.compress(module(provides="vfat"))})
    target = unpack(initrd.build(root, b"#!init"))
    assert (target / "modules/vfat.ko").read_bytes() == module(provides="vfat")
    assert "vfat.ko" in (target / "modules/qemu").read_text().split()


def test_the_same_input_gives_the_same_bytes_whoever_builds(root: Path) -> None:
    first = initrd.build(root, b"init")
    umask = os.umask(0o077)
    try:
        assert initrd.build(root, b"init") == first
    finally:
        os.umask(umask)
    assert initrd.build(root, b"other") != first
