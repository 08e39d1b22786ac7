from __future__ import annotations

import os
import socket
from pathlib import Path
from uuid import UUID

import pytest

from qfilexchg.dom0.cli import doctor_xen
from qfilexchg.dom0.cli.findings import Verdict
from qfilexchg.dom0.vms import choice
from qfilexchg.dom0.vms.hypervisor import RunningVm, VmId
from qfilexchg.dom0.vms.xen.toolstack import XenToolstack
from qfilexchg.protocol import keys
from qfilexchg.protocol.names import DomainId, VmName
from qfilexchg.xenstore.client import Store
from qfilexchg.xenstore.server import Server
from tests.unit.vms.xen.xen import xen

WORK = RunningVm(VmId(DomainId(3), UUID(int=3)), VmName.parse("work"))


class TestPermissions:
    @pytest.mark.parametrize(
        ("request_perms", "reply_perms", "wrong"),
        [
            (("n0", "b3"), ("n0", "r3"), ""),
            (("n0", "r3"), ("n0", "r3"), "work's device/qpen is n0,r3 and not n0,b3"),
            (("n0", "b3"), ("n0", "b3"), "work's qubes_qpen_reply is n0,b3 and not n0,r3"),
            (("b0",), ("n0", "r3"), "work's device/qpen is b0"),
            (None, ("n0", "r3"), "work has no device/qpen"),
        ],
    )
    async def test_each_key_is_looked_at(
        self, tmp_path: Path, request_perms: tuple[str, ...] | None, reply_perms: tuple[str, ...], wrong: str
    ) -> None:
        async with Server(tmp_path), await Store.connect(tmp_path / "socket") as store:
            for key, perms in ((keys.REQUEST, request_perms), (keys.REPLY, reply_perms)):
                if perms:
                    path = keys.absolute(DomainId(3), key)
                    await store.write(path, b"")
                    await store.set_perms(path, perms)
            check = await doctor_xen.permissions(store, [WORK])
        assert check.verdict is (Verdict.BAD if wrong else Verdict.GOOD)
        assert wrong in check.said and (not wrong or "start the VM again" in check.said)


class TestLoopDevices:
    def loop(self, folder: Path, name: str, file: str) -> None:
        (folder / name / "loop").mkdir(parents=True)
        (folder / name / "loop/backing_file").write_text(f"{file}\n")

    @pytest.fixture
    def udevadm(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
        program = folder / "udevadm"
        program.write_text('#!/bin/sh\necho "DEVNAME=/dev/x"; case $3 in *loop1) echo ID_FS_LABEL=work ;; esac\n')
        program.chmod(0o755)
        return program

    async def test_one_of_ours_that_udev_has_looked_into_is_bad(self, tmp_path: Path, udevadm: Path) -> None:
        self.loop(tmp_path / "block", "loop0", "/var/lib/qfilexchg/spool/a.img")
        self.loop(tmp_path / "block", "loop1", "/var/lib/qfilexchg/spool/b.img")
        check = await doctor_xen.loop_devices(Path("/var/lib/qfilexchg"), tmp_path / "block")
        assert check.verdict is Verdict.BAD and "into loop1, which" in check.said and "udevadm control --reload" in check.said

    async def test_others_may_be_looked_into(self, tmp_path: Path, udevadm: Path) -> None:
        self.loop(tmp_path / "block", "loop0", "/var/lib/qfilexchg/spool/a.img")
        self.loop(tmp_path / "block", "loop1", "/var/lib/qfilexchg-other/b.img")
        check = await doctor_xen.loop_devices(Path("/var/lib/qfilexchg"), tmp_path / "block")
        assert check.verdict is Verdict.GOOD and "the 1 that" in check.said


class TestAgents:
    def test_only_connections_to_the_daemons_socket_count(self, tmp_path: Path) -> None:
        path = tmp_path / "agent.socket"
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as agent:
            listener.bind(str(path))
            listener.listen()
            assert doctor_xen.agents(path, doctor_xen.SOCKETS).verdict is Verdict.NOTE
            agent.connect(str(path))
            server, _ = listener.accept()
            with server:
                check = doctor_xen.agents(path, doctor_xen.SOCKETS)
                assert (check.verdict, check.said) == (Verdict.GOOD, "1 connected")
        assert "adduser USER qfilexchg" in doctor_xen.agents(path, doctor_xen.SOCKETS).said


async def test_what_xl_fails_at_is_not_laid_to_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with xen(tmp_path, monkeypatch) as (fake, home, _):
        monkeypatch.setattr(choice, "toolstack", lambda home: XenToolstack(home, fake.loops()))
        fake.fails.add("list")
        store, found = [check async for check in doctor_xen._store(home)]
    assert (store.what, store.verdict) == ("xenstored", Verdict.GOOD)
    assert (found.what, found.verdict) == ("keys", Verdict.BAD) and "refused by the test" in found.said
