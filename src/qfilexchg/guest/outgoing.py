"""The outgoing pendrive, as a VM asks dom0 for it, sends it and gives it back.

Whatever happens, it is known in the end where the pendrive is: a request whose reply was not waited for is asked again, by its
id, before anything else is done about it. So nobody else's pendrive is ever cancelled, and one that has left is not thought to
be cancelled.
"""

from __future__ import annotations

from qfilexchg.guest.interruption import Cancelled
from qfilexchg.guest.outcome import Failed, NoRoom, Occupied, Refused
from qfilexchg.guest.request import fresh_id, ignore_state
from qfilexchg.protocol.qpen import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from qfilexchg.guest.request import Exchange
    from qfilexchg.protocol.names import VmName
    from qfilexchg.protocol.qpen import Reply

CLEAN_UP_S: Final = 15.0
"""Seconds of dom0's silence after which a clean-up gives up: the person who pressed Ctrl-C is waiting."""


class Outgoing:
    """One pendrive, from ``new`` to its end. ``on_state`` hears of dom0's replies."""

    def __init__(self, exchange: Exchange, on_state: Callable[[Reply], None] = ignore_state) -> None:
        self._exchange = exchange
        self._on_state = on_state
        self._here = False
        self.sending = False
        """Whether what dom0 replies is about the sending of it."""
        self._unsure: Request | None = None
        """A request that dom0 may have taken, with an end that is not known."""

    def get(self, size_bytes: int | None) -> None:
        """Ask for the pendrive; returns when dom0 has attached it. Raises :exc:`Occupied`, :exc:`NoRoom`, :exc:`Refused`, :exc:`Failed`."""
        reply = self._ask(Request("new", request_id=fresh_id(), size_bytes=size_bytes))
        if reply.state != "attached":
            raise _error(reply, size_bytes or 0)
        self._here = True

    def send(self, target: VmName | None, seq: int = 0, *, view_only: bool = False) -> None:
        """Send the pendrive to ``target``; returns when it is delivered. Raises :exc:`Refused`, :exc:`Failed`: it is still here then.

        No target means a new DisposableVM; then ``view_only`` says that nothing is to come back.
        """
        self._here = self.sending = True
        reply = self._ask(Request("send", target=target, seq=seq, request_id=fresh_id(), view_only=view_only))
        if reply.state != "delivered":
            raise _error(reply, 0)
        self._here = False

    def give_back(self) -> bool:
        """Give the pendrive back, wherever it is; True if it cannot be, because it was delivered already.

        To be called after whatever :meth:`get` or :meth:`send` raised; where there is no pendrive it does nothing. Raises
        :exc:`Failed` when dom0 cannot take it back, and what an exchange raises.
        """
        unsure, self._unsure = self._unsure, None
        if unsure and unsure.verb == "new":
            self._here = self._exchange.carry_out(unsure, give_up_s=CLEAN_UP_S).state == "attached"
            unsure = None
        if not self._here:
            return False
        for _ in range(2):
            cancelled = self._exchange.carry_out(Request("cancel", request_id=fresh_id()), give_up_s=CLEAN_UP_S)
            if cancelled.state == "cancelled":
                return False
            if unsure:
                # It was too late to stop it: its end decides whether there is anything to cancel.
                sent, unsure = self._exchange.carry_out(unsure), None
                if sent.state == "delivered":
                    return True
            elif cancelled.detail == "no-pendrive":
                return False
        raise Failed(cancelled.detail)

    def _ask(self, request: Request) -> Reply:
        self._unsure = request
        try:
            reply = self._exchange.carry_out(request, self._on_state)
        except BaseException:
            if not self._exchange.taken:
                self._unsure = None
            raise
        self._unsure = None
        return reply


def _error(reply: Reply, size_bytes: int) -> Exception:
    word, _, rest = reply.detail.partition(" ")
    match reply.state, word:
        case "denied", _:
            return Refused()
        case "cancelled", _:
            return Cancelled()
        case "failed", "have-pendrive":
            return Occupied()
        case "failed", "too-large":
            limit = rest.removeprefix("maximum=")
            return NoRoom(size_bytes, int(limit) if limit.isdecimal() else None)
        case _:
            return Failed(reply.detail)
