"""What the kernel and logind say of sessions."""

from __future__ import annotations

from pathlib import Path

import pytest

from qfilexchg.dom0 import programs
from qfilexchg.dom0.consent import sessions

TERMINAL = "0::/user.slice/user-1000.slice/session-2.scope\n"
UNIT = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/qfilexchg-agent.service\n"
HYBRID = "12:devices:/user.slice\n1:name=systemd:/user.slice/user-1000.slice/session-c3.scope\n0::/\n"


@pytest.mark.parametrize(
    ("cgroups", "session", "user"),
    [
        (TERMINAL, "2", None),
        (UNIT, None, "1000"),
        (HYBRID, "c3", None),
        ("0::/\n", None, None),
        ("", None, None),
        ("0::/system.slice/cron.service\n", None, None),
        ("0::/user.slice/user-1000.slice/user@1001.service/x\n", None, None),
        ("5:cpu:/session-9.scope\n", None, None),
    ],
)
def test_a_process_belongs_to_a_session_or_to_a_users_manager(cgroups: str, session: str | None, user: str | None) -> None:
    assert (sessions.session_in(cgroups), sessions.user_in(cgroups)) == (session, user)


class TestLogind:
    """loginctl is played by a script."""

    @pytest.fixture(autouse=True)
    def loginctl(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        script = tmp_path / "loginctl"
        script.write_text(
            "#!/bin/sh\n"
            'case "$*" in\n'
            '"show-session --property=Active --value -- 2") echo yes ;;\n'
            '"show-session --property=Active --value -- 5") echo no ;;\n'
            '"show-user --property=Display --value -- 1000") echo 5 ;;\n'
            '"show-user --property=Display --value -- 1001") echo ;;\n'
            "*) exit 1 ;;\n"
            "esac\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def process(self, tmp_path: Path, cgroups: str) -> Path:
        (tmp_path / "proc/77").mkdir(parents=True)
        (tmp_path / "proc/77/cgroup").write_text(cgroups)
        return tmp_path / "proc"

    async def test_those_that_are_active(self) -> None:
        assert await sessions.active({"2", "5", "gone"}) == {"2"}
        assert await sessions.active(()) == set()

    @pytest.mark.parametrize(("cgroups", "session"), [(TERMINAL, "2"), (UNIT, "5"), (UNIT.replace("1000", "1001"), None), ("0::/\n", None)])
    async def test_what_a_users_manager_started_counts_to_the_session_with_the_display(
        self, tmp_path: Path, cgroups: str, session: str | None
    ) -> None:
        assert await sessions.of_process(77, self.process(tmp_path, cgroups)) == session

    async def test_a_process_that_is_gone_has_none(self, tmp_path: Path) -> None:
        assert await sessions.of_process(77, tmp_path) is None


async def test_without_logind_there_are_no_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_search_path", lambda: str(tmp_path))
    assert await sessions.active({"2"}) == set()
