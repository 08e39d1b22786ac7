"""The person's side of a DisposableVM: takes the document in, opens it, and gives it back if it was changed.

"Still open" is judged by the control group in which the program runs, not by its first process: an editor may put itself into the
background, or hand the document to another that it has started. What the savefile's own script had left running counts too, as the
program may hand over to that. "Changed" means another digest, so neither the time of an edit nor its size matters.

What was changed is nowhere else, so its return is tried again and again, until dom0 has it or says no. Nothing that fails on the way,
here or there, is a reason to end the VM.

A sender may have put anything on the pendrive. What reads it runs as the person's user, in a VM that is destroyed afterwards.
"""

from __future__ import annotations

import errno
import os
import stat

from qfilexchg.errors import HostError, QfilexchgError, VmError
from qfilexchg.guest import document, rehearsal
from qfilexchg.guest.applications import Databases
from qfilexchg.guest.interruption import Cancelled
from qfilexchg.guest.outcome import Refused
from qfilexchg.guest.outgoing import Outgoing
from qfilexchg.guest.request import Exchange, fresh_id, pauses
from qfilexchg.guest.scope import CannotRun, Scope, reap
from qfilexchg.protocol.keys import BLOCK_SOURCE, TRANSACTION_SEQ, VIEW_ONLY
from qfilexchg.protocol.names import VmName
from qfilexchg.protocol.qpen import Request
from qfilexchg.xenstore.errors import StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Final

    from qfilexchg.guest.interruption import Interruption
    from qfilexchg.protocol.qpen import Reply
    from qfilexchg.xenstore.blocking import Store

FOLDER: Final = "/tmp"  # noqa: S108  the VM has one user and one document
REHEARSED: Final = "rehearsed"
DONE, NOT_DONE = 0, 1
"""Exit statuses: dom0 knows that the VM can end; or it does not."""
_ARRIVING: Final = "arriving"
"""dom0's word for a pendrive that is here, of which it does not know that yet."""
_NO_FILE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)
"""What opening answers if there is something else, or nothing, in a file's place."""
_SOON_S: Final = (0.1, 0.2, 0.5)
"""Seconds after which dom0 is asked again to take the pendrive away, at first: most often it only has to catch up."""


class Usher:
    """The root process of this VM, as the reader speaks to it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def hear(self) -> tuple[str, str]:
        """What to do next, and the disk that it is about; both empty if the usher has ended."""
        word, _, device = self._connection.recv(256).decode().partition(" ")
        return word, device

    def answer(self, text: str) -> None:
        self._connection.send(text.encode())

    def outgoing(self) -> str:
        """The disk that dom0 has attached, for the user to write on. Raises :exc:`Broken` if the usher has ended."""
        try:
            self._connection.send(b"outgoing")
            device = self._connection.recv(256).decode()
        except ConnectionError:
            device = ""
        if not device:
            raise Broken("failed", "the root process of this VM has ended, and nothing can leave without it")
        return device


class Broken(VmError):
    """The document cannot be dealt with. ``why`` is one of the protocol's KILL_REASONS; ``detail`` is for the journal."""

    def __init__(self, why: str, detail: str) -> None:
        super().__init__(why, detail)
        self.why = why
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.why}: {self.detail}"


class Order:
    """What dom0 says of the document: where it comes from, and whether it may go back."""

    def __init__(self, store: Store) -> None:
        """Raises what the store raises, and BadName or ValueError if dom0 does not say it."""
        self.asker: Final = VmName.parse(store.read(BLOCK_SOURCE).decode("ascii", "replace"))
        self.seq: Final = int(store.read(TRANSACTION_SEQ))
        self.view_only: Final = store.read(VIEW_ONLY) == b"1"


