"""Which program opens a document: the desktop's own databases, read as the freedesktop specifications say.

``xdg-open`` reads the same, but it is a shell script, and the name of a document in a DisposableVM is an attacker's. What comes
out here is an argument list.

A type is asked for as itself first, then as each thing that it is a special case of. For each, every folder's default programs
come first, then what was added there and what the installed programs say of themselves, without what the person
removed. (*Association between MIME types and applications* 1.0.1, sections 2 to 5; *XDG Base Directory Specification* 0.8.)

All is read at once, when :meth:`Databases.load` is called: a DisposableVM does that before its savefile is made.
"""

from __future__ import annotations

import os

from qfilexchg.guest import key_file
from qfilexchg.guest.desktop_entry import DesktopEntry, Executables
from qfilexchg.guest.mime_types import MimeTypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Final, Self

    Associations = dict[str, list[str]]
    """For each type, the names of desktop entries, the best first."""

_LIST: Final = "mimeapps.list"
_CACHE: Final = "mimeinfo.cache"


class Program:
    """How to start a program with a document: an argument list, the folder to start it in if that matters, and the entry's name."""

    __slots__ = ("argv", "folder", "name")

    def __init__(self, argv: tuple[str, ...], folder: str | None, name: str) -> None:
        self.argv: Final = argv
        self.folder: Final = folder
        self.name: Final = name


