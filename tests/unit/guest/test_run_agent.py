"""The agent as a process of its own, with a socket for a port: the host's end is closed where a VM would lose its host.

What a command is given and gives is the same by a console, for which a pseudo-terminal stands.
"""

from __future__ import annotations

import os
import pwd
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from qfilexchg.guest.console import Console, hush_kernel
from qfilexchg.guest.run_agent import HANG_UP_S, HangUps, Port
from qfilexchg.protocol.console import GRANT, WINDOW_BYTES, Line
from qfilexchg.protocol.run import (
    EXIT,
    NONCE_BYTES,
    PREAMBLE,
    STDERR,
    STDIN,
    STDOUT,
    WINDOW,
    Decoder,
    HelloSeeker,
    Start,
    frame,
    window_size,
)
from tests.python import PYTHON

DEADLINE_S = 20.0
USER = pwd.getpwuid(os.getuid()).pw_name
SOURCES = str(Path(__file__).parents[3] / "src")


class Way(Protocol):
    """Bytes from and to the agent."""

    def sendall(self, data: bytes, /) -> None: ...

    def recv(self, size_bytes: int, /) -> bytes: ...


class ConsoleWay:
    """dom0's end of a console. What comes while there is no room to send waits."""

    def __init__(self, terminal: int) -> None:
        self.line = Line()
        self.wire_bytes = 0
        self._terminal = terminal
        self._received = bytearray()
        self._poll = select.poll()
        os.set_blocking(terminal, False)

    def sendall(self, data: bytes) -> None:
        while data:
            # A START goes out as a whole.
            room = len(data) if data.startswith(PREAMBLE) else self.line.room_bytes
            self._write(self.line.encode(data[:room]))
            data = data[room:]
            if data:
                self._receive()

    def recv(self, _size_bytes: int) -> bytes:
        while not self._received:
            self._receive()
        data = bytes(self._received)
        self._received.clear()
        return data

    def _write(self, data: bytes) -> None:
        assert b"\x0f" not in data, "the VM's kernel would take it"
        while data:
            self._wait(select.POLLOUT)
            data = data[os.write(self._terminal, data) :]

    def _receive(self) -> None:
        self._wait(select.POLLIN)
        data = os.read(self._terminal, 65536)
        self.wire_bytes += len(data)
        self._received += self.line.decode(data)[1]
        self._write(self.line.grants())

    def _wait(self, readiness: int) -> None:
        self._poll.register(self._terminal, readiness)
        assert self._poll.poll(DEADLINE_S * 1000), "the agent does nothing"


class Host:
    """dom0's end."""

    def __init__(self, port: Way) -> None:
        self.port = port
        self._decoder = Decoder()
        self._sessions = 0

    def start(self, *argv: str, user: str = USER, window: tuple[int, int] | None = None) -> None:
        self._sessions += 1
        nonce = self._sessions.to_bytes(NONCE_BYTES, "big")
        self.port.sendall(Start(nonce, user, [os.fsencode(word) for word in argv], window).encode())
        seeker = HelloSeeker(nonce)
        while (rest := seeker.feed(self.port.recv(65536))) is None:
            pass
        self._decoder = Decoder()
        self._frames = list(self._decoder.feed(rest))

    def frame(self) -> tuple[int, bytes]:
        while not self._frames:
            self._frames = list(self._decoder.feed(self.port.recv(65536)))
        return self._frames.pop(0)

    def wait_for(self, text: bytes) -> None:
        seen = b""
        while text not in seen:
            seen += self.frame()[1]

    def end(self) -> tuple[bytes, bytes, int]:
        said = {STDOUT: bytearray(), STDERR: bytearray()}
        while True:
            kind, payload = self.frame()
            if kind == EXIT:
                return bytes(said[STDOUT]), bytes(said[STDERR]), payload[0]
            said[kind] += payload

    def run(self, *argv: str, input: bytes = b"") -> tuple[bytes, bytes, int]:
        self.start(*argv)
        for at in range(0, len(input), 30000):
            self.port.sendall(frame(STDIN, input[at : at + 30000]))
        self.port.sendall(frame(STDIN))
        return self.end()


