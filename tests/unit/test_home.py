"""Where a home lies, and what is wrong with one that cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qfilexchg.dom0.home import Home, HomeTooLong, HomeUnusable, OneHome, RootNeeded
from qfilexchg.dom0.platform import Platform
from qfilexchg.protocol.names import DomainId, VmName


def test_a_home_of_its_own_holds_everything_but_the_cache(tmp_path: Path) -> None:
    home = Home.from_environment({"QFILEXCHG_HOME": str(tmp_path / "h"), "HOME": "/home/user"})
    assert (home.data, home.run, home.cache) == (tmp_path / "h", tmp_path / "h/run", Path("/home/user/.cache/qfilexchg"))


def test_without_one_the_xdg_folders_are_used() -> None:
    home = Home.from_environment({"HOME": "/home/user", "XDG_RUNTIME_DIR": "/run/user/1000", "XDG_DATA_HOME": "/data"})
    assert (home.data, home.run) == (Path("/data/qfilexchg"), Path("/run/user/1000/qfilexchg"))


def test_a_path_that_leaves_no_room_for_sockets_is_refused_with_the_room_there_is(tmp_path: Path) -> None:
    with pytest.raises(HomeTooLong, match="at most 77 bytes"):
        Home.from_environment({"QFILEXCHG_HOME": "/" + "a" * 77})
    home = Home.from_environment({"QFILEXCHG_HOME": "/" + "a" * 76})
    assert len(bytes(home.domain(DomainId(32751)) / "run.0.socket")) <= 107


def test_the_folders_are_closed_to_others(tmp_path: Path) -> None:
    home = Home(tmp_path / "d", tmp_path / "d/run", tmp_path / "c")
    home.make()
    home.make()
    assert {folder.stat().st_mode & 0o777 for folder in (home.data, home.run, home.spool, home.kept, home.policy)} == {0o700}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HomeUnusable, match=r"file/x cannot be made \(Not a directory\)"):
        Home(tmp_path / "file/x", tmp_path / "run", tmp_path / "c").make()


def test_a_vms_files_are_under_its_name() -> None:
    assert Home(Path("/d"), Path("/r"), Path("/c")).vm(VmName.parse("work")) == Path("/d/vms/work")


class TestOnXen:
    @pytest.fixture(autouse=True)
    def root(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 0)

    def test_the_home_is_the_systems_and_the_store_is_xens(self) -> None:
        home = Home.from_environment({"HOME": "/root", "XDG_RUNTIME_DIR": "/run/user/0"}, Platform.XEN)
        assert (home.data, home.run, home.cache) == (Path("/var/lib/qfilexchg"), Path("/run/qfilexchg"), Path("/var/cache/qfilexchg"))
        assert home.of_the_system and home.store_socket == Path("/run/xenstored/socket")

    def test_there_is_no_other_as_udevs_rules_would_not_know_it(self, tmp_path: Path) -> None:
        with pytest.raises(OneHome, match="unset QFILEXCHG_HOME"):
            Home.from_environment({"QFILEXCHG_HOME": str(tmp_path)}, Platform.XEN)

    def test_it_is_refused_behind_a_link(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "large").mkdir()
        (tmp_path / "data").symlink_to("large")
        monkeypatch.setattr("qfilexchg.dom0.home.XEN_DATA", tmp_path / "data")
        with pytest.raises(HomeUnusable, match="mount or bind"):
            Home(tmp_path / "data", tmp_path / "r", tmp_path / "c", Platform.XEN).make()

    def test_agents_can_reach_their_socket_and_nobody_anything_else(self, tmp_path: Path) -> None:
        home = Home(tmp_path / "d", tmp_path / "r", tmp_path / "c", Platform.XEN)
        umask = os.umask(0o077)
        try:
            home.make()
        finally:
            os.umask(umask)
        assert home.run.stat().st_mode & 0o777 == 0o755
        assert {folder.stat().st_mode & 0o777 for folder in (home.data, home.cache, home.spool, home.policy)} == {0o700}

    def test_it_needs_root_but_for_an_agent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(RootNeeded, match="needs root, as xl does"):
            Home.from_environment({}, Platform.XEN)
        assert Home.from_environment({}, Platform.XEN, for_everybody=True).agent_socket == Path("/run/qfilexchg/agent.socket")
        assert not Home.from_environment({}, Platform.QEMU).of_the_system
