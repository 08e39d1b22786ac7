"""Paths of the store: which are well formed, what a relative one means, and how an absolute one is told to a client."""

from __future__ import annotations

import re

from qfilexchg.xenstore.errors import Invalid

PATH_MAX = 2048
"""Characters after ``/local/domain/N/``; what Xen 4.17's daemon takes, less than the 3072 of the specification."""

ROOT = "/"
_ABSOLUTE = re.compile(r"(?:/[A-Za-z0-9_@-]+)+")
_SPECIAL = re.compile(r"@[A-Za-z0-9_/@-]*[A-Za-z0-9_@-]")
_IN_HOME = re.compile(r"/local/domain/[0-9]{1,5}/")


def home(domain: int) -> str:
    """Where the relative paths of ``domain`` begin, without the slash."""
    return f"/local/domain/{domain}"


def resolve(path: str, domain: int) -> str:
    """The absolute path that ``domain`` means by ``path``, or raise :exc:`Invalid`."""
    absolute = path if path.startswith("/") else f"{home(domain)}/{path}"
    prefix = _IN_HOME.match(absolute)
    if len(absolute) - (prefix.end() if prefix else 0) > PATH_MAX or not (absolute == ROOT or _ABSOLUTE.fullmatch(absolute)):
        raise Invalid(path)
    return absolute


def resolve_watched(path: str, domain: int) -> str:
    """As :func:`resolve`, but ``@introduceDomain`` and its like are themselves."""
    if not path.startswith("@"):
        return resolve(path, domain)
    if len(path) > PATH_MAX or not _SPECIAL.fullmatch(path):
        raise Invalid(path)
    return path


def parent(path: str) -> str | None:
    """The path above; None above the root and for special paths."""
    if path == ROOT or path.startswith("@"):
        return None
    return path[: path.rindex("/")] or ROOT


def leaf(path: str) -> str:
    """The last name of ``path``."""
    return path[path.rindex("/") + 1 :]


def child(path: str, name: str) -> str:
    """The path of ``name`` below ``path``."""
    return f"/{name}" if path == ROOT else f"{path}/{name}"
