"""A store without sockets, driven by a table.

A script has a request a line, and after ``=`` all its effects in their order::

    vm WATCH key t          = OK vm!key:t
    dom0 WRITE /a/b value   = dom0!/a/b:w OK
    vm START                = @one
    vm@one READ key         = ENOENT

A reply stands for itself, strings joined by commas, nothing as ``-``; ``WHO!PATH:TOKEN`` is an event, ``+5`` and ``-5`` open and
close a domain. ``@NAME`` is a transaction. ``dom0``, ``vm`` (domain 5) and ``other`` (domain 6) are clients; ``vm2`` is another
of domain 5.
"""

from __future__ import annotations

from qfilexchg.xenstore import wire
from qfilexchg.xenstore.store import Close, Connection, Effect, Open, Send, Store
from qfilexchg.xenstore.wire import Op, Packet

VM, OTHER = 5, 6


class Table:
    """A store with its usual clients."""

    def __init__(self) -> None:
        self.store = Store()
        self.clients = {"dom0": self.store.connect(0)}
        self.transactions: dict[str, int] = {}
        for domain in (VM, OTHER):
            self.request("dom0", Op.INTRODUCE, f"{domain}\0001\0002\0")
            self.request("dom0", Op.WRITE, f"/local/domain/{domain}\0")
            self.request("dom0", Op.SET_PERMS, f"/local/domain/{domain}\0n{domain}\0")
        self.clients |= {"vm": self.store.connect(VM), "vm2": self.store.connect(VM), "other": self.store.connect(OTHER)}

    def request(self, who: str, op: int, payload: str | bytes, tx: int = 0) -> list[str]:
        """Carry out one request; the effects as a script has them."""
        data = payload if isinstance(payload, bytes) else payload.encode()
        return [self.shown(effect) for effect in self.store.request(self.clients[who], Packet(op, data, 77, tx))]

    def run(self, script: str) -> None:
        """Carry out a script, and compare."""
        for line in script.strip().splitlines():
            asked, _, expected = line.partition("=")
            who, name, *words = asked.split()
            client, _, transaction = who.partition("@")
            match name, words:
                case "WRITE", [path, *value]:
                    payload = f"{path}\0{' '.join(value)}"
                case "START", []:
                    payload = "\0"
                case _:
                    payload = "".join(f"{word}\0" for word in words)
            op = {"START": Op.TRANSACTION_START, "END": Op.TRANSACTION_END}.get(name) or getattr(Op, name)
            effects = self.request(client, op, payload, self.transactions[transaction] if transaction else 0)
            if name == "START" and expected.strip().startswith("@"):
                self.transactions[expected.strip()[1:]] = int(effects[-1])
                effects = [expected.strip()]
            assert effects == expected.split(), line.strip()

    def shown(self, effect: Effect) -> str:
        match effect:
            case Send(connection, Packet(op=Op.WATCH_EVENT, payload=payload)):
                path, token = wire.split(payload)
                return f"{self.name(connection)}!{path}:{token}"
            case Send(_, packet):
                assert packet.req_id == 77
                return packet.payload.decode().removesuffix("\0").replace("\0", ",") or "-"
            case Open(domain):
                return f"+{int(domain)}"
            case Close(domain):
                return f"-{int(domain)}"
        raise AssertionError(effect)

    def name(self, connection: Connection) -> str:
        return next(name for name, client in self.clients.items() if client is connection)
