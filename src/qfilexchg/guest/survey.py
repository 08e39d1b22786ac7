"""Looks through everything that is to be sent, before a pendrive is asked for.

A survey opens nothing and changes nothing. Each thing found is either an :class:`Item`, with all that the copy must know, or a
:class:`Problem`. What is a problem depends on what will hold the files: a judge decides. A folder with a problem is not entered.
"""

from __future__ import annotations

import os
import stat

from qfilexchg.guest import fat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Final, Protocol

    class Judge(Protocol):
        """Decides what can be held."""

        def problem(self, folder: str, name: str, status: os.stat_result) -> str | None:
            """Why ``name`` cannot stand in ``folder`` (a target, "" for the top), or None; called once for each thing."""
            ...

        def order(self, name: str) -> tuple[bool, str]:
            """A key by which the things of one folder are sorted."""
            ...


class Item:
    """A file, a folder or, in an archive, anything else, and where it goes.

    ``source`` is the path by which the person's argument leads to it, ``target`` its path on the pendrive.
    """

    __slots__ = ("source", "status", "target")

    def __init__(self, source: str, target: str, status: os.stat_result) -> None:
        self.source: Final = source
        self.target: Final = target
        self.status: Final = status

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.status.st_mode)

    @property
    def size_bytes(self) -> int:
        return self.status.st_size if self.is_file else 0


class Problem:
    """A thing that cannot be sent as it is, and why."""

    __slots__ = ("source", "why")

    def __init__(self, source: str, why: str) -> None:
        self.source: Final = source
        self.why: Final = why


class Survey:
    """What was found. ``items`` stand in the order of copying: a folder before what is in it."""

    def __init__(self, items: list[Item], problems: list[Problem]) -> None:
        self.items: Final = items
        self.problems: Final = problems

    @property
    def size_bytes(self) -> int:
        return sum(item.size_bytes for item in self.items)

    @property
    def files(self) -> int:
        """How many things there are that are no folders."""
        return sum(not item.is_folder for item in self.items)

    @property
    def beyond_calendar(self) -> int:
        """How many things have a time that FAT cannot hold."""
        return sum(not fat.EARLIEST_S <= item.status.st_mtime <= fat.LATEST_S for item in self.items)

    def pendrive_bytes(self) -> int:
        """The size of a pendrive that holds all items as files and folders."""
        folder_slots = {"": 1}  # the volume label
        for item in self.items:
            if item.is_folder:
                folder_slots[item.target] = 2  # "." and ".."
            folder_slots[os.path.dirname(item.target)] += fat.slots(os.path.basename(item.target))
        return fat.pendrive_bytes((item.size_bytes for item in self.items if item.is_file), folder_slots.values())


class FatJudge:
    """Judges for a pendrive's own filesystem, mounted on ``root``."""

    def __init__(self, root: str) -> None:
        self._root_bytes = len(os.fsencode(root)) + 1
        self._names: dict[str, set[str]] = {}
        self._slots: dict[str, int] = {}

    def problem(self, folder: str, name: str, status: os.stat_result) -> str | None:
        if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
            return f"it is a {_kind(status)}"
        if why := fat.name_problem(name):
            return why
        if self._root_bytes + len(os.fsencode(os.path.join(folder, name))) > fat.PATH_BYTES_MAX:
            return "its path is too long"
        if stat.S_ISREG(status.st_mode) and status.st_size > fat.FILE_BYTES_MAX:
            return "it is a file of 4 GiB or more"
        names = self._names.setdefault(folder, set())
        folded = fat.folded(name)
        if folded in names:
            return "another name in the same folder differs only in upper and lower case, or not at all"
        taken = self._slots.get(folder, 2) + fat.slots(name)
        if taken > fat.FOLDER_SLOTS_MAX:
            return "its folder has too many names"
        names.add(folded)
        self._slots[folder] = taken
        return None

    def order(self, name: str) -> tuple[bool, str]:
        return (not fat.looks_short(name), name)


class ArchiveJudge:
    """Judges for a tar archive, which holds all but sockets."""

    def __init__(self) -> None:
        self._top: set[str] = set()

    def problem(self, folder: str, name: str, status: os.stat_result) -> str | None:
        if stat.S_ISSOCK(status.st_mode):
            return f"it is a {_kind(status)}"
        if not folder:
            if name in self._top:
                return "another of the things to send has the same name"
            self._top.add(name)
        return None

    def order(self, name: str) -> tuple[bool, str]:
        return (False, name)


def survey(arguments: Sequence[str], judge: Judge, checkpoint: Callable[[], None]) -> Survey:
    """Look through ``arguments`` and everything below them. Links are not followed, but for an argument that ends with a slash.

    ``checkpoint`` is called for each thing that is found; what it raises ends the survey.
    """
    items: list[Item] = []
    problems: list[Problem] = []
    tops = [(argument, os.path.basename(os.path.abspath(argument))) for argument in arguments]
    for argument, name in sorted(tops, key=lambda top: (judge.order(top[1]), top[0])):
        for found in _look(argument, "", name, judge):
            checkpoint()
            if isinstance(found, Item):
                items.append(found)
            else:
                problems.append(found)
    return Survey(items, problems)


def _look(source: str, folder: str, name: str, judge: Judge) -> Iterator[Item | Problem]:
    """``source`` and all below it, depth first, with no recursion: folders may be deeper than Python's stack."""
    pending = [(source, folder, name)]
    while pending:
        source, folder, name = pending.pop()
        try:
            status = os.lstat(source)
            if not name:
                yield Problem(source, "the root folder has no name to be sent under")
                continue
            if why := judge.problem(folder, name, status):
                yield Problem(source, why)
                continue
            below = os.listdir(source) if stat.S_ISDIR(status.st_mode) else []
        except OSError as error:
            yield Problem(source, f"it cannot be read ({error.strerror})")
            continue
        if stat.S_ISREG(status.st_mode) and not os.access(source, os.R_OK):
            yield Problem(source, "it cannot be read (Permission denied)")
            continue
        target = os.path.join(folder, name)
        yield Item(source, target, status)
        pending += [(os.path.join(source, child), target, child) for child in sorted(below, key=judge.order, reverse=True)]


def _kind(status: os.stat_result) -> str:
    kinds = {stat.S_IFLNK: "link", stat.S_IFSOCK: "socket", stat.S_IFIFO: "pipe", stat.S_IFBLK: "device", stat.S_IFCHR: "device"}
    return kinds.get(stat.S_IFMT(status.st_mode), "special file")
