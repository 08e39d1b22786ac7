from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

import pytest

from qfilexchg.dom0.cli import qfilexchgd
from qfilexchg.dom0.configuration import Configuration
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.disposables import Disposables
from qfilexchg.xenstore.server import Server


async def test_preloading_that_goes_wrong_spoils_neither_the_daemon_nor_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failed = asyncio.Event()

    async def fail(self: Disposables) -> None:
        failed.set()
        raise ZeroDivisionError

    monkeypatch.setattr(Disposables, "keep_ready", fail)
    home = Home(tmp_path, tmp_path / "run", tmp_path / "cache")
    home.make()
    async with Server(home.store):
        with caplog.at_level(logging.INFO):
            serving = asyncio.create_task(qfilexchgd.serve(home, Configuration()))
            await failed.wait()
            await asyncio.sleep(0)  # one turn of the loop, in which the failure reaches whoever waits for that task
            assert not serving.done()
            os.kill(os.getpid(), signal.SIGTERM)
            await serving
    assert caplog.messages[-1] == "ended"
