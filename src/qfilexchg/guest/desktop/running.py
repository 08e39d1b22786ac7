"""A VM tool as a child of the window that shows it.

It is cancelled by SIGINT, as at a terminal. If the window's process dies, the tool notices that nobody reads its report any more, and
gives up, or goes on alone where a document is open elsewhere (:mod:`qfilexchg.guest.interruption`).
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import Any, Final

import gi  # type: ignore[import-not-found]

from qfilexchg.guest.desktop.showing import STDERR_MAX, Showing

gi.require_version("Gio", "2.0")
from gi.repository import Gio, GLib  # type: ignore[import-not-found]  # noqa: E402

_READ_BYTES: Final = 4096


class Running:
    """One run of ``argv``. ``changed`` is called when there is something new to see, ``ended`` once, when the tool is gone."""

    def __init__(self, argv: Sequence[str], showing: Showing, changed: Callable[[], None], ended: Callable[[], None]) -> None:
        self._showing = showing
        self._changed = changed
        self._ended = ended
        self._said = b""
        self._open = 3
        """The two streams that are read and the process that is waited for."""
        try:
            self._process = Gio.Subprocess.new(list(argv), Gio.SubprocessFlags.STDOUT_PIPE | Gio.SubprocessFlags.STDERR_PIPE)
        except GLib.Error as error:
            self._process = None
            GLib.idle_add(self._not_started, error.message)
            return
        self._report = Gio.DataInputStream.new(self._process.get_stdout_pipe())
        self._read_line()
        self._read_stderr()
        self._process.wait_async(None, self._waited)

    def cancel(self) -> None:
        """Have the tool give up. What comes of it is told as all else."""
        if self._process:
            self._process.send_signal(signal.SIGINT)

    def _read_line(self) -> None:
        self._report.read_line_async(GLib.PRIORITY_DEFAULT, None, self._heard)

    def _heard(self, stream: Any, result: Any) -> None:
        try:
            line, _ = stream.read_line_finish_utf8(result)  # the other finish has no sign for the end
        except GLib.Error:
            line = None
        if line is None:
            self._close_one()
            return
        self._showing.hear(line)
        self._changed()
        self._read_line()

    def _read_stderr(self) -> None:
        self._process.get_stderr_pipe().read_bytes_async(_READ_BYTES, GLib.PRIORITY_DEFAULT, None, self._heard_stderr)

    def _heard_stderr(self, stream: Any, result: Any) -> None:
        try:
            data = stream.read_bytes_finish(result).get_data()
        except GLib.Error:
            data = b""
        if not data:
            self._close_one()
            return
        self._said = (self._said + data)[-STDERR_MAX:]
        self._read_stderr()

    def _waited(self, process: Any, result: Any) -> None:
        process.wait_finish(result)
        self._close_one()

    def _close_one(self) -> None:
        self._open -= 1
        if not self._open:
            self._gone()

    def _not_started(self, why: str) -> bool:
        self._showing.not_started(why)
        self._changed()
        self._ended()
        return False

    def _gone(self) -> None:
        status = self._process.get_exit_status() if self._process.get_if_exited() else None
        self._showing.ended(status, self._said.decode("utf-8", "replace"))
        self._changed()
        self._ended()
