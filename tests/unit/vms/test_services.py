"""How daemons are started and stopped, on a host whose systemctl is a script."""

from __future__ import annotations

import os
import shlex
import socket
from pathlib import Path

import pytest

from qfilexchg.dom0.home import XEN_DATA, Home
from qfilexchg.dom0.platform import Platform
from qfilexchg.dom0.programs import ProgramFailed
from qfilexchg.dom0.vms import services
from qfilexchg.dom0.vms.services import OwnProcess, ServiceFailed, Unit
from tests.python import PYTHON


class Systemd:
    """``active`` is the exit status of is-active, ``status`` that of all else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._called = folder / "called"
        self.answer()

    def answer(self, *, active: int = 0, status: int = 0) -> None:
        script = f'#!/bin/sh\necho "$*" >>{self._called}\ncase $1 in is-active) exit {active} ;; *) exit {status} ;; esac\n'
        program = self._folder / "systemctl"
        program.write_text(script)
        program.chmod(0o755)

    def run(self, line: str) -> None:
        """What starting begins."""
        program = self._folder / "systemctl"
        program.write_text(f"{program.read_text()}".replace("case $1", f"{line}\ncase $1"))

    @property
    def called(self) -> list[str]:
        return self._called.read_text().splitlines() if self._called.exists() else []


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Systemd:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return Systemd(folder)


@pytest.fixture
def unit(tmp_path: Path) -> Unit:
    return Unit("qfilexchgd", tmp_path / "agent.socket")


class TestAUnit:
    def test_one_that_does_not_serve_is_started_by_systemd(self, unit: Unit, systemd: Systemd) -> None:
        code = f"import socket; s = socket.socket(socket.AF_UNIX); s.bind({str(unit.socket)!r}); s.listen(); s.accept()"
        systemd.run(f"{shlex.join(PYTHON)} -c {shlex.quote(code)} &")
        assert unit.start()
        assert systemd.called == ["start qfilexchgd.service"]

    def test_one_that_systemd_has_started_and_that_does_not_serve_is_an_error(
        self, unit: Unit, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(services, "START_DEADLINE_S", 0.1)
        with pytest.raises(ServiceFailed, match=r"qfilexchgd does not serve .* after 0\.1 s; see 'journalctl -u qfilexchgd'"):
            unit.start()

    def test_one_that_serves_is_left_alone(self, unit: Unit, systemd: Systemd) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(unit.socket))
            listener.listen()
            assert not unit.start()
        assert systemd.called == []

    @pytest.mark.parametrize(("active", "ran"), [(0, True), (3, False)])
    def test_it_is_stopped_also_while_systemd_waits_to_start_it_again(self, unit: Unit, systemd: Systemd, active: int, ran: bool) -> None:
        systemd.answer(active=active)
        assert unit.stop() is ran
        assert systemd.called == ["is-active --quiet qfilexchgd.service", "stop qfilexchgd.service"]

    def test_what_systemd_cannot_do_is_an_error_with_its_command(self, unit: Unit, systemd: Systemd) -> None:
        systemd.answer(status=5)
        with pytest.raises(ProgramFailed, match=r"systemctl start qfilexchgd.service failed with exit status 5"):
            unit.start()


class TestWhichDaemons:
    def names(self, home: Home) -> list[str]:
        return [service.name for service in services.services(home)]

    def test_without_xen_the_store_is_ours_and_comes_first(self, tmp_path: Path) -> None:
        assert self.names(Home(tmp_path, tmp_path / "run", tmp_path)) == ["qxenstored", "qfilexchgd"]

    def test_on_xen_there_is_only_the_exchange_which_systemd_starts_for_the_system(self, tmp_path: Path) -> None:
        (service,) = services.services(Home(XEN_DATA, tmp_path / "run", tmp_path, Platform.XEN))
        assert isinstance(service, Unit) and service.socket == tmp_path / "run/agent.socket"

    def test_a_home_of_its_own_on_xen_has_a_daemon_of_its_own(self, tmp_path: Path) -> None:
        (service,) = services.services(Home(tmp_path, tmp_path / "run", tmp_path, Platform.XEN))
        assert isinstance(service, OwnProcess) and service.name == "qfilexchgd"


async def test_the_toolstacks_lock_is_closed_to_others(tmp_path: Path) -> None:
    home = Home(tmp_path, tmp_path / "run", tmp_path)
    home.make()
    async with services.toolstack_turn(home):
        assert (home.run / "toolstack.lock").stat().st_mode & 0o777 == 0o600
