"""The pure store, case by case; see table.py for how to read a script."""

from __future__ import annotations

import pytest

from qfilexchg.xenstore.store import CONNECTIONS_MAX, Send, TooManyConnections
from qfilexchg.xenstore.tree import Quota
from qfilexchg.xenstore.wire import PAYLOAD_MAX, Op, Packet
from tests.unit.xenstore.table import Table


@pytest.fixture
def table() -> Table:
    return Table()


CASES = {
    # Paths.
    "relative paths of dom0 lie below its home": """
        dom0 WRITE key x                 = OK
        dom0 READ /local/domain/0/key    = x
    """,
    "relative paths of a VM lie below its home": """
        vm WRITE key x                   = OK
        dom0 READ /local/domain/5/key    = x
    """,
    "paths with an empty name, a final slash or a strange character are refused": """
        dom0 READ //a      = EINVAL
        dom0 READ /a/      = EINVAL
        dom0 READ /a.b     = EINVAL
        dom0 READ /ä       = EINVAL
        dom0 READ a//b     = EINVAL
        dom0 DIRECTORY /   = local
    """,
    "a domain's path is told for every id that can be": """
        dom0 GET_DOMAIN_PATH 5       = /local/domain/5
        vm GET_DOMAIN_PATH 32751     = /local/domain/32751
        vm GET_DOMAIN_PATH 32752     = EINVAL
        vm GET_DOMAIN_PATH x         = EINVAL
        vm GET_DOMAIN_PATH 05        = EINVAL
    """,
    # Keys.
    "writing makes what is missing above": """
        dom0 WRITE /a/b/c x    = OK
        dom0 READ /a/b         = -
        dom0 DIRECTORY /a      = b
        dom0 DIRECTORY /a/b/c  = -
    """,
    "a value may be empty and may be replaced": """
        dom0 WRITE /a x    = OK
        dom0 WRITE /a      = OK
        dom0 READ /a       = -
    """,
    "a missing key cannot be read": """
        dom0 READ /a             = ENOENT
        dom0 DIRECTORY /a        = ENOENT
        dom0 GET_PERMS /a        = ENOENT
        dom0 SET_PERMS /a n0     = ENOENT
        dom0 DIRECTORY_PART /a 0 = ENOENT
    """,
    "mkdir of what is there changes nothing and tells nobody": """
        dom0 WRITE /a x    = OK
        dom0 WATCH /a t    = OK dom0!/a:t
        dom0 MKDIR /a      = OK
        dom0 READ /a       = x
        dom0 MKDIR /a/b/c  = dom0!/a/b/c:t OK
    """,
    "removing a missing leaf succeeds, below a missing key it does not, and the root stays": """
        dom0 RM /a       = OK
        dom0 RM /a/b     = ENOENT
        dom0 RM /        = EINVAL
    """,
    "removing takes all below along": """
        dom0 WRITE /a/b/c x  = OK
        dom0 RM /a/b         = OK
        dom0 READ /a/b/c     = ENOENT
        dom0 DIRECTORY /a    = -
    """,
    "a directory is told in parts": """
        dom0 WRITE /a/one           = OK
        dom0 WRITE /a/two           = OK
        dom0 DIRECTORY_PART /a 0x   = EINVAL
        dom0 DIRECTORY_PART /a      = EINVAL
    """,
    # Permissions.
    "a VM may write what it owns and neither read nor write another's": """
        vm WRITE key x                   = OK
        other READ /local/domain/5/key   = EACCES
        other WRITE /local/domain/5/key  = EACCES
        other RM /local/domain/5/key     = EACCES
        other DIRECTORY /local/domain/5  = EACCES
    """,
    "whoever may not read the nearest key above is not told that one is missing": """
        other READ /local/domain/5/no    = EACCES
        other RM /local/domain/5/no      = EACCES
        vm READ no                       = ENOENT
    """,
    "letters say what those not named may": """
        dom0 WRITE /a x         = OK
        dom0 SET_PERMS /a r0    = OK
        vm READ /a              = x
        vm WRITE /a y           = EACCES
        dom0 SET_PERMS /a w0    = OK
        vm READ /a              = EACCES
        vm WRITE /a y           = OK
        dom0 SET_PERMS /a b0    = OK
        vm READ /a              = y
        vm RM /a                = OK
    """,
    "a named domain may what its own letter says, more or less than others": """
        dom0 WRITE /a x              = OK
        dom0 SET_PERMS /a r0 n5 b6   = OK
        dom0 GET_PERMS /a            = r0,n5,b6
        vm READ /a                   = EACCES
        other WRITE /a y             = OK
    """,
    "bad permissions are refused": """
        dom0 WRITE /a             = OK
        dom0 SET_PERMS /a x0      = EINVAL
        dom0 SET_PERMS /a r       = EINVAL
        dom0 SET_PERMS /a rx      = EINVAL
        dom0 SET_PERMS /a r-1     = EINVAL
        dom0 SET_PERMS /a r32752  = EINVAL
        dom0 SET_PERMS /a         = EINVAL
    """,
    "only the owner sets permissions, and only dom0 gives a key away": """
        dom0 WRITE /a x              = OK
        dom0 SET_PERMS /a b0         = OK
        vm SET_PERMS /a b0 b5        = EACCES
        vm WRITE key                 = OK
        vm SET_PERMS key n5 r6       = OK
        vm SET_PERMS key n6          = EPERM
        other READ /local/domain/5/key = -
        dom0 SET_PERMS /local/domain/5/key n6 = OK
    """,
    "removing needs the right to write the key alone": """
        dom0 WRITE /top/a x           = OK
        dom0 SET_PERMS /top/a n0 b5   = OK
        dom0 WRITE /top/a/below       = OK
        vm RM /top/a                  = OK
        dom0 DIRECTORY /top           = -
    """,
    "what dom0 makes in a VM's home belongs to the VM": """
        dom0 WRITE /local/domain/5/a/b       = OK
        dom0 GET_PERMS /local/domain/5/a/b   = n5
    """,
    "what a VM makes belongs to it, with its parent's other permissions": """
        dom0 WRITE /a                  = OK
        dom0 SET_PERMS /a n0 b5 r6     = OK
        vm WRITE /a/b/c x              = OK
        dom0 GET_PERMS /a/b            = n5,b5,r6
        other READ /a/b/c              = x
    """,
    "a domain with a target may what the target may": """
        vm WRITE key x                    = OK
        dom0 SET_TARGET 6 5               = OK
        other READ /local/domain/5/key    = x
        dom0 RELEASE 5                    = -5 OK
        dom0 INTRODUCE 5 1 2              = +5 OK
        dom0 WRITE /local/domain/5/k      = OK
        dom0 SET_PERMS /local/domain/5/k n5 = OK
        other READ /local/domain/5/k      = EACCES
    """,
    # Operations.
    "what only dom0 may, a VM may not": """
        vm INTRODUCE 7 1 2         = EACCES
        vm RELEASE 6               = EACCES
        vm RESUME 6                = EACCES
        vm SET_TARGET 5 6          = EACCES
        vm CONTROL help            = EACCES
        vm IS_DOMAIN_INTRODUCED 6  = EACCES
        vm IS_DOMAIN_INTRODUCED 5  = T
    """,
    "dom0 introduces and asks": """
        dom0 IS_DOMAIN_INTRODUCED 7    = F
        dom0 INTRODUCE 7 1 2           = +7 OK
        dom0 IS_DOMAIN_INTRODUCED 7    = T
        dom0 INTRODUCE 7 1 2           = OK
        dom0 INTRODUCE 0 1 2           = EINVAL
        dom0 INTRODUCE 7               = EINVAL
        dom0 IS_DOMAIN_INTRODUCED 0    = T
        dom0 RESUME 7                  = OK
        dom0 RESUME 8                  = ENOENT
        dom0 RELEASE 8                 = ENOENT
        dom0 RELEASE 7 7               = EINVAL
        dom0 SET_TARGET 7              = EINVAL
        dom0 SET_TARGET 7 8            = ENOENT
        dom0 CONTROL help              = help
        dom0 CONTROL x                 = EINVAL
    """,
    # Watches.
    "a watch answers first, then fires once": """
        dom0 WATCH /a t    = OK dom0!/a:t
        vm WATCH key t     = OK vm!key:t
    """,
    "a watch hears of its key and of what is below, not of its likes": """
        dom0 WATCH /a t      = OK dom0!/a:t
        dom0 WRITE /a        = dom0!/a:t OK
        dom0 WRITE /a/b/c    = dom0!/a/b/c:t OK
        dom0 WRITE /ab       = OK
        dom0 WRITE /b        = OK
        dom0 WATCH / r       = OK dom0!/:r
        dom0 WRITE /a        = dom0!/a:t dom0!/a:r OK
    """,
    "a rewrite of the same value fires, and so do permissions": """
        dom0 WRITE /a x        = OK
        dom0 WATCH /a t        = OK dom0!/a:t
        dom0 WRITE /a x        = dom0!/a:t OK
        dom0 SET_PERMS /a n0   = dom0!/a:t OK
    """,
    "a relative watch is told in relative paths, an absolute one in absolute": """
        vm WATCH key t                   = OK vm!key:t
        vm WATCH /local/domain/5/key u   = OK vm!/local/domain/5/key:u
        vm WRITE key/a                   = vm!key/a:t vm!/local/domain/5/key/a:u OK
    """,
    "removing tells of what is below first, and those above of the removed key alone": """
        dom0 WRITE /a/b/c      = OK
        dom0 WATCH / r         = OK dom0!/:r
        dom0 WATCH /a/b t      = OK dom0!/a/b:t
        dom0 WATCH /a/b/c u    = OK dom0!/a/b/c:u
        dom0 RM /a             = dom0!/a/b/c:u dom0!/a/b:t dom0!/a:r OK
    """,
    "the same watch twice is refused, another token is not": """
        dom0 WATCH /a t    = OK dom0!/a:t
        dom0 WATCH /a t    = EEXIST
        dom0 WATCH /a u    = OK dom0!/a:u
    """,
    "an unknown watch cannot be taken back": """
        dom0 WATCH /a t      = OK dom0!/a:t
        dom0 UNWATCH /a u    = ENOENT
        dom0 UNWATCH /b t    = ENOENT
        dom0 UNWATCH /a t    = OK
        dom0 UNWATCH /a t    = ENOENT
        dom0 WRITE /a        = OK
    """,
    "watches belong to a connection": """
        vm WATCH key t       = OK vm!key:t
        vm2 WATCH key t      = OK vm2!key:t
        vm2 RESET_WATCHES x  = OK
        vm2 UNWATCH key t    = ENOENT
        vm2 WRITE key        = vm!key:t OK
    """,
    "the first event comes even for an unreadable path, later ones do not": """
        other WATCH /local/domain/5/key t    = OK other!/local/domain/5/key:t
        vm WRITE key                         = OK
        vm RM key                            = OK
    """,
    "an event needs the right to read the key or its parent": """
        other WATCH /local/domain/5 t          = OK other!/local/domain/5:t
        vm WRITE open                          = OK
        vm SET_PERMS open n5 r6                = other!/local/domain/5/open:t OK
        vm WRITE open x                        = other!/local/domain/5/open:t OK
        vm SET_PERMS open n5                   = other!/local/domain/5/open:t OK
        vm WRITE open y                        = OK
        vm MKDIR folder                        = OK
        vm SET_PERMS folder n5 r6              = other!/local/domain/5/folder:t OK
        vm WRITE folder/secret                 = other!/local/domain/5/folder/secret:t OK
        vm SET_PERMS folder/secret n5          = other!/local/domain/5/folder/secret:t OK
        vm WRITE folder/secret x               = other!/local/domain/5/folder/secret:t OK
    """,
    "domains come and go before dom0's eyes": """
        dom0 WATCH @introduceDomain i    = OK dom0!@introduceDomain:i
        dom0 WATCH @releaseDomain r      = OK dom0!@releaseDomain:r
        dom0 INTRODUCE 7 1 2             = +7 dom0!@introduceDomain:i OK
        dom0 RELEASE 7                   = -7 dom0!@releaseDomain:r OK
    """,
    "domains come and go unseen by VMs, unless dom0 lets them see": """
        vm WATCH @releaseDomain r                  = OK vm!@releaseDomain:r
        dom0 INTRODUCE 7 1 2                       = +7 OK
        dom0 RELEASE 7                             = -7 OK
        vm GET_PERMS @releaseDomain                = EACCES
        vm SET_PERMS @releaseDomain b5             = EACCES
        dom0 SET_PERMS @releaseDomain n0 r5        = vm!@releaseDomain:r OK
        dom0 INTRODUCE 7 1 2                       = +7 OK
        dom0 RELEASE 7                             = -7 vm!@releaseDomain:r OK
        dom0 GET_PERMS @releaseDomain              = n0,r5
        dom0 WATCH @no. r                          = EINVAL
        dom0 GET_PERMS @other                      = ENOENT
    """,
    # Transactions.
    "a transaction is seen by none but itself until it ends": """
        dom0 WATCH /a w      = OK dom0!/a:w
        dom0 START           = @t
        dom0@t WRITE /a/b x  = OK
        dom0@t READ /a/b     = x
        dom0 READ /a/b       = ENOENT
        dom0@t END T         = dom0!/a/b:w OK
        dom0 READ /a/b       = x
    """,
    "an aborted transaction has not been": """
        dom0 START           = @t
        dom0@t WRITE /a x    = OK
        dom0@t END F         = OK
        dom0 READ /a         = ENOENT
        dom0@t READ /a       = ENOENT
        dom0@t END T         = ENOENT
    """,
    "a transaction ends with T or F and does not begin in another": """
        dom0 START           = @t
        dom0@t END           = EINVAL
        dom0@t END X         = EINVAL
        dom0@t START         = EBUSY
        dom0@t END T         = OK
        dom0 END T           = ENOENT
    """,
    "a transaction belongs to its connection": """
        vm START             = @t
        vm2@t READ key       = ENOENT
        dom0@t READ /a       = ENOENT
        vm RESET_WATCHES x   = OK
        vm@t READ key        = ENOENT
    """,
    "a conflict is about the keys that were looked at, from the first look on": """
        dom0 WRITE /a/x 1    = OK
        dom0 WRITE /a/y 1    = OK
        dom0 START           = @t
        dom0 WRITE /a/x 2    = OK
        dom0@t READ /a/x     = 2
        dom0 WRITE /a/y 2    = OK
        dom0@t WRITE /a/z    = OK
        dom0@t END T         = OK
        dom0 START           = @u
        dom0@u READ /a/x     = 2
        dom0 WRITE /a/x 2    = OK
        dom0@u READ /a/x     = 2
        dom0@u WRITE /b      = OK
        dom0@u END T         = EAGAIN
        dom0 READ /b         = ENOENT
    """,
    "a new child touches its parent": """
        dom0 WRITE /a         = OK
        dom0 START            = @t
        dom0@t DIRECTORY /a   = -
        dom0 WRITE /a/b       = OK
        dom0@t END T          = EAGAIN
    """,
    "reading what is missing touches the nearest key there is": """
        dom0 WRITE /a         = OK
        dom0 START            = @t
        dom0@t READ /a/b/c    = ENOENT
        dom0 WRITE /a/d       = OK
        dom0@t END T          = EAGAIN
        dom0 START            = @u
        dom0@u READ /a/b/c    = ENOENT
        dom0 WRITE /a/d       = OK
        dom0@u END T          = OK
    """,
    "what a transaction makes and removes has not been": """
        dom0 WATCH / w         = OK dom0!/:w
        dom0 START             = @t
        dom0@t WRITE /a x      = OK
        dom0@t RM /a           = OK
        dom0@t END T           = OK
        dom0 START             = @u
        dom0@u WRITE /a/b x    = OK
        dom0@u RM /a/b         = OK
        dom0@u END T           = dom0!/a:w OK
    """,
    "a removed tree that is made again is told as it is in the end": """
        dom0 WRITE /a/b x      = OK
        dom0 WATCH /a w        = OK dom0!/a:w
        dom0 WATCH /a/b v      = OK dom0!/a/b:v
        dom0 START             = @t
        dom0@t RM /a           = OK
        dom0@t DIRECTORY /     = local
        dom0@t WRITE /a/c y    = OK
        dom0@t END T           = dom0!/a/b:v dom0!/a/b:w dom0!/a:w dom0!/a/c:w OK
        dom0 DIRECTORY /a      = c
        dom0 READ /a/b         = ENOENT
    """,
    "what a transaction sees of others after it has looked may not fit together, and then it fails": """
        dom0 WRITE /a/x        = OK
        dom0 START             = @t
        dom0@t RM /a           = OK
        dom0 WRITE /a/new      = OK
        dom0@t READ /a         = ENOENT
        dom0@t RM /a/new       = OK
        dom0@t END T           = EAGAIN
        dom0 DIRECTORY /a      = x,new
        dom0 START             = @u
        dom0@u DIRECTORY /a    = x,new
        dom0 RM /a/x           = OK
        dom0@u RM /a           = OK
        dom0@u READ /a/new     = ENOENT
        dom0@u END T           = EAGAIN
        dom0 DIRECTORY /a      = new
    """,
    "a refused request leaves its transaction as it was": """
        vm START                            = @t
        vm@t WRITE key x                    = OK
        vm@t READ /local/domain/6           = EACCES
        vm@t WRITE /local/domain/6/key      = EACCES
        vm@t END T                          = OK
        vm READ key                         = x
    """,
    # The end of a domain.
    "a domain's keys end with it, wherever they are": """
        dom0 WRITE /a                   = OK
        dom0 SET_PERMS /a n0 b5         = OK
        vm WRITE /a/b/c x               = OK
        other WATCH /a/b w              = OK other!/a/b:w
        dom0 WATCH /a/b w               = OK dom0!/a/b:w
        dom0 RELEASE 5                  = -5 dom0!/a/b:w OK
        dom0 DIRECTORY /a               = -
        dom0 GET_PERMS /a               = n0
        dom0 READ /local/domain/5       = ENOENT
    """,
    "a transaction that looked at a domain's keys conflicts with its end": """
        vm WRITE key x                     = OK
        dom0 START                         = @t
        dom0@t READ /local/domain/5/key    = x
        dom0@t WRITE /copy x               = OK
        dom0 RELEASE 5                     = -5 OK
        dom0@t END T                       = EAGAIN
    """,
}


