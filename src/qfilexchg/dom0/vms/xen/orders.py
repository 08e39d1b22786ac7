"""Orders: which disk of which domain is to get a pendrive, for the block script, which puts a pendrive under no other.

xl starts a VM of somebody's again with all disks that it had, pendrives included, and asks nobody. By then the pendrive can be in
another VM. So there is an order for as long as xl attaches one at our word, and without it the script binds :func:`nothing`. An order
names a domain id, and a VM that starts again has another one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path

from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.xen import nodes
from qfilexchg.protocol.names import BadDomainId, DomainId


def folder(home: Home) -> Path:
    """An order for each image that is being attached, by the image's name."""
    return home.run / "orders"


def nothing(home: Home) -> Path:
    """What a VM has in the place of a pendrive that it must not have: zeros, to be read only. The script makes it."""
    return home.data / "nothing"


@contextlib.contextmanager
def given(home: Home, image: Path, domain: DomainId, disk: str) -> Iterator[None]:
    """The block script may give ``image`` to this disk meanwhile."""
    folder(home).mkdir(mode=0o700, parents=True, exist_ok=True)
    order = folder(home) / image.name
    order.write_text(f"{int(domain)}/{nodes.number(disk)}\n", encoding="ascii")
    try:
        yield
    finally:
        order.unlink(missing_ok=True)


def left(home: Home) -> dict[Path, DomainId | None]:
    """Every order that is there, with the domain that it is for; None for one that is just being written."""
    found: dict[Path, DomainId | None] = {}
    for order in folder(home).glob("*"):
        with contextlib.suppress(FileNotFoundError):  # it has just been carried out
            try:
                found[order] = DomainId.parse(order.read_text(encoding="ascii").partition("/")[0])
            except (BadDomainId, UnicodeDecodeError):
                found[order] = None
    return found


def remove_stale(home: Home, orders: dict[Path, DomainId | None], domains: Collection[DomainId]) -> None:
    """Remove those of ``orders`` that a daemon left which was killed. ``domains`` are all that there are, asked for after the orders."""
    for order, domain in orders.items() & left(home).items():  # one that has been given anew since is not stale
        if (domain is not None and domain not in domains) or not (home.spool / order.name).exists():
            order.unlink(missing_ok=True)
