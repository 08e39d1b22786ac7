"""The window of one run of a tool. Thin: :mod:`.showing` decides what is to be seen, and whoever made the window what a button does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import gi  # type: ignore[import-not-found]

from qfilexchg.guest.desktop.sending import ARCHIVE, SKIP
from qfilexchg.guest.desktop.showing import View
from qfilexchg.guest.desktop.widgets import MARGIN, Passage, box, button, label, name, scrolled, write

gi.require_version("Gtk", "3.0")
gi.require_version("Gdk", "3.0")
from gi.repository import Gdk, GLib, Gtk  # type: ignore[import-not-found]  # noqa: E402

PULSE_MS: Final = 120
REALLY_MS: Final = 1000
"""For so long the button that destroys cannot be pressed the second time: a double click is no second thought."""
LIST_HEIGHT: Final = 140
OFFERS: Final = {SKIP: "_Leave these out", ARCHIVE: "_Pack all into one tar file"}


class ProgressWindow:
    """``cancel`` is called when the person wants it to end, ``keep`` when they were asked again and do not, ``close`` when they have done
    with the window, ``retry`` with an offer. One that comes ``by_itself`` leaves the keyboard where it is."""

    def __init__(
        self,
        title: str,
        cancel: Callable[[], None],
        keep: Callable[[], None],
        close: Callable[[], None],
        retry: Callable[[str], None],
        *,
        by_itself: bool,
    ) -> None:
        self._cancel = cancel
        self._keep = keep
        self._close = close
        self._retry = retry
        self._view: View | None = None
        self._timer = 0
        self._hesitation = 0
        window = self._window = Gtk.Window(title=title, resizable=False, type_hint=Gdk.WindowTypeHint.NORMAL)
        window.set_position(Gtk.WindowPosition.CENTER)
        window.set_icon_name("document-send")
        window.set_focus_on_map(not by_itself)
        window.connect("delete-event", self._leave)
        window.connect("key-press-event", self._key)

        self._heading = label("", "qfx-heading", width=40)
        self._text = Passage()
        self._bar = Gtk.ProgressBar()
        name(self._bar, "Progress")
        self._counts = label("", "qfx-dim")
        self._notes = Passage("qfx-dim")
        self._problems = label("")
        self._problems.set_selectable(True)
        self._problems.set_can_focus(False)
        self._problems.set_yalign(0.0)
        for margin in ("start", "end", "top", "bottom"):
            self._problems.set_property(f"margin-{margin}", 8)
        self._list = scrolled(self._problems, LIST_HEIGHT)
        page = box(Gtk.Orientation.VERTICAL, 12, margin=MARGIN)
        page.set_size_request(460, -1)
        for part in (self._heading, *self._text.parts, self._bar, self._counts, self._list, *self._notes.parts, self._buttons()):
            page.add(part)
        page.show_all()
        passages = (*self._text.parts, *self._notes.parts)
        for part in (*passages, self._bar, self._counts, self._list, self._keep_button, *self._offers.values()):
            part.set_no_show_all(True)
            part.hide()
        window.add(page)
        self._pulse = GLib.timeout_add(PULSE_MS, self._alive)

    def update(self, view: View) -> None:
        """Show how things stand."""
        before, self._view = self._view, view
        write(self._heading, view.heading)
        self._text.write(view.text)
        self._notes.write("\n".join(view.notes))
        write(self._counts, view.counts)
        self._counts.set_visible(bool(view.counts))
        write(self._problems, "\n".join(view.problems))
        self._list.set_visible(bool(view.problems))
        self._bar.set_visible(view.working)
        if view.fraction is not None:
            self._bar.set_fraction(view.fraction)
        elif before and before.fraction is not None:
            self._bar.pulse()  # what has been copied is not what is waited for now
        for option, offer in self._offers.items():
            offer.set_visible(option in view.offers)
        if view.confirming != bool(before and before.confirming):
            self._ask_again(view.confirming)
        self._show_way_out(view)
        ends = bool(view.end and not (before and before.end))
        if ends:
            self._ended(view)
        if before is None:
            self._window.show()
            if self._window.get_focus_on_map():
                self._window.present_with_time(Gdk.CURRENT_TIME)
        elif view.aside and not before.aside:
            self._keep_aside()
        elif (before.aside and not view.aside) or (ends and self._is_icon()):
            self._come_forward()

    def destroy(self) -> None:
        GLib.source_remove(self._pulse)
        for timer in (self._timer, self._hesitation):
            if timer:
                GLib.source_remove(timer)
        self._window.destroy()

    def _buttons(self) -> Any:
        row = box(Gtk.Orientation.HORIZONTAL, 10)
        row.set_halign(Gtk.Align.END)
        self._offers = {option: button(word) for option, word in OFFERS.items()}
        for option, offer in self._offers.items():
            offer.connect("clicked", lambda _, option=option: self._retry(option))
            row.add(offer)
        self._keep_button = button("_Keep it")
        self._keep_button.connect("clicked", lambda _: self._keep())
        row.add(self._keep_button)
        self._way_out = button("_Cancel")
        self._way_out.connect("clicked", self._pressed)
        row.add(self._way_out)
        return row

    def _ask_again(self, asks: bool) -> None:
        """What destroys something is asked about by a second button, and that it is kept is what a key means."""
        if self._hesitation:
            GLib.source_remove(self._hesitation)
            self._hesitation = 0
        self._keep_button.set_visible(asks)
        if asks:
            self._hesitation = GLib.timeout_add(REALLY_MS, self._has_hesitated)
        certain = self._keep_button if asks else self._way_out
        self._window.set_default(certain)
        certain.grab_focus()

    def _has_hesitated(self) -> bool:
        self._hesitation = 0
        if self._view:
            self._show_way_out(self._view)
        return False

    def _show_way_out(self, view: View) -> None:
        """One button: it cancels what runs, and closes the window of what has ended."""
        word = f"_{view.cancel or ('Close' if view.can_leave else 'Cancel')}"
        if self._way_out.get_label() != word:
            self._way_out.set_label(word)
        can_be_pressed = (bool(view.cancel) or view.can_leave) and not self._hesitation
        if self._way_out.get_sensitive() != can_be_pressed:
            self._way_out.set_sensitive(can_be_pressed)

    def _ended(self, view: View) -> None:
        self._window.set_default(self._way_out)
        self._way_out.grab_focus()
        if view.closes_s is not None:
            self._timer = GLib.timeout_add(round(view.closes_s * 1000), self._time_is_over)

    def _time_is_over(self) -> bool:
        self._timer = 0
        self._close()
        return False

    def _come_forward(self) -> None:
        """Be seen, but leave the keyboard where it is: what is typed elsewhere meanwhile must not press a button here."""
        if not self._window.is_active():
            self._window.hide()  # it comes as a new window: one that stops being an icon gets the keyboard, whatever it asks for
            self._window.set_focus_on_map(False)
        self._window.deiconify()
        self._window.show()

    def _keep_aside(self) -> None:
        self._window.iconify()

    def _is_icon(self) -> bool:
        return bool(self._window.get_window().get_state() & Gdk.WindowState.ICONIFIED)

    def _alive(self) -> bool:
        if self._view and self._view.working and self._view.fraction is None:
            self._bar.pulse()
        return True

    def _key(self, _window: Any, event: Any) -> bool:
        if event.keyval == Gdk.KEY_Escape:
            return self._leave()
        return False

    def _leave(self, *_event: object) -> bool:
        """The person does not want to see the window any more."""
        view = self._view
        if view and view.stays:
            self._keep_aside()
        elif view and view.confirming:
            self._keep()
        elif view and view.cancel:
            self._cancel()
        elif view and view.can_leave:
            self._close()
        return True

    def _pressed(self, *_event: object) -> None:
        if self._view and self._view.cancel:
            self._cancel()
        elif self._view and self._view.can_leave:
            self._close()
