"""The daemon's side of consent: agents register here, and one of them is asked. Whatever goes wrong is a no.

An answer counts once, for the question that it names, while that question is open, and from the agent that was asked. Another
agent's, a late or a repeated one is passed over; a line that is no message ends its agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import grp
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Final

from qfilexchg.dom0.consent import sessions
from qfilexchg.dom0.consent.protocol import (
    LINE_MAX,
    Answer,
    BadMessage,
    FromDaemon,
    Hello,
    Notice,
    Question,
    Screen,
    Welcome,
    Withdraw,
    encode,
    parse_from_agent,
)
from qfilexchg.errors import HostError, InternalError

AGENTS_MAX: Final = 16
"""Connections at a time. A session has one or two agents; a program that connects in a loop gets no further."""
HELLO_WITHIN_S: Final = 10
ACCEPT_AGAIN_S: Final = 1
UNREAD_MAX: Final = 64 << 10
"""Bytes that may wait for an agent that does not read; then it has failed."""

log = logging.getLogger(__name__)


class Consent(enum.Enum):
    """How a question ended; the value is the sentence for the person. True in a condition only when it was allowed."""

    ALLOWED = "the person allowed it"
    ALWAYS = "the person allowed it, and always for these two VMs"
    DENIED = "the person said no"
    NO_AGENT = "no agent runs that could ask the person (qfilexchg-agent)"
    NO_ANSWER = "the person did not answer in time"
    AGENT_ENDED = "the agent ended before the person answered"
    NONSENSE = "the agent's answer was not understood"

    def __bool__(self) -> bool:
        return self in (Consent.ALLOWED, Consent.ALWAYS)


class NoSocket(HostError):
    """The socket for agents cannot be made."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"cannot listen for agents at {self.path}: {self.why}"


class _Agent:
    """A registered agent and the questions that are open with it."""

    def __init__(self, kind: str, writer: asyncio.StreamWriter, session: str | None) -> None:
        self.kind = kind
        self.session = session
        self.open: dict[int, asyncio.Future[Consent]] = {}
        self._writer = writer

    def send(self, message: FromDaemon) -> None:
        """Never waits: an agent that does not read is cut off, and its questions end."""
        self._writer.write(encode(message))
        if self._writer.transport.get_write_buffer_size() > UNREAD_MAX:
            log.warning("agent (%s) does not read and is cut off", self.kind)
            self._writer.transport.abort()

    def answer(self, question: int, consent: Consent) -> None:
        future = self.open.get(question)
        if future is None or future.done():
            log.info("agent (%s) answers question %d, which is not open", self.kind, question)
        else:
            future.set_result(consent)

    def end(self, consent: Consent) -> None:
        for future in self.open.values():
            if not future.done():
                future.set_result(consent)


