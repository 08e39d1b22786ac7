"""dom0's client, against a real server and against broken ones."""

from __future__ import annotations

import asyncio
import os
import tty
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from qfilexchg.protocol.names import DomainId
from qfilexchg.xenstore import client
from qfilexchg.xenstore.client import ATTEMPTS, EventQueue, Store, WatchEvent, socket_path
from qfilexchg.xenstore.errors import Again, Denied, Exists, Invalid, NoEntry, StoreError, StoreLost, TooBig
from qfilexchg.xenstore.server import Server
from qfilexchg.xenstore.wire import Op, Packet, Parser
from tests.unit.xenstore.serving import DEADLINE_S, rundir, serving

VM = DomainId(5)


def with_store(body: Callable[[Store, Path], Awaitable[None]]) -> None:
    """Run ``body`` with a client of a real server, and the server's folder."""

    async def connected(folder: Path) -> None:
        async with await Store.connect(folder / "socket") as store:
            await body(store, folder)

    serving(connected)


def with_fake(answer: Callable[[Packet], bytes | None], body: Callable[[Store], Awaitable[None]]) -> None:
    """Run ``body`` with a client of a server that sends what ``answer`` says, and hangs up where that is None."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = Parser()
        while data := await reader.read(4096):
            parser.feed(data)
            while (packet := parser.next_packet()) is not None:
                reply = answer(packet)
                if reply is None:
                    writer.close()
                else:
                    writer.write(reply)
        writer.close()

    async def connected() -> None:
        with rundir() as folder:
            async with await asyncio.start_unix_server(serve, folder / "fake"), await Store.connect(folder / "fake") as store:
                await body(store)

    asyncio.run(asyncio.wait_for(connected(), DEADLINE_S))


class TestKeys:
    def test_what_is_written_is_read(self) -> None:
        async def body(store: Store, _folder: Path) -> None:
            await store.write("/a/b", b"x\xff")
            assert await store.read("/a/b") == b"x\xff"
            await store.mkdir("/a/c")
            assert await store.directory("/a") == ["b", "c"]
            assert await store.directory("/a/c") == []
            assert await store.exists("/a/c")
            await store.rm("/a")
            assert not await store.exists("/a/c")

        with_store(body)

    def test_permissions(self) -> None:
        async def body(store: Store, _folder: Path) -> None:
            await store.write("/a", b"")
            await store.set_perms("/a", ("n0", "r5"))
            assert await store.get_perms("/a") == ("n0", "r5")

        with_store(body)

    def test_a_refusal_names_the_key_and_the_reason(self) -> None:
        async def body(store: Store, _folder: Path) -> None:
            with pytest.raises(NoEntry, match=r"^xenstore /no: there is no such key.*\(ENOENT\)$"):
                await store.read("/no")
            with pytest.raises(Invalid):
                await store.read("//")
            with pytest.raises(Invalid):
                await store.read("/a\0b")
            with pytest.raises(TooBig):
                await store.write("/a", bytes(4096))

        with_store(body)

    def test_a_directory_of_any_length_is_whole(self) -> None:
        async def body(store: Store, _folder: Path) -> None:
            names = [f"{number:060}" for number in range(200)]
            for name in names:
                await store.mkdir(f"/a/{name}")
            assert await store.directory("/a") == names

        with_store(body)

    def test_a_directory_that_changes_while_it_is_read_is_read_anew(self) -> None:
        parts = iter([b"1\0a\0", b"2\0b\0\0", b"2\0c\0", b"2\0d\0\0"])

        def answer(packet: Packet) -> bytes:
            return packet.error("E2BIG").encode() if packet.op == Op.DIRECTORY else packet.reply(next(parts)).encode()

        async def body(store: Store) -> None:
            assert await store.directory("/a") == ["c", "d"]

        with_fake(answer, body)

    def test_a_directory_that_changes_without_end_is_given_up(self) -> None:
        generation = iter(range(1000))

        def answer(packet: Packet) -> bytes:
            return packet.error("E2BIG").encode() if packet.op == Op.DIRECTORY else packet.reply(b"%d\0a\0" % next(generation)).encode()

        async def body(store: Store) -> None:
            with pytest.raises(Again):
                await store.directory("/a")

        with_fake(answer, body)

    def test_many_requests_at_once_get_their_own_replies(self) -> None:
        async def body(store: Store, _folder: Path) -> None:
            await asyncio.gather(*(store.write(f"/a/{number}", b"%d" % number) for number in range(300)))
            assert await asyncio.gather(*(store.read(f"/a/{number}") for number in range(300))) == [b"%d" % number for number in range(300)]

        with_store(body)


class TestDomains:
    def test_introduction_and_release(self) -> None:
        async def body(store: Store, folder: Path) -> None:
            assert not await store.is_introduced(VM)
            await store.introduce(VM)
            assert await store.is_introduced(VM)
            async with await Store.connect(folder / "domain" / "5") as vm:
                with pytest.raises(Denied):
                    await vm.introduce(DomainId(6))
                await store.release(VM)
                assert await vm.events.get() is None
            with pytest.raises(NoEntry, match="domain 5"):
                await store.release(VM)

        with_store(body)


class TestTransactions:
    def test_what_a_body_does_happens_at_once(self) -> None:
        async def body(store: Store, _folder: Path) -> None:
            async def take(tx: int) -> bytes:
                await store.write("/a", b"1", tx)
                assert not await store.exists("/a")
                return await store.read("/a", tx)

            assert await store.transaction(take) == b"1"
            assert await store.read("/a") == b"1"

        with_store(body)

    def test_a_conflict_begins_it_anew(self) -> None:
        async def body(store: Store, _folder: Path) -> None:
            await store.write("/a", b"1")
            attempts = []

            async def add(tx: int) -> None:
                number = int(await store.read("/a", tx))
                attempts.append(number)
                if len(attempts) < 3:
                    await store.write("/a", b"%d" % (number + 10))
                await store.write("/a", b"%d" % (number + 1), tx)

            await store.transaction(add)
            assert attempts == [1, 11, 21]
            assert await store.read("/a") == b"22"

        with_store(body)

    @pytest.mark.parametrize("most", [ATTEMPTS, 1])
    def test_conflicts_without_end_are_given_up(self, most: int) -> None:
        async def body(store: Store, _folder: Path) -> None:
            attempts = []

            async def disturbed(tx: int) -> None:
                attempts.append(tx)
                await store.directory("/", tx)
                await store.write(f"/{tx}", b"")

            with pytest.raises(Again):
                await (store.transaction(disturbed) if most == ATTEMPTS else store.transaction(disturbed, most))
            assert len(attempts) == most

        with_store(body)

    def test_a_body_that_raises_has_done_nothing(self) -> None:
        async def body(store: Store, _folder: Path) -> None:
            begun: list[int] = []

            async def fail(tx: int) -> None:
                begun.append(tx)
                await store.write("/a", b"1", tx)
                raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                await store.transaction(fail)
            assert not await store.exists("/a")
            with pytest.raises(NoEntry):
                await store.read("/", begun[0])

        with_store(body)


class TestWatches:
    def test_events_come_to_the_queue(self) -> None:
        async def body(store: Store, _folder: Path) -> None:
            await store.watch("/a", "token")
            assert await store.events.get() == WatchEvent("/a", "token")
            await store.write("/a/b", b"")
            assert await store.events.get() == WatchEvent("/a/b", "token")
            with pytest.raises(Exists):
                await store.watch("/a", "token")
            await store.unwatch("/a", "token")
            with pytest.raises(NoEntry):
                await store.unwatch("/a", "token")
            await store.write("/a/b", b"")
            assert store.events.empty()

        with_store(body)

    def test_of_what_nobody_took_the_last_of_each_token_is_kept(self) -> None:
        async def body(store: Store, _folder: Path) -> None:
            await store.watch("/a", "token")
            for number in range(5):
                await store.write(f"/a/{number}", b"")
            assert store.events.qsize() == 1
            assert store.events.get_nowait() == WatchEvent("/a/4", "token")
            await store.write("/a", b"")
            assert store.events.get_nowait() == WatchEvent("/a", "token")

        with_store(body)

    def test_the_queue_keeps_the_order_of_first_coming(self) -> None:
        async def body() -> None:
            queue = EventQueue()
            for token in "abab":
                queue.put_nowait(WatchEvent("", token))
            assert [queue.get_nowait() for _ in range(queue.qsize())] == [WatchEvent("", "a"), WatchEvent("", "b")]

        asyncio.run(body())


class TestLoss:
    def test_everyone_who_waits_hears_of_it_at_once(self) -> None:
        async def body(store: Store) -> None:
            results = await asyncio.gather(store.read("/a"), store.read("/b"), store.read("/hang-up"), return_exceptions=True)
            assert [type(result) for result in results] == [StoreLost] * 3
            assert await store.events.get() is None
            with pytest.raises(StoreLost, match="closed the connection"):
                await store.read("/a")

        with_fake(lambda packet: None if packet.payload == b"/hang-up\0" else b"", body)

    def test_closing_is_a_loss_too_and_can_be_repeated(self) -> None:
        async def body(store: Store, _folder: Path) -> None:
            reading = asyncio.create_task(store.read("/"))
            await asyncio.sleep(0)
            await store.close()
            with pytest.raises(StoreLost, match="the connection was closed"):
                await reading
            await store.close()

        with_store(body)

    def test_a_transaction_whose_body_sees_the_loss_ends_with_it(self) -> None:
        async def body(store: Store, _folder: Path) -> None:
            async def lose(_tx: int) -> None:
                await store.close()
                raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                await store.transaction(lose)

        with_store(body)

    def test_silence_is_a_loss(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client, "REPLY_TIMEOUT_S", 0.02)

        async def body(store: Store) -> None:
            with pytest.raises(StoreLost, match="no answer within"):
                await store.read("/a")
            assert await store.events.get() is None

        with_fake(lambda _: b"", body)

    @pytest.mark.parametrize("nonsense", [b"\xff" * 16, Packet(Op.WATCH_EVENT, b"a").encode(), Packet(Op.WATCH_EVENT, b"a\0").encode()])
    def test_nonsense_is_a_loss(self, nonsense: bytes) -> None:
        async def body(store: Store) -> None:
            with pytest.raises(StoreLost, match="not understood"):
                await store.read("/a")

        with_fake(lambda _: nonsense, body)

    def test_replies_that_nobody_waits_for_are_passed_over(self) -> None:
        async def body(store: Store) -> None:
            assert await store.read("/a") == b"x"

        with_fake(lambda packet: Packet(Op.READ, b"y", 4711).encode() + packet.reply(b"x").encode(), body)

    def test_an_unknown_refusal_keeps_its_name(self) -> None:
        async def body(store: Store) -> None:
            with pytest.raises(StoreError, match="EISDIR") as caught:
                await store.read("/a")
            assert caught.value.errno_name == "EISDIR"

        with_fake(lambda packet: packet.error("EISDIR").encode(), body)

    def test_a_cancelled_request_leaves_the_connection_usable(self) -> None:
        async def body(store: Store, _folder: Path) -> None:
            reading = asyncio.create_task(store.read("/"))
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
            assert await store.read("/") == b""

        with_store(body)

    def test_no_store_at_all_is_told_with_its_path(self, tmp_path: Path) -> None:
        with pytest.raises(StoreLost, match=f"{tmp_path}/no: No such file.*check that qxenstored"):
            asyncio.run(Store.connect(tmp_path / "no"))


class TestWhere:
    def test_the_environment_goes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XENSTORED_RUNDIR", "/x")
        monkeypatch.delenv("XENSTORED_PATH", raising=False)
        assert socket_path() == Path("/x/socket")
        monkeypatch.setenv("XENSTORED_PATH", "/y")
        assert socket_path() == Path("/y")

    def test_without_it_the_usual_socket_or_xenbus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("XENSTORED_PATH", raising=False)
        monkeypatch.delenv("XENSTORED_RUNDIR", raising=False)
        for there, expected in ((True, "/run/xenstored/socket"), (False, "/dev/xen/xenbus")):
            monkeypatch.setattr(Path, "exists", lambda _self, there=there: there)
            assert socket_path() == Path(expected)

    def test_a_character_device_carries_the_same_protocol(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def relay(folder: Path, ours: int) -> None:
            """Between the other end of the terminal and the server."""
            reader, writer = await asyncio.open_unix_connection(folder / "socket")
            loop = asyncio.get_running_loop()
            loop.add_reader(ours, lambda: writer.write(os.read(ours, 4096)))
            try:
                while data := await reader.read(4096):
                    os.write(ours, data)
            finally:
                loop.remove_reader(ours)
                writer.close()

        async def served() -> None:
            ours, theirs = os.openpty()
            tty.setraw(theirs)
            monkeypatch.setenv("XENSTORED_PATH", os.ttyname(theirs))
            with rundir() as folder:
                async with Server(folder):
                    relaying = asyncio.create_task(relay(folder, ours))
                    async with await Store.connect() as store:
                        await store.write("/a", b"x" * 2000)
                        assert await store.read("/a") == b"x" * 2000
                        await store.watch("/a", "t")
                        assert await store.events.get() == WatchEvent("/a", "t")
                    relaying.cancel()
                    await asyncio.wait([relaying])
            os.close(ours)
            os.close(theirs)

        asyncio.run(asyncio.wait_for(served(), DEADLINE_S))
