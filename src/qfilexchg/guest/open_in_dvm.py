"""qvm-open-in-dvm: one document, opened in a DisposableVM that is made for it and thrown away with it.

The document leaves on a pendrive without a filesystem. From then on it is known by its sequence number; if it is changed there it
comes back, and :mod:`qfilexchg.guest.returning` puts it in its place, whether this command still runs or not. So all that follows
the delivery here is to watch. A document may be open for hours, and the ways to the store are few, so none is held meanwhile.

Until the delivery every way out gives the pendrive back, and the document is forgotten.
"""

from __future__ import annotations

import os
import stat
import sys
import time

from qfilexchg.errors import HostError, QfilexchgError
from qfilexchg.guest import document, sequence
from qfilexchg.guest.arguments import REPORT, split
from qfilexchg.guest.document import Changed
from qfilexchg.guest.interruption import Cancelled, Interruption
from qfilexchg.guest.outcome import (
    BROKEN,
    DONE,
    Beside,
    CannotBeHeld,
    Ended,
    NoProgram,
    NoRoom,
    Occupied,
    Usage,
    exit_status,
)
from qfilexchg.guest.outgoing import Outgoing
from qfilexchg.guest.progress import Progress, printable, size
from qfilexchg.guest.request import Exchange, fresh_id
from qfilexchg.guest.sequence import BESIDE, FAILED, REPLACED, Original
from qfilexchg.guest.slot import DEVICE_S, INCOMING, OUTGOING
from qfilexchg.protocol import dvm_header
from qfilexchg.protocol.keys import document as document_key
from qfilexchg.protocol.qpen import Request
from qfilexchg.protocol.stages import BadStage, parse_stage
from qfilexchg.xenstore.blocking import Store
from qfilexchg.xenstore.errors import NoEntry, StoreError, StoreLost

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Sequence
    from typing import Final

    from qfilexchg.guest.sequence import Book, Outcome
    from qfilexchg.guest.slot import Slot
    from qfilexchg.protocol.qpen import Reply
    from qfilexchg.protocol.stages import Stage
else:
    import _signal as signal  # the same calls, without the enums: those cost more than all else here

HELP: Final = """\
usage: qvm-open-in-dvm FILE [--view-only] [--no-wait]

Opens a document in a new DisposableVM, which has nothing of this VM but a copy of it. When the document is closed there, the
DisposableVM is destroyed. If it was changed it comes back and replaces FILE whole; if FILE was changed here meanwhile, it is put
beside it as "FILE (edited in dispN)". Ctrl-C destroys the DisposableVM and leaves FILE as it is; closing the terminal does not.

  --view-only   nothing comes back, whatever is done to the document there; other accounts than user need this
  --no-wait     end as soon as the DisposableVM has the document; it comes back all the same
  --report=json tell programs what is done, in lines of JSON on standard output; PROTOCOL.md has them
  --help        show this
  --            what follows is a file, even if it begins with a dash

Exit status:
    0  closed: unchanged, or changed and FILE has the changes; with --no-wait: delivered
    1  broken: something failed; the message says what
    2  the command line was not understood
    3  refused: by a rule or by the person in dom0
    4  FILE cannot be sent: it cannot be read, is no file, has an impossible name, or does not keep still
    5  no room: it is larger than a pendrive may be
    6  this VM already has an outgoing pendrive
    7  changed, but the changes are beside FILE or elsewhere; the message says where and why
    8  no program in the DisposableVM opens such a document
    9  the DisposableVM ended, and nothing comes back; the message says why
  130  cancelled
"""

_COMMAND: Final = "qvm-open-in-dvm"
_SETTLE_S: Final = 2.0
"""Seconds that udev is given to forget a pendrive which has just left."""

LOOK_S: Final = 0.1
"""Seconds between two looks at what the pendrive script has written: one system call each."""
ASK_S: Final = 1.0
"""Seconds between two looks at the store."""
ASK_SOON_S: Final = 0.25
"""The same while the DisposableVM starts, which the person is waiting for; so for the first :data:`SOON_S` seconds."""
SOON_S: Final = 5.0
STORE_S: Final = 1.0
"""Seconds for one attempt to get hold of the store. Ctrl-C is not heeded meanwhile."""
SILENCE_S: Final = 60.0
"""Seconds without a word of dom0 after which it is taken to be absent."""
ARRIVAL_S: Final = 60.0
"""Seconds for a pendrive to appear that dom0 says is in this VM, and for word of the document once it is gone. While it is here the
document has all the time that it needs."""


