"""The DisposableVMs that were made for documents: for whom each is, how far it is, and what its asker is told of it.

Part of the exchange machine, and as pure. It knows no pendrives: the machine says what becomes of those. What always holds:

* a DisposableVM that is known here is destroyed, whatever happens, also if it has ended by itself: one :class:`~messages.Destroy` after
  the other is under way until it is gone;
* it is forgotten, here and in the journal, only when it is gone and its asker has been told of it;
* what it may return, it may return once, and to one run of one VM.

Every step is written to the journal before it is carried out, and what an asker is told before the DisposableVM is forgotten, so
that a daemon that starts can take each up again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace

from qfilexchg.dom0.exchange import messages as m
from qfilexchg.dom0.exchange.messages import ENDINGS, Document, Fate
from qfilexchg.dom0.vms.hypervisor import RunningVm, VmId
from qfilexchg.protocol.qpen import Request
from qfilexchg.protocol.stages import Stage

SHOWN_MAX = 32
"""Documents of which one VM is told at a time. Above it the oldest that is over is not told any more: each is a key in dom0's store."""

_FAILURES = {
    Fate.NO_PROGRAM: "failed, nothing in it opens the document",
    Fate.BAD_DOCUMENT: "failed, there was no document on the pendrive",
    Fate.FAILED: "failed, it could not go on with the document",
}
"""What the person is told of a DisposableVM that gave its document up."""


