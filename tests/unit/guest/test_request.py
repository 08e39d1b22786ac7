"""The exchange of a request for its replies: against a store and a clock in memory, and against the real store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from qfilexchg.guest.interruption import Cancelled, Interruption
from qfilexchg.guest.request import GIVE_UP_S, REPEAT_S, Exchange, NoAnswer, fresh_id
from qfilexchg.protocol import keys
from qfilexchg.protocol.names import DomainId, VmName
from qfilexchg.protocol.qpen import Reply, Request, parse_request
from qfilexchg.xenstore import blocking
from qfilexchg.xenstore.client import Store
from qfilexchg.xenstore.server import Server
from tests.unit.guest.dom0 import Dom0

WORK = VmName.parse("work")


@pytest.fixture
def dom0() -> Dom0:
    return Dom0()


@pytest.fixture
def exchange(dom0: Dom0) -> Exchange:
    return Exchange(dom0, dom0, dom0.clock)


def new() -> Request:
    return Request("new", request_id=fresh_id())


def send() -> Request:
    return Request("send", target=WORK, request_id=fresh_id())


class TestReplies:
    def test_the_last_one_is_returned_and_each_state_before_it_told(self, dom0: Dom0, exchange: Exchange) -> None:
        states: list[Reply] = []
        request = new()
        assert exchange.carry_out(request, states.append) == Reply(request.request_id, "attached")
        assert states == [Reply(request.request_id, "accepted")]

    def test_a_state_that_is_repeated_is_told_once(self, dom0: Dom0, exchange: Exchange) -> None:
        exchange.carry_out(new())
        dom0.verdict = "queue"
        states: list[str] = []
        assert exchange.carry_out(send(), lambda reply: states.append(reply.state)).state == "delivered"
        assert states == ["asking", "queued", "accepted"]

    def test_one_with_an_unknown_id_is_passed_over(self, dom0: Dom0, exchange: Exchange) -> None:
        dom0.nodes[keys.REPLY] = b"someoneelse delivered"
        dom0.later(lambda: dom0.put(keys.REPLY, b"- denied"), 0.15)
        assert exchange.carry_out(new()).state == "attached"

    @pytest.mark.parametrize("nonsense", [b"", b"\xff\xfe", b"word", b"id what"])
    def test_one_that_is_none_is_passed_over(self, dom0: Dom0, exchange: Exchange, nonsense: bytes) -> None:
        dom0.nodes[keys.REPLY] = nonsense
        dom0.later(lambda: dom0.put(keys.REPLY, nonsense), 0.15)
        assert exchange.carry_out(new()).state == "attached"

    def test_a_status_has_but_one(self, dom0: Dom0, exchange: Exchange) -> None:
        reply = exchange.carry_out(Request("status", request_id="s"))
        assert reply.encode() == b"s accepted outgoing=none incoming=none"

    def test_the_last_one_can_be_asked_for_again(self, dom0: Dom0, exchange: Exchange) -> None:
        request = new()
        exchange.carry_out(request)
        exchange.carry_out(Request("status", request_id="s"))
        assert exchange.carry_out(request).state == "attached"
        assert dom0.taken == [request, Request("status", request_id="s")]


class TestSilence:
    @pytest.mark.parametrize("lost", [1, 2, 3])
    def test_a_lost_reply_is_asked_for_again(self, dom0: Dom0, exchange: Exchange, lost: int) -> None:
        dom0.lost_replies = lost
        began = dom0.now
        request = new()
        assert exchange.carry_out(request).state == "attached"
        assert dom0.taken == [request], "the same id is carried out once"
        assert dom0.now - began < 3 * REPEAT_S

    def test_no_one_is_asked_twice_before_the_time(self, dom0: Dom0, exchange: Exchange) -> None:
        exchange.carry_out(new())
        dom0.writes.clear()
        exchange.carry_out(send())
        assert len(dom0.writes) == 1 + 0, "a question of 3 s is no silence"

    def test_a_long_wait_in_a_queue_is_none_as_long_as_dom0_answers(self, dom0: Dom0, exchange: Exchange) -> None:
        exchange.carry_out(new())
        dom0.verdict = "queue"
        began = dom0.now
        assert exchange.carry_out(send()).state == "delivered"
        assert dom0.now - began > 9 * GIVE_UP_S

    def test_a_dom0_that_falls_silent_while_it_was_asked_is_given_up(self, dom0: Dom0, exchange: Exchange) -> None:
        exchange.carry_out(new())
        dom0.verdict = "queue"

        def stop() -> None:
            dom0.serves = False

        dom0.later(stop, 100)
        dom0.later(lambda: dom0.put(keys.REPLY, b"- accepted"), 110)
        began = dom0.now
        with pytest.raises(NoAnswer):
            exchange.carry_out(send())
        assert 100 + GIVE_UP_S - REPEAT_S <= dom0.now - began <= 110 + GIVE_UP_S

    def test_an_absent_dom0_is_given_up_and_the_request_taken_back(self, dom0: Dom0, exchange: Exchange) -> None:
        dom0.serves = False
        began = dom0.now
        with pytest.raises(NoAnswer) as caught:
            exchange.carry_out(new())
        assert dom0.now - began == pytest.approx(GIVE_UP_S)
        assert "qfilexchgd" in str(caught.value)
        assert dom0.nodes[keys.REQUEST] == b""
        assert not exchange.taken

    def test_a_dom0_that_returns_in_time_is_asked_again(self, dom0: Dom0, exchange: Exchange) -> None:
        dom0.serves = False
        dom0.later(dom0.restart, GIVE_UP_S - 10)
        assert exchange.carry_out(new()).state == "attached"


class TestTheKey:
    def test_a_request_of_another_tool_is_not_overwritten(self, dom0: Dom0, exchange: Exchange) -> None:
        dom0.serves = False
        dom0.nodes[keys.REQUEST] = b"status id=other"
        dom0.later(dom0.restart, 20)
        request = new()
        assert exchange.carry_out(request).state == "attached"
        assert dom0.taken == [Request("status", request_id="other"), request]

    def test_a_dom0_that_has_not_made_it_yet_is_waited_for(self, dom0: Dom0, exchange: Exchange) -> None:
        del dom0.nodes[keys.REQUEST], dom0.nodes[keys.REPLY]
        dom0.later(lambda: dom0.put(keys.REQUEST, b""), 20)
        assert exchange.carry_out(new()).state == "attached"

    @pytest.mark.parametrize("conflicts", [1, 5, 40])
    def test_a_transaction_that_others_disturbed_is_begun_anew(self, dom0: Dom0, exchange: Exchange, conflicts: int) -> None:
        dom0.conflicts = conflicts
        assert exchange.carry_out(new()).state == "attached"
        assert len(dom0.taken) == 1


class TestCancelling:
    def test_an_untaken_request_is_taken_back(self, dom0: Dom0, exchange: Exchange) -> None:
        dom0.serves = False
        dom0.cancel_at = 1
        with pytest.raises(Cancelled):
            exchange.carry_out(new())
        assert dom0.nodes[keys.REQUEST] == b""
        assert not exchange.taken

    def test_a_taken_request_is_known_to_be(self, dom0: Dom0, exchange: Exchange) -> None:
        dom0.lost_replies = 99
        dom0.cancel_at = 3
        with pytest.raises(Cancelled):
            exchange.carry_out(new())
        assert exchange.taken
        assert len(dom0.taken) == 1

    def test_no_watch_is_left(self, dom0: Dom0, exchange: Exchange) -> None:
        dom0.cancel_at = 2
        with dom0, pytest.raises(Cancelled):
            exchange.carry_out(new())


DOMAIN = DomainId(7)


class RealDom0:
    """A dom0 on a real store that answers by a function of the request."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.taken: list[Request] = []

    async def begin(self) -> None:
        await self._store.introduce(DOMAIN)
        for key, perms in ((keys.REQUEST, keys.writable_by(DOMAIN)), (keys.REPLY, keys.readable_by(DOMAIN))):
            path = keys.absolute(DOMAIN, key)
            await self._store.write(path, b"")
            await self._store.set_perms(path, perms)
        await self._store.watch(keys.absolute(DOMAIN, keys.REQUEST), "request")

    async def take(self) -> Request:
        path = keys.absolute(DOMAIN, keys.REQUEST)

        async def empty(tx: int) -> bytes:
            text = await self._store.read(path, tx)
            if text:
                await self._store.write(path, b"", tx)
            return text

        while not (text := await self._store.transaction(empty)):
            await self._store.events.get()
        self.taken.append(parse_request(text))
        return self.taken[-1]

    async def tell(self, reply: str) -> None:
        await self._store.write(keys.absolute(DOMAIN, keys.REPLY), reply.encode())


