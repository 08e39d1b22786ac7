"""A person at a VM's screen: their hands are its emulated mouse and keyboard, by QMP, and nothing else that acts. Where a thing is on the
screen their eye is told by assistive technology in the VM (``tests/desktop/eye.py``, run there), which only looks.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from qemu.qmp import QMPClient

from qfilexchg.dom0.vms.qemu import command
from tests.desktop.desk import Widget
from tests.machines import CHECKOUT
from tests.vm.lab import Vm
from tests.vm.steps import DEADLINE_S, until

OUT = CHECKOUT / ".ci/out/screen"
EYE = Path(__file__).resolve().parents[1] / "desktop/eye.py"
_OPEN_EYE = "cat >/tmp/.eye.py && echo"
_LOOK = "set -a; . /usr/lib/qubes/screen.env; exec python3 /tmp/.eye.py"

_FILE_MANAGER = "pcmanfm-qt"
_STARTS = 4
_TOLD_S = 20.0
_START_AGAIN = 'set -a; . /usr/lib/qubes/screen.env; kill $(pidof "$1"); setsid -f "$1" >/dev/null 2>&1'

AXIS_MAX = 0x7FFF
HELD_S = 0.08
PAUSE_S = 0.12
"""A person's pace: two clicks that come faster than a program draws are one to it, or none."""

LOOKED_S = 0.3
STEP = 10
MENU_MAX = 400
"""Pixels: less than the height of an entry, and more than that of a menu."""

Action = Callable[[QMPClient], object]

_KEYS = {" ": "spc", "\n": "ret", ".": "dot", ",": "comma", "-": "minus", "/": "slash"}


