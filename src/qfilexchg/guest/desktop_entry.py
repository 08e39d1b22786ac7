"""A desktop entry: how a program is started with a document.

``Exec=`` is a command line by the rules of the Desktop Entry Specification 1.5, section 7. It is taken apart when the entry is
loaded; all that is left for later is the one place where the document goes. There the document's path is put in whole, as one
argument or a part of one, and no shell is there to read it. An entry in which a shell would be is not used: one that puts the
document into the text of a script, or gives it to a shell as the script.

An entry that cannot be used here is no error. It is as if it were not there, and the next one is tried.
"""

from __future__ import annotations

import os

from qfilexchg.guest import key_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Final, Self

_GROUP: Final = "Desktop Entry"
_USUAL_PATH: Final = "/usr/local/bin:/usr/bin:/bin"

_DOCUMENT: Final = frozenset("fFuU")
_URI: Final = frozenset("uU")
_DROPPED: Final = "dDnNvm"
"""Field codes that the specification withdrew; they stand for nothing."""
_BLANKS: Final = frozenset(" \t\n\r")
_RESERVED: Final = frozenset(" \t\n\"'\\><~|&;$*?#()`")
_ESCAPED: Final = frozenset('"`$\\')
_SHELLS: Final = frozenset(("ash", "bash", "busybox", "csh", "dash", "fish", "ksh", "mksh", "sh", "tcsh", "zsh"))

_TERMINALS: Final = (
    ("x-terminal-emulator", "-e"),  # by Debian's policy, takes all that follows as an argument list
    ("xterm", "-e"),
    ("gnome-terminal", "--"),
    ("konsole", "-e"),
    ("xfce4-terminal", "-x"),
)
"""Terminal emulators, with the option after which a program and its arguments stand as they are."""

_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/")


class Executables:
    """Finds programs in the folders of ``PATH``, and once for all a terminal emulator."""

    __slots__ = ("_folders", "terminal")

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._folders: Final = (environment.get("PATH") or _USUAL_PATH).split(":")
        self.terminal: Final = self._terminal()
        """The words that stand before a program that needs a terminal; none if there is no terminal emulator."""

    def find(self, name: str) -> str | None:
        """The absolute path of the program ``name``, which may be one already."""
        paths = (name,) if "/" in name else [os.path.join(folder, name) for folder in self._folders]
        for path in paths:
            if os.path.isabs(path) and os.path.isfile(path) and os.access(path, os.X_OK):
                return path
        return None

    def _terminal(self) -> tuple[str, ...]:
        for name, option in _TERMINALS:
            if path := self.find(name):
                return path, option
        return ()


class Command:
    """An argument list with a place for one document, which stands between ``prefix`` and ``suffix``."""

    __slots__ = ("_after", "_as_uri", "_before", "_prefix", "_suffix")

    def __init__(self, before: Sequence[str], place: tuple[str, str, str], after: Sequence[str]) -> None:
        prefix, code, suffix = place
        self._before: Final = tuple(before)
        self._prefix: Final = prefix
        self._as_uri: Final = code in _URI
        self._suffix: Final = suffix
        self._after: Final = tuple(after)

    @classmethod
    def parse(cls, text: str, name: str, icon: str, path: str) -> Self | None:
        """Take apart the value of ``Exec=``, of which the string's escapes are undone; None if it breaks the rules.

        ``name``, ``icon`` and ``path`` are the entry's own, for the field codes that stand for them.
        """
        values = {"%": "%", "c": name, "k": path, "i": "", **dict.fromkeys(_DROPPED, "")}
        before: list[str] = []
        after: list[str] = []
        place = None
        for text_word in words(text) or ():
            if text_word == "%i":
                (before if place is None else after).extend(("--icon", icon) if icon else ())
            elif len(text_word) == 2 and text_word[0] == "%" and text_word[1] in _DROPPED:
                continue
            elif (word := _expanded(text_word, values)) is None:
                return None
            elif not word[1]:
                (before if place is None else after).append(word[0])
            elif place is None and _RESERVED.isdisjoint(word[0] + word[2]):
                place = word
            else:
                return None
        # A command without a place takes no document by the rules. But the entry says that it opens this type, many such entries
        # are old and mean the last argument, and xdg-open takes them so.
        return None if not before or _is_script(before) else cls(before, place or ("", "f", ""), after)

    @property
    def program(self) -> str:
        return self._before[0]

    def arguments(self, path: str) -> list[str]:
        """All words after the program's, with the document ``path``, which is absolute."""
        document = uri(path) if self._as_uri else path
        return [*self._before[1:], f"{self._prefix}{document}{self._suffix}", *self._after]


