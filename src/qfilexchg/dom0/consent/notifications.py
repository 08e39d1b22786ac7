"""Notices on the person's desktop, by org.freedesktop.Notifications (the Desktop Notifications Specification, 1.2).

There is one notification for each transfer: a later notice takes the place of the earlier one. A thread of its own talks to the
bus, so that a desktop that hangs holds up no question. Where there is no bus, no service on it, or no jeepney, nothing is shown,
and :meth:`Notifications.show` says so.

A service tells the notifications it has shown by numbers of its own. Those of one that has ended mean nothing to the next, or
another program's notification, so they are forgotten when the name has another owner.
"""

from __future__ import annotations

import html
import itertools
import logging
import threading
from collections import OrderedDict
from typing import Any, Final

from qfilexchg.dom0.consent.libraries import find_debians
from qfilexchg.dom0.consent.wording import printable

WAITING_MAX: Final = 32
"""Notices that wait to be shown; above it the oldest is dropped. A VM that makes notices in a loop fills no memory."""
TRANSFERS_MAX: Final = 64
"""Transfers whose notification is remembered, to be updated."""
PACE_S: Final = 0.3
"""Between two notifications. Of what comes faster for the same transfer only the last is shown."""
REPLY_WITHIN_S: Final = 5.0
FIRST_LOOK_S: Final = 1.0
"""How long the first notice waits to learn whether there is a service."""

_APPLICATION: Final = "qfilexchg"
_SERVICE: Final = "org.freedesktop.Notifications"
_NEW: Final = 0

log = logging.getLogger(__name__)


class Notifications:
    """The notifications of one agent. Whatever goes wrong with the desktop is said in the log and nowhere else."""

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._waiting: OrderedDict[str | int, tuple[str | None, str]] = OrderedDict()
        self._numbers = itertools.count()
        self._look = False
        self._ended = threading.Event()
        self._looked = threading.Event()
        self._there = False
        self._thread = threading.Thread(target=self._work, name="notifications", daemon=True)
        self._thread.start()

    def show(self, key: str | None, text: str) -> bool:
        """Show ``text`` in the place of what was last shown with the same ``key``. True: it is handed on; it may be shown a little later.

        False: there was no notification service when it was last looked for, and nothing is shown; it is looked for again.
        """
        self._looked.wait(FIRST_LOOK_S)
        with self._wake:
            there = self._there and not self._ended.is_set()
            if there:
                place = next(self._numbers) if key is None else key
                self._waiting[place] = (key, text)
                if len(self._waiting) > WAITING_MAX:
                    self._waiting.popitem(last=False)
            self._look = True
            self._wake.notify()
        return there

    def close(self) -> None:
        """Show nothing any more. What is shown stays."""
        with self._wake:
            self._ended.set()
            self._wake.notify()
        self._thread.join(1)

    def _work(self) -> None:
        desktop: _Desktop | None = None
        while not self._ended.is_set():
            desktop = desktop or _look()
            self._there = desktop is not None
            self._looked.set()
            with self._wake:
                self._wake.wait_for(lambda: self._look or self._waiting or self._ended.is_set())
                self._look = False
                _, notice = self._waiting.popitem(last=False) if self._waiting else (None, None)
            if notice is None or self._ended.is_set():
                continue
            desktop = _posted(desktop, *notice)
            self._ended.wait(PACE_S)
        if desktop:
            desktop.close()


def _posted(desktop: _Desktop | None, key: str | None, text: str) -> _Desktop | None:
    """The desktop that has taken the notice, which is another one if the session's bus was restarted; None if none has."""
    if desktop is not None:
        try:
            desktop.post(key, text)
            return desktop
        except Exception as error:
            log.info("a notification is not shown, trying once more: %s", _why(error))
            desktop.close()
    desktop = _look()
    if desktop is not None:
        try:
            desktop.post(key, text)
            return desktop
        except Exception as error:
            log.warning("a notification is not shown: %s", _why(error))
            desktop.close()
    return None


