"""QEMU without machines: a process that answers on its control socket, for the domains of a real store and a real home."""

from __future__ import annotations

from dataclasses import dataclass

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.collection import Collection, Label
from qfilexchg.dom0.vms.hypervisor import RunningVm, VmId
from qfilexchg.dom0.vms.processes import Process
from qfilexchg.dom0.vms.qemu import command
from qfilexchg.dom0.vms.qemu.hypervisor import Record
from qfilexchg.protocol import keys
from qfilexchg.protocol.names import VmName
from qfilexchg.xenstore.client import Store
from tests.python import PYTHON

_PROGRAM = """
import json, socket, sys
running = sys.argv[2] == "running"
greeting = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
while True:
    connection, _ = server.accept()
    with connection:
        connection.sendall(json.dumps(greeting).encode() + b"\\n")
        while asked := connection.recv(65536):  # the client waits for each answer, and ends no line
            command = json.loads(asked)
            running = running or command["execute"] == "cont"
            answer = {"return": {"running": running} if command["execute"] == "query-status" else {}}
            if "id" in command:
                answer["id"] = command["id"]
            connection.sendall(json.dumps(answer).encode() + b"\\n")
            if command["execute"] == "quit":
                sys.exit()
"""


@dataclass(frozen=True, slots=True)
class Started:
    """A VM and its process."""

    vm: RunningVm
    process: Process


class FakeQemu:
    """Starts VMs of one home, each paused unless it is to be running."""

    def __init__(self, home: Home, collection: Collection) -> None:
        self._home = home
        self._collection = collection
        self.started: list[Started] = []

    async def disposable(
        self, *, asker: VmName | None = None, preloaded: bool = False, memory_mib: int = 1, running: bool = False
    ) -> Started:
        vm = self._collection.add_new_disposablevm(Label.RED, memory_mib, asker=asker, preloaded=preloaded)
        return await self.start(RunningVm(VmId(self._collection.next_domain(), vm.uuid), vm.name), running=running)

    async def start(self, vm: RunningVm, *, running: bool = True) -> Started:
        domain = vm.id.domain
        self._home.vm(vm.name).mkdir(parents=True, exist_ok=True)
        self._home.domain(domain).mkdir(parents=True)
        async with await Store.connect(self._home.store_socket) as store:
            await store.write(keys.absolute(domain, keys.NAME), vm.name.encode())
            await store.introduce(domain)
        socket = command.qmp_socket(self._home, domain)
        argv = (*PYTHON, "-S", "-c", _PROGRAM, str(socket), "running" if running else "paused")
        process = Process.start(argv, log=self._home.vm(vm.name) / "qemu.log")
        assert process
        Record(vm, process).save(self._home)
        self.started.append(Started(vm, process))
        return self.started[-1]

    def end(self) -> None:
        for started in self.started:
            started.process.end(term_s=0, kill_s=10)
