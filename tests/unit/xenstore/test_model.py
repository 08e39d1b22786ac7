"""Random histories of the store, beside a model that is plain dictionaries.

The model is of one world. What a transaction asks is written down, and must get the same answers when all of it is asked at once
where the transaction ends well.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from qfilexchg.xenstore.wire import Op
from tests.unit.xenstore.table import Table

NAMES = st.sampled_from("abc")
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(lambda names: "/" + "/".join(names))
VALUES = st.sampled_from(["", "x", "y"])
OUTSIDE = ""


def above(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def children(keys: dict[str, str], path: str) -> set[str]:
    return {key.rpartition("/")[2] for key in keys if key != "/" and above(key) == path}


def below(keys: dict[str, str], path: str) -> dict[str, str]:
    return {key: value for key, value in keys.items() if key == path or key.startswith(path.rstrip("/") + "/")}


class Keys:
    """The plain dictionary: path to value."""

    def __init__(self, keys: dict[str, str]) -> None:
        self.keys = keys

    def write(self, path: str, value: str) -> str:
        missing = path
        while (missing := above(missing)) not in self.keys:
            self.keys[missing] = ""
        self.keys[path] = value
        return "OK"

    def mkdir(self, path: str) -> str:
        return "OK" if path in self.keys else self.write(path, "")

    def rm(self, path: str) -> str:
        if above(path) not in self.keys:
            return "ENOENT"
        for key in [key for key in self.keys if key == path or key.startswith(path + "/")]:
            del self.keys[key]
        return "OK"

    def read(self, path: str) -> str:
        return self.keys.get(path, "ENOENT") or "-"

    def directory(self, path: str) -> str:
        return ",".join(sorted(children(self.keys, path))) or "-" if path in self.keys else "ENOENT"


class Histories(RuleBasedStateMachine):
    """dom0, its watches, and any number of transactions beside each other."""

    transactions = Bundle("transactions")
    where = st.just(OUTSIDE) | transactions

    def __init__(self) -> None:
        super().__init__()
        self.table = Table()
        self.table.run("dom0 RM /local = OK")
        self.world = Keys({"/": ""})
        self.private: dict[str, list[tuple[int, str, str, str]]] = {}
        self.begun: dict[str, int] = {}
        self.changes = 0
        self.watched: dict[str, str] = {}

    def ask(self, transaction: str, op: int, path: str, value: str = "") -> list[str]:
        payload = f"{path}\0{value}" if op == Op.WRITE else f"{path}\0"
        return self.table.request("dom0", op, payload, int(transaction or 0))

    def told(self, path: str) -> set[str]:
        return {
            f"dom0!{path}:{token}" for watch, token in self.watched.items() if path == watch or path.startswith(watch.rstrip("/") + "/")
        }

    @rule(transaction=where, path=PATHS, value=VALUES)
    def write(self, transaction: str, path: str, value: str) -> None:
        self.change(transaction, Op.WRITE, path, value)

    @rule(transaction=where, path=PATHS)
    def mkdir(self, transaction: str, path: str) -> None:
        self.change(transaction, Op.MKDIR, path)

    @rule(transaction=where, path=PATHS)
    def rm(self, transaction: str, path: str) -> None:
        self.change(transaction, Op.RM, path)

    def change(self, transaction: str, op: int, path: str, value: str = "") -> None:
        was_there = path in self.world.keys
        *events, reply = self.ask(transaction, op, path, value)
        if transaction:
            assert not events
            self.private[transaction].append((op, path, value, reply))
            return
        self.changes += 1
        gone = [key for key in self.world.keys if key.startswith(path + "/")]
        assert reply == carried_out(self.world, op, path, value)
        changed = op == Op.WRITE or was_there == (op == Op.RM)
        expected = self.told(path) if changed and reply == "OK" else set()
        if op == Op.RM:
            expected |= {f"dom0!{key}:{self.watched[key]}" for key in gone if key in self.watched}
        assert set(events) == expected
        assert len(events) == len(expected)

    @rule(transaction=where, path=PATHS)
    def read(self, transaction: str, path: str) -> None:
        [reply] = self.ask(transaction, Op.READ, path)
        if transaction:
            self.private[transaction].append((Op.READ, path, "", reply))
        else:
            assert reply == self.world.read(path)

    @rule(transaction=where, path=PATHS | st.just("/"))
    def directory(self, transaction: str, path: str) -> None:
        [reply] = self.ask(transaction, Op.DIRECTORY, path)
        reply = ",".join(sorted(reply.split(",")))
        if transaction:
            self.private[transaction].append((Op.DIRECTORY, path, "", reply))
        else:
            assert reply == self.world.directory(path)

    @rule(target=transactions)
    def begin(self) -> str:
        [transaction] = self.table.request("dom0", Op.TRANSACTION_START, "\0")
        self.private[transaction] = []
        self.begun[transaction] = self.changes
        return transaction

    @rule(transaction=consumes(transactions))
    def give_up(self, transaction: str) -> None:
        assert self.table.request("dom0", Op.TRANSACTION_END, "F\0", int(transaction)) == ["OK"]

    @rule(transaction=consumes(transactions))
    def commit(self, transaction: str) -> None:
        *events, reply = self.table.request("dom0", Op.TRANSACTION_END, "T\0", int(transaction))
        if reply == "EAGAIN":
            assert not events
            assert self.changes > self.begun[transaction]
            return
        assert reply == "OK"
        before = dict(self.world.keys)
        for op, path, value, answer in self.private[transaction]:
            assert carried_out(self.world, op, path, value) == answer
        self.changes += 1
        tokens = {event.rpartition(":")[2] for event in events}
        for path, token in self.watched.items():
            assert below(before, path) == below(self.world.keys, path) or token in tokens

    @rule(path=PATHS | st.just("/"))
    def watch(self, path: str) -> None:
        token = f"w{len(self.watched)}"
        if path not in self.watched:
            self.watched[path] = token
            assert self.table.request("dom0", Op.WATCH, f"{path}\0{token}\0") == ["OK", f"dom0!{path}:{token}"]

    @invariant()
    def the_store_holds_what_the_model_holds(self) -> None:
        for path in self.world.keys:
            [reply] = self.ask(OUTSIDE, Op.READ, path)
            assert reply == self.world.read(path)
            [names] = self.ask(OUTSIDE, Op.DIRECTORY, path)
            assert ",".join(sorted(names.split(","))) == self.world.directory(path)


def carried_out(keys: Keys, op: int, path: str, value: str) -> str:
    match op:
        case Op.WRITE:
            return keys.write(path, value)
        case Op.MKDIR:
            return keys.mkdir(path)
        case Op.RM:
            return keys.rm(path)
        case Op.READ:
            return keys.read(path)
        case _:
            return keys.directory(path)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=40, stateful_step_count=30)
