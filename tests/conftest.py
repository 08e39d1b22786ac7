"""What all tests share."""

from __future__ import annotations

import asyncio
import inspect

import hypothesis
import pytest

hypothesis.settings.register_profile("whatever the load", deadline=None)
hypothesis.settings.load_profile("whatever the load")

ASYNC_TEST_DEADLINE_S = 60
"""Far above what any such test takes: it only turns a hang into a failure that shows where."""


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}

    async def run() -> None:
        async with asyncio.timeout(ASYNC_TEST_DEADLINE_S):
            await pyfuncitem.obj(**arguments)

    asyncio.run(run())
    return True
