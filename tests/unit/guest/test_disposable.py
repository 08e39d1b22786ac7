"""The root process of a DisposableVM: what it notices, in which order it acts, and that the VM ends."""

from __future__ import annotations

import errno
import os
import pwd
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from qfilexchg.guest import disposable, identity
from qfilexchg.guest.disposable import _end, _Root, disk, main
from qfilexchg.guest.identity import NoRandomness
from qfilexchg.guest.reading import DONE, NOT_DONE, REHEARSED, Usher
from qfilexchg.guest.request import NoAnswer
from qfilexchg.protocol.keys import RESTORE_COMPLETE, USED_MEMORY
from qfilexchg.protocol.qpen import Request
from qfilexchg.xenstore.blocking import Store
from qfilexchg.xenstore.errors import NoEntry, StoreLost
from tests.unit.guest.dom0 import Dom0


class TestDisk:
    @pytest.fixture
    def block(self, tmp_path: Path) -> Path:
        for name, serial in (("vda", "root"), ("vdb", "volatile"), ("loop0", None)):
            (tmp_path / name).mkdir()
            if serial:
                (tmp_path / name / "serial").write_text(f"{serial}\n")
        return tmp_path

    def test_on_qemu_it_is_known_by_its_serial(self, block: Path) -> None:
        assert disk("xvdh", str(block)) is None
        (block / "vdc").mkdir()
        (block / "vdc/serial").write_text("xvdh")
        assert disk("xvdh", str(block)) == "/dev/vdc"
        assert disk("xvdg", str(block)) is None

    def test_on_xen_it_is_known_by_its_name(self, block: Path) -> None:
        (block / "xvdh").mkdir()
        assert disk("xvdh", str(block)) == "/dev/xvdh"

    def test_a_serial_that_is_no_text_is_no_disk_of_ours(self, block: Path) -> None:
        (block / "vda/serial").write_bytes(b"\xff\xfe")
        assert disk("xvdh", str(block)) is None


