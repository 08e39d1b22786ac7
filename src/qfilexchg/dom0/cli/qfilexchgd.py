"""qfilexchgd: the daemon as a process. One for each home; it ends by SIGTERM and leaves every pendrive where it is."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
from collections.abc import Iterator, Sequence

from qfilexchg.dom0 import configuration
from qfilexchg.dom0.cli.arguments import parser
from qfilexchg.dom0.consent.agents import Agents
from qfilexchg.dom0.exchange.daemon import Daemon
from qfilexchg.dom0.exchange.journal import Journal
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.collection import Collection
from qfilexchg.dom0.vms.disposables import Disposables
from qfilexchg.dom0.vms.qemu import Qemu
from qfilexchg.errors import HostError
from qfilexchg.xenstore.client import Store

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
    """Serve a home until SIGTERM or SIGINT."""
    told_to_end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_end.set)
    with Journal(home.journal) as journal:
        async with await Store.connect(home.store_socket) as store, Agents.serve(home.agent_socket) as agents:
            collection = Collection(home.collection)
            disposables = Disposables(home, collection, settings.disposable_memory_mb, settings.preload)
            daemon = Daemon(home, settings, store, Qemu(home), disposables, agents, journal, collection.label)
            ready = asyncio.Event()
            running = asyncio.create_task(daemon.run(ready.set))
            preloading = asyncio.create_task(_preload(ready, disposables))
            ending = asyncio.create_task(told_to_end.wait())
            await asyncio.wait({running, ending}, return_when=asyncio.FIRST_COMPLETED)
            for task in (ending, preloading, running):
                task.cancel()
            await asyncio.gather(preloading, return_exceptions=True)  # what it has to say is in the log
            with contextlib.suppress(asyncio.CancelledError):
                await running
    log.info("ended")


async def _preload(ready: asyncio.Event, disposables: Disposables) -> None:
    """Once what was left over from before has been swept away."""
    await ready.wait()
    log.info("ready")
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
    os.umask(0o077)
    home = Home.from_environment()
    home.make()
    with only_one(home):
        asyncio.run(serve(home, configuration.load((configuration.SYSTEM_FILE, home.configuration))))
    return 0
