"""The two programs of the desktop, between their command lines and their last window. :mod:`.start` starts them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import gi  # type: ignore[import-not-found]

from qfilexchg.guest import outcome
from qfilexchg.guest.arguments import REPORT
from qfilexchg.guest.desktop import widgets
from qfilexchg.guest.desktop.destination_window import TITLE, DestinationWindow
from qfilexchg.guest.desktop.destinations import Destinations
from qfilexchg.guest.desktop.local_files import NotLocal, local_paths
from qfilexchg.guest.desktop.opening import Opening
from qfilexchg.guest.desktop.progress_window import ProgressWindow
from qfilexchg.guest.desktop.running import Running
from qfilexchg.guest.desktop.sending import Sending
from qfilexchg.guest.desktop.showing import Refused, Showing, things
from qfilexchg.protocol.names import VmName

gi.require_version("Gdk", "3.0")
gi.require_version("Gtk", "3.0")
from gi.repository import Gdk, GLib, Gtk  # type: ignore[import-not-found]  # noqa: E402

OPEN_TITLE: Final = "Open in DisposableVM"


def can_show() -> bool:
    """Whether there is a display for windows."""
    return Gdk.Display.get_default() is not None


class Shown:
    """A run of a tool and its window, which the person waits for unless it comes ``by_itself``."""

    def __init__(self, program: Program, title: str, *, by_itself: bool = False) -> None:
        self._program = program
        self._running: Running | None = None
        self.showing: Showing | None = None
        self.window = ProgressWindow(title, self._cancel, self._keep, self._close, self.retry, by_itself=by_itself)
        program.windows.append(self)

    def refuse(self, why: str) -> None:
        """Show why nothing is begun."""
        self.showing = Refused(why)
        self.update()

    def run(self, argv: Sequence[str], shown: Showing) -> None:
        self.showing = shown
        self.update()
        self._running = Running(argv, shown, self.update, self.ended)

    def update(self) -> None:
        if self.showing and self in self._program.windows:
            self.window.update(self.showing.view)

    def ended(self) -> None:
        """The tool is gone."""

    def cancelled(self) -> None:
        """The person has cancelled it. The tool may find that it is too late."""

    def retry(self, offer: str) -> None:
        """The person has taken an offer."""

    def _cancel(self) -> None:
        if self.showing and self.showing.cancel():
            if self._running:
                self._running.cancel()
            self.cancelled()
        self.update()

    def _keep(self) -> None:
        if self.showing:
            self.showing.keep()
        self.update()

    def _close(self) -> None:
        self.window.destroy()
        self._program.windows.remove(self)
        self._program.end_if_idle()


class Program(ABC):
    """Ends when it has no window and nothing to do any more."""

    def __init__(self) -> None:
        self.windows: list[Shown] = []
        self.status = outcome.DONE

    def run(self) -> int:
        widgets.use_style()
        GLib.idle_add(self._begin)
        Gtk.main()
        return self.status

    def _begin(self) -> bool:
        try:
            self.begin()
        except BaseException:  # GTK would only print it, and wait for a window that never comes
            self.status = outcome.BROKEN
            Gtk.main_quit()
            raise
        return False

    @abstractmethod
    def begin(self) -> None:
        """Show the first window; without one it ends."""

    def end_if_idle(self) -> None:
        if not self.windows:
            Gtk.main_quit()

    def local(self, arguments: Sequence[str], title: str) -> list[str]:
        """The files that are meant; none if that is shown to be impossible."""
        try:
            return local_paths(arguments, GLib.get_user_runtime_dir())
        except NotLocal as error:
            self.status = outcome.CANNOT_BE_HELD
            Shown(self, title).refuse(str(error))
            return []


class SendToVm(Program):
    """Asks for the destination, and sends."""

    command: ClassVar[Sequence[str]] = ("/usr/bin/qvm-copy-to-vm",)

    def __init__(self, arguments: Sequence[str]) -> None:
        super().__init__()
        self._arguments = arguments
        self.known = Destinations.of(os.environ)

    def begin(self) -> None:
        paths = self.local(self._arguments, TITLE)
        if paths:
            self._question: Any = DestinationWindow(things(paths), self.known, lambda vm: self._answered(paths, vm))

    def _answered(self, paths: Sequence[str], vm: VmName | None) -> None:
        self._question.destroy()
        if vm is None:
            self.status = outcome.CANCELLED
            Gtk.main_quit()
        else:
            _Sent(self, paths, vm).start(())


class _Sent(Shown):
    def __init__(self, program: SendToVm, paths: Sequence[str], vm: VmName) -> None:
        super().__init__(program, TITLE)
        self._sender = program
        self._paths = paths
        self._vm = vm
        self._options: tuple[str, ...] = ()

    def start(self, options: tuple[str, ...]) -> None:
        self._options = options
        argv = (*self._sender.command, REPORT, *options, self._vm, "--", *self._paths)
        self.run(argv, Sending(self._paths, self._vm, options))

    def retry(self, offer: str) -> None:
        self.start((*self._options, offer))

    def ended(self) -> None:
        status = self.showing.status if self.showing else None
        self._sender.status = outcome.BROKEN if status is None else status
        if status == outcome.DONE:
            self._sender.known.remember(self._vm)


class OpenInDvm(Program):
    """Opens documents, each in a DisposableVM of its own; the next when the one before has left this VM."""

    command: ClassVar[Sequence[str]] = ("/usr/bin/qvm-open-in-dvm",)

    def __init__(self, arguments: Sequence[str]) -> None:
        super().__init__()
        self._arguments = arguments
        self._waiting: list[str] = []

    def begin(self) -> None:
        self._waiting = self.local(self._arguments, OPEN_TITLE)
        self.next(by_itself=False)

    def next(self, *, by_itself: bool = True) -> None:
        """Open the next document, if there is one. Only the first is what the person is waiting for."""
        if self._waiting:
            path = self._waiting.pop(0)
            _Opened(self, by_itself=by_itself).start(path, len(self._waiting))

    def stop(self) -> int:
        """Open no more; how many would have followed."""
        count = len(self._waiting)
        self._waiting.clear()
        return count

    def end_if_idle(self) -> None:
        if not self._waiting:
            super().end_if_idle()


class _Opened(Shown):
    def __init__(self, program: OpenInDvm, *, by_itself: bool) -> None:
        super().__init__(program, OPEN_TITLE, by_itself=by_itself)
        self._opener = program
        self._followed = False

    def start(self, path: str, waiting: int) -> None:
        self.run((*self._opener.command, REPORT, "--", path), Opening(path, waiting))

    def update(self) -> None:
        super().update()
        if self.showing and self.showing.handed_over and not self._followed:
            self._followed = True
            self._opener.next()

    def cancelled(self) -> None:
        self._stop()

    def ended(self) -> None:
        assert isinstance(self.showing, Opening)
        status = self.showing.status
        if status != outcome.DONE:
            self._opener.status = outcome.BROKEN if status is None else status
        if status in (outcome.CANNOT_BE_HELD, outcome.NO_ROOM) and not self._followed:  # that is this document's alone
            self._followed = True
            self._opener.next()
        else:
            self._stop()
            self.update()
            self._opener.end_if_idle()

    def _stop(self) -> None:
        """Those that wait behind this one are not opened."""
        if not self._followed and isinstance(self.showing, Opening):
            self._followed = True
            self.showing.not_followed(self._opener.stop())