class Reader:
    """Serves one document, whose programs run in ``scope``."""

    def __init__(
        self,
        usher: Usher,
        scope: Scope,
        interruption: Interruption,
        log: Callable[[str], None],
        open_store: Callable[[], Store],
        load_databases: Callable[[], Databases] = Databases.load,
        folder: str = FOLDER,
    ) -> None:
        self._usher = usher
        self._scope = scope
        self._interruption = interruption
        self._log = log
        self._open_store = open_store
        self._load_databases = load_databases
        self._folder = folder
        self._databases = load_databases()

    def run(self) -> int:
        """Rehearse if the usher wants it, then serve the document; the exit status."""
        while True:
            word, device = self._usher.hear()
            if word == "rehearse":
                self._usher.answer(self._rehearse(device))
            elif word == "document":
                return self._serve(device)
            else:
                return NOT_DONE

    def _serve(self, device: str) -> int:
        try:
            why = self._see_through(device)
        except Broken as error:
            self._log(str(error))
            why = error.why
        except (QfilexchgError, OSError, ValueError) as error:
            self._log(str(error))
            why = "failed"
        self._interruption.shield()
        try:
            self._ask(Request("killme", why=why, request_id=fresh_id()))
        except QfilexchgError as error:
            self._log(str(error))
            return NOT_DONE
        return DONE

    def _see_through(self, device: str) -> str:
        """Open the document, and return it if it changed; why the VM can end. dom0 ends the VM when it has taken a document back."""
        path, before = self._take_in(device)
        with self._open_store() as store:
            order = Order(store)
        if order.view_only:
            os.chmod(path, stat.S_IRUSR)
        program = self._databases.program_for(self._databases.type_of(path), path)
        if program is None:
            raise Broken("no-program", "nothing here opens this type of document")
        try:
            self._scope.start(program.argv, program.folder)
        except CannotRun as error:
            raise Broken("no-program", str(error)) from error
        self._wait_until_closed()
        return "unchanged" if order.view_only else self._give_back(path, before, order)

    def _wait_until_closed(self) -> None:
        """Return when nothing that has to do with the document runs any more. From then on no signal is heeded: an edit may be at stake.

        dom0 need not keep the pendrive while the document is open. It must know that the document is here, though, before it is told
        anything else of it.
        """
        pauses_s = pauses(*_SOON_S)
        why_not = _ARRIVING
        try:
            why_not = self._take_away()
            while not self._scope.wait_until_empty(self._interruption, next(pauses_s) if why_not else None):
                why_not = self._take_away()
        except Cancelled:
            self._log("the VM is to end: the document counts as closed")
        self._interruption.shield()
        while why_not == _ARRIVING:
            self._interruption.wait((), next(pauses_s))
            why_not = self._take_away()

    def _take_away(self) -> str:
        """Have the pendrive taken away; empty if it is, else why not."""
        try:
            reply = self._ask(Request("umount", request_id=fresh_id()))
        except (HostError, StoreError) as error:
            self._log(str(error))
            return "no answer"
        gone = reply.state == "detached" or reply.detail == "no-pendrive"
        return "" if gone else reply.detail or reply.state

    def _give_back(self, path: str, before: bytes, order: Order) -> str:
        """Return the document if it changed; why the VM can end. Raises :exc:`Broken` and Refused: it cannot be returned, ever."""
        pauses_s = pauses()
        while True:
            try:
                if self._digest(path) == before:
                    return "unchanged"
                self._return(path, order)
                return "failed"  # dom0 said that it has it, and was to destroy this VM before
            except (Broken, Refused):
                raise
            except (QfilexchgError, OSError) as error:
                self._log(f"the document could not be returned, and that is tried again: {error}")
            self._clear()
            self._interruption.wait((), next(pauses_s))

    def _take_in(self, device: str) -> tuple[str, bytes]:
        """Copy the document into its folder; its path and digest. Raises :exc:`Broken`."""
        descriptor, device_bytes = document.open_to_read(device)
        try:
            try:
                header = document.read_header(descriptor, device_bytes)
            except VmError as error:
                raise Broken("bad-document", str(error)) from error
            path, target = _create(self._folder, header.name)
            try:
                return path, document.copy_body(descriptor, header, target, _no_progress)
            finally:
                os.close(target)
        finally:
            os.close(descriptor)

    def _return(self, path: str, order: Order) -> None:
        """Put the document on a pendrive and send it: with that dom0 destroys this VM."""
        source = _open(path)
        try:
            size_bytes = os.fstat(source).st_size
            with self._open_store() as store:
                outgoing = Outgoing(Exchange(store, self._interruption))
                outgoing.get(document.pendrive_bytes(size_bytes))
                disk = self._usher.outgoing()
                document.write(disk, os.path.basename(path), source, size_bytes, _NoProgress(), self._interruption)
                outgoing.send(order.asker, order.seq)
        finally:
            os.close(source)

    def _clear(self) -> None:
        """Give back the outgoing pendrive, if there is any, whoever has asked for it: the next attempt needs its place."""
        try:
            self._ask(Request("cancel", request_id=fresh_id()))
        except (HostError, StoreError) as error:
            self._log(str(error))

    def _digest(self, path: str) -> bytes:
        descriptor = _open(path)
        try:
            return document.digest_of(descriptor, self._interruption.check)
        finally:
            os.close(descriptor)

    def _rehearse(self, device: str) -> str:
        """Do with a document of dom0's what will be done with a real one; how it went, in a few words."""
        try:
            rehearsal.run_script(self._scope)
            self._databases = self._load_databases()
            path, before = self._take_in(device)
            self._databases.program_for(self._databases.type_of(path), path)
            os.waitpid(self._scope.start(("/bin/true",)), 0)
            with self._open_store() as store:
                Order(store)
            self._ask(Request("status", request_id=fresh_id()))
            unchanged = self._digest(path) == before
            os.unlink(path)
            reap()
            rehearsal.warm(sorted(self._databases.programs(rehearsal.USUAL_TYPES)))
        except (QfilexchgError, OSError, ValueError) as error:
            return str(error)
        return REHEARSED if unchanged else "the document of the rehearsal has changed"

    def _ask(self, request: Request) -> Reply:
        with self._open_store() as store:
            return Exchange(store, self._interruption).carry_out(request)


def _create(folder: str, name: str) -> tuple[str, int]:
    """A new file called ``name`` in ``folder``; below it where that has one of the name."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    path = f"{folder}/{name}"
    try:
        return path, os.open(path, flags, 0o600)
    except FileExistsError:
        folder = f"{folder}/{fresh_id()}"
        os.mkdir(folder, 0o700)
        path = f"{folder}/{name}"
        return path, os.open(path, flags, 0o600)


def _open(path: str) -> int:
    """Raises :exc:`Broken` for what is no file any more."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise Broken("failed", f"the document is no file any more ({error.strerror})") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Broken("failed", "the document has become something else than a file")
    return descriptor


def _no_progress(_size_bytes: int) -> None:
    """Nobody watches."""


class _NoProgress:
    def advance(self, size_bytes: int) -> None:
        """Nobody watches."""
