"""qubes_dvm: what a DisposableVM does with the one document that it is made for.

It runs before the savefile is taken, so that a restored VM has nothing to start: everything is in memory, and waits for the
pendrive's disk. It is two processes. The *usher*, here, is root and small: it sees the disk come, gives the VM its own identity,
lets the reader have the disk, and sees to it that the VM ends. The *reader* (``reading.py``) is the person's user and does all
that has to do with the document.

How it is rehearsed. While the savefile is made, dom0 attaches a pendrive with a document of its own. The reader does with it
what it will do with the real one, up to a program that does nothing, so that the kernel's and Python's ways are in memory. By the
key ``device/qubes_used_mem`` dom0 is told when the disk can be taken away, and then that the VM can be saved.

Then udev is stopped. A restored VM would spend half of the time until its document is open, and a tenth of its memory, on udev's waking
up for a disk or two; those the usher names itself.

From that moment until it is restored the usher touches neither the store nor anything else that would be cut in two by the saving:
it looks at what would tell it that it was restored, and waits for a disk.
"""

from __future__ import annotations

import os
import pwd
import select
import signal
import socket
import sys
import time

from qfilexchg.errors import QfilexchgError
from qfilexchg.guest import identity
from qfilexchg.guest.interruption import Interruption
from qfilexchg.guest.programs import run
from qfilexchg.guest.reading import DONE, REHEARSED, Reader, Usher
from qfilexchg.guest.rehearsal import memory_kib
from qfilexchg.guest.request import Exchange, fresh_id
from qfilexchg.guest.scope import Scope
from qfilexchg.guest.sequence import ACCOUNT
from qfilexchg.guest.slot import KERNEL, DeviceEvents
from qfilexchg.protocol.keys import RESTORE_COMPLETE, SAVE_REQUEST, USED_MEMORY
from qfilexchg.protocol.qpen import Request
from qfilexchg.xenstore.blocking import Store
from qfilexchg.xenstore.errors import NoEntry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

GROUP: Final = "/sys/fs/cgroup/system.slice/qubes-dvm.service"
"""The control group of this service; its child ``document`` holds the programs, and tells when none of them runs any more."""
OUTGOING, INCOMING = "xvdg", "xvdh"
_BLOCK: Final = "/sys/block"
_DEV: Final = "/dev"
_UDEV: Final = ("systemd-udevd-control.socket", "systemd-udevd-kernel.socket", "systemd-udevd.service")
_STOP_S: Final = 60.0
STORE_S: Final = 60.0
"""Seconds to get hold of the store."""
_LOOK_S: Final = 0.05
"""Between two looks at what tells a VM that it was restored."""
_DESTROYED_S: Final = 60.0
"""Seconds that dom0 has to destroy this VM, as it does when it is asked to."""
_POWER_OFF_S: Final = 30.0


def disk(name: str, folder: str = _BLOCK) -> str | None:
    """The node of the disk that dom0 calls ``name``: by that on Xen, by its serial on QEMU. None while there is none.

    Not by udev's link: a restored VM's udev is slow to wake.
    """
    for entry in os.listdir(folder):
        if entry == name:
            return f"/dev/{entry}"
        try:
            with open(f"{folder}/{entry}/serial", encoding="ascii", errors="replace") as file:
                if file.read().strip() == name:
                    return f"/dev/{entry}"
        except OSError:
            continue
    return None