@pytest.mark.parametrize("script", CASES.values(), ids=CASES.keys())
def test_case(table: Table, script: str) -> None:
    table.run(script)


@pytest.mark.parametrize("op", [15, 16, 20, 23, 24, 0xFFFF, 0xFFFF_FFFF])
def test_unknown_operations_are_refused(table: Table, op: int) -> None:
    assert table.request("dom0", op, "/\0") == ["ENOSYS"]


WITH_STRINGS = [getattr(Op, name) for name in vars(Op) if name.isupper()]
for without in (Op.TRANSACTION_START, Op.RESET_WATCHES, Op.WATCH_EVENT, Op.ERROR):
    WITH_STRINGS.remove(without)


@pytest.mark.parametrize("op", WITH_STRINGS)
@pytest.mark.parametrize("payload", [b"", b"5", b"/a", b"\0\0\0\0\0"])
def test_payloads_without_their_strings_are_refused(table: Table, op: int, payload: bytes) -> None:
    assert table.request("dom0", op, payload) == ["EINVAL"]


@pytest.mark.parametrize("who", ["dom0", "vm"])
def test_a_transaction_id_that_was_never_given_is_refused(table: Table, who: str) -> None:
    assert table.request(who, Op.READ, "/\0", tx=4711) == ["ENOENT"]


