"""Shows the agent's window for two names that the protocol would not let through, saves a picture, and prints every text in it."""

from __future__ import annotations

import sys
from typing import Any

from qfilexchg.dom0.consent import libraries
from qfilexchg.dom0.consent.dialog import View
from qfilexchg.dom0.consent.protocol import Kind, Question
from qfilexchg.protocol.names import VmName

libraries.find_debians()

from gi.repository import Gdk, GLib, Gtk  # type: ignore[import-not-found]  # noqa: E402

from qfilexchg.dom0.consent.window import QuestionWindow, use_style  # noqa: E402


def texts(widget: Any) -> None:
    if isinstance(widget, Gtk.Label):
        print(widget.get_text())
    if isinstance(widget, Gtk.Container):
        widget.forall(texts)


def main(source: str, target: str, picture: str) -> None:
    use_style()
    names = {"source": VmName(source), "target": VmName(target), "source_label": "red", "target_label": "purple"}
    question = Question(id=1, kind=Kind.COPY, size_bytes=1, can_remember=True, deadline_s=60, **names)  # type: ignore[arg-type]

    def focus(has: bool) -> None:
        if has:
            GLib.timeout_add(200, look)  # for the picture alone: the window is drawn

    def look() -> bool:
        texts(window._window)
        root = Gdk.get_default_root_window()
        Gdk.pixbuf_get_from_window(root, 0, 0, root.get_width(), root.get_height()).savev(picture, "png", [], [])
        Gtk.main_quit()
        return False

    window = QuestionWindow(question, lambda allow, remember: None, focus)
    window.update(View(question, True, 60, 1.0, 0))
    window.show()
    Gtk.main()


main(*sys.argv[1:])
