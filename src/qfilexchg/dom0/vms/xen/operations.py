"""Operations: what xl does is true only when the store says so. Each has a connection to the store of its own, and a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.hypervisor import HypervisorError
from qfilexchg.xenstore.client import Store
from qfilexchg.xenstore.errors import StoreError, StoreLost

_tokens = itertools.count()


@contextlib.asynccontextmanager
async def operation(home: Home, what: str, deadline_s: float) -> AsyncIterator[Store]:
    """A connection to the store for one operation. Whatever goes wrong in it is a HypervisorError."""
    try:
        async with asyncio.timeout(deadline_s), await Store.connect(home.store_socket) as store:
            yield store
    except TimeoutError as error:
        raise HypervisorError(what, f"it was not done within {deadline_s:g} s") from error
    except (StoreLost, StoreError) as error:
        raise HypervisorError(what, str(error)) from error


async def until(store: Store, reached: Callable[[], Awaitable[bool]], *paths: str) -> None:
    """Return when ``reached()``; it is asked again when something happens to one of the paths."""
    token = f"until {next(_tokens)}"
    for path in paths:
        await store.watch(path, token)
    while not await reached():
        if await store.events.get() is None:
            raise StoreLost("it ended while something was waited for")