def _look() -> _Desktop | None:
    """The desktop's service, or None."""
    try:
        return _Desktop()
    except Exception as error:  # what a library makes of a desktop that is not there is many things, and none is a reason to end
        log.info("notices are not shown as notifications: %s", _why(error))
        return None


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]!a}"


class _NoService(Exception):
    """Nothing on the session's bus shows notifications."""


class _Desktop:
    """The notification service of the session, over a connection of our own."""

    def __init__(self) -> None:
        find_debians()
        import jeepney
        from jeepney.io.blocking import open_dbus_connection

        self._jeepney: Any = jeepney
        self._notifications: Any = jeepney.DBusAddress("/org/freedesktop/Notifications", bus_name=_SERVICE, interface=_SERVICE)
        self._bus: Any = jeepney.DBusAddress("/org/freedesktop/DBus", bus_name="org.freedesktop.DBus", interface="org.freedesktop.DBus")
        self._owner: str | None = None
        self._shown: OrderedDict[str, int] = OrderedDict()
        self._capabilities: frozenset[str] = frozenset()
        self._connection: Any = open_dbus_connection("SESSION")
        try:
            (activatable,) = self._call(self._bus, "ListActivatableNames")
            if self._owner_now() is None and _SERVICE not in activatable:
                raise _NoService(f"nothing on the session's bus is {_SERVICE}")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._connection.close()

    def post(self, key: str | None, text: str) -> None:
        """Show ``text`` in the place of what has the same ``key``."""
        if self._owner is None or self._owner_now() != self._owner:
            self._shown.clear()
            self._capabilities = frozenset(self._call(self._notifications, "GetCapabilities")[0])  # it is started, if it was not there
            self._owner = self._owner_now()
        summary, body = _parts(printable(text))
        if "body-markup" in self._capabilities:
            body = html.escape(body, quote=False)
        if "body" not in self._capabilities:
            summary, body = printable(text), ""
        replaced = _NEW if key is None else self._shown.get(key, _NEW)
        hints = {"category": ("s", _category(body or summary))}
        actions: list[str] = []
        for_how_long_ms = -1  # as the desktop has it
        arguments = (_APPLICATION, replaced, "", summary, body, actions, hints, for_how_long_ms)
        (number,) = self._call(self._notifications, "Notify", "susssasa{sv}i", arguments)
        if key is not None:
            self._shown[key] = number
            self._shown.move_to_end(key)
            if len(self._shown) > TRANSFERS_MAX:
                self._shown.popitem(last=False)

    def _owner_now(self) -> str | None:
        try:
            (owner,) = self._call(self._bus, "GetNameOwner", "s", (_SERVICE,))
        except self._jeepney.DBusErrorResponse:
            return None
        return str(owner)

    def _call(self, address: Any, method: str, signature: str | None = None, arguments: tuple[object, ...] = ()) -> Any:
        """What the method returns. Raises what jeepney does: for an answer that is an error, for none in time, for no connection."""
        call = self._jeepney.new_method_call(address, method, signature, arguments)
        reply = self._connection.send_and_get_reply(call, timeout=REPLY_WITHIN_S)
        if reply.header.message_type is self._jeepney.MessageType.error:
            raise self._jeepney.DBusErrorResponse(reply)
        return reply.body


def _parts(text: str) -> tuple[str, str]:
    """The VMs, and what became of what goes from the one to the other."""
    route, _, news = text.partition(": ")
    if " → " in route and news:
        return route, news[0].upper() + news[1:]
    return _APPLICATION, text


def _category(news: str) -> str:
    """The specification's word for what happened."""
    first = news.lower()
    if first.startswith(("delivered", "returned")):
        return "transfer.complete"
    return "transfer.error" if first.startswith(("failed", "denied", "could")) else "transfer"