def test_a_path_has_at_most_2048_characters_below_home(table: Table) -> None:
    home = "/local/domain/5/"
    for prefix, who in (("", "vm"), (home, "vm"), ("/", "dom0")):
        room = 2048 - (1 if prefix == "/" else 0)
        assert table.request(who, Op.RM, f"{prefix}{'a' * room}\0") == ["OK"]
        assert table.request(who, Op.RM, f"{prefix}{'a' * (room + 1)}\0") == ["EINVAL"]
    assert table.request("dom0", Op.WATCH, f"@{'a' * 2048}\0t\0") == ["EINVAL"]


def test_a_value_may_hold_any_bytes(table: Table) -> None:
    value = bytes(range(1, 256)) + b"\0\0"
    dom0 = table.clients["dom0"]
    table.request("dom0", Op.WRITE, b"/a\0" + value)
    assert table.store.request(dom0, Packet(Op.READ, b"/a\0")) == [Send(dom0, Packet(Op.READ, value))]


def test_a_directory_too_long_for_one_message_comes_in_parts(table: Table) -> None:
    names = [f"{number:0100}" for number in range(100)]
    for name in names:
        table.request("dom0", Op.MKDIR, f"/a/{name}\0")
    assert table.request("dom0", Op.DIRECTORY, "/a\0") == ["E2BIG"]
    seen: list[str] = []
    generations = set()
    for _ in range(4):
        [part] = table.request("dom0", Op.DIRECTORY_PART, f"/a\0{sum(len(name) + 1 for name in seen)}\0")
        assert len(part) <= PAYLOAD_MAX
        generation, *more = part.split(",")
        generations.add(generation)
        seen += [name for name in more if name]
        if more[-1] == "":
            break
    assert seen == names
    assert len(generations) == 1
    table.request("dom0", Op.MKDIR, "/a/new\0")
    [part] = table.request("dom0", Op.DIRECTORY_PART, "/a\0000\0")
    assert part.split(",")[0] not in generations


