"""The daemon's side of watching, over real sockets."""

from __future__ import annotations

import asyncio
import grp
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from qfilexchg.dom0.exchange import watchers as module
from qfilexchg.dom0.exchange.watchers import WATCHERS_MAX, NoWatching, Watchers
from qfilexchg.errors import HostError

TIMEOUT_S = 20


class Scene:
    """A daemon whose status is a number."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "s"
        self.like = folder / "agents"
        self.number = 0
        self.asked = 0
        self.fails = False
        self.padding = b""

    def line(self) -> bytes:
        self.asked += 1
        if self.fails:
            raise HostError("the disk is full")
        return self.padding + b"%d\n" % self.number

    def change(self, watchers: Watchers) -> None:
        self.number += 1
        watchers.changed()

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_unix_connection(self.path)
        try:
            yield reader, writer
        finally:
            writer.close()


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(module, "PACE_S", 0)
    scene = Scene(tmp_path)
    scene.like.touch(0o600)
    return scene


def play(scene: Scene, scenario: Callable[[Watchers], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(TIMEOUT_S), Watchers.serve(scene.path, scene.like, scene.line) as watchers:
            await scenario(watchers)

    asyncio.run(main())


def test_a_watcher_is_told_at_once_and_after_each_change(scene: Scene) -> None:
    async def scenario(watchers: Watchers) -> None:
        async with scene.watch() as (one, _), scene.watch() as (other, _):
            assert await one.readline() == await other.readline() == b"0\n"
            scene.change(watchers)
            assert await one.readline() == await other.readline() == b"1\n"

    play(scene, scenario)


def test_without_a_change_nothing_is_told(scene: Scene) -> None:
    async def scenario(watchers: Watchers) -> None:
        async with scene.watch() as (reader, _):
            await reader.readline()
            asked = scene.asked
            async with scene.watch() as (other, _):
                await other.readline()
            assert scene.asked == asked + 1

    play(scene, scenario)


def test_of_what_changes_fast_the_last_is_told_and_not_all(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACE_S", 0.05)

    async def scenario(watchers: Watchers) -> None:
        async with scene.watch() as (reader, _):
            await reader.readline()
            for _ in range(1000):
                scene.change(watchers)
                await asyncio.sleep(0)
            while await reader.readline() != b"1000\n":
                pass
            assert scene.asked < 100

    play(scene, scenario)


def test_a_watcher_that_does_not_read_holds_up_nobody_and_costs_one_status(scene: Scene) -> None:
    async def scenario(watchers: Watchers) -> None:
        scene.padding = b" " * (8 << 20)
        async with scene.watch() as (_, writer):
            assert isinstance(writer.transport, asyncio.Transport)
            writer.transport.pause_reading()
            while not scene.asked:  # noqa: ASYNC110  no event tells a bystander of it
                await asyncio.sleep(0)
            scene.padding = b""
            async with scene.watch() as (reader, _):
                await reader.readline()
                for number in range(1, 50):
                    scene.change(watchers)
                    assert await reader.readline() == b"%d\n" % number
            assert scene.asked <= 51

    play(scene, scenario)


def test_who_says_something_is_cut_off(scene: Scene) -> None:
    async def scenario(watchers: Watchers) -> None:
        async with scene.watch() as (reader, writer):
            await reader.readline()
            writer.write(b'{"hello": 1}\n')
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)

    play(scene, scenario)


def test_watchers_that_go_away_make_room_for_others(scene: Scene) -> None:
    async def scenario(watchers: Watchers) -> None:
        for _ in range(3 * WATCHERS_MAX):
            async with scene.watch() as (reader, _):
                assert await reader.readline() == b"0\n"
            while watchers._tasks:  # noqa: ASYNC110  no event tells that it was noticed to be gone
                await asyncio.sleep(0)

    play(scene, scenario)


def test_their_number_is_bounded(scene: Scene) -> None:
    async def scenario(watchers: Watchers) -> None:
        connections = [await asyncio.open_unix_connection(scene.path) for _ in range(WATCHERS_MAX)]
        for reader, _ in connections:
            assert await reader.readline() == b"0\n"
        async with scene.watch() as (reader, _):
            assert await reader.read() == b""
        for _, writer in connections:
            writer.close()

    play(scene, scenario)


def test_a_status_that_cannot_be_made_ends_the_watch_and_nothing_else(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(watchers: Watchers) -> None:
        scene.fails = True
        async with scene.watch() as (reader, _):
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
        assert "the disk is full" in caplog.text
        scene.fails = False
        async with scene.watch() as (reader, _):
            assert await reader.readline() == b"0\n"

    play(scene, scenario)


def test_at_the_end_all_are_disconnected(scene: Scene) -> None:
    async def main() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            async with Watchers.serve(scene.path, scene.like, scene.line):
                reader, writer = await asyncio.open_unix_connection(scene.path)
                await reader.readline()
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
            writer.close()

    asyncio.run(main())


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_it_is_open_to_those_to_whom_the_agents_socket_is(scene: Scene, mode: int) -> None:
    async def scenario(watchers: Watchers) -> None:
        status = scene.path.stat()
        assert (status.st_mode & 0o777, status.st_gid) == (mode, group)

    others = [group.gr_gid for group in grp.getgrall() if os.geteuid() == 0 or group.gr_gid in os.getgroups()]
    group = others[-1] if others else os.getegid()
    os.chown(scene.like, -1, group)
    scene.like.chmod(mode)
    scene.path.write_text("left behind")
    play(scene, scenario)


def test_without_the_agents_socket_there_is_none(scene: Scene) -> None:
    async def scenario(watchers: Watchers) -> None:
        raise AssertionError

    scene.like.unlink()
    with pytest.raises(NoWatching, match="No such file"):
        play(scene, scenario)
    assert not scene.path.exists()