class Documents:
    """Every DisposableVM with a document. Effects go to ``emit``."""

    def __init__(self, emit: Callable[[m.Effect], None]) -> None:
        self._emit = emit
        self._documents: dict[VmId, Document] = {}
        self._destroying: dict[VmId, RunningVm] = {}
        """VMs of which a Destroy is under way."""
        self._shown: dict[VmId, OrderedDict[int, Stage | None]] = {}
        """For each VM that runs, what its keys tell of its documents; None is what this daemon does not know."""

    def __iter__(self) -> Iterator[Document]:
        return iter(self._documents.values())

    def __contains__(self, vm: VmId) -> bool:
        return vm in self._documents

    def __len__(self) -> int:
        return len(self._documents)

    # VMs

    def vm_started(self, vm: VmId, shown: Mapping[int, Stage | None]) -> None:
        """A VM runs, whose keys tell what is ``shown`` already."""
        self._shown[vm] = OrderedDict(shown)

    def end_shown(self, vm: VmId, under_way: Collection[int] = ()) -> None:
        """Tell a VM that its documents have ended of which its keys tell otherwise, but for those ``under_way``."""
        for seq, stage in list(self._shown[vm].items()):
            if stage is None or stage.final or seq in under_way:
                continue
            why = "kept-in-dom0" if stage.word == "returning" else "killed"
            self.show(vm, seq, Stage("ended", stage.vm, why) if stage.vm else None)

    def vm_stopped(self, vm: VmId) -> None:
        """A VM runs no more: with an asker goes what was made for it."""
        self._shown.pop(vm, None)
        for document in list(self):
            if document.asker.id == vm:
                self.end(document.vm.id, Fate.KILLED)
        self.end(vm, Fate.KILLED)
        if stopped := self._documents.get(vm):
            self.destroy(stopped.vm)  # what has stopped may still be there, and hold what it had

    # The life of a DisposableVM

    def begin(self, vm: RunningVm, asker: RunningVm, seq: int, *, view_only: bool) -> None:
        """The document goes to ``vm``. One that is known is a success."""
        if vm.id not in self._documents:
            self._put(Document(vm, asker, seq, view_only, Fate.BROUGHT))
            self._emit(m.RemindDocument(vm.id))
            self._show_progress(vm.id)

    def abandon(self, vm: RunningVm, asker: RunningVm, seq: int) -> None:
        """``vm`` was made for a document that is not wanted any more."""
        self._put(Document(vm, asker, seq, True, Fate.UNDELIVERED))
        self.destroy(vm)

    def delivered(self, vm: VmId) -> None:
        """It has the pendrive; one that is being destroyed as it came too late has it for nothing."""
        match self._documents.get(vm):
            case Document(fate=Fate.BROUGHT) as document:
                self._put(replace(document, fate=Fate.DELIVERED))
                self._emit(m.ShowScreen(document.vm))
            case Document(fate=Fate.UNDELIVERED) as document:
                self._put(replace(document, fate=Fate.KILLED))

    def opened(self, vm: VmId) -> None:
        """It has taken the document from the pendrive."""
        match self._documents.get(vm):
            case Document(fate=Fate.DELIVERED) as document:
                self._put(replace(document, fate=Fate.OPEN))
                self._show_progress(vm)

    def end(self, vm: VmId, fate: Fate) -> None:
        """Have it destroyed; ``fate`` says why. One that is being destroyed, or is not known, is a success."""
        document = self._documents.get(vm)
        if document is None or document.fate in ENDINGS:
            return
        self._put(replace(document, fate=Fate.UNDELIVERED if document.fate is Fate.BROUGHT else fate))
        self.destroy(document.vm)

    def destroy(self, vm: RunningVm) -> None:
        """End a VM, unless that is under way."""
        if vm.id not in self._destroying:
            self._destroying[vm.id] = vm
            self._emit(m.Destroy(vm))

    def destroyed(self, vm: VmId) -> None:
        """The Destroy that was under way is over, and the VM gone."""
        del self._destroying[vm]
        self._settle(vm)

    def destroy_failed(self, vm: VmId) -> None:
        """The Destroy that was under way is over, and the VM may still run."""
        self._emit(m.Destroy(self._destroying[vm], again=True))

    def recover(self, document: Document, *, runs: bool, asker_runs: bool, bound: bool, returning: bool) -> None:
        """Take up what the journal has.

        ``bound``: there is a pendrive that goes to it or is in it; ``returning``: one that it has sent back.
        """
        vm = document.vm.id
        self._documents[vm] = document
        if returning and document.fate not in ENDINGS:
            self._put(replace(document, fate=Fate.RETURNING))
        fate = self._documents[vm].fate
        if not runs or fate in ENDINGS:
            self.destroy(document.vm)  # one of which a new store does not know may run all the same
        elif not asker_runs or (fate is Fate.BROUGHT and not bound):
            self.end(vm, Fate.KILLED)
        else:
            self._emit(m.RemindDocument(vm))
            self._show_progress(vm)

    # What may be asked

    def served(self, vm: VmId) -> Document | None:
        """The document of that VM, if it has one, and some time to live."""
        document = self._documents.get(vm)
        return document if document and document.fate not in ENDINGS else None

    def of(self, asker: VmId, seq: int) -> Document | None:
        """The document that ``asker`` calls ``seq``."""
        return next((document for document in self if document.asker.id == asker and document.seq == seq), None)

    def returns(self, vm: VmId, request: Request) -> tuple[RunningVm | None, str]:
        """The asker to whom the pendrive goes back that ``vm`` sends, or None and why it must not, for the person."""
        document = self._documents.get(vm)
        if document is None or document.fate in ENDINGS:
            return None, "it has no document"
        if request.target is None:
            return None, "a DisposableVM gets no other"
        if request.target != document.asker.name or document.asker.id not in self._shown:
            return None, "its document is of another VM"
        if request.seq != document.seq:
            return None, "its document has another number"
        if document.view_only:
            return None, "its document is only to be looked at"
        if document.fate is Fate.BROUGHT:
            return None, "it has not got its document yet"
        return document.asker, ""

    # What askers are told

    def show(self, asker: VmId, seq: int, stage: Stage | None) -> None:
        """Tell ``asker`` how far its document is. None: nothing is told of it any more."""
        shown = self._shown.get(asker)
        if shown is None:
            return
        if stage is None:
            if seq in shown:
                del shown[seq]
                self._emit(m.Show(asker, seq, None))
        elif shown.get(seq) != stage:
            shown[seq] = stage
            shown.move_to_end(seq)
            self._emit(m.Show(asker, seq, stage))
            over = [number for number, known in shown.items() if known is None or known.final]
            if len(shown) > SHOWN_MAX and over:
                self.show(asker, over[0], None)

    def tell(self, document: Document, text: str) -> None:
        """Tell the person what became of it."""
        self._emit(m.Notify(document.transfer, f"{document.asker.name} → {document.vm.name}: {text}"))

    def _show_progress(self, vm: VmId) -> None:
        document = self._documents[vm]
        opened = document.fate is Fate.OPEN
        self.show(document.asker.id, document.seq, Stage("open", document.vm.name) if opened else Stage("starting"))

    def _settle(self, vm: VmId) -> None:
        """It has ended: tell its asker, and forget it."""
        document = self._documents.get(vm)
        if document is None or vm in self._destroying:
            return
        match document.fate:
            case Fate.RETURNING:
                pass  # what is told is where the pendrive is
            case Fate.BROUGHT | Fate.UNDELIVERED:
                self.show(document.asker.id, document.seq, None)  # the reply has told it
            case Fate.UNCHANGED:
                self.show(document.asker.id, document.seq, Stage("unchanged", document.vm.name))
            case Fate.NO_PROGRAM | Fate.BAD_DOCUMENT | Fate.FAILED:
                self.show(document.asker.id, document.seq, Stage("ended", document.vm.name, document.fate.value))
                self.tell(document, _FAILURES[document.fate])
            case _:
                self.show(document.asker.id, document.seq, Stage("ended", document.vm.name, "killed"))
        del self._documents[vm]
        self._emit(m.ForgetDocument(vm))
        self._emit(m.Dissolve(vm))

    def _put(self, document: Document) -> None:
        self._documents[document.vm.id] = document
        self._emit(m.RecordDocument(document))