@pytest.fixture
def ports() -> Iterator[list[socket.socket]]:
    """The host's ends of two ports that an agent serves."""
    pairs = [socket.socketpair() for _ in range(2)]
    for _, agent in pairs:
        agent.setblocking(False)
    numbers = [agent.fileno() for _, agent in pairs]
    program = f"from qfilexchg.guest.run_agent import serve; serve({numbers})"
    process = subprocess.Popen([*PYTHON, "-c", program], pass_fds=numbers, env={**os.environ, "PYTHONPATH": SOURCES})
    for host, agent in pairs:
        agent.close()
        host.settimeout(DEADLINE_S)
    yield [host for host, _ in pairs]
    assert process.poll() is None, "the agent ended"
    process.kill()
    process.wait()
    for host, _ in pairs:
        host.close()


@pytest.fixture
def console() -> Iterator[ConsoleWay]:
    """The host's end of a console that an agent serves. Its kernel has said something before."""
    ours, theirs = os.openpty()
    path = os.ttyname(theirs)
    os.write(theirs, b"[    0.000000] Linux version 6.1 \x10\x0f\x10R\n")
    program = (
        "from qfilexchg.guest.console import open_console; from qfilexchg.guest.run_agent import serve; "
        f"console = open_console({path!r}); print(flush=True); serve((), [console])"
    )
    process = subprocess.Popen([*PYTHON, "-c", program], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": SOURCES})
    assert process.stdout and process.stdout.readline() == b"\n"
    os.close(theirs)
    yield ConsoleWay(ours)
    assert process.poll() is None, "the agent ended"
    process.kill()
    process.wait()
    process.stdout.close()
    os.close(ours)


@pytest.fixture(params=["port", "console"])
def host(request: pytest.FixtureRequest) -> Host:
    if request.param == "port":
        return Host(request.getfixturevalue("ports")[0])
    return Host(request.getfixturevalue("console"))


def test_a_command_gets_its_words_its_input_and_its_own_streams(host: Host) -> None:
    script = 'printf "%s|" "$0" "$@"; cat; echo oops >&2; exit 7'
    assert host.run("sh", "-c", script, "a b", "", "é*", input=b"in\0put") == ("a b||é*|".encode() + b"in\0put", b"oops\n", 7)


def test_ten_megabytes_go_through_and_come_back(ports: list[socket.socket]) -> None:
    data = os.urandom(1 << 20)
    port = ports[0]
    Host(port).start("cat")
    received = bytearray()
    sent = 0
    poll = select.poll()
    poll.register(port, select.POLLIN | select.POLLOUT)
    port.setblocking(False)
    pending = b"".join(frame(STDIN, data[at : at + 32000]) for at in range(0, len(data), 32000)) * 10 + frame(STDIN)
    status = None
    decoder = Decoder()
    while status is None:
        ((_, events),) = poll.poll(DEADLINE_S * 1000)
        if events & select.POLLOUT and sent < len(pending):
            sent += port.send(pending[sent : sent + 65536])
            if sent == len(pending):
                poll.modify(port, select.POLLIN)
        if events & select.POLLIN:
            for kind, payload in decoder.feed(port.recv(65536)):
                if kind == EXIT:
                    status = payload[0]
                else:
                    received += payload
    assert status == 0
    assert received == data * 10


def test_a_signal_is_told_as_a_shell_would(host: Host) -> None:
    assert host.run("sh", "-c", "kill -TERM $$")[2] == 128 + signal.SIGTERM


def test_a_command_that_is_not_there_is_127_and_one_that_cannot_be_run_126(host: Host) -> None:
    assert host.run("no-such-command") == (b"", b"qvm-run: no-such-command: command not found\n", 127)
    assert host.run("/etc/passwd")[2] == 126


def test_an_unknown_user_is_told(host: Host) -> None:
    host.start("true", user="nobody-of-that-name")
    assert host.end() == (b"", b"qvm-run: nobody-of-that-name: no such user\n", 126)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run a command as another user, one whose home does not exist")
def test_a_user_without_a_home_is_told_so_and_the_command_runs(host: Host) -> None:
    host.start("pwd", user="nobody")
    home = pwd.getpwnam("nobody").pw_dir
    assert host.end() == (b"/\n", f"qvm-run: {home}: No such file or directory; going on in /\n".encode(), 0)


def test_nothing_to_run_says_only_that_the_agent_is_there(host: Host) -> None:
    host.start()
    assert host.end() == (b"", b"", 0)


def test_a_command_starts_at_home_with_a_plain_environment(host: Host) -> None:
    output, _, _ = host.run("sh", "-c", 'pwd; echo "$HOME $USER $LANG"; ps -o pgid= -p $$ >/dev/null; trap')
    home = pwd.getpwnam(USER).pw_dir
    assert output.decode().splitlines()[:2] == [home, f"{home} {USER} C.UTF-8"]


def test_python_leaves_no_signal_ignored_in_a_command(host: Host) -> None:
    output, _, _ = host.run("grep", "SigIgn", "/proc/self/status")
    assert int(output.split()[1], 16) == 0


def test_the_end_does_not_wait_for_what_the_command_left_running(host: Host) -> None:
    output, _, status = host.run("sh", "-c", "sleep 60 & echo $!")
    assert status == 0
    os.kill(int(output), signal.SIGKILL)


def test_the_hosts_end_hangs_the_command_up(ports: list[socket.socket]) -> None:
    host = Host(ports[0])
    host.start("sh", "-c", "echo $$; exec sleep 60")
    pid = int(host.frame()[1])
    watched = os.pidfd_open(pid)
    ports[0].shutdown(socket.SHUT_RDWR)
    assert select.select([watched], [], [], DEADLINE_S)[0], "the command runs still"
    os.close(watched)


def test_a_second_start_hangs_the_first_command_up_and_is_served(host: Host) -> None:
    host.start("sh", "-c", "echo $$; exec sleep 60")
    watched = os.pidfd_open(int(host.frame()[1]))
    assert host.run("echo", "second") == (b"second\n", b"", 0)
    assert select.select([watched], [], [], DEADLINE_S)[0], "the first command runs still"
    os.close(watched)


def test_a_start_is_understood_after_half_a_frame(host: Host) -> None:
    host.port.sendall(frame(STDIN, b"x" * 1000)[:500])
    assert host.run("echo", "well") == (b"well\n", b"", 0)


class TestConsole:
    def test_every_byte_goes_through_and_comes_back(self, console: ConsoleWay) -> None:
        data = bytes(range(256)) * 8192
        assert Host(console).run("cat", input=data) == (data, b"", 0)

    def test_what_was_typed_before_the_agent_was_there_is_not_heard(self, console: ConsoleWay) -> None:
        console.sendall(b"\x03\x04\x13\r\n\x7f")
        assert Host(console).run("echo", "well") == (b"well\n", b"", 0)

    def test_a_start_ends_a_command_that_takes_no_input(self, console: ConsoleWay) -> None:
        host = Host(console)
        host.start("sh", "-c", "echo $$; exec sleep 60")
        watched = os.pidfd_open(int(host.frame()[1]))
        while (room := console.line.room_bytes) > 30000:
            console.sendall(frame(STDIN, bytes(min(room - 3, 30000))))
        assert host.run("echo", "second") == (b"second\n", b"", 0)
        assert select.select([watched], [], [], DEADLINE_S)[0], "the first command runs still"
        os.close(watched)

    def test_one_that_runs_nothing_only_ends_it(self, console: ConsoleWay) -> None:
        host = Host(console)
        host.start("cat", "/dev/zero")
        host.start()
        assert host.end() == (b"", b"", 0)

    def test_no_more_is_on_the_way_than_dom0_has_room_for(self, console: ConsoleWay) -> None:
        host = Host(console)
        host.start("head", "-c", "3000000", "/dev/zero")
        grants, console.line.grants = console.line.grants, bytes  # type: ignore[method-assign]
        said = 0
        while said < WINDOW_BYTES - 65536:
            said += len(host.frame()[1])
        time.sleep(0.3)  # the time over which no more than the rest may come
        assert console.wire_bytes <= WINDOW_BYTES + 4096
        console.line.grants = grants  # type: ignore[method-assign]
        console._write(grants())
        output, _, status = host.end()
        assert (said + len(output), status) == (3000000, 0)

    def test_room_alone_is_a_reason_to_go_on(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(DEADLINE_S)
            theirs.setblocking(False)
            port = Port(theirs.fileno(), lambda *_: None, Console(theirs.fileno()))
            ours.sendall(Line().encode(Start(bytes(NONCE_BYTES), USER, [b"cat", b"/dev/zero"]).encode()))
            received = 0
            while received < WINDOW_BYTES:
                port.step()
                if select.select([ours], [], [], 0)[0]:
                    received += len(ours.recv(65536))
            assert not port.step()
            ours.sendall(GRANT)
            assert port.step()
            port.hung_up()

    def test_the_kernel_says_only_its_last_there(self, tmp_path: Path) -> None:
        (tmp_path / "printk").touch()
        hush_kernel(str(tmp_path / "printk"))
        assert (tmp_path / "printk").read_text() == "1"


def test_a_port_is_served_while_anothers_command_is_stuck(ports: list[socket.socket]) -> None:
    stuck, other = map(Host, ports)
    stuck.start("sleep", "60")
    for _ in range(20):
        ports[0].setblocking(False)
        try:
            ports[0].sendall(frame(STDIN, bytes(30000)))
        except BlockingIOError:
            break
    else:
        pytest.fail("the agent takes more than its command does")
    assert other.run("echo", "free") == (b"free\n", b"", 0)


def test_a_terminal_has_the_size_it_is_given_and_follows_it(host: Host) -> None:
    script = 'stty size; trap "stty size; exit 3" WINCH; echo ready; while :; do read x; done'
    host.start("sh", "-c", script, window=(24, 81))
    host.wait_for(b"24 81\r\nready\r\n")
    host.port.sendall(frame(WINDOW, window_size(30, 100)))
    output, _, status = host.end()
    assert (output, status) == (b"30 100\r\n", 3)


def test_an_idle_agent_with_a_closed_port_takes_no_processor_time(ports: list[socket.socket]) -> None:
    ports[0].shutdown(socket.SHUT_RDWR)
    other = Host(ports[1])
    output, _, _ = other.run("sh", "-c", "echo $PPID")
    before = _ticks(int(output))
    time.sleep(0.3)  # the time over which nothing may happen
    assert _ticks(int(output)) - before <= 1


class TestHangUps:
    def test_one_is_believed_once_when_it_has_lasted(self) -> None:
        now = 0.0
        hang_ups = HangUps(lambda: now)
        assert hang_ups.wait_s is None
        hang_ups.hear(3, select.EPOLLIN | select.EPOLLHUP)
        now = 0.4
        hang_ups.hear(3, select.EPOLLHUP)
        assert hang_ups.wait_s == pytest.approx(HANG_UP_S - 0.4)
        assert hang_ups.take() == []
        now = HANG_UP_S
        assert (hang_ups.take(), hang_ups.take(), hang_ups.wait_s) == ([3], [], None)

    def test_a_port_that_is_open_after_all_is_not_hung_up(self) -> None:
        """In the Xen machine a command was ended as it began, and nobody told dom0: its bytes had come before the word that it is there."""
        now = 0.0
        hang_ups = HangUps(lambda: now)
        hang_ups.hear(3, select.EPOLLIN | select.EPOLLHUP)
        hang_ups.hear(3, select.EPOLLOUT)
        now = HANG_UP_S
        assert (hang_ups.take(), hang_ups.wait_s) == ([], None)


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[11]) + int(fields[12])
