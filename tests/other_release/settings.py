"""What a tree must know of the host to fetch packages: names and proxies, certificates, and the settings of pip.

The settings of apt are in the tree already (:func:`qfilexchg.dom0.debian.pack`). Settings may name files and folders of the host, as an
index of packages on its disk. Those that a tree has not are shared with it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

_QUOTED = re.compile(r'"([^"]*)"')


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the part of ``environment`` that tells programs how to fetch: proxies, and pip's variables.

    Where pip's files are is left out, as :func:`pip_configuration` has all that they say.
    """
    wanted = (name for name in environment if name.lower().endswith("_proxy") or name.startswith("PIP_"))
    return {name: environment[name] for name in wanted if name != "PIP_CONFIG_FILE"}


def pip_configuration(listed: str) -> str:
    """Return a pip.conf that says what ``pip config list`` has ``listed``, but for the environment."""
    sections: dict[str, list[str]] = {}
    for name, value in _pip_values(listed):
        section, _, key = name.rpartition(".")
        if not section.startswith(":"):
            sections.setdefault(section, []).append(f"{key} = {value.strip().replace(chr(10), f'{chr(10)}    ')}\n")
    return "".join(f"[{section}]\n{''.join(lines)}" for section, lines in sections.items())


def named_paths(pip_listed: str, apt_options: Iterable[str]) -> Iterator[Path]:
    """Yield the files and folders that the settings of pip and apt name. They may not exist."""
    for name, value in _pip_values(pip_listed):
        for path in _paths(value):
            # An index of packages on a disk may have the packages themselves beside it.
            yield path.parent if name.endswith("index-url") else path
    for option in apt_options:
        for value in _QUOTED.findall(option):
            yield from _paths(value)


def to_share(paths: Iterable[Path], tree: Path) -> list[Path]:
    """Return which of ``paths`` the host has and ``tree`` has not, without those that lie below another."""
    wanted = {path for path in paths if path.exists() and not (tree / path.relative_to("/")).exists()}
    return sorted(path for path in wanted if not wanted.intersection(path.parents))


def _paths(value: str) -> Iterator[Path]:
    for word in value.split():
        path = Path(unquote(word.removeprefix("file://")))
        if path.is_absolute():
            yield path


def _pip_values(listed: str) -> Iterator[tuple[str, str]]:
    """Yield names and values of ``pip config list``, which writes values as Python does."""
    for line in listed.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            yield name, str(ast.literal_eval(value))