class DesktopEntry:
    """An entry that can be used here, as all programs that it needs are there."""

    __slots__ = ("_command", "_executable", "_terminal", "folder", "types")

    def __init__(self, command: Command, executable: str, terminal: tuple[str, ...], folder: str | None, types: Sequence[str]) -> None:
        self._command: Final = command
        self._executable: Final = executable
        self._terminal: Final = terminal
        self.folder: Final = folder
        """The folder in which the program wants to be started, if it cares."""
        self.types: Final = tuple(types)
        """The types that the entry says it opens."""

    @classmethod
    def load(cls, path: str, executables: Executables) -> Self | None:
        """Read the entry; None if there is none, or it is hidden, damaged, or needs a program that is not there."""
        keys = key_file.groups(key_file.read(path)).get(_GROUP, {})
        value = {key: key_file.unescaped(keys.get(key, "")) for key in ("Name", "Icon", "Exec", "TryExec", "Path")}
        if keys.get("Type") != "Application" or keys.get("Hidden") == "true":
            return None
        if value["TryExec"] and executables.find(value["TryExec"]) is None:
            return None
        in_terminal = keys.get("Terminal") == "true"
        if in_terminal and not executables.terminal:
            return None
        command = Command.parse(value["Exec"], value["Name"], value["Icon"], path)
        executable = executables.find(command.program) if command else None
        if command is None or executable is None:
            return None
        folder = value["Path"] if os.path.isabs(value["Path"]) and os.path.isdir(value["Path"]) else None
        types = key_file.items(keys.get("MimeType", ""))
        return cls(command, executable, executables.terminal if in_terminal else (), folder, types)

    @property
    def executables(self) -> tuple[str, ...]:
        """The absolute paths of the programs that are started."""
        return (*self._terminal[:1], self._executable)

    def argv(self, path: str) -> tuple[str, ...]:
        """The argument list that opens the document ``path``. Its first word is an absolute path, as ``path`` must be."""
        return (*self._terminal, self._executable, *self._command.arguments(path))


def words(text: str) -> list[str] | None:
    """The words of a command line, without their quotes; None if a quote does not end.

    Single quotes, and a backslash outside of quotes, have no meaning in the specification; desktops read them as a shell does.
    """
    found: list[str] = []
    word: str | None = None
    quote = ""
    characters = iter(text)
    for character in characters:
        if not quote and character in _BLANKS:
            if word is not None:
                found.append(word)
            word = None
            continue
        word = word or ""
        if not quote and character in "\"'":
            quote = character
        elif character == quote:
            quote = ""
        elif character == "\\" and quote != "'":
            escaped = next(characters, "")
            word += escaped if not quote or escaped in _ESCAPED else f"\\{escaped}"
        else:
            word += character
    if quote:
        return None
    return found if word is None else [*found, word]


def uri(path: str) -> str:
    """The ``file`` URI of an absolute path (RFC 8089); all but letters, digits and ``-._~/`` is written as percent and two digits."""
    return "file://" + "".join(chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in os.fsencode(path))


def _expanded(word: str, values: Mapping[str, str]) -> tuple[str, str, str] | None:
    """What stands before the document's field code, the code, what stands after it; None if there are two, or one is unknown."""
    prefix, code, suffix = "", "", ""
    characters = iter(word)
    for character in characters:
        piece = character
        if character == "%":
            letter = next(characters, "")
            if letter in _DOCUMENT and not code:
                code = letter
                continue
            if letter not in values:
                return None
            piece = values[letter]
        if code:
            suffix += piece
        else:
            prefix += piece
    return prefix, code, suffix


def _is_script(before: Sequence[str]) -> bool:
    """Whether what comes after these words is a script: a shell is among them, and nothing but options comes after it.

    In ``sh -c 'view "$1"' sh`` the first ``sh`` has its script, and the second is no program.
    """
    for number, word in enumerate(before):
        if os.path.basename(word) in _SHELLS:
            return all(option.startswith("-") for option in before[number + 1 :])
    return False