def test_the_whole_of_a_short_directory_is_its_first_and_last_part(table: Table) -> None:
    table.run("dom0 WRITE /a/b = OK")
    [part] = table.request("dom0", Op.DIRECTORY_PART, "/a\0000\0")
    assert part.split(",")[1:] == ["b", ""]


def test_an_event_too_long_for_a_message_names_the_watched_path(table: Table) -> None:
    token = "t" * 4000
    assert table.request("dom0", Op.WATCH, f"/a\0{token}\0") == ["OK", f"dom0!/a:{token}"]
    assert table.request("dom0", Op.WRITE, f"/a/{'b' * 200}\0") == [f"dom0!/a:{token}", "OK"]


class TestQuotas:
    """What a guest may use. dom0 has none."""

    def fill(self, table: Table) -> None:
        """27 folders of 36 keys and the home make 1000; one folder of them all would be too big."""
        for folder in range(27):
            for key in range(36):
                assert table.request("vm", Op.MKDIR, f"{folder}/{key}\0") == ["OK"]

    def test_nodes(self, table: Table) -> None:
        self.fill(table)
        table.run("""
            vm MKDIR more                     = ENOSPC
            vm WRITE 0/0 x                    = OK
            vm RM 0/0                         = OK
            vm WRITE more/and-more            = ENOSPC
            vm READ more                      = ENOENT
            vm MKDIR more                     = OK
            dom0 MKDIR /local/domain/5/again  = OK
            dom0 MKDIR /a                     = OK
            other MKDIR a                     = OK
        """)

    def test_nodes_in_transactions_that_end_one_after_the_other(self, table: Table) -> None:
        self.fill(table)
        table.run("""
            vm RM 8/0             = OK
            vm RM 9/0             = OK
            vm START              = @one
            vm START              = @two
            vm@one WRITE 0/one    = OK
            vm@one WRITE 0/two    = OK
            vm@one WRITE 0/three  = ENOSPC
            vm@two WRITE 1/one    = OK
            vm@two WRITE 1/two    = OK
            vm@one END T          = OK
            vm@two END T          = ENOSPC
            vm READ 1/one         = ENOENT
            vm READ 0/two         = -
        """)

    def test_the_size_of_a_node_with_its_permissions_and_the_names_of_its_children(self, table: Table) -> None:
        room = Quota().node_bytes - 24 - 8
        assert table.request("vm", Op.WRITE, f"k\0{'x' * (room + 1)}") == ["ENOSPC"]
        assert table.request("vm", Op.WRITE, f"k\0{'x' * room}") == ["OK"]
        assert table.request("vm", Op.SET_PERMS, "k\0n5\0r6\0") == ["ENOSPC"]
        assert table.request("vm", Op.MKDIR, "k/a\0") == ["ENOSPC"]
        assert table.request("vm", Op.WRITE, f"k\0{'x' * (room - 2)}") == ["OK"]
        assert table.request("vm", Op.MKDIR, "k/a\0") == ["OK"]
        assert table.request("vm", Op.WRITE, f"k\0{'x' * (room - 1)}") == ["ENOSPC"]
        assert table.request("dom0", Op.WRITE, f"/local/domain/5/k\0{'x' * 4000}") == ["OK"]

    def test_permissions(self, table: Table) -> None:
        table.run("""
            vm WRITE k                        = OK
            vm SET_PERMS k n5 r1 r2 r3 r4     = OK
            vm SET_PERMS k n5 r1 r2 r3 r4 r6  = ENOSPC
            dom0 WRITE /a                     = OK
            dom0 SET_PERMS /a n0 r1 r2 r3 r4 r5 r6 r7 = OK
        """)

    def test_watches_count_for_the_domain(self, table: Table) -> None:
        for number in range(Quota().watches + 1):
            who = ("vm", "vm2")[number % 2]
            assert table.request(who, Op.WATCH, f"k\0{number}\0") == ["OK", f"{who}!k:{number}"]
        assert table.request("vm", Op.WATCH, "k\0more\0") == ["E2BIG"]
        assert table.request("vm2", Op.WATCH, "k\0more\0") == ["E2BIG"]
        table.run("other WATCH k t = OK other!k:t")
        for number in range(300):
            assert table.request("dom0", Op.WATCH, f"/a\0{number}\0")[0] == "OK"

    def test_transactions_count_for_the_domain(self, table: Table) -> None:
        for number in range(Quota().transactions + 1):
            table.run(f"vm{'2' * (number % 2)} START = @{number}")
        table.run("""
            vm START      = ENOSPC
            vm2 START     = ENOSPC
            vm@0 END F    = OK
            vm START      = @again
            other START   = @others
        """)

    def test_connections(self, table: Table) -> None:
        for _ in range(CONNECTIONS_MAX - 2):
            table.store.connect(5)
        with pytest.raises(TooManyConnections):
            table.store.connect(5)
        for _ in range(20):
            table.store.connect(0)


