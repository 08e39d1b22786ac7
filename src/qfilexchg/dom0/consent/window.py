"""One question as a GTK 3 window, and a small window for a notice. Thin: :mod:`.dialog` decides, :mod:`.wording` has the words.

Enter and Escape are *Deny* wherever the keyboard is; *Allow* takes a click, Alt+A, or the space bar on the button itself. Names are set
as plain text and never as markup or as a mnemonic, and no style is made from one: a label's colour is a class of the sheet below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import gi  # type: ignore[import-not-found]

from qfilexchg.dom0.consent.dialog import View
from qfilexchg.dom0.consent.protocol import Question
from qfilexchg.dom0.consent.wording import allow_word, always, details, heading, printable
from qfilexchg.protocol.names import DISPOSABLE, VmName

gi.require_version("Gtk", "3.0")
gi.require_version("Gdk", "3.0")
from gi.repository import Atk, Gdk, GLib, Gtk, Pango  # type: ignore[import-not-found]  # noqa: E402

TITLE: Final = "qfilexchg asks"
MARGIN: Final = 20
TITLE_BAR: Final = 40
"""Pixels that a window manager may take."""
NOTICE_S: Final = 8
NOTICE_WIDTH: Final = 44
"""Characters in a line."""
COLOURS: Final = {
    "red": "#cc2a2a",
    "orange": "#e8710a",
    "yellow": "#e5c300",
    "green": "#3a9a2c",
    "gray": "#8a8a8a",
    "blue": "#2f6fc4",
    "purple": "#8540ad",
    "black": "#1c1c1c",
}
"""Of a VM's label; each can be told from a light and from a dark ground, as the mark has a rim of the text's colour."""

_SHEET = (
    """
