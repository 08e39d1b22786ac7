"""What the windows here are made of, in GTK 3. Every text is plain: never markup, and never a mnemonic where it has a name in it."""

from __future__ import annotations

from typing import Any, Final

import gi  # type: ignore[import-not-found]

gi.require_version("Gtk", "3.0")
gi.require_version("Gdk", "3.0")
from gi.repository import Gdk, Gtk, Pango  # type: ignore[import-not-found]  # noqa: E402

MARGIN: Final = 20
WIDTH: Final = 52
"""Letters in a line of text; a window is so wide."""

PASSAGE_LETTERS: Final = 400
PASSAGE_LINES: Final = 8
PASSAGE_HEIGHT: Final = 140
"""A text of more letters or lines is shown so high."""

_SHEET: Final = b"""
.qfx-heading { font-size: 125%; font-weight: bold; }
.qfx-dim { opacity: 0.75; }
"""


def use_style() -> None:
    """Load the sheet, once for a program."""
    provider = Gtk.CssProvider()
    provider.load_from_data(_SHEET)
    Gtk.StyleContext.add_provider_for_screen(Gdk.Screen.get_default(), provider, Gtk.STYLE_PROVIDER_PRIORITY_APPLICATION)


def box(orientation: Any, spacing: int, margin: int = 0) -> Any:
    made = Gtk.Box(orientation=orientation, spacing=spacing)
    made.set_border_width(margin)
    return made


def label(text: str, style: str | None = None, *, width: int = WIDTH) -> Any:
    """Text that is wrapped, so that a long name does not make a wide window."""
    made = Gtk.Label(xalign=0.0)
    attributes = Pango.AttrList()
    attributes.insert(Pango.attr_insert_hyphens_new(False))  # where a name is broken, a hyphen would seem to be its own
    made.set_attributes(attributes)
    made.set_line_wrap(True)
    made.set_line_wrap_mode(Pango.WrapMode.WORD_CHAR)
    made.set_max_width_chars(width)
    made.set_text(text)
    if style:
        made.get_style_context().add_class(style)
    return made


def button(word: str) -> Any:
    """``word`` is ours; an underscore marks the letter that presses it with Alt."""
    made = Gtk.Button.new_with_mnemonic(word)
    made.set_can_default(True)
    made.set_size_request(96, -1)
    return made


def scrolled(child: Any, height: int) -> Any:
    made = Gtk.ScrolledWindow(hscrollbar_policy=Gtk.PolicyType.NEVER, shadow_type=Gtk.ShadowType.IN)
    made.set_overlay_scrolling(False)
    made.set_min_content_height(height)
    made.set_max_content_height(height)
    made.add(child)
    return made


class Passage:
    """Text of any length. A long one scrolls, so that no text makes a window larger than the screen."""

    def __init__(self, style: str | None = None) -> None:
        self._short = label("", style)
        self._long = label("", style)
        self._long.set_yalign(0.0)
        for margin in ("start", "end", "top", "bottom"):
            self._long.set_property(f"margin-{margin}", 8)
        self._scrolled = scrolled(self._long, PASSAGE_HEIGHT)
        self.parts: Final = (self._short, self._scrolled)

    def write(self, text: str) -> None:
        is_long = len(text) > PASSAGE_LETTERS or text.count("\n") >= PASSAGE_LINES
        write(self._short, "" if is_long else text)
        write(self._long, text if is_long else "")
        self._short.set_visible(bool(text) and not is_long)
        self._scrolled.set_visible(is_long)


def write(part: Any, text: str) -> None:
    """Change a label's text if it is another: each change is told to assistive technology, and makes the window anew."""
    if part.get_text() != text:
        part.set_text(text)


def name(widget: Any, text: str) -> None:
    """For assistive technology."""
    widget.get_accessible().set_name(text)