class NoWord(HostError):
    """dom0 says nothing of a document that it has taken."""

    def __init__(self, silence_s: float, why: str) -> None:
        super().__init__(silence_s, why)
        self.silence_s = silence_s
        self.why = why

    def __str__(self) -> str:
        return (
            f"dom0 has said nothing of the document for {self.silence_s:.0f} s{f' ({self.why})' if self.why else ''}; if it is "
            "changed it comes back all the same. Check in dom0 that qfilexchgd runs"
        )


class NotPlaced(HostError):
    """The changed document came on a pendrive, which is not here any more, and nothing was heard of it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return (
            f"{printable(self.name)} came back changed, and where it was put was not heard: look at it, beside it and in your home, and "
            "see what was done with: journalctl --unit 'qubes-pendrive@*'"
        )


class NotADocument(HostError):
    """What came back is no document."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(name, why)
        self.name = name
        self.why = why

    def __str__(self) -> str:
        return f"{printable(self.name)} is as it was; what came back cannot be used: {printable(self.why)}"


class TooLarge(NoRoom):
    """No pendrive may be large enough."""

    def __str__(self) -> str:
        limit = f"; dom0 makes none above {size(self.limit_bytes)}" if self.limit_bytes else ""
        return f"no room: the document needs a pendrive of {size(self.needed_bytes)}{limit}"


class Order:
    """What the command line asks for."""

    def __init__(self, file: str, *, view_only: bool, wait: bool, report: bool = False) -> None:
        self.file: Final = file
        self.view_only: Final = view_only
        self.wait: Final = wait
        self.report: Final = report


def parse(arguments: Sequence[str]) -> Order | None:
    """Understand the command line; None asks for help. Raises :exc:`Usage`."""
    understood = split(arguments, ("--view-only", "--no-wait", REPORT), _COMMAND)
    if understood is None:
        return None
    files, options = understood
    if len(files) != 1:
        raise Usage("name one file", _COMMAND)
    return Order(files[0], view_only="--view-only" in options, wait="--no-wait" not in options, report=REPORT in options)


class Document:
    """The file. A symbolic link gives the name, its target is what is sent and replaced."""

    def __init__(self, file: str) -> None:
        """Raises :exc:`CannotBeHeld` and BadDocumentName for what cannot be sent."""
        self.name: Final = os.path.basename(os.path.abspath(file))
        self.path: Final = os.path.realpath(file)
        descriptor = self.open()
        self.size_bytes: Final = os.fstat(descriptor).st_size
        os.close(descriptor)
        dvm_header.encode(self.name, self.size_bytes)

    def open(self) -> int:
        """A descriptor to read it. Raises :exc:`CannotBeHeld`."""
        try:
            # O_NONBLOCK: a pipe must not hold us.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            raise CannotBeHeld(f"{printable(self.path)} cannot be read ({error.strerror})") from error
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            os.close(descriptor)
            kind = "a folder" if stat.S_ISDIR(mode) else "no file"
            raise CannotBeHeld(f"{printable(self.path)} is {kind}; name one file")
        return descriptor

    def write(self, device: str, progress: Progress, interruption: Interruption) -> Original:
        """Put it on the pendrive, as it is at one moment; what that was. Raises what :func:`document.write` raises."""
        for last in (False, True):
            source = self.open()
            try:
                status = os.fstat(source)
                progress.state("copying", "Copying…")
                progress.begin(status.st_size, 1)
                digest = document.write(device, self.name, source, status.st_size, progress, interruption)
                progress.file_done()
                return Original(self.path, self.name, status.st_size, digest, status.st_mode & 0o777, sequence.this_boot())
            except Changed:
                if last:
                    raise
                progress.state("again", "It changed while it was being read; reading it again…")
            finally:
                os.close(source)
        raise AssertionError("the second attempt ends it")


