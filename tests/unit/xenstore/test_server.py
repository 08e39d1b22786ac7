"""qxenstored, over its sockets."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qfilexchg.xenstore import server
from qfilexchg.xenstore.server import QUEUE_MAX_BYTES, AlreadyServed, CannotServe, Server
from qfilexchg.xenstore.store import CONNECTIONS_MAX
from qfilexchg.xenstore.wire import PAYLOAD_MAX, Op, Packet
from tests.python import PYTHON
from tests.unit.xenstore.serving import Peer, rundir, serving

VM, OTHER = 5, 6


class TestDomains:
    def test_nobody_can_connect_as_a_domain_before_its_introduction(self) -> None:
        async def body(folder: Path) -> None:
            with pytest.raises(FileNotFoundError):
                await Peer.vm(folder, VM)
            dom0 = await Peer.dom0(folder)
            await dom0.introduce(VM)
            vm = await Peer.vm(folder, VM)
            await vm.ask(Op.WRITE, "key\0x")
            assert await dom0.ask(Op.READ, f"/local/domain/{VM}/key\0") == b"x"

        serving(body)

    def test_release_closes_the_socket_and_the_connections(self) -> None:
        async def body(folder: Path) -> None:
            dom0 = await Peer.dom0(folder)
            await dom0.introduce(VM)
            vm = await Peer.vm(folder, VM)
            await vm.ask(Op.READ, "\0")
            assert await dom0.ask(Op.RELEASE, f"{VM}\0") == b"OK\0"
            assert await vm.is_cut()
            with pytest.raises(FileNotFoundError):
                await Peer.vm(folder, VM)

        serving(body)

    def test_who_connected_before_a_release_is_not_the_next_domain_of_that_number(self) -> None:
        async def body(folder: Path) -> None:
            dom0 = await Peer.dom0(folder)
            await dom0.introduce(VM)
            early = socket.socket(socket.AF_UNIX)
            early.connect(os.fspath(folder / "domain" / str(VM)))  # waits to be accepted: this coroutine has the loop
            for op in (Op.RELEASE, Op.INTRODUCE):
                dom0.send(op, f"{VM}\0001\0002\0" if op == Op.INTRODUCE else f"{VM}\0")
            assert [(await dom0.receive()).payload for _ in range(2)] == [b"OK\0", b"OK\0"]
            early.settimeout(0)
            peer = Peer(*await asyncio.open_unix_connection(sock=early))
            assert await peer.is_cut()
            assert await dom0.ask(Op.IS_DOMAIN_INTRODUCED, f"{VM}\0") == b"T\0"

        serving(body)

    def test_the_loss_of_the_last_connection_ends_the_domain(self) -> None:
        async def body(folder: Path) -> None:
            dom0 = await Peer.dom0(folder)
            await dom0.introduce(VM)
            await dom0.ask(Op.WATCH, "@releaseDomain\0t\0")
            assert (await dom0.receive()).op == Op.WATCH_EVENT
            first, second = await Peer.vm(folder, VM), await Peer.vm(folder, VM)
            await second.ask(Op.READ, "key\0")
            await first.close()
            assert await second.ask(Op.WRITE, "key\0x") == b"OK\0"
            assert await dom0.ask(Op.IS_DOMAIN_INTRODUCED, f"{VM}\0") == b"T\0"
            await second.close()
            assert (await dom0.receive()).payload == b"@releaseDomain\0t\0"
            assert await dom0.ask(Op.IS_DOMAIN_INTRODUCED, f"{VM}\0") == b"F\0"
            assert not (folder / "domain" / str(VM)).exists()

        serving(body)

    def test_a_domain_has_so_many_connections_and_no_more(self) -> None:
        async def body(folder: Path) -> None:
            dom0 = await Peer.dom0(folder)
            await dom0.introduce(VM)
            peers = [await Peer.vm(folder, VM) for _ in range(CONNECTIONS_MAX)]
            for peer in peers:
                assert await peer.ask(Op.WRITE, "key\0x") == b"OK\0"
            assert await (await Peer.vm(folder, VM)).is_cut()
            assert await peers[0].ask(Op.READ, "key\0") == b"x"

        serving(body)

    def test_a_domain_whose_socket_cannot_be_made_is_not_introduced(self) -> None:
        async def body(folder: Path) -> None:
            (folder / "domain" / str(VM) / "in the way").mkdir(parents=True)
            dom0 = await Peer.dom0(folder)
            assert await dom0.ask(Op.INTRODUCE, f"{VM}\0001\0002\0") == b"EIO\0"
            assert await dom0.ask(Op.IS_DOMAIN_INTRODUCED, f"{VM}\0") == b"F\0"

        serving(body)

    def test_a_host_without_file_descriptors_takes_connections_again_later(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(server, "ACCEPT_PAUSE_S", 0.01)
        usual = socket.socket.accept

        def fail_once(listening: socket.socket) -> tuple[socket.socket, object]:
            if "Too many open files" not in caplog.text:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return usual(listening)

        async def body(folder: Path) -> None:
            monkeypatch.setattr(socket.socket, "accept", fail_once)
            assert await (await Peer.dom0(folder)).ask(Op.READ, "/\0") == b""

        serving(body)
        assert "cannot accept connections" in caplog.text

    def test_nobody_else_can_come_near_the_sockets(self) -> None:
        async def body(folder: Path) -> None:
            dom0 = await Peer.dom0(folder)
            await dom0.introduce(VM)
            for path in (folder, folder / "domain"):
                assert stat.S_IMODE(path.stat().st_mode) == 0o700
            for path in (folder / "socket", folder / "domain" / str(VM)):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600

        serving(body)


class TestHostilePeers:
    def test_a_message_too_long_costs_its_sender_the_connection_and_no_one_else_anything(self, caplog: pytest.LogCaptureFixture) -> None:
        async def body(folder: Path) -> None:
            dom0 = await Peer.dom0(folder)
            await dom0.introduce(VM)
            good, bad = await Peer.vm(folder, VM), await Peer.vm(folder, VM)
            await good.ask(Op.WRITE, "key\0x")
            bad.send(Op.WRITE, b"key\0" + b"y" * PAYLOAD_MAX)
            assert await bad.is_cut()
            assert await good.ask(Op.READ, "key\0") == b"x"

        with caplog.at_level(logging.INFO):
            serving(body)
        assert [record.message for record in caplog.records if "cut" in record.message] == [
            f"domain {VM}: connection cut: a message announced {PAYLOAD_MAX + 4} bytes of payload; {PAYLOAD_MAX} is the most"
        ]

    def test_a_message_half_sent_blocks_no_one(self) -> None:
        async def body(folder: Path) -> None:
            dom0, half = await Peer.dom0(folder), await Peer.dom0(folder)
            message = Packet(Op.WRITE, b"/a\0x").encode()
            half.writer.write(message[:-1])
            await half.writer.drain()
            assert await dom0.ask(Op.READ, "/a\0") == b"ENOENT\0"
            half.writer.write(message[-1:])
            assert (await half.receive()).payload == b"OK\0"
            assert await dom0.ask(Op.READ, "/a\0") == b"x"

        serving(body)

    def test_a_message_byte_by_byte_is_a_message(self) -> None:
        async def body(folder: Path) -> None:
            dom0 = await Peer.dom0(folder)
            for byte in Packet(Op.WRITE, b"/a\0x", 9).encode():
                dom0.writer.write(bytes([byte]))
                await dom0.writer.drain()
            assert await dom0.receive() == Packet(Op.WRITE, b"OK\0", 9)

        serving(body)

    def test_who_asks_and_does_not_read_is_read_from_no_more_and_goes_on_where_it_stopped(self) -> None:
        async def body(folder: Path) -> None:
            dom0 = await Peer.dom0(folder)
            await dom0.introduce(VM)
            await dom0.ask(Op.WRITE, f"/local/domain/{VM}/key\0" + "x" * 2000)
            vm = socket.socket(socket.AF_UNIX)
            vm.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(vm, os.fspath(folder / "domain" / str(VM)))
            sent = turns_without_progress = 0
            while turns_without_progress < 20:
                try:
                    vm.send(Packet(Op.READ, b"key\0", sent).encode())
                    sent += 1
                    turns_without_progress = 0
                except BlockingIOError:
                    await dom0.ask(Op.READ, "/\0")
                    turns_without_progress += 1
            assert sent < 5_000
            peer = Peer(*await asyncio.open_unix_connection(sock=vm))
            for number in range(sent):
                assert (await peer.receive()).req_id == number

        serving(body)

    def test_who_watches_and_does_not_read_is_cut_off(self, caplog: pytest.LogCaptureFixture) -> None:
        async def body(folder: Path) -> None:
            dom0 = await Peer.dom0(folder)
            await dom0.introduce(VM)
            vm, other = await Peer.vm(folder, VM), await Peer.vm(folder, VM)
            for number in range(100):
                await vm.ask(Op.WATCH, f"k\0{number}{'t' * 1000}\0")
            number = 0
            while not caplog.records:
                await other.ask(Op.WRITE, f"k/{number % 30}\0")
                number += 1
            assert number < 100
            assert await vm.is_cut()
            assert await other.ask(Op.READ, "k\0") == b""

        with caplog.at_level(logging.WARNING):
            serving(body)
        assert str(QUEUE_MAX_BYTES)[0] in caplog.text
        assert "unread" in caplog.text

    def test_a_guest_cannot_get_dom0_cut_off_by_one_large_transaction(self) -> None:
        """dom0 watches the key at which a guest may ask, and so all that the guest makes below it."""

        async def body(folder: Path) -> None:
            dom0 = await Peer.dom0(folder)
            await dom0.introduce(VM)
            vm, other = await Peer.vm(folder, VM), await Peer.vm(folder, VM)
            await dom0.ask(Op.WATCH, f"/local/domain/{VM}/k\0requests\0")
            for number in range(120):
                await other.ask(Op.WATCH, f"k\0{number}{'t' * 2000}\0")
            tx = int((await vm.ask(Op.TRANSACTION_START, "\0"))[:-1])
            for number in range(900):
                await vm.ask(Op.WRITE, f"k/{'A' * 900}/{'B' * 900}/{number // 150}/{number}\0", tx)
            await vm.ask(Op.TRANSACTION_END, "T\0", tx)
            assert await other.is_cut(), "its own watches are its own trouble"
            assert await dom0.ask(Op.READ, f"/local/domain/{VM}/k\0") == b""

        serving(body)

    def test_equal_events_that_wait_are_one(self) -> None:
        async def body(folder: Path) -> None:
            dom0 = await Peer.dom0(folder)
            await dom0.introduce(VM)
            vm = await Peer.vm(folder, VM)
            token = "t" * 4000
            await vm.ask(Op.WATCH, f"key\0{token}\0")
            for number in range(3000):
                await dom0.ask(Op.WRITE, f"/local/domain/{VM}/key\0{number}")
            vm.send(Op.READ, "key\0")
            events = 0
            while (packet := await vm.receive()).op == Op.WATCH_EVENT:
                events += 1
            assert packet.payload == b"2999"
            assert 1 <= events < 1000

        serving(body)

    def test_a_flood_of_requests_delays_no_one_else_for_long(self) -> None:
        async def body(folder: Path) -> None:
            dom0, flood = await Peer.dom0(folder), await Peer.dom0(folder)
            count = 4000
            flood.writer.write(b"".join(Packet(Op.READ, b"/\0", number).encode() for number in range(count)))
            dom0.send(Op.READ, "/\0")
            answered: list[int] = []

            async def drink() -> None:
                for _ in range(count):
                    answered.append((await flood.receive()).req_id)

            drinking = asyncio.create_task(drink())
            await dom0.receive()
            assert len(answered) < count
            await drinking
            assert answered == list(range(count))

        serving(body)

    @given(st.lists(st.binary(max_size=60) | st.builds(Packet, st.integers(0, 24), st.binary(max_size=40)).map(Packet.encode), max_size=8))
    @settings(max_examples=40)
    def test_any_bytes_leave_the_server_up_and_others_alone(self, pieces: list[bytes]) -> None:
        async def body(folder: Path) -> None:
            dom0 = await Peer.dom0(folder)
            await dom0.introduce(VM)
            await dom0.introduce(OTHER)
            hostile, other = await Peer.vm(folder, VM), await Peer.vm(folder, OTHER)
            await other.ask(Op.WRITE, "key\0x")
            for piece in pieces:
                hostile.writer.write(piece)
            hostile.writer.write_eof()
            assert await hostile.is_cut()
            assert await other.ask(Op.READ, "key\0") == b"x"
            assert await dom0.ask(Op.DIRECTORY, "/local/domain\0") == f"{OTHER}\0".encode()

        serving(body)


class TestFolder:
    def test_a_second_server_is_refused_and_the_first_goes_on(self) -> None:
        async def body(folder: Path) -> None:
            with pytest.raises(AlreadyServed, match="another qxenstored serves"):
                await Server(folder).__aenter__()
            assert await (await Peer.dom0(folder)).ask(Op.READ, "/\0") == b""

        serving(body)

    def test_sockets_left_behind_are_replaced(self) -> None:
        async def served() -> None:
            with rundir() as folder:
                (folder / "domain").mkdir()
                for name in ("socket", "domain/5", ".socket"):
                    with socket.socket(socket.AF_UNIX) as stale:
                        stale.bind(os.fspath(folder / name))
                async with Server(folder):
                    assert not list((folder / "domain").iterdir())
                    assert await (await Peer.dom0(folder)).ask(Op.READ, "/\0") == b""
                    await Peer.close_all()

        asyncio.run(served())

    def test_a_path_too_long_for_sockets_is_refused_with_advice(self, tmp_path: Path) -> None:
        async def served() -> None:
            async with Server(tmp_path / ("x" * 100)):
                raise AssertionError

        with pytest.raises(CannotServe, match="choose another --rundir"):
            asyncio.run(served())

    def test_a_folder_that_holds_what_is_no_socket_is_refused(self) -> None:
        async def served() -> None:
            with rundir() as folder:
                (folder / "domain" / "5").mkdir(parents=True)
                async with Server(folder):
                    raise AssertionError

        with pytest.raises(CannotServe, match="Is a directory"):
            asyncio.run(served())

    def test_a_folder_that_cannot_be_made_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()

        async def served() -> None:
            async with Server(tmp_path / "file" / "run"):
                raise AssertionError

        with pytest.raises(CannotServe, match="Not a directory"):
            asyncio.run(served())


@pytest.fixture
def folder() -> Iterator[Path]:
    with rundir() as folder:
        yield folder


def qxenstored(folder: Path) -> subprocess.Popen[str]:
    """The program; returns when it serves, or has ended."""
    return subprocess.Popen(
        [*PYTHON, "-m", server.__name__, "--rundir", folder],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": "src"},
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_program_serves_until_it_is_told_to_end(folder: Path, number: signal.Signals) -> None:
    with qxenstored(folder / "run") as program:
        assert program.stderr is not None
        assert program.stderr.readline().endswith(f"qxenstored: serving {folder}/run/socket\n")
        with socket.socket(socket.AF_UNIX) as dom0, socket.socket(socket.AF_UNIX) as vm:
            for peer in (dom0, vm):
                peer.settimeout(10)
            dom0.connect(os.fspath(folder / "run" / "socket"))
            dom0.send(Packet(Op.WATCH, b"@releaseDomain\0t\0").encode())
            dom0.send(Packet(Op.INTRODUCE, b"5\x001\x002\0").encode())
            while not (folder / "run" / "domain" / "5").exists():
                assert dom0.recv(100)
            vm.connect(os.fspath(folder / "run" / "domain" / "5"))
            vm.send(Packet(Op.READ, b"key\0").encode())
            assert vm.recv(100)
            program.send_signal(number)
            assert vm.recv(100) == b""
        assert program.wait(10) == 0
        assert [line.split(": ", 1)[1] for line in program.stderr.read().splitlines()] == [
            "domain 5: introduced",
            "domain 5: released",
            "ended",
        ]
    assert sorted(path.name for path in (folder / "run").rglob("*")) == ["domain", "lock"]


def test_the_program_says_why_it_cannot_serve(folder: Path) -> None:
    with qxenstored(folder) as first:
        assert first.stderr is not None
        first.stderr.readline()
        with qxenstored(folder) as second:
            _, said = second.communicate(timeout=10)
        assert second.returncode == 1
        assert said == f"qxenstored: another qxenstored serves {folder}: use that one, or end it first\n"
        first.terminate()
