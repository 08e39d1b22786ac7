"""The VM tools' client: over sockets, and over terminals that stand for virtio-serial ports."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import select
import socket
import subprocess
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qfilexchg.protocol.channels import STORE_PORTS
from qfilexchg.protocol.names import DomainId
from qfilexchg.xenstore import blocking, client
from qfilexchg.xenstore.blocking import PortsBusy, Store
from qfilexchg.xenstore.errors import Again, Denied, NoEntry, StoreLost, TooBig
from qfilexchg.xenstore.server import Server
from qfilexchg.xenstore.wire import Op, Packet, Parser
from tests.python import PYTHON
from tests.unit.xenstore.serving import rundir

VM = DomainId(5)


@pytest.fixture(scope="module")
def served() -> Iterator[Path]:
    """The folder of a server that serves in another thread, with a VM introduced."""
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    ended = asyncio.Event()

    async def serve(folder: Path) -> None:
        async with Server(folder), await client.Store.connect(folder / "socket") as dom0:
            await dom0.introduce(VM)
            await dom0.write("/local/domain/5", b"")
            await dom0.set_perms("/local/domain/5", ["n5"])
            async with await client.Store.connect(folder / "domain" / "5"):  # keeps the domain alive between tests
                ready.set()
                await ended.wait()

    with rundir() as folder:
        thread = threading.Thread(target=loop.run_until_complete, args=[serve(folder)])
        thread.start()
        assert ready.wait(10)
        yield folder
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)
        loop.close()


@pytest.fixture
def store(served: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("XENSTORED_PATH", os.fspath(served / "domain" / "5"))
    with Store.open() as store:
        yield store


@contextmanager
def fake(monkeypatch: pytest.MonkeyPatch, *answers: Callable[[Packet], bytes]) -> Iterator[Store]:
    """A client of a server that gives these answers and then hangs up."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        parser = Parser()
        with ours:
            for answer in answers:
                while (packet := parser.next_packet()) is None:
                    parser.feed(ours.recv(4096))
                ours.sendall(answer(packet))

    thread = threading.Thread(target=serve)
    thread.start()
    monkeypatch.setattr(blocking, "_open", lambda _path: theirs.detach())
    monkeypatch.setenv("XENSTORED_PATH", "fake")
    with Store.open() as store:
        yield store
    thread.join(10)