@asynccontextmanager
async def real(rundir: Path) -> AsyncIterator[RealDom0]:
    async with Server(rundir), await Store.connect(rundir / "socket") as store:
        dom0 = RealDom0(store)
        await dom0.begin()
        yield dom0


def carry_out(on_state: Callable[[Reply], None], request: Request) -> Reply:
    with Interruption() as interruption, blocking.Store.open() as store:
        return Exchange(store, interruption).carry_out(request, on_state)


class TestOnTheRealStore:
    @pytest.fixture(autouse=True)
    def way_in(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XENSTORED_PATH", str(tmp_path / "domain" / str(DOMAIN)))
        # Signals belong to the main thread, and the tool runs beside the store here.
        monkeypatch.setattr(Interruption, "__enter__", lambda self: self)
        monkeypatch.setattr(Interruption, "__exit__", lambda self, *_: None)
        monkeypatch.setattr(Interruption, "__init__", _unheeded)

    async def test_a_request_gets_its_reply_among_others(self, tmp_path: Path) -> None:
        states: asyncio.Queue[str] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def on_state(reply: Reply) -> None:
            loop.call_soon_threadsafe(states.put_nowait, reply.state)

        async with real(tmp_path) as dom0:
            tool = asyncio.create_task(asyncio.to_thread(carry_out, on_state, send()))
            request = await dom0.take()
            for reply in ("- denied", "other delivered", f"{request.request_id} asking"):
                await dom0.tell(reply)
            assert await states.get() == "asking"
            await dom0.tell(f"{request.request_id} delivered")
            assert (await tool).state == "delivered"
        assert states.empty()

    async def test_silence_brings_the_same_request_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("qfilexchg.guest.request.REPEAT_S", 0.05)
        async with real(tmp_path) as dom0:
            tool = asyncio.create_task(asyncio.to_thread(carry_out, lambda _: None, new()))
            first, second = await dom0.take(), await dom0.take()
            assert first == second
            await dom0.tell(f"{first.request_id} attached")
            assert (await tool).state == "attached"

    async def test_two_tools_share_the_key(self, tmp_path: Path) -> None:
        async with real(tmp_path) as dom0:
            tools = [asyncio.create_task(asyncio.to_thread(carry_out, lambda _: None, new())) for _ in range(4)]
            for _ in tools:
                request = await dom0.take()
                await dom0.tell(f"{request.request_id} attached")
            # A reply may be overwritten by the next before its tool reads it: then it is asked for again.
            answers = asyncio.gather(*tools)
            while not answers.done():
                takes = asyncio.create_task(dom0.take())
                await asyncio.wait((takes, answers), return_when=asyncio.FIRST_COMPLETED)
                if takes.done():
                    await dom0.tell(f"{takes.result().request_id} attached")
                else:
                    takes.cancel()
            assert {reply.state for reply in await answers} == {"attached"}
        assert len({request.request_id for request in dom0.taken}) == 4


def _unheeded(self: Interruption) -> None:
    self.wanted = False
    self._heeding = False
