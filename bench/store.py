"""How fast the store answers, beside the least that asyncio and a Unix socket cost.

    PYTHONPATH=src python3 bench/store.py

One server process, one client, one request at a time; each figure is the median over rounds that alternate with rounds of a bare
asyncio echo, so that a noisy machine disturbs both alike. The ratios are what can be compared between machines.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

from qfilexchg.xenstore.client import Store
from qfilexchg.xenstore.server import Server

ROUNDS = 7
REQUESTS = 300
START_TIMEOUT_S = 10.0
MESSAGE = bytes(40)

Request = Callable[[], Awaitable[object]]


class Echo(asyncio.Protocol):
    """The least that a server can do."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Reply(asyncio.Protocol):
    """The least that a client can do: the future of the next bytes."""

    def __init__(self) -> None:
        self.waiter: asyncio.Future[None]

    def data_received(self, data: bytes) -> None:
        self.waiter.set_result(None)


async def serve_echo(folder: Path, ready: Event) -> None:
    server = await asyncio.get_running_loop().create_unix_server(Echo, folder / "socket")
    ready.set()
    await server.serve_forever()


async def serve_store(folder: Path, ready: Event) -> None:
    async with Server(folder):
        ready.set()
        await asyncio.Event().wait()


@contextmanager
def serving(serve: Callable[[Path, Event], Coroutine[None, None, None]]) -> Iterator[Path]:
    """The socket of a process that serves."""
    ready = multiprocessing.Event()
    with tempfile.TemporaryDirectory(prefix="qxs") as name:
        server = multiprocessing.Process(target=lambda: asyncio.run(serve(Path(name), ready)), daemon=True)
        server.start()
        try:
            assert ready.wait(START_TIMEOUT_S), "the server did not start"
            yield Path(name) / "socket"
        finally:
            server.terminate()
            server.join()


async def seconds_per_request(request: Request) -> float:
    begun_s = time.perf_counter()
    for _ in range(REQUESTS):
        await request()
    return (time.perf_counter() - begun_s) / REQUESTS


async def measure(echo_socket: Path, store_socket: Path) -> None:
    transport, reply = await asyncio.get_running_loop().create_unix_connection(Reply, str(echo_socket))

    async def echoed() -> None:
        reply.waiter = asyncio.get_running_loop().create_future()
        transport.write(MESSAGE)
        await reply.waiter

    async with await Store.connect(store_socket) as store, await Store.connect(store_socket) as watcher:
        await store.write("/bench/key", b"value")
        await watcher.watch("/bench/watched", "token")
        await watcher.events.get()

        async def change(tx: int) -> None:
            await store.write("/bench/key", await store.read("/bench/key", tx), tx)

        async def event() -> None:
            await asyncio.gather(store.write("/bench/watched", b""), watcher.events.get())

        requests: dict[str, Request] = {
            "read": lambda: store.read("/bench/key"),
            "write": lambda: store.write("/bench/key", b"value"),
            "transaction (start, read, write, end)": lambda: store.transaction(change),
            "write and its event at another client": event,
        }
        times: dict[str, list[float]] = {name: [] for name in ["echo", *requests]}
        for _ in range(ROUNDS):
            times["echo"].append(await seconds_per_request(echoed))
            for name, request in requests.items():
                times[name].append(await seconds_per_request(request))
    transport.close()

    bare_s = statistics.median(times["echo"])
    print(f"{'':40} {'a second':>10} {'µs':>8} {'× echo':>8}")
    for name, values in times.items():
        median_s = statistics.median(values)
        print(f"{name:40} {1 / median_s:10.0f} {median_s * 1e6:8.0f} {median_s / bare_s:8.1f}")


def main() -> None:
    with serving(serve_echo) as echo_socket, serving(serve_store) as store_socket:
        asyncio.run(measure(echo_socket, store_socket))


if __name__ == "__main__":
    main()