class TestRequests:
    def test_what_is_written_is_read(self, store: Store) -> None:
        store.write("key", b"x\xff")
        assert store.read("key") == b"x\xff"
        store.rm("key")
        with pytest.raises(NoEntry, match="xenstore key"):
            store.read("key")

    def test_a_refusal_leaves_the_connection_usable(self, store: Store) -> None:
        with pytest.raises(Denied):
            store.read("/local/domain/6/key")
        with pytest.raises(TooBig):
            store.write("key", bytes(4096))
        store.write("key", b"")

    def test_transactions(self, store: Store) -> None:
        tx = store.transaction_start()
        store.write("one", b"1", tx)
        store.transaction_end(tx)
        assert store.read("one") == b"1"
        tx = store.transaction_start()
        store.write("one", b"2", tx)
        store.transaction_end(tx, commit=False)
        assert store.read("one") == b"1"
        tx = store.transaction_start()
        store.read("one", tx)
        store.write("one", b"3")
        with pytest.raises(Again):
            store.transaction_end(tx)

    def test_watches(self, store: Store) -> None:
        store.watch("watched", "token")
        assert store.next_event(10) == ("watched", "token")
        assert store.next_event(0) is None
        for _ in range(3):
            store.write("watched/a", b"")
        assert select.select([store.fileno()], [], [], 0)[0] == []
        assert store.next_event(0) == ("watched/a", "token")
        assert store.next_event(0.01) is None
        store.unwatch("watched", "token")
        store.write("watched", b"")
        assert store.next_event(0) is None

    def test_an_event_makes_the_file_descriptor_readable(self, store: Store, served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store.watch("watched", "token")
        store.next_event(10)
        monkeypatch.setenv("XENSTORED_PATH", os.fspath(served / "socket"))
        with Store.open() as dom0:
            dom0.write("/local/domain/5/watched", b"")
        assert select.select([store.fileno()], [], [], 10)[0]
        assert store.next_event(None) == ("watched", "token")

    def test_closing_twice_is_harmless(self, store: Store) -> None:
        store.close()
        store.close()


class TestBrokenStores:
    def test_replies_to_others_are_passed_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with fake(monkeypatch, lambda packet: Packet(Op.READ, b"y", packet.req_id - 1).encode() + packet.reply(b"x").encode()) as store:
            assert store.read("key") == b"x"

    def test_silence_is_a_loss(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(blocking, "REPLY_TIMEOUT_S", 0.02)
        with fake(monkeypatch, lambda _: b"", lambda packet: packet.reply(b"x").encode()) as store:
            with pytest.raises(StoreLost, match="no answer within"):
                store.read("key")
            monkeypatch.setattr(blocking, "REPLY_TIMEOUT_S", 10)
            assert store.read("key") == b"x"

    def test_the_end_of_the_connection_is_a_loss(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with fake(monkeypatch, lambda _: b"") as store:
            with pytest.raises(StoreLost, match="it closed the connection"):
                store.read("key")
            with pytest.raises(StoreLost, match=r"cannot send|it closed"):
                store.read("key")

    @pytest.mark.parametrize("nonsense", [b"\xff" * 16, Packet(Op.WATCH_EVENT, b"a\0").encode()])
    def test_nonsense_is_a_loss(self, monkeypatch: pytest.MonkeyPatch, nonsense: bytes) -> None:
        with fake(monkeypatch, lambda _: nonsense) as store, pytest.raises(StoreLost, match="not understood"):
            store.read("key")

    def test_one_that_takes_no_requests_is_lost(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(blocking, "REPLY_TIMEOUT_S", 0.02)
        ours, theirs = socket.socketpair()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with ours, Store(theirs.detach()) as store, pytest.raises(StoreLost, match="takes no requests"):
            for _ in range(10_000):
                try:
                    store.write("key", bytes(4000))
                except StoreLost as error:
                    if "no answer" not in str(error):
                        raise

    def test_a_failure_to_read_is_a_loss(self) -> None:
        ours, theirs = os.openpty()
        os.close(theirs)
        with Store(ours) as store, pytest.raises(StoreLost, match="cannot read: Input/output error"):
            store.next_event(10)

    def test_a_readiness_that_was_none_is_waited_out(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        for call in (os.write, os.read):
            calls: list[int] = []

            def after_one_refusal(fd: int, argument: object, call: Callable[..., object] = call, calls: list[int] = calls) -> object:
                calls.append(fd)
                if len(calls) == 1:
                    raise BlockingIOError
                return call(fd, argument)

            monkeypatch.setattr(os, call.__name__, after_one_refusal)
            store.write("key", b"x")
            assert len(calls) > 1

    def test_where_there_is_none_this_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XENSTORED_PATH", os.fspath(tmp_path / "no"))
        with pytest.raises(StoreLost, match="No such file"):
            Store.open()
        monkeypatch.delenv("XENSTORED_PATH")
        monkeypatch.setattr(blocking, "PORT_FOLDER", os.fspath(tmp_path))
        monkeypatch.setattr(blocking, "XENBUS", os.fspath(tmp_path / "xenbus"))
        monkeypatch.setattr(blocking, "SOCKET", os.fspath(tmp_path / "socket"))
        with pytest.raises(StoreLost, match="neither a port, nor xenbus, nor a socket"):
            Store.open()


class Port:
    """A terminal that stands for a virtio-serial port, and a thread that joins it to the server as QEMU does."""

    def __init__(self, name: Path, server: Path) -> None:
        self.ours, self.theirs = os.openpty()
        tty.setraw(self.theirs)
        name.symlink_to(os.ttyname(self.theirs))
        self.server = socket.socket(socket.AF_UNIX)
        self.server.connect(os.fspath(server))
        self.ending, self.ended = os.pipe()
        self.thread = threading.Thread(target=self.relay)
        self.thread.start()

    def relay(self) -> None:
        while True:
            readable, _, _ = select.select([self.ours, self.server.fileno(), self.ending], [], [])
            if self.ending in readable:
                return
            if self.ours in readable:
                self.server.sendall(os.read(self.ours, 4096))
            if self.server.fileno() in readable:
                os.write(self.ours, self.server.recv(4096))

    def close(self) -> None:
        os.close(self.ended)
        self.thread.join(10)
        for descriptor in (self.ours, self.theirs, self.ending):
            os.close(descriptor)
        self.server.close()


class TestPorts:
    """Ports in the order in which tools take them: the numbered first, then the one without a number."""

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.delenv("XENSTORED_PATH", raising=False)
        monkeypatch.setattr(blocking, "PORT_FOLDER", os.fspath(tmp_path))
        return tmp_path

    @pytest.fixture
    def port(self, folder: Path, served: Path) -> Iterator[Port]:
        port = Port(folder / STORE_PORTS[1], served / "domain" / "5")
        yield port
        port.close()

    def test_a_port_is_a_connection(self, port: Port) -> None:
        with Store.open() as store:
            store.write("key", b"x" * 2000)
            assert store.read("key") == b"x" * 2000

    def test_who_opens_a_port_has_nothing_of_the_one_before(self, port: Port) -> None:
        killed = Store.open()
        killed.watch("key", "old")
        killed.transaction_start()
        killed.write("key", b"y" * 2000)
        os.write(killed.fileno(), Packet(Op.READ, b"key\0", 4711).encode())
        killed.close()
        with Store.open() as store:
            store.watch("key", "new")
            assert store.next_event(10) == ("key", "new")
            store.write("key", b"")
            assert store.next_event(10) == ("key", "new")
            assert store.next_event(0) is None

    @pytest.mark.parametrize("rest", [b"rest of a reply", b"\xff" * 100, Packet(Op.READ, b"x" * 40).encode()[:-1], b"\0" * 7])
    def test_the_rest_of_what_another_did_not_read_is_passed_over(self, port: Port, rest: bytes) -> None:
        os.write(port.ours, rest)
        with Store.open() as store:
            store.write("key", b"x")
            assert store.read("key") == b"x"

    def test_a_port_where_nothing_answers_is_told_and_closed(self, folder: Path) -> None:
        ours, theirs = os.openpty()
        (folder / STORE_PORTS[1]).symlink_to(os.ttyname(theirs))
        gc.collect()  # what other tests have left must not be closed just now
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        with pytest.raises(StoreLost, match="nothing answers"):
            Store.open(deadline_s=0.02)
        assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
        os.close(ours)
        os.close(theirs)

    def test_the_first_free_port_is_taken(self, folder: Path, port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
        tried: list[str] = []
        usual = blocking._open

        def busy_but_last(path: str) -> int:
            tried.append(Path(path).name)
            if path.endswith("1") and len(tried) < 6:
                raise OSError(errno.EBUSY, "busy")
            return usual(path)

        monkeypatch.setattr(blocking, "_open", busy_but_last)
        monkeypatch.setattr(blocking, "XENBUS", os.fspath(folder / "xenbus"))
        monkeypatch.setattr(blocking, "SOCKET", os.fspath(folder / "socket"))
        with Store.open() as store:
            store.write("key", b"")
        assert tried == [*STORE_PORTS[1:], STORE_PORTS[0], "xenbus", "socket", STORE_PORTS[1]]

    def test_ports_that_stay_busy_are_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def busy(_path: str) -> int:
            raise OSError(errno.EBUSY, "busy")

        monkeypatch.setattr(blocking, "_open", busy)
        with pytest.raises(PortsBusy, match="end the programs that hold them"):
            Store.open(deadline_s=0)

    def test_a_port_that_may_not_be_opened_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def denied(_path: str) -> int:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(blocking, "_open", denied)
        with pytest.raises(StoreLost, match=rf"{STORE_PORTS[1]}: Permission denied"):
            Store.open()


def test_it_imports_next_to_nothing() -> None:
    script = "import sys; before = set(sys.modules); import qfilexchg.xenstore.blocking; print(*sorted(set(sys.modules) - before))"
    imported = subprocess.run(
        [*PYTHON, "-SEc", f"import sys; sys.path.append('src'); import os; {script}"], capture_output=True, text=True, check=True
    )
    others = {name for name in imported.stdout.split() if not name.startswith("qfilexchg")}
    assert others <= {"__future__", "_struct", "errno", "select", "struct", "time"}
