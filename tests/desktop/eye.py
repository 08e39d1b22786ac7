"""What a person at the screen sees, for tests: run by Debian's Python, which has GTK, as the tests' own has not.

One JSON object a line comes in, one goes out: ``{"do": "look"}`` lists every widget that assistive technology is told of, with its place
on the screen; ``{"do": "picture", "path": …}`` saves the whole screen; ``{"do": "colours"}`` tells which ones cover most of it;
``{"do": "letter", "open": …}`` opens or closes another window, in which a person might be writing; ``{"do": "pointed"}`` tells what has
got the focus since it was last asked, or has come under the mouse in a menu: Qt lists none of its menus.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import gi  # type: ignore[import-not-found]

gi.require_version("Atspi", "2.0")
gi.require_version("Gdk", "3.0")
gi.require_version("Gtk", "3.0")
from gi.repository import Atspi, Gdk, GLib, Gtk  # type: ignore[import-not-found]  # noqa: E402

STATES = ("FOCUSED", "SENSITIVE", "SHOWING", "ACTIVE", "CHECKED", "IS_DEFAULT")
COLOURS = 20
ROLES = {"button": "push button"}
"""What Debian 13's at-spi2 calls by another name than Debian 12's."""


class Eye:
    def __init__(self) -> None:
        self._letter: Any = None
        self._pointed: dict[str, object] | None = None
        self._listener = Atspi.EventListener.new(self._focused)
        self._listener.register("object:state-changed:focused")

    def _focused(self, event: Any) -> None:
        if event.detail1:
            self._pointed = tell(event.source, "")

    def do(self, request: dict[str, Any]) -> object:
        match request["do"]:
            case "look":
                return [node for application in children(Atspi.get_desktop(0)) for node in walk(application, application.get_name())]
            case "picture":
                screen().savev(request["path"], "png", [], [])
            case "colours":
                pixels = screen().get_pixels()
                counted = Counter(pixels[at : at + 3] for at in range(0, len(pixels), 3))
                return {colour.hex(): count for colour, count in counted.most_common(COLOURS)}
            case "pointed":
                pointed, self._pointed = self._pointed, None
                return pointed
            case "letter":
                self.letter(request["open"])
        return None

    def letter(self, is_open: bool) -> None:
        if self._letter:
            self._letter.destroy()
            self._letter = None
        if is_open:
            self._letter = Gtk.Window(title="A letter", default_width=420, default_height=160)
            entry = Gtk.TextView()
            entry.get_buffer().set_text("Dear aunt, ")
            self._letter.add(entry)
            self._letter.move(20, 20)
            self._letter.show_all()
            self._letter.present()


def screen() -> Any:
    root = Gdk.get_default_root_window()
    return Gdk.pixbuf_get_from_window(root, 0, 0, root.get_width(), root.get_height())


def children(node: Any) -> list[Any]:
    found = (node.get_child_at_index(index) for index in range(node.get_child_count()))
    return [child for child in found if child is not None]


def walk(node: Any, application: str) -> list[dict[str, object]]:
    return [tell(node, application)] + [below for child in children(node) for below in walk(child, application)]


def tell(node: Any, application: str) -> dict[str, object]:
    node.clear_cache()
    states = node.get_state_set()
    component = node.get_component_iface()
    place = component.get_extents(Atspi.CoordType.SCREEN) if component else None
    return {
        "application": application,
        "role": ROLES.get(node.get_role_name(), node.get_role_name()),
        "name": node.get_name(),
        "description": node.get_description(),
        "states": [state for state in STATES if states.contains(getattr(Atspi.StateType, state))],
        "place": [place.x, place.y, place.width, place.height] if place else [0, 0, 0, 0],
    }


def heard(eye: Eye) -> bool:
    line = sys.stdin.readline()
    if not line:
        Gtk.main_quit()
        return False
    try:
        answer = eye.do(json.loads(line))
    except GLib.Error as error:  # a window closed while it was looked at: look again
        answer = {"again": error.message}
    print(json.dumps(answer), flush=True)
    return True


def main() -> None:
    eye = Eye()
    GLib.io_add_watch(sys.stdin.fileno(), GLib.PRIORITY_DEFAULT, GLib.IOCondition.IN | GLib.IOCondition.HUP, lambda *_: heard(eye))
    Gtk.main()


if __name__ == "__main__":
    main()