class Databases:
    """Types and programs. Nothing that is asked of it reads more than the document."""

    def __init__(self, mime_types: MimeTypes, levels: Sequence[_Level], entries: Mapping[str, DesktopEntry]) -> None:
        self._mime_types = mime_types
        self._levels = levels
        self._entries = entries

    @classmethod
    def load(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read everything that the environment's ``XDG_…``, ``HOME`` and ``PATH`` lead to. What is damaged or not there is left out."""
        data = _home(environment, "XDG_DATA_HOME", ".local/share")
        data += _folders(environment, "XDG_DATA_DIRS", "/usr/local/share:/usr/share")
        configuration = _home(environment, "XDG_CONFIG_HOME", ".config")
        configuration += _folders(environment, "XDG_CONFIG_DIRS", "/etc/xdg")
        desktops = [name.lower() for name in environment.get("XDG_CURRENT_DESKTOP", "").split(":") if name and "/" not in name]
        mime_types = MimeTypes.load(data)
        shelf = _Shelf(Executables(environment))
        levels = [_Level(folder, desktops, mime_types) for folder in configuration]
        for folder in data:
            level = _Level(f"{folder}/applications", desktops, mime_types)
            level.add_installed(mime_types, shelf)
            levels.append(level)
        return cls(mime_types, levels, _usable(levels, shelf))

    def type_of(self, path: str) -> str:
        """The type of the file ``path``, by its name and where that is not enough by its content. It never raises."""
        return self._mime_types.of_file(path)

    def candidates(self, mime_type: str) -> Iterator[str]:
        """The names of the desktop entries for a type, the best first, each once. Not all of them need to be there or usable."""
        found = set()
        for known in self._mime_types.ancestry(mime_type):
            for name in self._associated(known):
                if name not in found:
                    found.add(name)
                    yield name

    def program_for(self, mime_type: str, path: str) -> Program | None:
        """The program that opens the document ``path`` of this type; None if no program here does."""
        absolute = path if os.path.isabs(path) else os.path.join(os.getcwd(), path)
        for name, entry in self._usable(mime_type):
            return Program(entry.argv(absolute), entry.folder, name)
        return None

    def programs(self, types: Iterable[str]) -> set[str]:
        """The absolute paths of the programs that open documents of these types."""
        found: set[str] = set()
        for mime_type in types:
            for _, entry in self._usable(mime_type):
                found.update(entry.executables)
                break
        return found

    def _usable(self, mime_type: str) -> Iterator[tuple[str, DesktopEntry]]:
        return ((name, self._entries[name]) for name in self.candidates(mime_type) if name in self._entries)

    def _associated(self, mime_type: str) -> Iterator[str]:
        """The entries for this very type. What a folder removes is removed from those of less precedence, and of its own programs."""
        removed: set[str] = set()
        for level in self._levels:
            for defaults in level.defaults:
                # The specification would have them associated too; tools that set a default do not see to it, and others do not ask.
                yield from (name for name in defaults.get(mime_type, ()) if name not in removed)
            removed.update(level.removed.get(mime_type, ()))
        removed.clear()
        for level in self._levels:
            yield from (name for name in level.added.get(mime_type, ()) if name not in removed)
            removed.update(level.removed.get(mime_type, ()))
            yield from (name for name in level.listed.get(mime_type, ()) if name in level.installed and name not in removed)
            removed.update(level.installed)  # an entry hides those of the same name in later folders


class _Shelf:
    """Desktop entries by their paths, each read once."""

    def __init__(self, executables: Executables) -> None:
        self._executables = executables
        self._entries: dict[str, DesktopEntry | None] = {}

    def entry(self, path: str) -> DesktopEntry | None:
        if path not in self._entries:
            self._entries[path] = DesktopEntry.load(path, self._executables)
        return self._entries[path]


class _Level:
    """What one folder says."""

    __slots__ = ("_folder", "added", "defaults", "installed", "listed", "removed")

    def __init__(self, folder: str, desktops: Sequence[str], mime_types: MimeTypes) -> None:
        self._folder: Final = folder
        lists = [key_file.groups(key_file.read(f"{folder}/{prefix}{_LIST}")) for prefix in (*(f"{name}-" for name in desktops), "")]
        self.defaults: Final = [_associations(groups.get("Default Applications", {}), mime_types) for groups in lists]
        # Only the list that is for every desktop may add and remove.
        self.added: Final = _associations(lists[-1].get("Added Associations", {}), mime_types)
        self.removed: Final = _associations(lists[-1].get("Removed Associations", {}), mime_types)
        self.installed: dict[str, str] = {}
        """The paths of the desktop entries in this folder, by their names."""
        self.listed: Associations = {}
        """What these entries say they open."""

    def add_installed(self, mime_types: MimeTypes, shelf: _Shelf) -> None:
        """Look through the folder, which is one of desktop entries."""
        for path in sorted(os.path.join(folder, name) for folder, _, names in os.walk(self._folder) for name in names):
            if path.endswith(".desktop"):
                self.installed.setdefault(path[len(self._folder) + 1 :].replace("/", "-"), path)
        cache = key_file.groups(key_file.read(f"{self._folder}/{_CACHE}")).get("MIME Cache")
        if cache is not None:
            self.listed = _associations(cache, mime_types)
            return
        for name, path in self.installed.items():
            entry = shelf.entry(path)
            for mime_type in entry.types if entry else ():
                self.listed.setdefault(mime_types.canonical(mime_type), []).append(name)


def _usable(levels: Sequence[_Level], shelf: _Shelf) -> dict[str, DesktopEntry]:
    """The entries that any level names and that can be used."""
    named: set[str] = set()
    paths: dict[str, str] = {}
    for level in levels:
        paths = {**level.installed, **paths}
        for associations in (*level.defaults, level.added, level.listed):
            named.update(*associations.values())
    entries = {name: shelf.entry(paths[name]) for name in named if name in paths}
    return {name: entry for name, entry in entries.items() if entry}


def _associations(group: Mapping[str, str], mime_types: MimeTypes) -> Associations:
    """One group's lists. Those under another name of a type come after those under its own."""
    known: Associations = {}
    for key, value in sorted(group.items(), key=lambda item: mime_types.canonical(item[0]) != item[0]):
        known.setdefault(mime_types.canonical(key), []).extend(key_file.items(value))
    return known


def _home(environment: Mapping[str, str], variable: str, usual: str) -> list[str]:
    """The person's own folder, if they have a home."""
    own = (environment.get(variable, ""), os.path.join(environment.get("HOME", ""), usual))
    return [folder for folder in own if os.path.isabs(folder)][:1]


def _folders(environment: Mapping[str, str], variable: str, usual: str) -> list[str]:
    """The folders of a list, the first with the highest precedence. The specification has relative ones passed over."""
    return [folder for folder in (environment.get(variable) or usual).split(":") if os.path.isabs(folder)]
