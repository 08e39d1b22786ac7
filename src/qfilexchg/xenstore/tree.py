"""The keys: a tree of immutable nodes, and views through which requests read and change it.

Every request runs in a :class:`View` of its own, and a transaction is a view that several requests share. A view keeps what it
has changed to itself; :meth:`View.commit` makes all of it true at once, or raises and changes nothing. So a request that fails
half-way leaves no trace.

A view pins each node at its first access, found or not found (a path that is missing pins its nearest ancestor, which lists its
children). It can be committed as long as the tree still holds those very nodes; therefore what others change before the first
access does no harm, and nodes are compared by identity: every change makes a new one.

What a guest can make the store hold is bounded by a :class:`Quota`. Keys count for their owner, whoever made them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

from qfilexchg.xenstore import paths
from qfilexchg.xenstore.errors import Again, Denied, Forbidden, Invalid, NoEntry, NoSpace
from qfilexchg.xenstore.permissions import Access, Identity, Permissions

INTRODUCE_DOMAIN = "@introduceDomain"
RELEASE_DOMAIN = "@releaseDomain"

_NODE_HEADER_BYTES = 24
_PERMISSION_BYTES = 8


@dataclass(frozen=True, slots=True)
class Quota:
    """What one guest may use; the defaults of Xen's C daemon. Each stops a guest from filling dom0's memory."""

    nodes: int = 1000
    node_bytes: int = 2048
    permissions: int = 5
    watches: int = 128
    transactions: int = 10
    outstanding_requests: int = 20


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One version of a key. No two versions have the same ``generation``."""

    value: bytes
    permissions: Permissions
    children: tuple[str, ...] = ()
    generation: int = 0

    @property
    def size(self) -> int:
        """Bytes, as the quota counts them."""
        names = sum(len(name) + 1 for name in self.children)
        return _NODE_HEADER_BYTES + _PERMISSION_BYTES * len(self.permissions) + len(self.value) + names


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to one key, as watches are told of it.

    ``readers`` are the permissions of which one must allow reading. ``within`` marks a key that went with its parent: only who
    watches this very path hears of it, as those above hear of the parent.
    """

    path: str
    readers: tuple[Permissions, ...]
    within: bool


def _owned_by_dom0() -> dict[str, Node]:
    dom0_only = Permissions(0, "n")
    return {path: Node(b"", dom0_only) for path in (paths.ROOT, INTRODUCE_DOMAIN, RELEASE_DOMAIN)}


@dataclass(slots=True)
class Tree:
    """The keys that are true now, and how many of them each domain owns. Only views change it."""

    nodes: dict[str, Node] = field(default_factory=_owned_by_dom0)
    owned: Counter[int] = field(default_factory=Counter)
    _generation: int = 0

    def next_generation(self) -> int:
        self._generation += 1
        return self._generation


class View:
    """The tree as one requester sees and changes it. ``quota`` is None for dom0, which may do everything."""

    __slots__ = ("_changed", "_owned", "_pinned", "_told", "_tree", "quota", "who")

    def __init__(self, tree: Tree, who: Identity, quota: Quota | None) -> None:
        self._tree = tree
        self.who = who
        self.quota = quota
        self._pinned: dict[str, Node] = {}
        self._changed: dict[str, Node | None] = {}
        self._owned: Counter[int] = Counter()
        self._told: dict[str, None] = {}

    # Requests, one function for each. Paths are absolute.

    def read(self, path: str) -> bytes:
        return self._existing(path, Access.READ).value

    def directory(self, path: str) -> tuple[tuple[str, ...], int]:
        """The names of the children of ``path``, and a number that changes when they do."""
        node = self._existing(path, Access.READ)
        return node.children, node.generation

    def permissions(self, path: str) -> Permissions:
        return self._existing(path, Access.READ).permissions

    def write(self, path: str, value: bytes) -> None:
        """Set the value; a key that is missing is made, with all that is missing above it."""
        node = self._lookup(path, Access.WRITE)
        if node is None:
            self._create(path, value)
        else:
            self._put(path, self._checked(replace(node, value=value)))
        self._tell(path)

    def mkdir(self, path: str) -> None:
        """Make an empty key where there is none; what is there stays as it is."""
        if self._lookup(path, Access.WRITE) is None:
            self._create(path, b"")
            self._tell(path)

    def remove(self, path: str) -> None:
        """Remove a key and all below it. A missing key is a success, if there is the key above it."""
        above = paths.parent(path)
        if above is None:
            raise Invalid(path)
        if self._lookup(path, Access.WRITE) is not None:
            self._remove_all(path)
        elif self._get(above) is None:
            raise NoEntry(path)

    def set_permissions(self, path: str, permissions: Permissions) -> None:
        """The owner alone may; only dom0 may name another owner."""
        node = self._existing(path, Access.WRITE)
        if not node.permissions.owned_by(self.who):
            raise Denied(path)
        if permissions.owner != node.permissions.owner and not self.who.privileged:
            raise Forbidden(path)
        self._put(path, self._checked(replace(node, permissions=permissions)))
        self._tell(path)

    def forget_domain(self, domain: int) -> None:
        """Remove what ``domain`` owns, with all below, and every permission that names it: its number will be another's."""
        for path in list(self._tree.nodes):
            node = self._get(path)
            if node is None:
                continue
            if node.permissions.owner == domain and paths.parent(path) is not None:
                self._remove_all(path)
            elif any(named == domain for _, named in node.permissions.named):
                self._put(path, replace(node, permissions=node.permissions.without(domain)))

    # The end.

    def commit(self) -> list[Change]:
        """Make the changes true. Raises :exc:`Again` if someone else changed what was looked at, :exc:`NoSpace` past the quota."""
        nodes = self._tree.nodes
        if any(nodes.get(path) is not node for path, node in self._pinned.items()):
            raise Again("transaction")
        if self.quota is not None and self._owned[self.who.domain] > 0:
            self._check_count(self.who.domain, more=0)
        for path, node in self._changed.items():
            if node is None:
                del nodes[path]
            else:
                nodes[path] = node
        self._tree.owned.update(self._owned)
        return [self._change(path) for path in self._told]

    # What they are made of.

    def _get(self, path: str) -> Node | None:
        if path in self._changed:
            return self._changed[path]
        if path in self._pinned:
            return self._pinned[path]
        node = self._tree.nodes.get(path)
        if node is not None:
            self._pinned[path] = node
        return node

    def _lookup(self, path: str, access: Access) -> Node | None:
        """The node, None if there is none. Whoever may not access its nearest ancestor is not told that it is missing."""
        found = self._get(path)
        nearest = found
        above = paths.parent(path)
        while nearest is None and above is not None:
            nearest = self._get(above)
            above = paths.parent(above)
        if nearest is None:
            raise NoEntry(path)
        if not nearest.permissions.allow(self.who, access):
            raise Denied(path)
        return found

    def _existing(self, path: str, access: Access) -> Node:
        node = self._lookup(path, access)
        if node is None:
            raise NoEntry(path)
        return node

    def _create(self, path: str, value: bytes) -> None:
        nearest, missing = _above(path), [path]
        while (above := self._get(nearest)) is None:
            missing.append(nearest)
            nearest = _above(nearest)
        permissions = above.permissions.inherited_by(self.who)
        grown = {nearest: replace(above, children=(*above.children, paths.leaf(missing[-1])))}
        grown |= {new: Node(b"", permissions, (paths.leaf(below),)) for below, new in pairwise(missing)}
        grown[path] = Node(value, permissions)
        if self.quota is not None:
            self._check_count(permissions.owner, more=len(missing))
        for new, node in [(new, self._checked(node)) for new, node in grown.items()]:
            self._put(new, node)

    def _remove_all(self, path: str) -> None:
        above = _above(path)
        for below in reversed(list(self._subtree(path))):
            self._put(below, None)
            self._tell(below)
        siblings = self._get(above)
        if siblings is not None:
            self._put(above, replace(siblings, children=tuple(name for name in siblings.children if name != paths.leaf(path))))
        if above in self._changed and above not in self._pinned:
            self._tell(above)  # made in this view, perhaps for the sake of the key that is gone: then nothing else tells of it

    def _subtree(self, path: str) -> Iterator[str]:
        """``path`` and all below it, each after its parent."""
        waiting = [path]
        while waiting:
            here = waiting.pop()
            node = self._get(here)
            if node is not None:
                yield here
                waiting.extend(paths.child(here, name) for name in node.children)

    def _put(self, path: str, node: Node | None) -> None:
        before = self._get(path)
        if before is not None:
            self._owned[before.permissions.owner] -= 1
        if node is None:
            self._changed.pop(path, None)
            if path in self._pinned:
                self._changed[path] = None
        else:
            self._owned[node.permissions.owner] += 1
            self._changed[path] = replace(node, generation=self._tree.next_generation())

    def _tell(self, path: str) -> None:
        """Note that watches hear of ``path``, after all that they hear of already. What came and went in this view did not happen."""
        self._told.pop(path, None)
        if path in self._changed:
            self._told[path] = None

    def _checked(self, node: Node) -> Node:
        if self.quota is not None and (node.size > self.quota.node_bytes or len(node.permissions) > self.quota.permissions):
            raise NoSpace("the key is too big")
        return node

    def _check_count(self, owner: int, more: int) -> None:
        assert self.quota is not None
        if self._tree.owned[owner] + self._owned[owner] + more > self.quota.nodes:
            raise NoSpace("too many keys")

    def _change(self, path: str) -> Change:
        above = paths.parent(path)
        versions = [self._pinned.get(path), self._changed.get(path)]
        if above is not None:
            versions.append(self._get(above) or self._pinned.get(above))
        within = above is not None and self._get(above) is None
        return Change(path, tuple(node.permissions for node in versions if node is not None), within)


def _above(path: str) -> str:
    above = paths.parent(path)
    assert above is not None, "the root is always there, and is never removed"
    return above
