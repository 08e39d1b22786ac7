"""What a xenstore client can be told.

    CallerError
    └── StoreError     the store refused a request; nothing was changed
        ├── NoEntry  Denied  Forbidden  Exists  Invalid  Again
        └── TooBig  NoSpace  Busy  Unsupported
    HostError
    └── StoreLost      there is no store, or it went away; a request under way may or may not have been carried out

The server raises the same classes as its answers, so a name on the wire has one meaning on both sides.
"""

from __future__ import annotations

from qfilexchg.errors import CallerError, HostError


class StoreError(CallerError):
    """The store refused a request. ``what`` names the request or the key; ``errno_name`` is the refusal on the wire."""

    errno_name = "EIO"
    meaning = "the store could not do it"

    def __init__(self, what: str = "") -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return f"xenstore {self.what or 'request'}: {self.meaning} ({self.errno_name})"


class NoEntry(StoreError):
    errno_name = "ENOENT"
    meaning = "there is no such key, watch, transaction or domain"


class Denied(StoreError):
    errno_name = "EACCES"
    meaning = "the key's permissions, or the caller's domain, do not allow it"


class Forbidden(StoreError):
    errno_name = "EPERM"
    meaning = "only dom0 may give a key to another owner"


class Exists(StoreError):
    errno_name = "EEXIST"
    meaning = "it is there already"


class Invalid(StoreError):
    errno_name = "EINVAL"
    meaning = "the request or its path is not well formed"


class Again(StoreError):
    errno_name = "EAGAIN"
    meaning = "someone else changed what the transaction had read; begin it anew"


class TooBig(StoreError):
    errno_name = "E2BIG"
    meaning = "it is too long for one message, or the domain has too many watches"


class NoSpace(StoreError):
    errno_name = "ENOSPC"
    meaning = "the domain's quota is used up"


class Busy(StoreError):
    errno_name = "EBUSY"
    meaning = "a transaction cannot begin inside another"


class Unsupported(StoreError):
    errno_name = "ENOSYS"
    meaning = "the store has no such operation"


_BY_NAME = {error.errno_name: error for error in (NoEntry, Denied, Forbidden, Exists, Invalid, Again, TooBig, NoSpace, Busy, Unsupported)}


def refusal(errno_name: str, what: str) -> StoreError:
    """The error that a store's answer ``errno_name`` to the request ``what`` stands for."""
    known = _BY_NAME.get(errno_name)
    if known is not None:
        return known(what)
    error = StoreError(what)
    error.errno_name = errno_name
    return error


class StoreLost(HostError):
    """There is no store to talk to, or it stopped talking."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"no xenstore: {self.why}; check that qxenstored (on Xen: xenstored) runs"
