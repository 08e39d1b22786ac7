"""The daemon's side of consent, over real sockets; the agents are played by the tests, byte by byte."""

from __future__ import annotations

import asyncio
import grp
import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from qfilexchg.dom0.consent import agents as module
from qfilexchg.dom0.consent import sessions
from qfilexchg.dom0.consent.agents import AGENTS_MAX, UNREAD_MAX, Agents, Consent, NoSocket
from qfilexchg.dom0.consent.protocol import (
    LINE_MAX,
    Answer,
    FromDaemon,
    Hello,
    Notice,
    Question,
    Screen,
    Welcome,
    Withdraw,
    encode,
    parse_from_daemon,
)
from qfilexchg.errors import InternalError
from qfilexchg.protocol.names import VmName

TIMEOUT_S = 20


@dataclass
class Peer:
    """The other end of an agent's connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def hear(self) -> FromDaemon:
        return parse_from_daemon(await self.reader.readuntil(b"\n"))

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def is_cut_off(self) -> bool:
        try:
            return await self.reader.read() == b""
        except ConnectionError:
            return True


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Peer]:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        yield Peer(reader, writer)
    finally:
        writer.close()


@asynccontextmanager
async def registered(path: Path) -> AsyncIterator[Peer]:
    async with connected(path) as peer:
        peer.say(encode(Hello("test")))
        assert await peer.hear() == Welcome()
        yield peer


def play(path: Path, scenario: Callable[[Agents], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(TIMEOUT_S), Agents.serve(path) as agents:
            await scenario(agents)

    asyncio.run(main())


@pytest.mark.parametrize(("allow", "consent"), [(True, Consent.ALLOWED), (False, Consent.DENIED)])
def test_the_answer_of_the_person_is_returned(socket_path: Path, question: Question, allow: bool, consent: Consent) -> None:
    async def scenario(agents: Agents) -> None:
        async with registered(socket_path) as peer:
            asking = asyncio.create_task(agents.ask(question))
            assert await peer.hear() == question
            peer.say(encode(Answer(question.id, allow)))
            assert await asking is consent
            assert bool(consent) is allow

    play(socket_path, scenario)


def test_two_consents_are_a_yes() -> None:
    assert [consent for consent in Consent if consent] == [Consent.ALLOWED, Consent.ALWAYS]


def test_a_yes_that_is_to_be_remembered_is_told_from_one_that_is_not(socket_path: Path, question: Question) -> None:
    async def scenario(agents: Agents) -> None:
        async with registered(socket_path) as peer:
            asking = asyncio.create_task(agents.ask(question))
            await peer.hear()
            peer.say(encode(Answer(7, True, remember=True)))
            assert await asking is Consent.ALWAYS

    play(socket_path, scenario)


def test_without_an_agent_the_answer_is_no(socket_path: Path, question: Question) -> None:
    async def scenario(agents: Agents) -> None:
        assert await agents.ask(question) is Consent.NO_AGENT

    play(socket_path, scenario)


def test_whoever_has_not_said_hello_is_not_asked(socket_path: Path, question: Question) -> None:
    async def scenario(agents: Agents) -> None:
        async with connected(socket_path):
            assert await agents.ask(question) is Consent.NO_AGENT

    play(socket_path, scenario)


def test_without_an_answer_in_time_it_is_no_and_the_question_is_withdrawn(socket_path: Path, question: Question) -> None:
    async def scenario(agents: Agents) -> None:
        async with registered(socket_path) as peer:
            assert await agents.ask(replace(question, deadline_s=0)) is Consent.NO_ANSWER
            assert isinstance(await peer.hear(), Question)
            assert await peer.hear() == Withdraw(question.id)

    play(socket_path, scenario)


def test_a_late_answer_does_not_count_for_the_next_question(socket_path: Path, question: Question) -> None:
    async def scenario(agents: Agents) -> None:
        async with registered(socket_path) as peer:
            assert await agents.ask(replace(question, deadline_s=0)) is Consent.NO_ANSWER
            asking = asyncio.create_task(agents.ask(replace(question, id=8)))
            while await peer.hear() != replace(question, id=8):
                pass
            peer.say(encode(Answer(7, True)) + encode(Answer(9, True)) + encode(Answer(8, False)))
            assert await asking is Consent.DENIED

    play(socket_path, scenario)


def test_the_first_of_two_answers_counts(socket_path: Path, question: Question) -> None:
    async def scenario(agents: Agents) -> None:
        async with registered(socket_path) as peer:
            asking = asyncio.create_task(agents.ask(question))
            await peer.hear()
            peer.say(encode(Answer(7, False)) + encode(Answer(7, True)))
            assert await asking is Consent.DENIED

    play(socket_path, scenario)


def test_each_of_several_questions_gets_its_own_answer(socket_path: Path, question: Question) -> None:
    async def scenario(agents: Agents) -> None:
        async with registered(socket_path) as peer:
            asking = [asyncio.create_task(agents.ask(replace(question, id=number))) for number in range(3)]
            for _ in asking:
                await peer.hear()
            for number in (2, 0, 1):
                peer.say(encode(Answer(number, number == 2)))
            assert await asyncio.gather(*asking) == [Consent.DENIED, Consent.DENIED, Consent.ALLOWED]

    play(socket_path, scenario)


def test_a_question_that_is_open_cannot_be_asked_again(socket_path: Path, question: Question) -> None:
    async def scenario(agents: Agents) -> None:
        async with registered(socket_path) as peer:
            asking = asyncio.create_task(agents.ask(question))
            await peer.hear()
            with pytest.raises(InternalError, match="asked twice"):
                await agents.ask(question)
            peer.say(encode(Answer(7, True)))
            assert await asking

    play(socket_path, scenario)


def test_an_agent_that_ends_during_a_question_means_no(socket_path: Path, question: Question) -> None:
    async def scenario(agents: Agents) -> None:
        async with registered(socket_path):  # an older agent does not take the question over
            async with registered(socket_path) as peer:
                asking = asyncio.create_task(agents.ask(question))
                await peer.hear()
            assert await asking is Consent.AGENT_ENDED

    play(socket_path, scenario)


@pytest.mark.parametrize(
    "nonsense", [b"yes\n", b'{"answer": 7, "allow": 1}\n', b"\xff" * 9 + b"\n", b"x" * (3 * LINE_MAX), encode(Hello("test"))]
)
def test_nonsense_means_no_and_ends_the_agent(socket_path: Path, question: Question, nonsense: bytes) -> None:
    async def scenario(agents: Agents) -> None:
        async with registered(socket_path) as peer:
            asking = asyncio.create_task(agents.ask(question))
            await peer.hear()
            peer.say(nonsense + encode(Answer(7, True)))
            assert await asking is Consent.NONSENSE
            assert await peer.is_cut_off()
            assert len(agents) == 0

    play(socket_path, scenario)


def test_a_yes_that_is_cut_off_is_none(socket_path: Path, question: Question) -> None:
    async def scenario(agents: Agents) -> None:
        async with registered(socket_path) as peer:
            asking = asyncio.create_task(agents.ask(question))
            await peer.hear()
            peer.say(encode(Answer(7, True))[:-1])
            peer.writer.write_eof()
            assert await asking is Consent.AGENT_ENDED

    play(socket_path, scenario)


def test_the_question_is_withdrawn_when_nobody_waits_for_it_any_more(socket_path: Path, question: Question) -> None:
    async def scenario(agents: Agents) -> None:
        async with registered(socket_path) as peer:
            asking = asyncio.create_task(agents.ask(question))
            await peer.hear()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert await peer.hear() == Withdraw(7)

    play(socket_path, scenario)


def test_the_newest_agent_is_asked_and_no_other_may_answer(socket_path: Path, question: Question) -> None:
    async def scenario(agents: Agents) -> None:
        async with registered(socket_path) as older, registered(socket_path) as newer:
            asking = asyncio.create_task(agents.ask(question))
            assert await newer.hear() == question
            older.say(encode(Answer(7, True)) + b"nonsense\n")
            assert await older.is_cut_off()
            assert not asking.done()
            newer.say(encode(Answer(7, False)))
            assert await asking is Consent.DENIED

    play(socket_path, scenario)


def test_when_the_newest_has_ended_the_one_before_it_is_asked(socket_path: Path, question: Question) -> None:
    async def scenario(agents: Agents) -> None:
        async with registered(socket_path) as older:
            async with registered(socket_path) as newer:
                newer.say(b"nonsense\n")
                assert await newer.is_cut_off()
            asking = asyncio.create_task(agents.ask(question))
            await older.hear()
            older.say(encode(Answer(7, True)))
            assert await asking

    play(socket_path, scenario)


class TestSessions:
    """Two agents in two sessions; which of these the person has before them is played."""

    @pytest.mark.parametrize(
        ("active", "asked"), [({"first"}, "first"), ({"second"}, "second"), ({"first", "second"}, "second"), (set(), "second")]
    )
    def test_the_agent_of_the_active_session_is_asked(
        self, socket_path: Path, question: Question, monkeypatch: pytest.MonkeyPatch, active: set[str], asked: str
    ) -> None:
        registering = iter(["first", "second"])

        async def of_process(process: int) -> str:
            assert process == os.getpid()
            return next(registering)

        async def active_ones(names: Iterable[str]) -> set[str]:
            assert set(names) == {"first", "second"}
            return active

        monkeypatch.setattr(sessions, "of_process", of_process)
        monkeypatch.setattr(sessions, "active", active_ones)

        async def scenario(agents: Agents) -> None:
            async with registered(socket_path) as first, registered(socket_path) as second:
                asking = asyncio.create_task(agents.ask(question))
                peer = {"first": first, "second": second}[asked]
                assert await peer.hear() == question
                peer.say(encode(Answer(7, True)))
                assert await asking

        play(socket_path, scenario)


def test_notices_reach_every_agent(socket_path: Path) -> None:
    async def scenario(agents: Agents) -> None:
        async with registered(socket_path) as one, registered(socket_path) as other:
            agents.notify("delivered", "0a")
            assert await one.hear() == await other.hear() == Notice("delivered", "0a")

    play(socket_path, scenario)


def test_a_screen_is_opened_once_by_the_agent_that_would_be_asked(socket_path: Path) -> None:
    screen = Screen(VmName.parse("disp1"), "/run/screen")

    async def scenario(agents: Agents) -> None:
        await agents.show(screen)  # to nobody
        async with registered(socket_path) as one, registered(socket_path) as other:
            await agents.show(screen)
            agents.notify("delivered")
            assert [await other.hear(), await other.hear(), await one.hear()] == [screen, Notice("delivered"), Notice("delivered")]

    play(socket_path, scenario)


def test_an_agent_that_does_not_read_is_cut_off_and_holds_nobody(socket_path: Path, question: Question) -> None:
    async def scenario(agents: Agents) -> None:
        async with registered(socket_path) as peer:
            assert isinstance(peer.writer.transport, asyncio.Transport)
            peer.writer.transport.pause_reading()
            asking = asyncio.create_task(agents.ask(question))
            await asyncio.sleep(0)  # one turn of the loop, in which the question is put
            for _ in range(1 + (UNREAD_MAX + (4 << 20)) // 1000):
                agents.notify("x" * 1000)
            assert await asking is Consent.AGENT_ENDED

    play(socket_path, scenario)


def test_an_agent_that_does_not_say_hello_is_cut_off(socket_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELLO_WITHIN_S", 0)

    async def scenario(agents: Agents) -> None:
        async with connected(socket_path) as peer:
            assert await peer.is_cut_off()

    play(socket_path, scenario)


@pytest.mark.parametrize("line", [b'{"hello": 2, "kind": "tty"}\n', encode(Answer(7, True)), b"\n", b"x" * (3 * LINE_MAX)])
def test_whoever_does_not_begin_with_hello_is_cut_off(socket_path: Path, line: bytes) -> None:
    async def scenario(agents: Agents) -> None:
        async with connected(socket_path) as peer:
            peer.say(line)
            assert await peer.is_cut_off()

    play(socket_path, scenario)


def test_other_users_are_refused(socket_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_peer", lambda connection: (os.getpid(), 12345))

    async def scenario(agents: Agents) -> None:
        async with connected(socket_path) as peer:
            peer.say(encode(Hello("test")))
            assert await peer.is_cut_off()
            assert len(agents) == 0

    play(socket_path, scenario)


class TestAGroup:
    def serve(self, path: Path, group: str) -> int:
        """How many agents another user's connection makes."""

        async def main() -> int:
            async with asyncio.timeout(TIMEOUT_S), Agents.serve(path, group) as agents, connected(path) as peer:
                peer.say(encode(Hello("test")))
                try:
                    return len(agents) if await peer.hear() == Welcome() else 0
                except (asyncio.IncompleteReadError, ConnectionError):
                    return 0

        return asyncio.run(main())

    @pytest.fixture(autouse=True)
    def another_user(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_peer", lambda connection: (os.getpid(), 12345))

    def test_its_members_may_be_agents_as_the_sockets_permissions_say(self, socket_path: Path) -> None:
        own = grp.getgrgid(os.getegid())
        assert self.serve(socket_path, own.gr_name) == 1
        status = socket_path.stat()
        assert (status.st_mode & 0o777, status.st_gid) == (0o660, own.gr_gid)

    def test_without_it_nobody_else_may(self, socket_path: Path) -> None:
        assert self.serve(socket_path, "no-such-group") == 0
        assert socket_path.stat().st_mode & 0o777 == 0o600


def test_the_number_of_connections_is_bounded(socket_path: Path) -> None:
    async def scenario(agents: Agents) -> None:
        peers = [await asyncio.open_unix_connection(socket_path) for _ in range(AGENTS_MAX)]
        for reader, writer in peers:
            writer.write(encode(Hello("test")))
            await reader.readuntil(b"\n")
        async with connected(socket_path) as peer:
            assert await peer.is_cut_off()
        for _, writer in peers:
            writer.close()

    play(socket_path, scenario)


def test_without_file_descriptors_it_tries_again(socket_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = asyncio.Event()
    monkeypatch.setattr(module, "ACCEPT_AGAIN_S", 0)
    monkeypatch.setattr(module.log, "error", lambda *message: refused.set())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def scenario(agents: Agents) -> None:
        connection = socket.socket(socket.AF_UNIX)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            connection.connect(str(socket_path))
            await refused.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        writer.write(encode(Hello("test")))
        assert parse_from_daemon(await reader.readuntil(b"\n")) == Welcome()
        writer.close()

    play(socket_path, scenario)


def test_the_socket_is_private_and_takes_the_place_of_an_old_one(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(socket_path))

    async def scenario(agents: Agents) -> None:
        async with registered(socket_path):
            assert len(agents) == 1

    play(socket_path, scenario)
    assert socket_path.stat().st_mode & 0o777 == 0o600


def test_a_socket_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoSocket, match="none/socket"):
        play(tmp_path / "none/socket", lambda agents: asyncio.sleep(0))


def test_when_the_daemon_ends_its_questions_end_with_no(socket_path: Path, question: Question) -> None:
    async def main() -> Consent:
        async with asyncio.timeout(TIMEOUT_S):
            async with Agents.serve(socket_path) as agents, registered(socket_path) as peer:
                asking = asyncio.create_task(agents.ask(question))
                await peer.hear()
            return await asking

    assert asyncio.run(main()) is Consent.AGENT_ENDED
