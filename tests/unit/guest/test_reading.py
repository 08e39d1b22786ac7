"""The reader between a dom0 that is none, and programs that are real."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from qfilexchg.guest import document
from qfilexchg.guest.applications import Databases, Program
from qfilexchg.guest.reading import DONE, NOT_DONE, REHEARSED, Reader, Usher
from qfilexchg.guest.scope import Scope
from qfilexchg.protocol import dvm_header
from qfilexchg.protocol.keys import BLOCK_SOURCE, TRANSACTION_SEQ, VIEW_ONLY
from tests.unit.guest.dom0 import Dom0


class Ordered(Usher):
    """An usher that has its orders beforehand."""

    def __init__(self, orders: Sequence[tuple[str, Path]], outgoing: Path) -> None:
        self.orders = list(orders)
        self.answers: list[str] = []
        self.disk = outgoing

    def hear(self) -> tuple[str, str]:
        if not self.orders:
            return "", ""
        word, disk = self.orders.pop(0)
        return word, str(disk)

    def answer(self, text: str) -> None:
        self.answers.append(text)

    def outgoing(self) -> str:
        return str(self.disk)


class Text(Databases):
    """Databases that know one program."""

    def __init__(self, argv: Sequence[str] | None) -> None:
        self.argv = argv

    def type_of(self, path: str) -> str:
        return "text/plain"

    def program_for(self, mime_type: str, path: str) -> Program | None:
        return Program((*self.argv, path), None, "test.desktop") if self.argv else None

    def programs(self, types: object) -> set[str]:
        return {"/bin/true", "/nonexistent"}


class Vm:
    """A DisposableVM with a document."""

    def __init__(self, folder: Path) -> None:
        self.tmp = folder / "tmp"
        self.group = folder / "group"
        for path in (self.tmp, self.group):
            path.mkdir()
        (self.group / "cgroup.procs").touch()
        (self.group / "cgroup.events").write_text("populated 0\n")
        self.incoming, self.outgoing = folder / "xvdh", folder / "xvdg"
        self.outgoing.write_bytes(bytes(1 << 20))
        self.dom0 = Dom0()
        self.dom0.incoming = "loaded"
        self.dom0.nodes |= {BLOCK_SOURCE: b"work", TRANSACTION_SEQ: b"7", VIEW_ONLY: b"0"}
        self.log: list[str] = []
        self.put(b"Dear Bank\n")

    def put(self, body: bytes, name: str = "letter.txt") -> None:
        self.incoming.write_bytes((dvm_header.encode(name, len(body)) + body).ljust(8192, b"\0"))

    def run(self, *argv: str, orders: Sequence[str] = ("document",)) -> tuple[int, list[str]]:
        """Let the reader do ``orders`` with a program ``argv``; its status, and what it asked dom0 for."""
        self.usher = Ordered([(order, self.incoming) for order in orders], self.outgoing)
        reader = Reader(
            self.usher,
            Waiting(self.group),
            self.dom0,  # type: ignore[arg-type]
            self.log.append,
            lambda: self.dom0,  # type: ignore[arg-type,return-value]
            lambda: Text(argv or None),
            str(self.tmp),
        )
        status = reader.run()
        return status, [request.verb for request in self.dom0.taken]

    def returned(self) -> tuple[str, bytes]:
        descriptor, size_bytes = document.open_to_read(str(self.outgoing))
        header = document.read_header(descriptor, size_bytes)
        os.close(descriptor)
        return header.name, self.outgoing.read_bytes()[1024 : 1024 + header.size_bytes]


class Waiting(Scope):
    """A group that is empty when the program that was started has ended."""

    def start(self, argv: Sequence[str], folder: str | None = None) -> int:
        self.pid = super().start(argv, folder)
        return self.pid

    def wait_until_empty(self, waiter: object) -> None:
        os.waitpid(self.pid, 0)

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))


@pytest.fixture
def vm(tmp_path: Path) -> Vm:
    return Vm(tmp_path)


class TestDocument:
    def test_one_that_is_closed_as_it_came_ends_the_vm(self, vm: Vm) -> None:
        assert vm.run("/bin/true") == (DONE, ["umount", "killme"])
        assert vm.dom0.taken[-1].why == "unchanged"
        assert (vm.tmp / "letter.txt").read_bytes() == b"Dear Bank\n"
        assert stat.S_IMODE((vm.tmp / "letter.txt").stat().st_mode) == 0o600

    def test_one_that_was_changed_goes_back_to_its_asker_with_its_number(self, vm: Vm) -> None:
        vm.run("/bin/sh", "-c", 'echo more >> "$0"')
        assert [(request.verb, request.target, request.seq) for request in vm.dom0.taken[:3]] == [
            ("umount", None, 0),
            ("new", None, 0),
            ("send", "work", 7),
        ]
        assert vm.dom0.taken[1].size_bytes == 1 << 20
        assert vm.returned() == ("letter.txt", b"Dear Bank\nmore\n")

    @pytest.mark.parametrize(
        ("script", "changed"),
        [
            pytest.param(': > "$0"', True, id="emptied"),
            pytest.param('cp "$0" "$0.new"; mv "$0.new" "$0"', False, id="the same in another inode"),
            pytest.param('rm "$0"', False, id="removed"),
            pytest.param('sed -i s/D/d/ "$0"', True, id="the same size"),
        ],
    )
    def test_changed_is_what_has_another_content(self, vm: Vm, script: str, changed: bool) -> None:
        vm.run("/bin/sh", "-c", script)
        assert ("send" in [request.verb for request in vm.dom0.taken]) == changed
        assert changed or vm.dom0.taken[-1].why == "unchanged"

    def test_one_that_may_only_be_viewed_never_goes_back(self, vm: Vm) -> None:
        vm.dom0.nodes[VIEW_ONLY] = b"1"
        vm.run("/bin/sh", "-c", 'stat -c %a "$0" > "$0.mode"; chmod 600 "$0"; echo more >> "$0"')
        assert [request.verb for request in vm.dom0.taken] == ["umount", "killme"]
        assert (vm.tmp / "letter.txt.mode").read_text() == "400\n"

    def test_a_name_that_is_taken_gets_a_folder_of_its_own(self, vm: Vm) -> None:
        (vm.tmp / "letter.txt").mkdir()
        assert vm.run("/bin/true")[0] == DONE
        assert [path.read_bytes() for path in vm.tmp.glob("*/letter.txt")] == [b"Dear Bank\n"]

    @pytest.mark.parametrize("name", ["-rf", "two words", "写真.txt", "a\nb", "$(id)"])
    def test_any_name_reaches_the_program_as_one_word(self, vm: Vm, name: str) -> None:
        vm.put(b"x", name)
        vm.run("/bin/sh", "-c", 'test $# = 0 && echo "$0" >> "$0"')
        assert vm.returned() == (name, b"x" + f"{vm.tmp}/{name}\n".encode())


class TestBroken:
    def test_no_program_for_the_type_is_said(self, vm: Vm) -> None:
        assert vm.run()[0] == DONE
        assert [(request.verb, request.why) for request in vm.dom0.taken] == [("killme", "no-program")]

    def test_a_program_that_cannot_be_run_is_none(self, vm: Vm) -> None:
        vm.run("/nonexistent")
        assert [(request.verb, request.why) for request in vm.dom0.taken] == [("killme", "no-program")]

    def test_a_pendrive_without_a_header_has_no_document(self, vm: Vm) -> None:
        vm.incoming.write_bytes(b"\xff" * 4096)
        vm.run("/bin/true")
        assert [(request.verb, request.why) for request in vm.dom0.taken] == [("killme", "bad-document")]
        assert not list(vm.tmp.iterdir())

    @pytest.mark.parametrize("script", ['rm "$0"; mkdir "$0"', 'rm "$0"; ln -s /etc/passwd "$0"', 'rm "$0"; mkfifo "$0"'])
    def test_a_document_that_became_something_else_is_not_returned(self, vm: Vm, script: str) -> None:
        vm.run("/bin/sh", "-c", script)
        assert [(request.verb, request.why) for request in vm.dom0.taken] == [("umount", ""), ("killme", "failed")]

    def test_a_return_that_dom0_does_not_take_ends_the_vm(self, vm: Vm) -> None:
        vm.dom0.verdict = "deny"
        assert vm.run("/bin/sh", "-c", 'echo more >> "$0"')[0] == DONE
        assert (vm.dom0.taken[-1].verb, vm.dom0.taken[-1].why) == ("killme", "failed")

    def test_an_order_that_dom0_has_not_given_is_a_failure(self, vm: Vm) -> None:
        del vm.dom0.nodes[TRANSACTION_SEQ]
        vm.run("/bin/true")
        assert vm.dom0.taken[-1].why == "failed"

    def test_an_usher_that_has_ended_leaves_nothing_to_do(self, vm: Vm) -> None:
        assert vm.run("/bin/true", orders=()) == (NOT_DONE, [])


class TestRehearsal:
    def test_it_asks_for_nothing_that_changes_anything_and_leaves_no_document(self, vm: Vm) -> None:
        status, _ = vm.run("/bin/true", orders=("rehearse", "document"))
        assert (status, vm.usher.answers) == (DONE, [REHEARSED])
        assert [request.verb for request in vm.dom0.taken] == ["status", "umount", "killme"]
        assert [path.name for path in vm.tmp.iterdir()] == ["letter.txt"], "the rehearsal's own is gone"

    def test_what_goes_wrong_is_said_in_words(self, vm: Vm) -> None:
        vm.incoming.write_bytes(b"\xff" * 4096)
        vm.run("/bin/true", orders=("rehearse",))
        (answer,) = vm.usher.answers
        assert "there is no document" in answer