class Agents:
    """The agents of one daemon. :meth:`serve` makes one."""

    def __init__(self) -> None:
        self._agents: list[_Agent] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def serve(cls, path: Path, group: str | None = None) -> AsyncIterator[Agents]:
        """Listen for agents at the Unix socket ``path``, taking the place of a socket file that is there.

        They are root's or our own user's; if there is a ``group`` of that name, also its members'. At the end all agents are
        disconnected, and every question that is open is answered with no.
        """
        agents = cls()
        group_id = _group_id(group)
        with _listen(path, group_id) as listener:
            agents._start(agents._accept(listener, by_group=group_id is not None))
            try:
                yield agents
            finally:
                for task in agents._tasks:
                    task.cancel()
                await asyncio.gather(*agents._tasks, return_exceptions=True)

    async def ask(self, question: Question) -> Consent:
        """Ask the agent of the session that the person has before them. Returns within the question's deadline, or little later.

        When the caller is cancelled, the question is withdrawn.
        """
        agent = await self._nearest()
        if agent is None:
            return Consent.NO_AGENT
        if question.id in agent.open:
            raise InternalError(f"question {question.id} is asked twice")
        future: asyncio.Future[Consent] = asyncio.get_running_loop().create_future()
        agent.open[question.id] = future
        try:
            agent.send(question)
            async with asyncio.timeout(question.deadline_s):
                return await future
        except TimeoutError:
            return Consent.NO_ANSWER
        finally:
            del agent.open[question.id]
            if not future.done() or future.cancelled():
                agent.send(Withdraw(question.id))

    async def _nearest(self) -> _Agent | None:
        """Of the agents in active sessions the one that registered last; where that says nothing, of all."""
        if len({agent.session for agent in self._agents}) > 1:
            active = await sessions.active({agent.session for agent in self._agents if agent.session})
            for agent in reversed(self._agents):
                if agent.session in active:
                    return agent
        return self._agents[-1] if self._agents else None

    def notify(self, text: str, transfer: str | None = None) -> None:
        """Tell every agent. A later text with the same ``transfer`` takes the place of an earlier."""
        for agent in self._agents:
            agent.send(Notice(text, transfer))

    async def show(self, screen: Screen) -> None:
        """Have the agent that would be asked open a VM's screen. Without one nobody sees it."""
        if agent := await self._nearest():
            agent.send(screen)

    def __len__(self) -> int:
        """How many agents are registered."""
        return len(self._agents)

    def _start(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listener: socket.socket, *, by_group: bool) -> None:
        while True:
            try:
                connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            except OSError as error:
                log.error("an agent cannot connect: %s", error)
                await asyncio.sleep(ACCEPT_AGAIN_S)  # out of file descriptors, say: leave others some time to close theirs
                continue
            process, user = _peer(connection)
            if user not in (0, os.geteuid()) and not by_group:  # else the socket's permissions have let only members in
                log.warning("agent of user %d is refused", user)
                connection.close()
            elif len(self._tasks) > AGENTS_MAX:
                log.warning("agent is refused: there are %d already", AGENTS_MAX)
                connection.close()
            else:
                reader, writer = await asyncio.open_unix_connection(sock=connection, limit=LINE_MAX)
                task = self._start(self._converse(reader, writer, process, user))
                # Not at the end of the conversation: a task that is cancelled before its first step never gets there.
                task.add_done_callback(functools.partial(_close, writer))

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, process: int, user: int) -> None:
        agent = None
        consent = Consent.AGENT_ENDED
        try:
            async with asyncio.timeout(HELLO_WITHIN_S):
                hello = parse_from_agent(await _line(reader))
            if not isinstance(hello, Hello):
                raise BadMessage("no hello", encode(hello))
            agent = _Agent(hello.kind, writer, await sessions.of_process(process))
            self._agents.append(agent)
            log.info("agent (%s) of user %d is registered", agent.kind, user)
            agent.send(Welcome())
            while True:
                answer = parse_from_agent(await _line(reader))
                if not isinstance(answer, Answer):
                    raise BadMessage("hello again", encode(answer))
                agent.answer(answer.question, _consent(answer))
        except TimeoutError:
            log.warning("agent did not say hello")
        except BadMessage as error:
            log.warning("agent is cut off: %s", error)
            consent = Consent.NONSENSE
        except (OSError, asyncio.IncompleteReadError):
            pass  # it went away, which is how every agent ends
        finally:
            if agent is not None:
                log.info("agent (%s) ends", agent.kind)
                self._agents.remove(agent)
                agent.end(consent)


def _consent(answer: Answer) -> Consent:
    if not answer.allow:
        return Consent.DENIED
    return Consent.ALWAYS if answer.remember else Consent.ALLOWED


def _group_id(name: str | None) -> int | None:
    if name is None:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        log.warning("there is no group %s: only root can be an agent", name)
        return None


def _listen(path: Path, group_id: int | None) -> socket.socket:
    """A listening socket that others, but for the group's members, cannot connect to at any moment: its mode is set before it listens."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        if group_id is not None:
            os.chown(path, -1, group_id)
            path.chmod(0o660)
        listener.listen()
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise NoSocket(path, error.strerror or str(error)) from error
    return listener


def _peer(connection: socket.socket) -> tuple[int, int]:
    """The process and the user that connected, by the kernel's word."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    process, user, _ = struct.unpack("3i", credentials)
    return int(process), int(user)


def _close(writer: asyncio.StreamWriter, conversation: asyncio.Task[None]) -> None:
    writer.close()


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError:
        raise BadMessage(f"longer than {LINE_MAX} bytes", b"") from None
