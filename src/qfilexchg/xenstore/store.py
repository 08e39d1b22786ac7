"""The store as one sees it through a connection: requests in, messages and socket openings out. No I/O.

:meth:`Store.request` answers one packet with *effects*, in the order in which they must take place. The events that a request
causes come before its reply, so who changed a key and watches it knows that its own event is due; only WATCH is answered first,
then triggered. A request that is refused has its refusal for only effect.

A connection belongs to a domain for good. Domain 0 is dom0: it may do everything and has no quota. Any other exists from its
INTRODUCE until its RELEASE, or until the last of its connections has gone after at least one had come. What a domain owned, and
what was granted to its number, ends with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from qfilexchg.protocol.names import BadDomainId, DomainId
from qfilexchg.xenstore import paths, wire
from qfilexchg.xenstore.errors import Busy, Denied, Exists, Invalid, NoEntry, NoSpace, StoreError, TooBig, Unsupported
from qfilexchg.xenstore.permissions import Access, Identity, Permissions
from qfilexchg.xenstore.tree import INTRODUCE_DOMAIN, RELEASE_DOMAIN, Change, Quota, Tree, View
from qfilexchg.xenstore.watches import Watch, Watches
from qfilexchg.xenstore.wire import Op, Packet

DOM0 = Identity(0)
CONNECTIONS_MAX = 8
"""Of one guest. A VM has four ports; the rest is room for a port that is reopened before the old connection is seen to be gone."""


EVENTS_MAX_BYTES = 1 << 20
"""Of the events that one change may make for one connection of a guest. Its quotas leave room for a transaction of a thousand keys
below a hundred watches, which would be hundreds of megabytes."""


class TooManyConnections(StoreError):
    """A guest has :data:`CONNECTIONS_MAX` already."""


@dataclass(slots=True, eq=False)
class Domain:
    """A domain that is introduced."""

    identity: Identity
    connections: list[Connection] = field(default_factory=list)

    @property
    def watches(self) -> int:
        return sum(len(connection.watches) for connection in self.connections)

    @property
    def transactions(self) -> int:
        return sum(len(connection.transactions) for connection in self.connections)


@dataclass(slots=True, eq=False)
class Connection:
    """One client."""

    domain: Domain
    watches: dict[tuple[str, bytes], Watch[Connection]] = field(default_factory=dict)
    transactions: dict[int, View] = field(default_factory=dict)
    last_transaction: int = 0
    """Counted here and not for all, else a guest could count what others do."""


@dataclass(frozen=True, slots=True)
class Send:
    """Give ``packet`` to the client of ``connection``."""

    connection: Connection
    packet: Packet


@dataclass(frozen=True, slots=True)
class Open:
    """Domain ``domain`` is introduced: let it connect."""

    domain: DomainId


@dataclass(frozen=True, slots=True)
class Close:
    """Domain ``domain`` has ended: let nobody connect as it any more, and close ``connections``."""

    domain: DomainId
    connections: tuple[Connection, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """Drop ``connection``: a change made more events for it than :data:`EVENTS_MAX_BYTES`, and it did not get them all."""

    connection: Connection


Effect: TypeAlias = Send | Open | Close | Cut


class Store:
    """One store and all its clients."""

    def __init__(self, quota: Quota | None = None) -> None:
        self.quota = Quota() if quota is None else quota
        self._tree = Tree()
        self._watches: Watches[Connection] = Watches()
        self._domains: dict[int, Domain] = {0: Domain(DOM0)}

    def connect(self, domain: int) -> Connection:
        """A new client of an introduced domain. Raises :exc:`TooManyConnections` past :data:`CONNECTIONS_MAX` of a guest."""
        owner = self._domains[domain]
        if domain != 0 and len(owner.connections) >= CONNECTIONS_MAX:
            raise TooManyConnections(f"domain {domain}")
        connection = Connection(owner)
        owner.connections.append(connection)
        return connection

    def disconnect(self, connection: Connection) -> list[Effect]:
        """A client has gone, and with the last one of a guest the guest. A second time is harmless."""
        domain = connection.domain
        if connection not in domain.connections:
            return []
        self._reset(connection)
        domain.connections.remove(connection)
        if domain.connections or domain.identity.privileged:
            return []
        return self._end(domain)

    def release(self, domain: DomainId) -> list[Effect]:
        """End a domain from outside; raises :exc:`NoEntry` where it is not introduced."""
        return self._end(self._introduced(domain))

    def request(self, connection: Connection, packet: Packet) -> list[Effect]:
        """Carry out one request of ``connection``."""
        try:
            return self._dispatch(connection, packet)
        except StoreError as refused:
            return [Send(connection, packet.error(refused.errno_name))]

    def _dispatch(self, connection: Connection, packet: Packet) -> list[Effect]:
        if packet.tx_id != 0 and packet.tx_id not in connection.transactions:
            raise NoEntry("transaction")
        if (on_keys := _ON_KEYS.get(packet.op)) is not None:
            return self._on_keys(connection, packet, on_keys)
        if (on_connection := _ON_CONNECTION.get(packet.op)) is not None:
            return on_connection(self, connection, packet)
        if (on_domains := _ON_DOMAINS.get(packet.op)) is None:
            raise Unsupported(f"operation {packet.op}")
        if not connection.domain.identity.privileged:
            raise Denied(f"operation {packet.op}")
        return [*on_domains(self, wire.split(packet.payload)), Send(connection, packet.reply(wire.OK))]

    # Requests on keys.

    def _on_keys(self, connection: Connection, packet: Packet, on_keys: Callable[[View, bytes], bytes]) -> list[Effect]:
        if packet.tx_id != 0:
            return [Send(connection, packet.reply(on_keys(connection.transactions[packet.tx_id], packet.payload)))]
        view = self._view(connection.domain)
        reply = on_keys(view, packet.payload)
        return [*self._tell(view.commit()), Send(connection, packet.reply(reply))]

    def _view(self, domain: Domain) -> View:
        return View(self._tree, domain.identity, None if domain.identity.privileged else self.quota)

    # Requests on the connection's own watches and transactions.

    def _watch(self, connection: Connection, packet: Packet) -> list[Effect]:
        asked, token = _path_and_token(packet.payload)
        domain = connection.domain
        watch = Watch(connection, paths.resolve_watched(asked, domain.identity.domain), asked, token)
        if (watch.path, token) in connection.watches:
            raise Exists("watch")
        if not domain.identity.privileged and domain.watches > self.quota.watches:
            raise TooBig("watches")
        connection.watches[watch.path, token] = watch
        self._watches.add(watch)
        return [Send(connection, packet.reply(wire.OK)), _event(watch, watch.path)]

    def _unwatch(self, connection: Connection, packet: Packet) -> list[Effect]:
        asked, token = _path_and_token(packet.payload)
        path = paths.resolve_watched(asked, connection.domain.identity.domain)
        watch = connection.watches.pop((path, token), None)
        if watch is None:
            raise NoEntry("watch")
        self._watches.remove(watch)
        return [Send(connection, packet.reply(wire.OK))]

    def _start(self, connection: Connection, packet: Packet) -> list[Effect]:
        if packet.tx_id != 0:
            raise Busy("transaction")
        domain = connection.domain
        if not domain.identity.privileged and domain.transactions > self.quota.transactions:
            raise NoSpace("transactions")
        connection.last_transaction = connection.last_transaction % 0xFFFF_FFFF + 1
        connection.transactions[connection.last_transaction] = self._view(domain)
        return [Send(connection, packet.reply(wire.join([str(connection.last_transaction)])))]

    def _end_transaction(self, connection: Connection, packet: Packet) -> list[Effect]:
        if packet.payload not in (b"T\0", b"F\0"):
            raise Invalid("transaction end")
        view = connection.transactions.pop(packet.tx_id, None)
        if view is None:
            raise NoEntry("transaction")
        told = self._tell(view.commit()) if packet.payload == b"T\0" else []
        return [*told, Send(connection, packet.reply(wire.OK))]

    def _reset_watches(self, connection: Connection, packet: Packet) -> list[Effect]:
        self._reset(connection)
        return [Send(connection, packet.reply(wire.OK))]

    def _reset(self, connection: Connection) -> None:
        for watch in connection.watches.values():
            self._watches.remove(watch)
        connection.watches.clear()
        connection.transactions.clear()

    def _domain_path(self, connection: Connection, packet: Packet) -> list[Effect]:
        domain = _domain_id(_one(packet.payload))
        return [Send(connection, packet.reply(wire.join([paths.home(domain)])))]

    def _is_introduced(self, connection: Connection, packet: Packet) -> list[Effect]:
        """A guest may ask for itself alone: which other VMs run is not its business. (Xen's daemon tells it.)"""
        domain = _domain_id(_one(packet.payload))
        if not (connection.domain.identity.privileged or connection.domain.identity.includes(domain)):
            raise Denied("domain")
        return [Send(connection, packet.reply(b"T\0" if domain in self._domains else b"F\0"))]

    def _control(self, connection: Connection, packet: Packet) -> list[Effect]:
        if not connection.domain.identity.privileged:
            raise Denied("control")
        if wire.split(packet.payload) != ["help"]:
            raise Invalid("control")
        return [Send(connection, packet.reply(wire.join(["help"])))]

    # Requests of dom0 on domains.

    def _introduce(self, arguments: list[str]) -> list[Effect]:
        """The ring's frame and event channel mean nothing here. A domain that is there already stays as it is."""
        if len(arguments) != 3:
            raise Invalid("introduce")
        domain = _guest_id(arguments[0])
        if domain in self._domains:
            return []
        self._domains[domain] = Domain(Identity(domain))
        return [Open(domain), *self._announce(INTRODUCE_DOMAIN)]

    def _release(self, arguments: list[str]) -> list[Effect]:
        return self._end(self._introduced(_guest_id(_only(arguments))))

    def _resume(self, arguments: list[str]) -> list[Effect]:
        self._introduced(_guest_id(_only(arguments)))
        return []

    def _set_target(self, arguments: list[str]) -> list[Effect]:
        if len(arguments) != 2:
            raise Invalid("set target")
        domain, target = (self._introduced(_guest_id(argument)) for argument in arguments)
        domain.identity = replace(domain.identity, target=target.identity.domain)
        return []

    def _introduced(self, domain: DomainId) -> Domain:
        if domain not in self._domains:
            raise NoEntry(f"domain {domain}")
        return self._domains[domain]

    def _end(self, domain: Domain) -> list[Effect]:
        number = DomainId(domain.identity.domain)
        del self._domains[number]
        for other in self._domains.values():
            if other.identity.target == number:
                other.identity = replace(other.identity, target=None)
        gone = tuple(domain.connections)
        for connection in gone:
            self._reset(connection)
        domain.connections.clear()
        view = View(self._tree, DOM0, None)
        view.forget_domain(number)
        return [Close(number, gone), *self._tell(view.commit()), *self._announce(RELEASE_DOMAIN)]

    # Events.

    def _tell(self, changes: list[Change]) -> list[Effect]:
        effects: list[Effect] = []
        made_bytes: dict[Connection, int] = {}
        for change in changes:
            for watch in self._watches.hearing(change.path, exactly=change.within):
                owner, identity = watch.owner, watch.owner.domain.identity
                made = made_bytes.get(owner, 0)
                if made > EVENTS_MAX_BYTES or not any(readers.allow(identity, Access.READ) for readers in change.readers):
                    continue
                event = _event(watch, change.path)
                effects.append(event)
                if not identity.privileged:
                    made_bytes[owner] = made + len(event.packet.payload)
                    if made_bytes[owner] > EVENTS_MAX_BYTES:
                        effects.append(Cut(owner))
        return effects

    def _announce(self, special: str) -> list[Effect]:
        return self._tell([Change(special, (self._tree.nodes[special].permissions,), within=False)])


def _event(watch: Watch[Connection], path: str) -> Send:
    """Tells ``watch`` of ``path``; of the watched path instead where path and token together exceed what a message holds."""
    payload = wire.join([watch.told(path)]) + watch.token + b"\0"
    if len(payload) > wire.PAYLOAD_MAX:
        payload = wire.join([watch.asked]) + watch.token + b"\0"
    return Send(watch.owner, Packet(Op.WATCH_EVENT, payload))


# Arguments.


def _only(arguments: list[str]) -> str:
    if len(arguments) != 1:
        raise Invalid("arguments")
    return arguments[0]


def _one(payload: bytes) -> str:
    return _only(wire.split(payload))


def _path_and_token(payload: bytes) -> tuple[str, bytes]:
    path, *rest = payload.split(b"\0")
    if len(rest) != 2 or rest[1]:
        raise Invalid("watch")
    return path.decode("ascii", "replace"), rest[0]


def _domain_id(text: str) -> DomainId:
    try:
        return DomainId.parse(text)
    except BadDomainId:
        raise Invalid("domain id") from None


def _guest_id(text: str) -> DomainId:
    domain = _domain_id(text)
    if domain == 0:
        raise Invalid("domain id")
    return domain


def _key(view: View, path: str) -> str:
    return paths.resolve(path, view.who.domain)


def _key_or_special(view: View, path: str) -> str:
    return paths.resolve_watched(path, view.who.domain)


# One function for each request on keys: the payload in, the reply's payload out.


def _read(view: View, payload: bytes) -> bytes:
    return view.read(_key(view, _one(payload)))


def _directory(view: View, payload: bytes) -> bytes:
    names, _ = view.directory(_key(view, _one(payload)))
    reply = wire.join(names)
    if len(reply) > wire.PAYLOAD_MAX:
        raise TooBig("directory")
    return reply


def _directory_part(view: View, payload: bytes) -> bytes:
    """The children from a byte offset on, whole names only, after the generation; an empty name ends the last part."""
    match wire.split(payload):
        case [path, offset] if offset.isascii() and offset.isdigit():
            names, generation = view.directory(_key(view, path))
        case _:
            raise Invalid("directory part")
    head = wire.join([str(generation)])
    rest = wire.join(names)[int(offset) :]
    room = wire.PAYLOAD_MAX - len(head)
    if len(rest) < room:
        return head + rest + b"\0"
    return head + rest[: rest.rindex(b"\0", 0, room) + 1]


def _get_permissions(view: View, payload: bytes) -> bytes:
    return wire.join(view.permissions(_key_or_special(view, _one(payload))).entries())


def _write(view: View, payload: bytes) -> bytes:
    path, separator, value = payload.partition(b"\0")
    if not separator:
        raise Invalid("write")
    view.write(_key(view, path.decode("ascii", "replace")), value)
    return wire.OK


def _mkdir(view: View, payload: bytes) -> bytes:
    view.mkdir(_key(view, _one(payload)))
    return wire.OK


def _rm(view: View, payload: bytes) -> bytes:
    view.remove(_key(view, _one(payload)))
    return wire.OK


def _set_permissions(view: View, payload: bytes) -> bytes:
    path, *entries = wire.split(payload)
    view.set_permissions(_key_or_special(view, path), Permissions.parse(entries))
    return wire.OK


_ON_KEYS: dict[int, Callable[[View, bytes], bytes]] = {
    Op.DIRECTORY: _directory,
    Op.READ: _read,
    Op.GET_PERMS: _get_permissions,
    Op.WRITE: _write,
    Op.MKDIR: _mkdir,
    Op.RM: _rm,
    Op.SET_PERMS: _set_permissions,
    Op.DIRECTORY_PART: _directory_part,
}

_ON_CONNECTION: dict[int, Callable[[Store, Connection, Packet], list[Effect]]] = {
    Op.CONTROL: Store._control,
    Op.WATCH: Store._watch,
    Op.UNWATCH: Store._unwatch,
    Op.TRANSACTION_START: Store._start,
    Op.TRANSACTION_END: Store._end_transaction,
    Op.GET_DOMAIN_PATH: Store._domain_path,
    Op.IS_DOMAIN_INTRODUCED: Store._is_introduced,
    Op.RESET_WATCHES: Store._reset_watches,
}

_ON_DOMAINS: dict[int, Callable[[Store, list[str]], list[Effect]]] = {
    Op.INTRODUCE: Store._introduce,
    Op.RELEASE: Store._release,
    Op.RESUME: Store._resume,
    Op.SET_TARGET: Store._set_target,
}