class _Root:
    """The usher's side."""

    def __init__(self, events: DeviceEvents, reader: socket.socket, account: pwd.struct_passwd, pid: int) -> None:
        self._events = events
        self._reader = reader
        self._account = account
        self._pid = pid
        self._has_document = False

    def shut_down(self, _number: int, _frame: object) -> None:
        """The VM is to end by the person's wish: the reader returns what was changed, if it has anything."""
        if not self._has_document:
            sys.exit()
        os.kill(self._pid, signal.SIGTERM)

    def rehearse(self) -> None:
        """See the rehearsal through, and tell dom0 that the VM can be saved. Raises what the store raises."""
        self._say(f"rehearse {self._wait(INCOMING)}")
        outcome = self._hear() or "the reader has ended"
        with Store.open(STORE_S) as store:
            store.write(USED_MEMORY, outcome.encode("ascii", "backslashreplace"))
        if outcome != REHEARSED:
            return
        while disk(INCOMING):
            self._wait_for_event(None)
        run("/usr/bin/systemctl", "stop", *_UDEV, deadline_s=_STOP_S)
        with Store.open(STORE_S) as store:
            store.write(USED_MEMORY, str(memory_kib()[0]).encode("ascii"))

    def serve(self) -> None:
        """Become what this VM is, and let the reader have its document. Returns when the reader is done and the VM still there."""
        saved = identity.Saved()
        while not disk(INCOMING) and not saved.restored():
            self._wait_for_event(_LOOK_S)
        with Store.open(STORE_S) as store:
            store.read(RESTORE_COMPLETE)
            identity.take_on(store, log)
        node = self._wait(INCOMING)
        self._has_document = True
        self._say(f"document {node}")
        while self._hear() == "outgoing":
            self._say(self._wait(OUTGOING))

    def _wait(self, name: str) -> str:
        """Wait for a disk, and give it to the user."""
        while (node := self._give(name)) is None:
            self._wait_for_event(None)
        return node

    def _give(self, name: str) -> str | None:
        """Let the user have a disk under dom0's name for it, as udev's rules do elsewhere; its node, None while there is none."""
        node, link = disk(name), f"{_DEV}/{name}"
        if os.path.islink(link) and os.path.realpath(link) != node:
            os.unlink(link)
        if node is None:
            return None
        try:
            os.chown(node, self._account.pw_uid, -1)
        except FileNotFoundError:
            return None  # sysfs tells of it a moment before its node is made, and after it has gone
        try:
            if link != node:
                os.symlink(os.path.basename(node), link)
        except FileExistsError:
            pass  # it has its name, from here or, before the VM was saved, from udev
        return node

    def _wait_for_event(self, timeout_s: float | None) -> None:
        self._events.wait(timeout_s)
        self._events.clear()

    def _say(self, words: str) -> None:
        self._reader.send(words.encode())

    def _hear(self) -> str:
        """What the reader says next; empty if it has ended. Disks that come meanwhile are the user's too, for tools."""
        poll = select.poll()
        for descriptor in (self._events.fileno(), self._reader.fileno()):
            poll.register(descriptor, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if self._events.fileno() in ready:
                self._events.clear()
                for name in (OUTGOING, INCOMING):
                    self._give(name)
            if self._reader.fileno() in ready:
                return self._reader.recv(256).decode("utf-8", "replace")


def _is(key: str) -> bool:
    with Store.open(STORE_S) as store:
        try:
            return store.read(key) != b""
        except NoEntry:
            return False


def main(arguments: Sequence[str] | None = None) -> int:
    account = pwd.getpwnam(ACCOUNT)
    programs = _document_group(account)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader = os.fork()
    if reader == 0:
        ours.close()
        _become(account)
        with Interruption() as interruption:
            sys.exit(Reader(Usher(theirs), Scope(programs), interruption, log, lambda: Store.open(STORE_S)).run())
    theirs.close()
    try:
        with DeviceEvents(KERNEL) as events:
            root = _Root(events, ours, account, reader)
            signal.signal(signal.SIGTERM, root.shut_down)
            if _is(SAVE_REQUEST):
                root.rehearse()
            root.serve()
    except (QfilexchgError, OSError) as error:
        log(str(error))
    ours.close()  # a reader that waits for us waits no more
    return _end(reader)


def _document_group(account: pwd.struct_passwd) -> str:
    """Make the control group that the reader starts programs in, and let it do that."""
    group = f"{GROUP}/document"
    os.makedirs(group, exist_ok=True)
    for path in (f"{GROUP}/cgroup.procs", f"{group}/cgroup.procs"):
        os.chown(path, account.pw_uid, account.pw_gid)
    return group


def _become(account: pwd.struct_passwd) -> None:
    os.initgroups(account.pw_name, account.pw_gid)
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    os.chdir(account.pw_dir)
    os.umask(0o077)
    for name, value in (("HOME", account.pw_dir), ("USER", account.pw_name), ("LOGNAME", account.pw_name), ("SHELL", account.pw_shell)):
        os.environ[name] = value


def _end(reader: int) -> int:
    """See to it that this VM ends: dom0 destroys it when it is asked to, else it goes by itself."""
    _, status = os.waitpid(reader, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # there is nobody left to hand it on to
    if os.waitstatus_to_exitcode(status) != DONE:
        try:
            with Interruption() as interruption, Store.open(STORE_S) as store:
                Exchange(store, interruption).carry_out(Request("killme", why="failed", request_id=fresh_id()))
        except (QfilexchgError, OSError) as error:
            log(str(error))
    time.sleep(_DESTROYED_S)
    run("/usr/bin/systemctl", "poweroff", deadline_s=_POWER_OFF_S)
    return 0


def log(text: str) -> None:
    """To standard error, so to the VM's journal."""
    sys.stderr.write(f"qubes_dvm: {text}\n")
    sys.stderr.flush()