class Opening:
    """A document on its way into a DisposableVM, and the watch until it is closed there.

    ``incoming`` is where it comes back to; ``clock`` counts seconds.
    """

    def __init__(
        self, found: Document, book: Book, progress: Progress, incoming: Slot, *, view_only: bool, clock: Callable[[], float]
    ) -> None:
        self._document = found
        self._book = book
        self._progress = progress
        self._incoming = incoming
        self._view_only = view_only
        self._clock = clock
        self._began_at = clock()
        self._sending = False
        self._handed_over = False
        self._failing = ""
        self.seq = 0

    def deliver(self, outgoing: Outgoing, slot: Slot, interruption: Interruption) -> bool:
        """Send it; False if the person wanted to stop and it was too late. If this raises, the pendrive was given back, or the
        error says why not."""
        if slot.mounted() or (slot.present() and not slot.wait(interruption, present=False, deadline_s=_SETTLE_S)):
            raise Occupied
        self.seq = self._book.take(interruption)
        try:
            outgoing.get(document.pendrive_bytes(self._document.size_bytes))
            slot.wait_present(interruption)
            self._wait_ours(slot.device, interruption)
            original = self._document.write(slot.device, self._progress, interruption)
            interruption.check()
            if not self._view_only:
                self._book.note(self.seq, original)
            self._sending = True
            outgoing.send(None, self.seq, view_only=self._view_only)
        except BaseException as error:
            interruption.shield()
            self._progress.state("giving-back", "Giving the pendrive back…")
            if not outgoing.give_back():
                self._book.forget(self.seq)
                if isinstance(error, NoRoom):
                    raise TooLarge(error.needed_bytes, error.limit_bytes) from error
                raise
            if isinstance(error, Cancelled):
                return False
            interruption.unshield()  # word of it was late, no more
        self._tell_handed_over()
        self._progress.state("delivered", "A DisposableVM has it…")
        return True

    def show(self, reply: Reply) -> None:
        """A state of a request."""
        match reply.state:
            case "asking":
                self._progress.state("asking", "Waiting for an answer in dom0…")
            case "accepted" if self._sending:
                self._tell_handed_over()
                if reply.detail == "preparing":
                    self._tell("preparing", "the savefile of the DisposableVMs is being made first")
                    return
                self._progress.state("starting", "A DisposableVM is being made…")

    def watch(self, open_store: Callable[[float], Store], interruption: Interruption) -> None:
        """Wait until the document is closed, and tell of its stages; returns if it is unchanged, or has its changes.

        Raises :exc:`Beside`, :exc:`NoProgram`, :exc:`Ended`, the errors of this module, and Cancelled.
        """
        delivered_at = heard_at = self._clock()
        ask_at = delivered_at
        deadline_s: float | None = None
        told: Stage | None = None
        why = ""
        while True:
            if (outcome := self._outcome()) and self._arrived(outcome, told):
                return
            if outcome is None and deadline_s is not None:
                if self._incoming.present():
                    deadline_s = self._clock() + ARRIVAL_S
                elif self._clock() >= deadline_s:
                    raise NotPlaced(self._document.name)
            if deadline_s is None and self._clock() >= ask_at:
                stage, why = self._stage(open_store)
                now = self._clock()
                ask_at = now + (ASK_SOON_S if now - delivered_at < SOON_S else ASK_S)
                if stage:
                    heard_at = now
                elif now - heard_at >= SILENCE_S:
                    raise NoWord(SILENCE_S, why)
                if stage and stage != told:
                    told = stage
                    if self._enter(stage):
                        return
                    deadline_s = now + ARRIVAL_S if stage.word == "returned" else None
            interruption.wait((), LOOK_S)

    def destroy(self, exchange: Exchange) -> bool:
        """Have the DisposableVM destroyed, and whatever was done in it; False if it is too late for that."""
        self._progress.state("destroying", "Destroying the DisposableVM…")
        reply = exchange.carry_out(Request("forget", seq=self.seq, request_id=fresh_id()))
        if reply.state != "cancelled":
            return False
        self._book.forget(self.seq)
        return True

    def _wait_ours(self, device: str, interruption: Interruption) -> None:
        """Wait until udev has given the disk to this user's group: on Xen it has its name before that."""
        deadline_s = self._clock() + DEVICE_S
        while not os.access(device, os.R_OK | os.W_OK) and self._clock() < deadline_s:
            interruption.wait((), LOOK_S)

    def _tell_handed_over(self) -> None:
        if not self._handed_over:
            self._handed_over = True
            self._tell("handed-over", "handed to dom0")

    def _tell(self, stage: str, text: str) -> None:
        self._progress.milestone(stage, text, self._clock() - self._began_at)

    def _outcome(self) -> Outcome | None:
        return None if self._view_only else self._book.outcome(self.seq)

    def _stage(self, open_store: Callable[[float], Store]) -> tuple[Stage | None, str]:
        """What dom0 tells of the document, or why nothing is heard."""
        try:
            with open_store(STORE_S) as store:
                return parse_stage(store.read(document_key(self.seq))), ""
        except NoEntry:
            return None, ""
        except (StoreLost, StoreError, BadStage) as error:
            return None, str(error)

    def _enter(self, stage: Stage) -> bool:
        """Tell of a new stage; whether it is a good end."""
        name = self._document.name
        match stage.word:
            case "starting":
                self._progress.state("starting", "A DisposableVM is being made…")
            case "preparing":
                self._tell("preparing", "the savefile of the DisposableVMs is being made first")
            case "open":
                self._tell("open", f"open in {stage.vm}")
            case "returning":
                self._tell("returning", "changed; on its way back")
                if self._incoming.mounted():
                    self._tell("blocked", f"unmount {self._incoming.folder}: the document waits for that")
            case "returned":
                self._progress.state("returned", "It is here; being put in its place…")
            case "unchanged":
                self._book.forget(self.seq)
                self._tell("unchanged", f"closed: {printable(name)} was not changed")
                return True
            case _:
                self._book.forget(self.seq)
                raise _ending(name, stage.why)
        return False

    def _arrived(self, outcome: Outcome, told: Stage | None) -> bool:
        """Whether the document is in its place. Raises where it is, if it is elsewhere."""
        name = self._document.name
        if outcome.word == FAILED:
            if outcome.why != self._failing:
                self._failing = outcome.why
                self._tell("not-placed", printable(outcome.why))
            return False
        self._book.drop_outcome(self.seq)
        if outcome.word == REPLACED:
            self._tell("replaced", f"returned: {printable(name)} now has the changes{f' of {told.vm}' if told and told.vm else ''}")
            return True
        if outcome.word == BESIDE:
            raise Beside(name, outcome.why, outcome.path)
        raise NotADocument(name, outcome.why)


