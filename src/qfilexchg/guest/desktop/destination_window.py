"""The small dialog that asks to which VM something is to go: a name is typed, or taken from those used before.

What stands in the field is what is meant: the list gets shorter as one types, and nothing is completed behind one's back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import gi  # type: ignore[import-not-found]

from qfilexchg.guest.desktop.destinations import Destinations, chosen, matching
from qfilexchg.guest.desktop.widgets import MARGIN, box, button, label, name, scrolled
from qfilexchg.protocol.names import NAME_MAX, VmName

gi.require_version("Gtk", "3.0")
gi.require_version("Gdk", "3.0")
from gi.repository import Gdk, Gtk  # type: ignore[import-not-found]  # noqa: E402

TITLE: Final = "Send to VM"
LIST_HEIGHT: Final = 150


class DestinationWindow:
    """``answer`` is called once: with the VM, or None if nothing is to be sent."""

    def __init__(self, what: str, known: Destinations, answer: Callable[[VmName | None], None]) -> None:
        self._known = known
        self._answer = answer
        window = self._window = Gtk.Window(title=TITLE, resizable=False, type_hint=Gdk.WindowTypeHint.DIALOG)
        window.set_position(Gtk.WindowPosition.CENTER)
        window.set_icon_name("document-send")
        window.connect("delete-event", self._cancel)
        window.connect("key-press-event", self._key)

        heading = label(f"Send {what} to which VM?", "qfx-heading", width=40)
        self._entry = Gtk.Entry(activates_default=True, max_length=NAME_MAX + 1, placeholder_text="Name of the VM")
        name(self._entry, "Name of the VM")
        self._entry.connect("changed", lambda _: self._typed())
        self._entry.connect("key-press-event", self._key_in_entry)
        self._list = Gtk.ListBox(activate_on_single_click=False)
        name(self._list, "VMs used before")
        self._list.connect("row-activated", lambda *_: self._send())
        self._list.connect("row-selected", self._selected)
        self._list.connect("key-press-event", self._key_in_list)
        self._scrolled = scrolled(self._list, LIST_HEIGHT)
        self._hint = label("", "qfx-dim", width=44)
        page = box(Gtk.Orientation.VERTICAL, 12, margin=MARGIN)
        page.set_size_request(400, -1)
        for part in (heading, self._entry, self._scrolled, self._hint, self._buttons()):
            page.add(part)
        window.add(page)
        window.show_all()
        self._filling = False
        self._scrolled.set_visible(bool(known.names()))
        self._fill("")
        self._typed()
        self._entry.grab_focus()
        window.present_with_time(Gdk.CURRENT_TIME)

    def destroy(self) -> None:
        self._window.destroy()

    def _buttons(self) -> Any:
        row = box(Gtk.Orientation.HORIZONTAL, 10)
        row.set_halign(Gtk.Align.END)
        cancel = button("_Cancel")
        cancel.connect("clicked", self._cancel)
        self._send_button = button("_Send")
        self._send_button.connect("clicked", lambda _: self._send())
        self._window.set_default(self._send_button)
        row.add(cancel)
        row.add(self._send_button)
        return row

    def _fill(self, typed: str) -> None:
        self._filling = True
        for row in self._list.get_children():
            row.destroy()
        for known in matching(self._known.names(), typed):
            row = Gtk.ListBoxRow()
            text = label(known, width=NAME_MAX)
            text.set_margin_start(8)
            text.set_margin_top(4)
            text.set_margin_bottom(4)
            row.add(text)
            row.vm = known
            name(row, known)
            row.show_all()
            self._list.add(row)
        self._list.unselect_all()
        self._filling = False

    def _typed(self) -> None:
        """The field has changed, by typing or by a choice from the list, which is no reason to make the list shorter."""
        typed = self._entry.get_text()
        vm, hint = chosen(typed)
        self._send_button.set_sensitive(vm is not None)
        self._hint.set_text(hint)
        self._hint.set_visible(bool(hint))
        row = self._list.get_selected_row()
        if row is None or row.vm != typed:
            self._fill(typed)

    def _selected(self, _list: Any, row: Any) -> None:
        if row is not None and not self._filling:
            self._entry.set_text(row.vm)
            self._entry.set_position(-1)

    def _key_in_entry(self, _entry: Any, event: Any) -> bool:
        if event.keyval not in (Gdk.KEY_Down, Gdk.KEY_KP_Down):
            return False
        row = self._list.get_selected_row() or self._list.get_row_at_index(0)
        if row is not None:
            self._list.select_row(row)
            row.grab_focus()
        return True

    def _key_in_list(self, _list: Any, event: Any) -> bool:
        row = self._list.get_selected_row()
        if event.keyval in (Gdk.KEY_Delete, Gdk.KEY_KP_Delete) and row is not None:
            self._known.forget(row.vm)
            self._entry.set_text("")
            self._fill("")
            self._entry.grab_focus()
            return True
        if event.keyval in (Gdk.KEY_Up, Gdk.KEY_KP_Up) and row is not None and row.get_index() == 0:
            self._entry.grab_focus()
            self._entry.set_position(-1)
            return True
        return False

    def _key(self, _window: Any, event: Any) -> bool:
        if event.keyval == Gdk.KEY_Escape:
            return self._cancel()
        return False

    def _send(self) -> None:
        vm, _ = chosen(self._entry.get_text())
        if vm is not None:
            self._answer(vm)

    def _cancel(self, *_event: object) -> bool:
        self._answer(None)
        return True