class Screen:
    """Of a VM that runs, to be used as a context."""

    def __init__(self, vm: Vm) -> None:
        OUT.mkdir(parents=True, exist_ok=True)
        self.vm = vm
        self._socket = command.qmp_socket(vm.lab.home, vm.record.vm.id.domain)

    def __enter__(self) -> Self:
        done = self.vm.run("sh", "-c", _OPEN_EYE, input=EYE.read_bytes())
        assert done.returncode == 0, done.stderr
        self._eye = self.vm.lab.popen("qvm-run", self.vm.name, "sh", "-c", _LOOK)
        return self

    def __exit__(self, *_: object) -> None:
        self._eye.kill()
        self._eye.communicate()

    def finds_the_file_manager(self) -> None:
        """Qt is in a race when it tells assistive technology of a program, and sometimes loses it: the next start is told."""
        for _ in range(_STARTS):
            end = time.monotonic() + _TOLD_S
            while time.monotonic() < end:
                if any(widget.application == _FILE_MANAGER for widget in self.look()):
                    return
                time.sleep(LOOKED_S)
            self.vm.run("sh", "-c", _START_AGAIN, "sh", _FILE_MANAGER)
        raise AssertionError(f"{self.vm.name} shows no {_FILE_MANAGER}")

    # The eye

    def look(self) -> list[Widget]:
        """All that shows; nothing where a window closed meanwhile."""
        found = self._ask("look")
        return [_widget(node) for node in (found if isinstance(found, list) else []) if "SHOWING" in node["states"]]

    @property
    def pointed(self) -> str | None:
        """The entry of a menu that the mouse has come to since this was last asked."""
        found = self._ask("pointed")
        return str(found["name"]) if isinstance(found, dict) and found["role"] == "menu item" else None

    def _ask(self, what: str) -> object:
        assert self._eye.stdin and self._eye.stdout
        timer = threading.Timer(DEADLINE_S, self._eye.kill)
        timer.start()
        try:
            self._eye.stdin.write(json.dumps({"do": what}).encode() + b"\n")
            self._eye.stdin.flush()
            line = self._eye.stdout.readline()
        finally:
            timer.cancel()
        assert line, "the eye is closed"
        return json.loads(line)

    def sees(self, name: str, role: str | None = None, *states: str) -> Widget:
        """Wait for a widget with this name that has these states, and has come to rest."""
        found: list[Widget] = []

        def rests() -> bool:
            before = found[:]
            found[:] = [w for w in self.look() if w.name == name and role in (None, w.role) and set(states) <= w.states and w.place[2] > 0]
            return bool(found) and bool(before) and found[0].place == before[0].place

        try:
            until(rests, f"{role or 'widget'} {name!r} {states}")
        except AssertionError as error:
            error.add_note("\n".join(f"{w.application}: {w.role} {w.name!r} {w.place} {sorted(w.states)}" for w in self.look() if w.name))
            self.picture(f"in-vain-{self.vm.name}")
            raise
        return found[0]

    def does_not_see(self, name: str) -> None:
        until(lambda: not any(widget.name == name for widget in self.look()), f"no {name!r}")

    def colours(self) -> Counter[bytes]:
        """Every colour on the screen, in three bytes, and how many pixels: what the display itself shows, whatever the VM says of it."""
        path = OUT / f".{self.vm.name}.ppm"
        self._do(lambda qmp: qmp.execute("screendump", {"filename": str(path)}))
        kind, _, _, pixels = path.read_bytes().split(b"\n", 3)
        path.unlink()
        assert kind == b"P6"
        return Counter(pixels[at : at + 3] for at in range(0, len(pixels), 3))

    def picture(self, name: str) -> None:
        """Save what is on the screen, for people to look at."""
        self._do(lambda qmp: qmp.execute("screendump", {"filename": str(OUT / f"{name}.png"), "format": "png"}))

    # The hands

    def clicks(self, name: str, role: str | None = None, *states: str) -> None:
        self.click_at(self.sees(name, role, *states).centre)

    def click_at(self, place: tuple[int, int], button: str = "left") -> None:
        self._mouse = place
        self._do(_moved(place), _button(button, True), _button(button, False))

    def chooses(self, word: str, of: str) -> None:
        """An entry of the menu of a thing, by the right button."""
        self.opens_menu(of)
        self.points_to(word)
        self.clicks_here()

    def points_to(self, word: str) -> None:
        """Go down the menu that was just opened, as far as ``word``: a menu of Qt's tells of nothing but of what the mouse is on."""
        x, y = self._mouse
        for below in range(STEP, MENU_MAX, STEP):
            self._do(_moved((x + STEP, y + below)))
            time.sleep(LOOKED_S)  # a person's eye takes a while as well; nothing tells that there is nothing new to see
            if self.pointed == word:
                return
        self.picture(f"in-vain-{self.vm.name}")
        raise AssertionError(f"the menu has no {word!r}")

    def clicks_here(self) -> None:
        self._do(_button("left", True), _button("left", False))

    def opens_menu(self, name: str, role: str | None = None) -> None:
        """By a click with the right button."""
        place = self.sees(name, role).centre
        self._ask("pointed")  # what came before counts no more
        self.click_at(place, "right")
        until(self._sees_a_menu, f"the menu of {name!r}")

    def _sees_a_menu(self) -> bool:
        """Nudge the mouse, which is on the menu's edge, until an entry answers."""
        x, y = self._mouse
        for nudge in (STEP, STEP + 1):
            self._do(_moved((x + nudge, y + STEP)))
        time.sleep(LOOKED_S)
        return self.pointed is not None

    def ejects(self, name: str) -> None:
        """The button at the end of a volume's line."""
        x, y, width, height = self.sees(name, "table cell").place
        self.click_at((x + width + height // 2, y + height // 2))

    def presses(self, *keys: str) -> None:
        """Keys that are held down together, by QEMU's names for them."""
        self._do(*(_key(key, True) for key in keys), *(_key(key, False) for key in reversed(keys)))

    def types(self, text: str) -> None:
        for letter in text:
            key = _KEYS.get(letter, letter.lower())
            self.presses(*(("shift", key) if letter.isupper() else (key,)))

    def _do(self, *actions: Action) -> None:
        """Over a connection of its own: QEMU serves one at a time, and the daemon needs its turn."""

        async def run() -> None:
            qmp = QMPClient(self.vm.name)
            async with asyncio.timeout(DEADLINE_S):
                await qmp.connect(str(self._socket))
                try:
                    for number, action in enumerate(actions):
                        await asyncio.sleep(PAUSE_S if number else 0)
                        await action(qmp)  # type: ignore[misc]
                finally:
                    await qmp.disconnect()

        asyncio.run(run())


def _widget(node: dict[str, Any]) -> Widget:
    return Widget(node["application"], node["role"], node["name"], node["description"], frozenset(node["states"]), tuple(node["place"]))


def _send(events: Sequence[dict[str, object]]) -> Action:
    return lambda qmp: qmp.execute("input-send-event", {"events": list(events)})


def _moved(place: tuple[int, int]) -> Action:
    axes = zip("xy", place, command.SCREEN_PIXELS, strict=True)
    return _send([{"type": "abs", "data": {"axis": axis, "value": at * AXIS_MAX // (most - 1)}} for axis, at, most in axes])


def _button(button: str, down: bool) -> Action:
    return _send([{"type": "btn", "data": {"button": button, "down": down}}])


def _key(key: str, down: bool) -> Action:
    return _send([{"type": "key", "data": {"key": {"type": "qcode", "data": key}, "down": down}}])