class Machine:
    """The disks and the clock of a VM, and what its root process does about them. Each wait for an event is a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, dev: Path) -> None:
        self.dev = dev
        self.disks: dict[str, str] = {}
        self.quiet, self._other_end = os.pipe()
        self.behind = 0
        self.uuid: str | None = None
        self.steps: list[Callable[[], None]] = []
        self.became: list[str] = []
        self.store = Dom0()
        self.store.nodes |= {RESTORE_COMPLETE: b"True", USED_MEMORY: b""}
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        account = pwd.getpwuid(os.getuid())
        self.root = _Root(self, self.ours, account, 4711)  # type: ignore[arg-type]
        monkeypatch.setattr(disposable, "disk", lambda name: self.disks.get(name))
        monkeypatch.setattr(identity, "seconds_behind", lambda: self.behind)
        monkeypatch.setattr(identity, "xen_uuid", lambda: self.uuid)
        monkeypatch.setattr(identity, "take_on", lambda store, log: self.became.append("itself"))
        monkeypatch.setattr(Store, "open", lambda _: self.store)
        monkeypatch.setattr(os, "chown", lambda path, uid, gid: self.became.append(f"{Path(path).name} for {uid}"))
        monkeypatch.setattr(disposable, "_DEV", str(dev))
        monkeypatch.setattr(disposable, "run", lambda *argv, deadline_s: self.became.append(" ".join(argv)))

    def wait(self, _timeout_s: float | None) -> None:
        self.steps.pop(0)()

    def fileno(self) -> int:
        return self.quiet

    def clear(self) -> None:
        pass

    def close(self) -> None:
        os.close(self.quiet)
        os.close(self._other_end)

    def plug(self, name: str) -> Callable[[], None]:
        node = self.dev / f"vd-{name}"

        def plug() -> None:
            node.touch()
            self.disks[name] = str(node)

        return plug

    def unplug(self) -> None:
        for node in self.disks.values():
            Path(node).unlink()
        self.disks.clear()

    def say(self, *words: str) -> None:
        """What the reader says, before it ends."""
        for word in words:
            self.theirs.send(word.encode())
        self.theirs.shutdown(socket.SHUT_WR)

    def heard(self) -> list[str]:
        """What the reader has been told."""
        self.ours.close()
        return list(iter(lambda: self.theirs.recv(256).decode(), ""))


@pytest.fixture
def vm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    vm = Machine(monkeypatch, tmp_path)
    with vm.ours, vm.theirs, closing(vm):
        yield vm


class TestServing:
    def test_a_disk_is_noticed_and_all_comes_in_its_order(self, vm: Machine) -> None:
        vm.steps = [lambda: None, vm.plug("xvdh"), vm.plug("xvdg")]
        vm.say("outgoing")
        vm.root.serve()
        assert vm.became == ["itself", f"vd-xvdh for {os.getuid()}", f"vd-xvdg for {os.getuid()}"]
        assert vm.heard() == [f"document {vm.dev}/vd-xvdh", f"{vm.dev}/vd-xvdg"]
        assert [(vm.dev / name).resolve().name for name in ("xvdh", "xvdg")] == ["vd-xvdh", "vd-xvdg"]

    def test_a_disk_whose_node_is_not_there_yet_is_looked_for_again(self, vm: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(*_: object) -> None:
            raise FileNotFoundError

        chown = os.chown
        vm.steps = [lambda: monkeypatch.setattr(os, "chown", chown)]
        vm.plug("xvdh")()
        monkeypatch.setattr(os, "chown", missing)
        assert vm.root._wait("xvdh") == f"{vm.dev}/vd-xvdh" and not vm.steps

    def test_a_name_goes_with_its_disk_and_means_the_next_one(self, vm: Machine) -> None:
        vm.plug("xvdg")()
        vm.root._give("xvdg")
        vm.unplug()
        assert vm.root._give("xvdg") is None and not (vm.dev / "xvdg").is_symlink()
        (vm.dev / "xvdg").symlink_to("gone")
        vm.plug("xvdg")()
        vm.root._give("xvdg")
        assert (vm.dev / "xvdg").resolve().name == "vd-xvdg"

    def test_a_disk_that_comes_for_a_tool_of_the_users_is_named_too(self, vm: Machine) -> None:
        vm.plug("xvdg")()
        os.write(vm._other_end, b"an event")
        vm.clear = lambda: os.read(vm.quiet, 64)  # type: ignore[method-assign,assignment]
        vm.say()
        assert vm.root._hear() == "" and (vm.dev / "xvdg").is_symlink()

    def test_so_is_a_clock_that_has_gone_on_without_this_vm(self, vm: Machine) -> None:
        def go_on() -> None:
            vm.behind += 2

        became: list[list[str]] = []
        vm.steps = [lambda: None, go_on, lambda: became.append(list(vm.became)), vm.plug("xvdh")]
        vm.say()
        vm.root.serve()
        assert became == [["itself"]], "before there is a document"

    def test_on_xen_it_is_another_uuid_that_tells_and_not_the_clock(self, vm: Machine) -> None:
        def go_on() -> None:
            vm.behind += 2

        def come_back() -> None:
            assert vm.became == []
            vm.uuid = "22222222-2222-2222-2222-222222222222\n"

        became: list[list[str]] = []
        vm.uuid = "11111111-1111-1111-1111-111111111111\n"
        vm.steps = [go_on, come_back, lambda: became.append(list(vm.became)), vm.plug("xvdh")]
        vm.say()
        vm.root.serve()
        assert became == [["itself"]], "before there is a document"

    @pytest.mark.parametrize("behind", [1000, -1000])
    def test_a_clock_that_was_wrong_before_says_nothing(self, vm: Machine, behind: int) -> None:
        """The host's clock was set, or the host suspended, while the savefile was made."""
        became: list[list[str]] = []
        vm.behind = behind
        vm.steps = [lambda: became.append(list(vm.became)), vm.plug("xvdh")]
        vm.say()
        vm.root.serve()
        assert became == [[]]

    def test_one_that_was_not_restored_opens_nothing(self, vm: Machine) -> None:
        del vm.store.nodes[RESTORE_COMPLETE]
        vm.plug("xvdh")()
        with pytest.raises(NoEntry):
            vm.root.serve()
        assert (vm.became, vm.heard()) == ([], [])

    def test_neither_does_one_without_randomness(self, vm: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise NoRandomness("the device", "it ends too soon", "give it one")

        monkeypatch.setattr(identity, "take_on", refuse)
        vm.plug("xvdh")()
        with pytest.raises(NoRandomness):
            vm.root.serve()
        assert vm.heard() == []


class TestRehearsing:
    def rehearse(self, vm: Machine, *said: str) -> list[bytes]:
        """Let the reader say something; what dom0 is told."""
        told: list[bytes] = []
        vm.store.write = lambda path, value, tx=0: told.append(value)  # type: ignore[method-assign]
        vm.steps = [vm.plug("xvdh"), vm.unplug]
        vm.say(*said)
        vm.root.rehearse()
        return told

    def test_dom0_is_told_how_it_went_and_then_that_the_vm_can_be_saved(self, vm: Machine) -> None:
        rehearsed, memory = self.rehearse(vm, REHEARSED)
        assert rehearsed == REHEARSED.encode() and memory.isdigit()
        assert vm.heard() == [f"rehearse {vm.dev}/vd-xvdh"]
        assert vm.became[-1].startswith("/usr/bin/systemctl stop systemd-udevd"), "a restored VM's would be slow to wake"

    @pytest.mark.parametrize(
        ("said", "told"),
        [
            ("there is no document: \u5199", rb"there is no document: \u5199"),
            ("", b"the reader has ended"),
            ("x" * 255 + "\u5199", b"x" * 255 + rb"\ufffd"),
        ],
        ids=["a reason", "nothing, and the end", "more than fits"],
    )
    def test_what_went_wrong_is_told_at_once(self, vm: Machine, said: str, told: bytes) -> None:
        assert self.rehearse(vm, *[said] if said else []) == [told]


class TestShuttingDown:
    def test_without_a_document_it_just_ends(self, vm: Machine) -> None:
        with pytest.raises(SystemExit):
            vm.root.shut_down(15, None)

    def test_with_one_the_reader_is_told(self, vm: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        killed: list[tuple[int, int]] = []
        monkeypatch.setattr(os, "kill", lambda *which: killed.append(which))
        vm.plug("xvdh")()
        vm.say()
        vm.root.serve()
        vm.root.shut_down(15, None)
        assert killed == [(4711, signal.SIGTERM)]


class TestEnding:
    @pytest.fixture(autouse=True)
    def _signals(self) -> Iterator[None]:
        handler = signal.getsignal(signal.SIGTERM)
        yield
        signal.signal(signal.SIGTERM, handler)

    @pytest.fixture
    def done(self, monkeypatch: pytest.MonkeyPatch) -> list[object]:
        """What is done to end the VM, in order."""
        done: list[object] = []
        monkeypatch.setattr(disposable, "time", SimpleNamespace(sleep=done.append))
        monkeypatch.setattr(disposable, "run", lambda *argv, deadline_s: done.append(argv[1:]))
        monkeypatch.setattr(disposable, "Exchange", lambda *_: SimpleNamespace(carry_out=done.append))
        return done

    def reader(self, status: int) -> int:
        pid = os.fork()
        if pid == 0:
            os._exit(status)
        return pid

    def test_dom0_destroys_it_or_it_goes_by_itself(self, done: list[object]) -> None:
        assert _end(self.reader(DONE)) == 0
        assert done == [60.0, ("poweroff",)]

    def test_for_a_reader_that_failed_dom0_is_asked_first(self, vm: Machine, done: list[object]) -> None:
        _end(self.reader(NOT_DONE))
        request, *rest = done
        assert isinstance(request, Request)
        assert (request.verb, request.why, rest) == ("killme", "failed", [60.0, ("poweroff",)])

    @pytest.mark.parametrize("error", [NoAnswer(60), StoreLost("it is away"), OSError("no port")])
    def test_a_dom0_that_cannot_be_asked_does_not_keep_it(
        self, vm: Machine, done: list[object], monkeypatch: pytest.MonkeyPatch, error: Exception, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fail(_: object) -> None:
            raise error

        monkeypatch.setattr(Store, "open", fail)
        _end(self.reader(NOT_DONE))
        assert done == [60.0, ("poweroff",)]
        assert str(error) in capsys.readouterr().err

    def test_a_shutdown_meanwhile_has_nobody_left_to_wait_for(self, done: list[object]) -> None:
        signal.signal(signal.SIGTERM, lambda *_: pytest.fail("the reader is gone"))
        _end(self.reader(DONE))
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def test_a_usher_that_fails_lets_its_reader_end(self, done: list[object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        class Waiting:
            """A reader that waits for an order, as the real one does."""

            def __init__(self, usher: Usher, *_: object) -> None:
                self._usher = usher

            def run(self) -> None:
                os._exit(DONE if self._usher.hear() == ("", "") else NOT_DONE)

        class NoEvents:
            def __init__(self, _group: int) -> None:
                raise OSError(errno.EPROTONOSUPPORT, "no such socket")

        monkeypatch.setattr(pwd, "getpwnam", lambda _: pwd.getpwuid(os.getuid()))
        monkeypatch.setattr(disposable, "_document_group", lambda _: str(tmp_path))
        monkeypatch.setattr(disposable, "_become", lambda _: None)
        monkeypatch.setattr(disposable, "Reader", Waiting)
        monkeypatch.setattr(disposable, "DeviceEvents", NoEvents)
        alarm = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits for ever"))
        signal.alarm(30)
        try:
            assert main() == 0
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, alarm)
        assert done == [60.0, ("poweroff",)]