def _ending(name: str, why: str) -> QfilexchgError:
    if why == "no-program":
        return NoProgram(name)
    if why == "kept-in-dom0":
        return Beside(name, "they could not be given back", "dom0, on a pendrive that the person there knows of")
    return Ended(name, why)


def main(arguments: Sequence[str] | None = None, slot: Slot = OUTGOING, incoming: Slot = INCOMING) -> int:
    progress = Progress(sys.stderr)
    try:
        order = parse(sys.argv[1:] if arguments is None else arguments)
        if order is None:
            sys.stdout.write(HELP)
            return DONE
        if order.report:
            from qfilexchg.guest.report import Report  # here, as a person at a terminal needs no JSON

            progress = Report(sys.stdout)
        _carry_out(order, slot, incoming, progress)
        return progress.done()
    except QfilexchgError as error:
        return progress.fail(_COMMAND, error, exit_status(error))
    except OSError as error:
        return progress.fail(_COMMAND, error, BROKEN)


def _carry_out(order: Order, slot: Slot, incoming: Slot, progress: Progress) -> None:
    if not order.view_only and not sequence.comes_back():
        raise CannotBeHeld(
            f"only documents of the account {sequence.ACCOUNT} can come back: run this as {sequence.ACCOUNT}, or use --view-only"
        )
    found = Document(order.file)
    book = sequence.book_in(sequence.home())
    book.tidy(sequence.this_boot(), time.time())
    opening = Opening(found, book, progress, incoming, view_only=order.view_only, clock=time.monotonic)
    with Interruption(progress.listener) as interruption:
        with Store.open() as store:
            progress.state("getting", "Asking dom0 for a pendrive…")
            in_time = opening.deliver(Outgoing(Exchange(store, interruption), opening.show), slot, interruption)
        if in_time and not order.wait:
            return
        # A terminal or window that is closed must not take with it what is worked on elsewhere.
        interruption.dismiss()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            if not in_time:
                raise Cancelled
            opening.watch(Store.open, interruption)
            return
        except Cancelled:
            interruption.shield()
            with Store.open() as store:
                if opening.destroy(Exchange(store, interruption)):
                    raise
    progress.milestone("too-late", "It is too late to stop: the document is closed there. Ctrl-C again ends the waiting alone.")
    with Interruption() as interruption:
        opening.watch(Store.open, interruption)


if __name__ == "__main__":
    sys.exit(main())