.qfx-heading { font-size: 135%; font-weight: bold; }
.qfx-card { border: 1px solid alpha(currentColor, 0.25); border-radius: 6px; background-color: alpha(currentColor, 0.05); }
.qfx-mark { border: 1px solid alpha(currentColor, 0.55); border-radius: 3px; min-width: 1.1em; min-height: 1.1em; }
.qfx-name { font-weight: bold; font-size: 110%; }
.qfx-dim { opacity: 0.75; }
.qfx-arrow { font-size: 150%; }
.qfx-none { border-style: dashed; background: none; }
progressbar.qfx-countdown trough, progressbar.qfx-countdown progress { min-height: 5px; }
.qfx-notice { border: 1px solid alpha(currentColor, 0.4); }
"""
    + "".join(f".qfx-{label} {{ background: {colour}; }}\n" for label, colour in COLOURS.items())
)


def use_style() -> None:
    """Load the sheet, once for a program."""
    provider = Gtk.CssProvider()
    provider.load_from_data(_SHEET.encode())
    Gtk.StyleContext.add_provider_for_screen(Gdk.Screen.get_default(), provider, Gtk.STYLE_PROVIDER_PRIORITY_APPLICATION)


class QuestionWindow:
    """The window of one question. ``answer`` is called with allow and remember, ``focus`` as the focus comes and goes."""

    def __init__(self, question: Question, answer: Callable[[bool, bool], None], focus: Callable[[bool], None]) -> None:
        self._answer = answer
        self._question = question
        window = self._window = Gtk.Window(title=TITLE, type_hint=Gdk.WindowTypeHint.DIALOG, resizable=False)
        window.set_position(Gtk.WindowPosition.CENTER)
        window.set_icon_name("dialog-question")
        window.set_keep_above(True)
        window.stick()
        window.set_urgency_hint(True)
        _name(window, heading(question), role=Atk.Role.ALERT)
        window.connect("delete-event", self._deny)
        window.connect("key-press-event", self._key)
        window.connect("notify::is-active", lambda window, _: focus(bool(window.is_active())))

        text = _box(Gtk.Orientation.VERTICAL, 14)
        text.add(_label(heading(question), "qfx-heading", width=34))
        text.add(self._parties())
        text.add(self._details())
        self._remember = Gtk.CheckButton()
        self._remember.add(_label(always(question), width=40))
        _name(self._remember, always(question))
        if question.can_remember:
            text.add(self._always())
        answers = _box(Gtk.Orientation.VERTICAL, 14)
        answers.add(self._countdown())
        answers.add(self._buttons())
        page = _box(Gtk.Orientation.VERTICAL, 14, margin=MARGIN)
        self._text = _fitting(text, answers)
        page.add(self._text)
        page.add(answers)
        window.add(page)

    def show(self) -> None:
        self._window.show_all()
        self._deny_button.grab_focus()
        if isinstance(self._text, Gtk.ScrolledWindow):  # GTK scrolls to the first widget that could have had the focus
            GLib.idle_add(self._text.get_vadjustment().set_value, 0.0)
        self._window.present_with_time(Gdk.CURRENT_TIME)

    def close(self) -> None:
        self._window.destroy()

    def update(self, view: View) -> None:
        """Show how things stand; called several times a second."""
        # A click or key that still waits to be handled was made while Allow could not be pressed, and must find it so.
        can_allow = view.can_allow and (self._allow_button.get_sensitive() or not Gdk.events_pending())
        if self._allow_button.get_sensitive() != can_allow:
            self._allow_button.set_sensitive(can_allow)
        self._bar.set_fraction(view.left)
        for label, text in ((self._left, f"No answer within {view.left_s} s means no."), (self._more, _more(view.waiting))):
            if label.get_text() != text:
                label.set_text(text)

    def _parties(self) -> Any:
        question = self._question
        row = _box(Gtk.Orientation.HORIZONTAL, 12)
        same_width = Gtk.SizeGroup(mode=Gtk.SizeGroupMode.HORIZONTAL)
        source, target = _card(question.source, question.source_label), _card(question.target, question.target_label)
        arrow = _label("→", "qfx-arrow")
        _name(arrow, "to")
        for card in (source, target):
            same_width.add_widget(card)
        row.pack_start(source, True, True, 0)
        row.pack_start(arrow, False, False, 0)
        row.pack_start(target, True, True, 0)
        return row

    def _details(self) -> Any:
        grid = Gtk.Grid(column_spacing=14, row_spacing=6)
        for line, (word, sentence) in enumerate(details(self._question)):
            grid.attach(_label(word, "qfx-dim", top=True), 0, line, 1, 1)
            grid.attach(_label(sentence, width=44), 1, line, 1, 1)
        return grid

    def _always(self) -> Any:
        """The choice, and how it is undone."""
        target = self._question.target or DISPOSABLE
        box = _box(Gtk.Orientation.VERTICAL, 2)
        box.add(self._remember)
        box.add(_label(f"Undone by: qfilexchg policy forget {self._question.source} {target}", "qfx-dim", width=44))
        return box

    def _countdown(self) -> Any:
        box = _box(Gtk.Orientation.VERTICAL, 4)
        self._bar = Gtk.ProgressBar(fraction=1.0)
        self._bar.get_style_context().add_class("qfx-countdown")
        _name(self._bar, "Time left to answer")
        self._left = _label("", "qfx-dim", width=44)
        box.add(self._bar)
        box.add(self._left)
        return box

    def _buttons(self) -> Any:
        row = _box(Gtk.Orientation.HORIZONTAL, 10)
        self._more = _label("", "qfx-dim")
        self._more.set_ellipsize(Pango.EllipsizeMode.END)  # in the room that there is: a button must not move when a question comes
        row.pack_start(self._more, True, True, 0)
        self._allow_button = Gtk.Button.new_with_mnemonic(f"_{allow_word(self._question)}")
        self._allow_button.set_sensitive(False)
        self._allow_button.connect("clicked", self._allow)
        self._deny_button = Gtk.Button.new_with_mnemonic("_Deny")
        self._deny_button.set_can_default(True)
        self._deny_button.connect("clicked", self._deny)
        self._window.set_default(self._deny_button)
        _name(self._allow_button, allow_word(self._question), description=heading(self._question))
        _name(self._deny_button, "Deny", description="Also by Enter and Escape, and when the time is over")
        for button in (self._allow_button, self._deny_button):
            button.set_size_request(110, -1)
            row.add(button)
        return row

    def _key(self, _window: Any, event: Any) -> bool:
        if event.keyval in (Gdk.KEY_Return, Gdk.KEY_KP_Enter, Gdk.KEY_ISO_Enter, Gdk.KEY_Escape):
            self._deny()
            return True
        return False

    def _allow(self, *_event: object) -> None:
        self._answer(True, bool(self._remember.get_active()))

    def _deny(self, *_event: object) -> bool:
        self._answer(False, False)
        return True


class NoticeWindow:
    """A text in the corner of the screen for some seconds, that takes no focus. ``gone`` is called when it goes."""

    def __init__(self, gone: Callable[[], None]) -> None:
        self.text = ""
        self._gone = gone
        self._timer = 0
        self._window = Gtk.Window(type=Gtk.WindowType.POPUP, accept_focus=False)
        self._window.set_type_hint(Gdk.WindowTypeHint.NOTIFICATION)
        self._window.connect("size-allocate", self._to_the_corner)
        self._label = _label("", width=NOTICE_WIDTH)
        box = _box(Gtk.Orientation.VERTICAL, 0, margin=14)
        box.add(self._label)
        frame = Gtk.Box()
        frame.get_style_context().add_class("qfx-notice")
        frame.add(box)
        self._window.add(frame)

    def show(self, text: str) -> None:
        """Show a text, in the place of the one before."""
        self.text = text
        self._label.set_text(printable(text))
        self._label.set_width_chars(min(len(text), NOTICE_WIDTH))
        self._window.show_all()
        self._window.resize(1, 1)
        if self._timer:
            GLib.source_remove(self._timer)
        self._timer = GLib.timeout_add_seconds(NOTICE_S, self._end)

    def _to_the_corner(self, window: Any, size: Any) -> None:
        area = _work_area()
        window.move(area.x + area.width - size.width - MARGIN, area.y + area.height - size.height - MARGIN)

    def close(self) -> None:
        if self._timer:
            GLib.source_remove(self._timer)
        self._end()

    def _end(self) -> bool:
        self._timer = 0
        self._window.destroy()
        self._gone()
        return False


def _more(waiting: int) -> str:
    if not waiting:
        return ""
    return "1 more question" if waiting == 1 else f"{waiting} more questions"


def _card(name: VmName | None, label: str | None) -> Any:
    card = _box(Gtk.Orientation.HORIZONTAL, 10, margin=10)
    mark = Gtk.Box(valign=Gtk.Align.CENTER)
    mark.get_style_context().add_class("qfx-mark")
    mark.get_style_context().add_class(f"qfx-{label}" if label in COLOURS else "qfx-none")
    text = _box(Gtk.Orientation.VERTICAL, 0)
    text.set_valign(Gtk.Align.CENTER)
    text.add(_label(name or "new DisposableVM", "qfx-name", width=22, breaks_anywhere=True))
    if label in COLOURS:
        text.add(_label(label, "qfx-dim"))
    card.add(mark)
    card.add(text)
    frame = Gtk.Box()
    frame.get_style_context().add_class("qfx-card")
    frame.add(card)
    _name(frame, f"{name or 'a new DisposableVM'}{f', {label}' if label in COLOURS else ''}")
    return frame


def _fitting(text: Any, answers: Any) -> Any:
    """``text``, to be scrolled where it is so long, or the type so large, that what is under it would be off the screen."""
    text.show_all()
    answers.show_all()
    width = max(text.get_preferred_width()[1], answers.get_preferred_width()[1])
    room = _work_area().height - answers.get_preferred_height_for_width(width)[1] - 3 * MARGIN - TITLE_BAR
    if text.get_preferred_height_for_width(width)[1] <= room:
        return text
    scrolled = Gtk.ScrolledWindow(hscrollbar_policy=Gtk.PolicyType.NEVER, propagate_natural_width=True)
    scrolled.set_overlay_scrolling(False)
    scrolled.set_min_content_height(max(100, room))
    scrolled.add(text)
    return scrolled


def _work_area() -> Any:
    display = Gdk.Display.get_default()
    return (display.get_primary_monitor() or display.get_monitor(0)).get_workarea()


def _box(orientation: Any, spacing: int, margin: int = 0) -> Any:
    box = Gtk.Box(orientation=orientation, spacing=spacing)
    box.set_border_width(margin)
    return box


def _label(text: str, style: str | None = None, *, width: int = 0, top: bool = False, breaks_anywhere: bool = False) -> Any:
    """``width`` in characters: the text is wrapped there, so that it stays on the screen in large type."""
    label = Gtk.Label(xalign=0.0, yalign=0.0 if top else 0.5)
    attributes = Pango.AttrList()
    attributes.insert(Pango.attr_insert_hyphens_new(False))  # where a name is broken, a hyphen would seem to be its own
    label.set_attributes(attributes)
    label.set_text(text)
    if width:
        label.set_line_wrap(True)
        label.set_line_wrap_mode(Pango.WrapMode.CHAR if breaks_anywhere else Pango.WrapMode.WORD_CHAR)
        label.set_max_width_chars(width)
    if style:
        label.get_style_context().add_class(style)
    return label


def _name(widget: Any, name: str, *, description: str = "", role: Any = None) -> None:
    accessible = widget.get_accessible()
    accessible.set_name(name)
    if description:
        accessible.set_description(description)
    if role is not None:
        accessible.set_role(role)