class TestConnectionsEnd:
    def test_a_domain_ends_with_its_last_connection(self, table: Table) -> None:
        table.run("""
            dom0 WATCH @releaseDomain r  = OK dom0!@releaseDomain:r
            vm WATCH key t               = OK vm!key:t
            vm WRITE key                 = vm!key:t OK
        """)
        assert table.store.disconnect(table.clients["vm"]) == []
        table.run("""
            vm2 WRITE key                = OK
            dom0 IS_DOMAIN_INTRODUCED 5  = T
        """)
        assert [table.shown(effect) for effect in table.store.disconnect(table.clients["vm2"])] == ["-5", "dom0!@releaseDomain:r"]
        table.run("""
            dom0 IS_DOMAIN_INTRODUCED 5     = F
            dom0 READ /local/domain/5/key   = ENOENT
        """)
        assert table.store.disconnect(table.clients["vm2"]) == []

    def test_a_reused_number_inherits_nothing(self, table: Table) -> None:
        table.run("""
            dom0 WRITE /a x                = OK
            dom0 SET_PERMS /a n0 r5        = OK
            vm START                       = @t
            vm WATCH /a w                  = OK vm!/a:w
            dom0 RELEASE 5                 = -5 OK
            dom0 INTRODUCE 5 1 2           = +5 OK
        """)
        table.clients["vm"] = table.store.connect(5)
        table.run("""
            vm READ /a                     = EACCES
            vm@t READ /a                   = ENOENT
            dom0 WRITE /a y                = OK
            vm WATCH /a w                  = OK vm!/a:w
        """)

    def test_dom0_does_not_end(self, table: Table) -> None:
        assert table.store.disconnect(table.clients["dom0"]) == []
        table.clients["dom0"] = table.store.connect(0)
        table.run("dom0 IS_DOMAIN_INTRODUCED 0 = T")
