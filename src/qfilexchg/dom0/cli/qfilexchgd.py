"""qfilexchgd: the daemon as a process. One for each home; it ends by SIGTERM and leaves every pendrive where it is.

The store may come later than the daemon, and may go away: the process stays, and takes everything up again when there is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from qfilexchg.dom0 import configuration, systemd
from qfilexchg.dom0.cli.arguments import parser
from qfilexchg.dom0.consent.agents import Agents
from qfilexchg.dom0.exchange.daemon import Daemon
from qfilexchg.dom0.exchange.journal import Journal
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.platform import Platform
from qfilexchg.dom0.vms import choice
from qfilexchg.dom0.vms.collection import Collection
from qfilexchg.dom0.vms.disposables import Disposables
from qfilexchg.dom0.vms.hypervisor import HypervisorError
from qfilexchg.dom0.vms.toolstack import Toolstack
from qfilexchg.errors import HostError
from qfilexchg.xenstore.client import Store
from qfilexchg.xenstore.errors import StoreLost

AGENTS_GROUP: Final = "qfilexchg"
"""On Xen, where the daemon is root: its members may be asked."""
AGAIN_S: Final = 1.0
"""Before the store is looked for again."""

log = logging.getLogger(__name__)


class AlreadyRuns(HostError):
    """Another qfilexchgd serves this home."""

    def __init__(self, process: str) -> None:
        super().__init__(process)
        self.process = process

    def __str__(self) -> str:
        return f"qfilexchgd runs already, as process {self.process or 'unknown'}; there can be one for each QFILEXCHG_HOME"


@contextlib.contextmanager
def only_one(home: Home) -> Iterator[None]:
    """Hold the lock that one daemon of a home can hold; its file tells the process. Raises :exc:`AlreadyRuns`."""
    with home.daemon_lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise AlreadyRuns(file.read(16).strip()) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


async def serve(home: Home, settings: configuration.Configuration) -> None:
    """Serve a home until SIGTERM or SIGINT. Agents stay connected while there is no store, and nothing is asked meanwhile."""
    told_to_end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_end.set)
    group = AGENTS_GROUP if home.platform is Platform.XEN else None
    with Journal(home.journal) as journal:
        async with Agents.serve(home.agent_socket, group) as agents:
            systemd.notify(systemd.READY)
            serving = asyncio.create_task(_serve(home, settings, agents, journal, told_to_end))
            ending = asyncio.create_task(told_to_end.wait())
            await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
            systemd.notify(systemd.STOPPING)
            for task in (ending, serving):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
    log.info("ended")


async def _serve(home: Home, settings: configuration.Configuration, agents: Agents, journal: Journal, told_to_end: asyncio.Event) -> None:
    """One daemon after another: each ends with the store, or when the hypervisor cannot even say what runs, and the next goes on."""
    toolstack = choice.toolstack(home)
    waiting = False

    def resumed() -> None:
        nonlocal waiting
        waiting = False
        log.info("ready")
        systemd.notify(systemd.status("serving"))

    while not told_to_end.is_set():  # looked at too: a task group that fails while it is cancelled shows only its failure
        try:
            await _serve_once(home, settings, toolstack, agents, journal, resumed)
        except (StoreLost, HypervisorError) as error:
            if not waiting:
                waiting = True
                log.error("waiting, and nothing can be asked meanwhile: %s", error)
                systemd.notify(systemd.status(f"waiting: {error}"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AGAIN_S):
                await told_to_end.wait()


async def _serve_once(
    home: Home,
    settings: configuration.Configuration,
    toolstack: Toolstack,
    agents: Agents,
    journal: Journal,
    resumed: Callable[[], None],
) -> None:
    async with await Store.connect(home.store_socket) as store:
        collection = Collection(home.collection)
        disposables = Disposables(home, collection, toolstack, settings.disposable_memory_mb, settings.preload)
        daemon = Daemon(home, settings, store, toolstack.hypervisor, disposables, agents, journal, collection.label)
        ready = asyncio.Event()
        preloading = asyncio.create_task(_preload(ready, disposables))

        def go_on() -> None:
            resumed()
            ready.set()

        try:
            await daemon.run(go_on)
        finally:
            preloading.cancel()
            await asyncio.gather(preloading, return_exceptions=True)  # what it has to say is in the log


async def _preload(ready: asyncio.Event, disposables: Disposables) -> None:
    """Once what was left over from before has been swept away."""
    await ready.wait()
    await disposables.keep_ready()


def main(arguments: Sequence[str]) -> int:
    """``qfilexchgd``."""
    args = parser(
        "qfilexchgd",
        "Manage virtual pendrives between VMs.",
        "Exit status: 0 told to end (SIGTERM, SIGINT), 1 cannot go on (the last line says why), 2 arguments not understood.",
    )
    args.add_argument("--verbose", action="store_true", help="log each request too")
    level = logging.DEBUG if args.parse_args(arguments).verbose else logging.INFO
    logging.basicConfig(format="%(asctime)s qfilexchgd: %(message)s", level=level)
    home = Home.from_environment()
    os.umask(0o077)
    home.make()
    with only_one(home):
        asyncio.run(serve(home, configuration.load((configuration.SYSTEM_FILE, home.configuration))))
    return 0
