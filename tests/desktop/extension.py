"""Loads a file manager's extension with the library of its host, and presses an entry: ``extension.py FILE HOST LABEL PROGRAM URI…``.

Prints the labels of the entries, one a line. A URI that ends with a slash is a folder's. PROGRAM is started in the place of ours.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import gi  # type: ignore[import-not-found]

gi.require_version("Caja", "2.0")
gi.require_version("Nautilus", "4.0")
from gi.repository import Caja, Gio, GObject, Nautilus  # type: ignore[import-not-found]  # noqa: E402

from qfilexchg.guest.desktop import menus  # noqa: E402

path, host, label, program, *uris = sys.argv[1:]
FileInfo: Any = {"Caja": Caja, "Nautilus": Nautilus}[host].FileInfo


class File(GObject.GObject, FileInfo):  # type: ignore[misc]
    """A file as the host hands it over."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self._uri = uri

    def do_get_uri_scheme(self) -> str:
        return str(self.do_get_location().get_uri_scheme())

    def do_get_location(self) -> Any:
        return Gio.File.new_for_uri(self._uri)

    def do_is_directory(self) -> bool:
        return self._uri.endswith("/")


menus.SEND = menus.OPEN = program  # type: ignore[misc]
specification = importlib.util.spec_from_file_location("extension", path)
assert specification and specification.loader
extension = importlib.util.module_from_spec(specification)
specification.loader.exec_module(extension)
window = [None] if host == "Caja" else []
for item in extension.QfilexchgMenu().get_file_items(*window, [File(uri) for uri in uris]):
    print(item.get_property("label"), flush=True)
    if item.get_property("label") == label:
        item.activate()
