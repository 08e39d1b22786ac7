"""The daemon's own side of consent with the real window at the other end."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path

from qfilexchg.dom0.consent.agents import Agents, Consent
from tests.desktop.desk import PYTHON, TOP, Desk, until
from tests.desktop.test_window import ALWAYS, QUESTION, allow


async def test_what_the_person_does_is_what_the_daemon_gets(desk: Desk) -> None:
    with tempfile.TemporaryDirectory() as home:
        socket = Path(home, "run/agent.socket")
        socket.parent.mkdir()
        async with Agents.serve(socket) as agents:
            environment = desk.environment | {"PYTHONPATH": str(TOP / "src"), "QFILEXCHG_HOME": home}
            agent = await asyncio.create_subprocess_exec(PYTHON, "-m", "qfilexchg.dom0.cli", "qfilexchg-agent", env=environment)
            try:
                while not len(agents):  # noqa: ASYNC110  no event tells a bystander of a registration
                    await asyncio.sleep(0.02)  # between two looks: nothing tells of it
                asking = asyncio.create_task(agents.ask(QUESTION))
                await asyncio.to_thread(lambda: desk.click(desk.sees(ALWAYS, "check box")))
                await asyncio.to_thread(lambda: desk.click(allow(desk)))
                assert await asking is Consent.ALWAYS
                asking = asyncio.create_task(agents.ask(replace(QUESTION, id=2)))
                await asyncio.to_thread(desk.sees, "Deny", "push button", "FOCUSED")
                asking.cancel()
                await asyncio.to_thread(until, lambda: not any(widget.role == "alert" for widget in desk.look()), "no window")
                asking = asyncio.create_task(agents.ask(replace(QUESTION, id=3)))
                await asyncio.to_thread(desk.sees, "Deny", "push button", "FOCUSED")
                agent.kill()
                assert await asking is Consent.AGENT_ENDED
            finally:
                if agent.returncode is None:
                    agent.kill()
                await agent.wait()
