"""The daemon: turns what happens into events for the exchange machine, and its effects into deeds.

One task owns the machine: it takes events from the inbox, one at a time, and carries out their effects in order. What takes long
(the hypervisor, the disk, the person) runs beside it and comes back as an event. This is the one place that knows all others; it
decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Final, assert_never

from qfilexchg.dom0.configuration import Configuration
from qfilexchg.dom0.consent import protocol as consent
from qfilexchg.dom0.consent.agents import Agents, Consent
from qfilexchg.dom0.exchange import messages as m
from qfilexchg.dom0.exchange import pendrives, policy, remembered, status
from qfilexchg.dom0.exchange.domains import Domains
from qfilexchg.dom0.exchange.journal import Journal
from qfilexchg.dom0.exchange.machine import Exchange
from qfilexchg.dom0.exchange.pace import Pace
from qfilexchg.dom0.exchange.phases import Place
from qfilexchg.dom0.exchange.policy import Action
from qfilexchg.dom0.exchange.state import Limits
from qfilexchg.dom0.exchange.watchers import NoWatching, Watchers, socket_path
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.hypervisor import DisposableMaker, Hypervisor, NoDisposable, RunningVm, Slot, VmId
from qfilexchg.errors import HostError, QfilexchgError
from qfilexchg.protocol.names import VmName
from qfilexchg.xenstore.client import Store

DETACH_AGAIN_S: Final = 5.0
"""Before a hypervisor that failed to take a disk from a VM, or to end one, is asked again."""
WELCOME_S: Final = 30.0
"""For the store to tell of a DisposableVM that runs. It takes some milliseconds, or something is broken."""
DOUBT_S: Final = (2.0, 6.0)
"""How long a destination that cannot be is 'asked about'. A VM that got this no at once would learn which VMs exist."""
REFUSED_S: Final = 1.0
"""Before a VM hears a no. Each is some lines in the log and one in the history, which a VM that asks on and on would fill."""
OUTCOMES_SHOWN: Final = 8
"""How many a status tells."""

log = logging.getLogger(__name__)


class Daemon:
    """The exchange of one home, between its store, its hypervisor and its person."""

    def __init__(
        self,
        home: Home,
        settings: Configuration,
        store: Store,
        hypervisor: Hypervisor,
        disposables: DisposableMaker,
        agents: Agents,
        journal: Journal,
        labels: Callable[[VmName], str | None],
    ) -> None:
        self._home = home
        self._settings = settings
        self._hypervisor = hypervisor
        self._disposables = disposables
        self._agents = agents
        self._journal = journal
        self._labels = labels
        self._inbox: asyncio.Queue[m.Event] = asyncio.Queue()
        self._domains = Domains(store, hypervisor, self._inbox.put_nowait)
        self._machine = Exchange(Limits(settings.pendrive_size_bytes, settings.pendrive_max_bytes, settings.disposables_max))
        self._pace = Pace()
        self._questions: dict[m.QuestionId, asyncio.Task[None]] = {}
        self._restores: dict[m.PendriveId, asyncio.Task[None]] = {}
        self._open: dict[int, status.Question] = {}
        """What the person is being asked."""
        self._watchers: Watchers | None = None

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until cancelled. ``ready`` is called once everything that was in flight is taken up again.

        Raises :exc:`~qfilexchg.xenstore.errors.StoreLost` when the store ends. Pendrives stay where they are: the next daemon
        goes on from the journal.
        """
        try:
            async with asyncio.TaskGroup() as tasks, contextlib.AsyncExitStack() as stack:
                self._tasks = tasks
                await self._sweep()
                await self._domains.start()
                while not self._inbox.empty():  # the VMs that run
                    await self._handle(self._inbox.get_nowait())
                await self._handle(await self._recover())
                tasks.create_task(self._domains.serve())
                await self._let_watch(stack)
                ready()
                while True:
                    await self._handle(await self._inbox.get())
        except ExceptionGroup as group:
            if group.split(HostError)[1] is None:  # the store, the hypervisor or the journal; anything else is a defect of ours
                raise next(_leaves(group)) from group
            raise

    async def _handle(self, event: m.Event) -> None:
        for effect in self._machine.handle(event):
            await self._carry_out(effect)
        self._changed()

    # What is where, for the person

    async def _let_watch(self, stack: contextlib.AsyncExitStack) -> None:
        """From now on; that it cannot be keeps nobody from copying."""
        serving = Watchers.serve(socket_path(self._home), self._home.agent_socket, lambda: status.encode(self.status()))
        try:
            self._watchers = await stack.enter_async_context(serving)
        except NoWatching as error:
            log.error("nobody can see what is where: %s", error)

    def _changed(self) -> None:
        if self._watchers:
            self._watchers.changed()

    def status(self) -> status.Status:
        """What is where now. Raises :exc:`~qfilexchg.dom0.exchange.journal.JournalFailed`."""
        entries, since = list(self._machine.entries), self._journal.since()
        return status.Status(
            time.time(),
            tuple(status.vms(self._machine.running, entries)),
            tuple(status.pendrive(entry, self._allocated(entry), since.get(entry.pendrive)) for entry in entries),
            tuple(self._open.values()),
            tuple(status.document(document, since.get(document.vm.id)) for document in self._machine.documents),
            tuple(status.outcome(outcome) for outcome in self._journal.history(OUTCOMES_SHOWN)),
        )

    # What was in flight when the last daemon ended

    async def _sweep(self) -> None:
        """End the DisposableVMs that nobody knows of. It comes first: the machine is never to see one of them run."""
        try:
            await self._disposables.sweep([document.vm.id for document in self._journal.documents()])
        except HostError as error:
            log.error("DisposableVMs that an earlier qfilexchgd made may still run: %s", error)

    async def _recover(self) -> m.Recovered:
        entries = self._journal.entries()
        running = (await self._hypervisor.running()).values()
        attached = {vm.id: await self._hypervisor.attached(vm.id) for vm in running}

        def place(entry: m.Entry) -> Place:
            image = self._image(entry.pendrive)
            if attached.get(entry.sender.id, {}).get(Slot.OUTGOING) == image:
                return Place.AT_SENDER
            if entry.receiver and attached.get(entry.receiver.id, {}).get(Slot.INCOMING) == image:
                return Place.AT_RECEIVER
            return Place.NOWHERE

        known = {self._image(entry.pendrive) for entry in entries}
        for image in sorted(set(self._home.spool.glob("*.img")) - known):
            await self._put_aside(image, [(vm, slot) for vm in running for slot, path in attached[vm.id].items() if path == image])
        found = tuple((entry, place(entry)) for entry in entries)
        for entry, where in found:
            log.info("%s was left %s, and is %s", entry.pendrive, entry.phase.value, where.value)
        return m.Recovered(found, tuple(self._journal.documents()))

    async def _put_aside(self, image: Path, holders: list[tuple[RunningVm, Slot]]) -> None:
        """An image of which the journal knows nothing: it was lost, say. No VM may keep it, and what it holds may be wanted."""
        try:
            for vm, slot in holders:
                await self._hypervisor.detach(vm.id, slot)
            kept = await pendrives.keep(image, self._home.kept)
        except HostError as error:
            log.error("an unknown pendrive stays where it is: %s", error)
        else:
            log.warning("a pendrive that the journal does not know is kept as %s", kept)

    # Effects

    async def _carry_out(self, effect: m.Effect) -> None:
        match effect:
            case m.Moved(entry, was):
                route = f"{entry.sender.name} → {entry.receiver.name if entry.receiver else '·'}"
                log.info("%s %s: %s → %s", entry.pendrive, route, was.value, entry.phase.value)
            case m.Record(entry):
                self._journal.put(entry)
            case m.Forget(pendrive):
                self._journal.forget(pendrive)
            case m.RecordDocument(document):
                log.info("%s, %s's document %d: %s", document.vm.name, document.asker.name, document.seq, document.fate.value)
                self._journal.put_document(document)
            case m.ForgetDocument(vm_id):
                self._journal.forget_document(vm_id)
            case m.Outcome(entry, text):
                self._journal.note_outcome(entry, self._allocated(entry) or 0, text)
            case m.Tell(vm, reply):
                await self._domains.tell(vm, reply)
            case m.Announce(receiver, source, seq, view_only):
                await self._domains.announce(receiver, source, seq, view_only=view_only)
            case m.Show(asker, seq, stage):
                await self._domains.show(asker, seq, stage)
            case m.ShowScreen(disposable):
                self._tasks.create_task(self._show_screen(disposable))
            case m.Notify(transfer, text):
                log.info("notice: %s", text)
                self._agents.notify(text, transfer)
            case m.Create() | m.Attach() | m.Detach() | m.Delete() | m.Keep():
                self._tasks.create_task(self._do(effect))
            case m.Restore(restored):
                self._restores[restored] = restore = self._tasks.create_task(self._restore(effect))
                restore.add_done_callback(lambda _: self._restores.pop(restored, None))
            case m.Stop(pendrive):
                # Not at once: a task that is cancelled before its first step never gets to where it answers.
                asyncio.get_running_loop().call_soon(self._stop, pendrive)
            case m.Destroy():
                self._tasks.create_task(self._destroy(effect))
            case m.Dissolve(vm_id):
                self._tasks.create_task(self._dissolve(vm_id))
            case m.Ask(question, pendrive):
                self._questions[question.id] = task = self._tasks.create_task(self._ask(question, pendrive))
                task.add_done_callback(lambda _: self._questions.pop(question.id))
            case m.Withdraw(question_id):
                if asking := self._questions.get(question_id):  # else its answer is in the inbox, and will be passed over
                    asking.cancel()
            case m.Remind(pendrive, question_id):
                expired = m.QueueExpired(pendrive, question_id)
                asyncio.get_running_loop().call_later(self._settings.queue_timeout_s, self._inbox.put_nowait, expired)
            case m.RemindDocument(vm_id):
                if self._settings.document_timeout_s:
                    document_expired = m.DocumentExpired(vm_id)
                    asyncio.get_running_loop().call_later(self._settings.document_timeout_s, self._inbox.put_nowait, document_expired)
            case _:
                assert_never(effect)

    async def _do(self, effect: m.Create | m.Attach | m.Detach | m.Delete | m.Keep) -> None:
        try:
            event = await self._done(effect)
        except QfilexchgError as error:
            log.error("%s: %s", effect.pendrive, error)
            event = self._not_done(effect, str(error))
        except Exception:  # a defect in one place must not end what others have under way
            log.exception("%s: %s", effect.pendrive, effect)
            event = self._not_done(effect, "an internal error, see the log")
        self._inbox.put_nowait(event)

    async def _done(self, effect: m.Create | m.Attach | m.Detach | m.Delete | m.Keep) -> m.Event:
        image = self._image(effect.pendrive)
        match effect:
            case m.Create(pendrive, size_bytes, label):
                await pendrives.create(self._home.spool, pendrive, size_bytes, label)
                return m.Created(pendrive, pendrives.allocated_bytes(image))
            case m.Attach(pendrive, vm, slot):
                await self._pace.wait(vm.id)
                await self._hypervisor.attach(vm.id, slot, image)
                return m.Attached(pendrive)
            case m.Detach(pendrive, vm, slot, again):
                if again:
                    await asyncio.sleep(DETACH_AGAIN_S)
                await self._hypervisor.detach(vm.id, slot)
                return m.Detached(pendrive)
            case m.Delete(pendrive):
                await pendrives.delete(image)
                return m.Deleted(pendrive)
            case m.Keep(pendrive):
                return m.Kept(pendrive, str(await pendrives.keep(image, self._home.kept)))

    def _not_done(self, effect: m.Create | m.Attach | m.Detach | m.Delete | m.Keep, why: str) -> m.Event:
        """What the machine is told of a failure. An image that is attached nowhere is left where it is: the person can do the rest."""
        match effect:
            case m.Delete(pendrive):
                self._agents.notify(f"a pendrive is left behind: {why}")
                return m.Deleted(pendrive)
            case m.Keep(pendrive):
                return m.Kept(pendrive, str(self._image(pendrive)))
            case m.Create(pendrive) | m.Attach(pendrive) | m.Detach(pendrive):
                return m.Failed(pendrive, why)

    # DisposableVMs

    async def _restore(self, effect: m.Restore) -> None:
        event: m.Event = m.Failed(effect.pendrive, "an internal error, see the log", "no-disposable")
        try:
            event = m.Restored(effect.pendrive, await self._make(effect))
        except NoDisposable as error:
            log.error("%s: %s", effect.pendrive, error)
            event = m.Failed(effect.pendrive, str(error), error.word)
        except QfilexchgError as error:
            log.error("%s: %s", effect.pendrive, error)
            event = m.Failed(effect.pendrive, str(error), "no-disposable")
        except asyncio.CancelledError:
            event = m.Failed(effect.pendrive, "cancelled", "no-disposable")
            raise
        except Exception:
            log.exception("%s: %s", effect.pendrive, effect)
        finally:
            self._inbox.put_nowait(event)

    def _stop(self, pendrive: m.PendriveId) -> None:
        if restoring := self._restores.get(pendrive):  # else its result is in the inbox
            restoring.cancel()

    async def _make(self, effect: m.Restore) -> RunningVm:
        """A DisposableVM that the machine has heard of, or none."""
        vm = await self._disposables.make(effect.asker, lambda step: self._inbox.put_nowait(m.Preparing(effect.pendrive, step)))
        try:
            async with asyncio.timeout(WELCOME_S):
                await self._domains.welcomed(vm.id)
        except TimeoutError:
            await self._unmake(effect, vm)
            raise NoDisposable(f"the store does not tell of {vm.name}, which runs") from None
        except BaseException:
            await self._unmake(effect, vm)
            raise
        return vm

    async def _unmake(self, effect: m.Restore, vm: RunningVm) -> None:
        """Returns when it is gone: its pendrive waits so long, as the machine does not know of the VM and would not destroy it."""
        self._restores.pop(effect.pendrive, None)  # there is nothing left to stop
        destroy = m.Destroy(vm)
        while isinstance(await self._destroyed(destroy), m.DestroyFailed):
            destroy = m.Destroy(vm, again=True)
        await self._dissolve(vm.id)

    async def _destroy(self, effect: m.Destroy) -> None:
        self._inbox.put_nowait(await self._destroyed(effect))

    async def _destroyed(self, effect: m.Destroy) -> m.Destroyed | m.DestroyFailed:
        if effect.again:
            await asyncio.sleep(DETACH_AGAIN_S)
        try:
            await self._hypervisor.kill(effect.vm.id)
        except QfilexchgError as error:
            log.error("%s is not destroyed, trying again: %s", effect.vm.name, error)
        except Exception:
            log.exception("%s", effect)
        else:
            return m.Destroyed(effect.vm.id)
        return m.DestroyFailed(effect.vm.id)

    async def _show_screen(self, vm: RunningVm) -> None:
        try:
            if socket := await self._hypervisor.screen(vm.id):
                await self._agents.show(consent.Screen(vm.name, str(socket)))
        except Exception:  # the document is open all the same, and the person can have its screen by qvm-start
            log.exception("the screen of %s is not shown", vm.name)

    async def _dissolve(self, vm: VmId) -> None:
        try:
            await self._disposables.forget(vm)
        except QfilexchgError as error:
            log.error("of domain %d something is left: %s", vm.domain, error)
        except Exception:
            log.exception("of domain %d something is left", vm.domain)

    def _allocated(self, entry: m.Entry) -> int | None:
        """How much the VM has written, or None where there is no image."""
        try:
            return self._used_bytes(entry)
        except HostError:
            return None

    def _used_bytes(self, entry: m.Entry) -> int:
        return pendrives.used_bytes(self._image(entry.pendrive), entry.baseline_bytes)

    def _image(self, pendrive: m.PendriveId) -> Path:
        return pendrives.image_path(self._home.spool, pendrive)

    # Consent

    async def _ask(self, question: m.Question, pendrive: m.PendriveId) -> None:
        try:
            allow, why = await self._decide(question, pendrive)
        except Exception:
            log.exception("question %d", question.id)
            allow, why = False, "an internal error, see the log"
        if not allow:
            await asyncio.sleep(REFUSED_S)
        target = question.target_name or "DisposableVM"
        log.info("%s → %s: %s, %s", question.source.name, target, "allowed" if allow else "denied", why)
        self._inbox.put_nowait(m.Answered(question.id, allow, why))

    async def _decide(self, question: m.Question, pendrive: m.PendriveId) -> tuple[bool, str]:
        """Ask the rules, then the person if the rules say so or the receiver is busy. Whatever goes wrong is a no."""
        rules = await asyncio.to_thread(policy.load, (policy.SYSTEM_FOLDER, self._home.policy))
        verdict = rules.decide(question.source.name, question.target_name)
        if verdict.action is Action.DENY:
            return False, verdict.reason
        if question.doubt:
            if len(self._agents):  # without one, every question is denied at once
                await asyncio.sleep(random.uniform(*DOUBT_S))  # noqa: S311  no secret: it only blurs a delay
            return False, question.doubt
        if verdict.action is Action.ALLOW and not question.busy:
            return True, verdict.reason
        allowed = verdict.action is Action.ALLOW or question.kind is m.QuestionKind.WAIT
        entry = next(entry for entry in self._machine.entries if entry.pendrive == pendrive)
        try:
            size_bytes = self._used_bytes(entry)
        except HostError as error:
            return False, str(error)
        answer = await self._put(
            consent.Question(
                id=question.id,
                kind=consent.Kind.WAIT if allowed else consent.Kind.COPY,
                source=question.source.name,
                source_label=self._labels(question.source.name),
                target=question.target_name,
                target_label=self._labels(question.target_name) if question.target_name else None,
                size_bytes=size_bytes,
                busy=question.busy,
                can_remember=(can_remember := not allowed and remembered.would_hold(self._home.policy, verdict.rule)),
                deadline_s=self._settings.question_timeout_s,
            )
        )
        if answer is Consent.ALWAYS and can_remember:
            await self._remember(question)
        return bool(answer), answer.value

    async def _remember(self, question: m.Question) -> None:
        """Make the person's answer a rule of theirs. Where that fails, it was a yes for this once."""
        source, target = question.source.name, question.target_name
        try:
            await asyncio.to_thread(remembered.remember, self._home.policy, source, target, datetime.now().astimezone().date())
        except QfilexchgError as error:
            log.error("an answer is not remembered: %s", error)
            self._agents.notify(f"{source} → {target or 'DisposableVM'}: allowed this once, and not remembered: {error}")

    async def _put(self, question: consent.Question) -> Consent:
        """Put a question to the person; the status tells it while it is open."""
        self._open[question.id] = status.question(question, time.time())
        self._changed()
        try:
            return await self._agents.ask(question)
        finally:
            del self._open[question.id]
            self._changed()


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
