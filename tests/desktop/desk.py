"""A desk with a screen: an X server without one, a window manager, a keyboard and a mouse, and a person's eye on it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

DEADLINE_S = 20.0
LOOK_S = 0.06
"""A program that is just coming to the accessibility bus may fail to, if the eye asks for it without a pause."""
SETTLE_S = 0.1
SCREEN_WIDTH, SCREEN_HEIGHT = 1280, 800
WINDOW_MANAGERS = {"alt+F4", "alt+Tab"}
"""Keys that the window manager takes, for the window that it has made the active one: a little later than that has got the focus."""
PYTHON = "/usr/bin/python3"
TOP = Path(__file__).resolve().parents[2]
OUT = TOP / ".ci/out/desktop"

T = TypeVar("T")


def until(look: Callable[[], T | None], what: str) -> T:
    """Look again and again until there is something; nothing tells a bystander of what happens on a screen."""
    end = time.monotonic() + DEADLINE_S
    while not (seen := look()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {DEADLINE_S:g} s: {what}")
        time.sleep(LOOK_S)  # between two looks, which would keep the bus busy
    return seen


@dataclass(frozen=True)
class Widget:
    """As assistive technology has it."""

    application: str
    role: str
    name: str
    description: str
    states: frozenset[str]
    place: tuple[int, int, int, int]

    @property
    def centre(self) -> tuple[int, int]:
        x, y, width, height = self.place
        return x + width // 2, y + height // 2


class Desk:
    """The environment of its programs is ``environment``."""

    def __init__(self, environment: dict[str, str], eye: subprocess.Popen[str]) -> None:
        self.environment = environment
        self._eye = eye

    @classmethod
    @contextlib.contextmanager
    def set_up(cls) -> Iterator[Self]:
        with contextlib.ExitStack() as stack:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            (home / ".config/gtk-3.0").mkdir(parents=True)
            (home / ".config/gtk-3.0/settings.ini").write_text("[Settings]\ngtk-enable-animations=0\n")  # pictures show no half-way states
            bus_daemon = ["dbus-daemon", "--session", "--nofork", "--print-address"]
            bus = stack.enter_context(_running(bus_daemon, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
            assert bus.stdout
            environment = {
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "LANG": "C.UTF-8",
                "DBUS_SESSION_BUS_ADDRESS": bus.stdout.readline().strip(),
                "GSETTINGS_BACKEND": "memory",
                "XDG_RUNTIME_DIR": str(home),
            }
            read, write = os.pipe()
            # Without -noreset it starts anew when its only client goes, and one that is just coming is turned away.
            size = f"{SCREEN_WIDTH}x{SCREEN_HEIGHT}x24"
            screen = ["Xvfb", "-displayfd", str(write), "-noreset", "-screen", "0", size, "-nolisten", "tcp"]
            stack.enter_context(_running(screen, pass_fds=[write], stderr=subprocess.DEVNULL))
            os.close(write)
            with os.fdopen(read) as told:
                environment["DISPLAY"] = f":{told.readline().strip()}"
            stack.enter_context(_running(["openbox"], env=environment, stderr=subprocess.DEVNULL))
            eye = [PYTHON, str(Path(__file__).with_name("eye.py"))]
            seeing = stack.enter_context(
                _running(eye, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            )
            desk = cls(environment, seeing)
            until(lambda: desk._xdotool("getwindowfocus") or desk.look() is not None, "the eye is open")
            OUT.mkdir(parents=True, exist_ok=True)
            yield desk

    def look(self) -> list[Widget]:
        found = self._ask({"do": "look"})
        return [
            Widget(node["application"], node["role"], node["name"], node["description"], frozenset(node["states"]), tuple(node["place"]))
            for node in (found if isinstance(found, list) else [])
        ]

    def sees(self, name: str, role: str | None = None, *states: str) -> Widget:
        """Wait for a widget with this name that shows, and has these states."""

        def look() -> Widget | None:
            for widget in self.look():
                if widget.name == name and role in (None, widget.role) and {"SHOWING", *states} <= widget.states:
                    return widget
            return None

        try:
            return until(look, f"{role or 'widget'} {name!r} {states}")
        except AssertionError as error:
            error.add_note("\n".join(f"{w.role} {w.name!r} {sorted(w.states)}" for w in self.look() if w.name))
            raise

    def does_not_see(self, name: str) -> None:
        """Wait until no widget with this name shows any more."""
        until(lambda: not any(widget.name == name and "SHOWING" in widget.states for widget in self.look()), f"no {name!r}")

    def shows_window(self, title: str) -> bool:
        """Whether a window with this title is on the screen, and not kept as an icon."""
        return bool(self._xdotool("search", "--onlyvisible", "--name", f"^{title}$"))

    def texts(self) -> list[str]:
        """All that can be read."""
        return [widget.name for widget in self.look() if widget.name and "SHOWING" in widget.states]

    def press(self, *keys: str) -> None:
        if WINDOW_MANAGERS & set(keys):
            self.waits(SETTLE_S)
        if "alt+F4" in keys:
            until(self._knows_the_active_window, "the window manager has made the window that has the focus the active one")
        self._xdotool("key", "--clearmodifiers", *keys)

    def _knows_the_active_window(self) -> bool:
        focused = self._xdotool("getwindowfocus")
        return bool(focused) and focused == self._xdotool("getactivewindow")

    def types(self, text: str) -> None:
        self._xdotool("type", text)

    def click(self, widget: Widget) -> None:
        x, y = widget.centre
        self._xdotool("mousemove", str(x), str(y), "click", "1")

    def clicks(self, name: str, role: str, *states: str) -> None:
        """Click on it when it has come to rest: a window that has just got more text may be about to move its buttons."""
        before = self.sees(name, role, *states)
        self.waits(SETTLE_S)
        while (now := self.sees(name, role, *states)).place != before.place:
            before = now
            self.waits(SETTLE_S)
        self.click(now)

    def click_at(self, x: int, y: int) -> None:
        self._xdotool("mousemove", str(x), str(y), "click", "1")

    def click_twice(self, widget: Widget) -> None:
        x, y = widget.centre
        self._xdotool("mousemove", str(x), str(y), "click", "--repeat", "2", "--delay", "40", "1")

    def waits(self, seconds: float) -> None:
        """A person takes this time before they do something: it is what is tested, and waits for nothing."""
        time.sleep(seconds)  # a person's own slowness

    def picture(self, name: str, after_s: float = 0.0) -> None:
        """Save what is on the screen, for people to look at. What assistive technology knows may be drawn a moment later."""
        self.waits(after_s)
        self._ask({"do": "picture", "path": str(self.picture_path(name))})

    def colours(self) -> dict[bytes, int]:
        """Those that cover most of the screen, in three bytes each, and how many pixels."""
        found = self._ask({"do": "colours"})
        return {bytes.fromhex(colour): count for colour, count in found.items()} if isinstance(found, dict) else {}

    def picture_path(self, name: str) -> Path:
        return OUT / f"{name}.png"

    @contextlib.contextmanager
    def letter(self) -> Iterator[Widget]:
        """Another window, which takes the focus."""
        self._ask({"do": "letter", "open": True})
        try:
            yield self.sees("A letter", None, "ACTIVE")
        finally:
            self._ask({"do": "letter", "open": False})

    def _ask(self, request: dict[str, object]) -> object:
        assert self._eye.stdin and self._eye.stdout
        self._eye.stdin.write(json.dumps(request) + "\n")
        self._eye.stdin.flush()
        return json.loads(self._eye.stdout.readline())

    def _xdotool(self, *words: str) -> str:
        done = subprocess.run(["xdotool", *words], env=self.environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        return done.stdout


@contextlib.contextmanager
def _running(argv: list[str], **options: object) -> Iterator[subprocess.Popen[str]]:
    process: subprocess.Popen[str] = subprocess.Popen(argv, text=True, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.terminate()
        process.wait(DEADLINE_S)
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()
