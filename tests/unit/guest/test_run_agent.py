"""The agent as a process of its own, with a socket for a port: the host's end is closed where a VM would lose its host."""

from __future__ import annotations

import os
import pwd
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qfilexchg.protocol.run import EXIT, NONCE_BYTES, STDERR, STDIN, STDOUT, WINDOW, Decoder, HelloSeeker, Start, frame, window_size

DEADLINE_S = 20.0
USER = pwd.getpwuid(os.getuid()).pw_name
SOURCES = str(Path(__file__).parents[3] / "src")


class Host:
    """dom0's end of a port."""

    def __init__(self, port: socket.socket) -> None:
        self.port = port
        port.settimeout(DEADLINE_S)
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
    process = subprocess.Popen([sys.executable, "-c", program], pass_fds=numbers, env={**os.environ, "PYTHONPATH": SOURCES})
    for _, agent in pairs:
        agent.close()
    yield [host for host, _ in pairs]
    assert process.poll() is None, "the agent ended"
    process.kill()
    process.wait()
    for host, _ in pairs:
        host.close()


@pytest.fixture
def host(ports: list[socket.socket]) -> Host:
    return Host(ports[0])


def test_a_command_gets_its_words_its_input_and_its_own_streams(host: Host) -> None:
    script = 'printf "%s|" "$0" "$@"; cat; echo oops >&2; exit 7'
    assert host.run("sh", "-c", script, "a b", "", "é*", input=b"in\0put") == ("a b||é*|".encode() + b"in\0put", b"oops\n", 7)


def test_ten_megabytes_go_through_and_come_back(host: Host) -> None:
    data = os.urandom(1 << 20)
    host.start("cat")
    received = bytearray()
    sent = 0
    poll = select.poll()
    poll.register(host.port, select.POLLIN | select.POLLOUT)
    host.port.setblocking(False)
    pending = b"".join(frame(STDIN, data[at : at + 32000]) for at in range(0, len(data), 32000)) * 10 + frame(STDIN)
    status = None
    decoder = Decoder()
    while status is None:
        ((_, events),) = poll.poll(DEADLINE_S * 1000)
        if events & select.POLLOUT and sent < len(pending):
            sent += host.port.send(pending[sent : sent + 65536])
            if sent == len(pending):
                poll.modify(host.port, select.POLLIN)
        if events & select.POLLIN:
            for kind, payload in decoder.feed(host.port.recv(65536)):
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


def test_a_port_is_served_while_anothers_command_is_stuck(ports: list[socket.socket]) -> None:
    stuck, other = map(Host, ports)
    stuck.start("sleep", "60")
    for _ in range(20):
        stuck.port.setblocking(False)
        try:
            stuck.port.sendall(frame(STDIN, bytes(30000)))
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


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[11]) + int(fields[12])
