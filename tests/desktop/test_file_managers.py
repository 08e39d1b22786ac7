"""The entries of file managers, run with hostile names as each kind of file manager runs them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

from qfilexchg.guest.desktop.local_files import local_paths
from tests.desktop.desk import PYTHON, TOP, Desk, until

FILE_MANAGERS = TOP / "packaging/vm/file-managers"
HOSTILE = [
    b"two words",
    b'it\'s "quoted"',
    b"$(touch pwned)`touch pwned`;touch pwned",
    b"line\nbreak",
    b"-rf",
    b"%U %f %%",
    b"\xff\xfe not UTF-8",
    "写真 é.jpg".encode(),
    b"back\\slash",
    b"<b>&amp;",
    b"#a?b=c",
]
EXTENDED = {
    "dolphin": {
        'key "MimeType" is present in group "Desktop Entry", but the type is "Service" while this key is only valid for type "Application"',
        'key "Actions" is present in group "Desktop Entry", but the type is "Service" while this key is only valid for type "Application"',
    },
    "pcmanfm": {
        'value "Action" for key "Type" in group "Desktop Entry" is not a registered type value ("Application", "Link" and "Directory")',
        'file contains key "Tooltip" in group "Desktop Entry", but keys extending the format should start with "X-"',
        'file contains key "Profiles" in group "Desktop Entry", but keys extending the format should start with "X-"',
    },
}
"""What KDE's service menus and DES-EMA add to the format, which the validator does not know."""


RECORD = """#!/usr/bin/python3 -IS
import os, sys
with open("{noted}.new", "wb") as file:
    file.writelines(os.fsencode(word) + b"\\0" for word in sys.argv[1:])
os.rename("{noted}.new", "{noted}")
"""


LOCAL = {"GIO_USE_VFS": "local", "GIO_USE_VOLUME_MONITOR": "unix"}
"""Lets a file manager do without the daemons of a whole desktop."""


class Recorder:
    """Stands in for a program of ours: it notes its arguments."""

    def __init__(self, folder: Path) -> None:
        self._noted = folder / "noted"
        self.program = folder / "recorder"
        self.program.write_text(RECORD.format(noted=str(self._noted)))
        self.program.chmod(0o755)

    def noted(self) -> list[bytes]:
        """The arguments, waited for."""
        until(self._noted.exists, "the program is started")
        words = self._noted.read_bytes().split(b"\0")[:-1]
        self._noted.unlink()
        return words

    def entry(self, source: Path, target: Path) -> Path:
        """A copy of an entry that starts this instead."""
        text = source.read_text()
        for program in ("send-to-vm-window", "open-in-dvm-window"):
            text = text.replace(f"/usr/lib/qubes/{program}", str(self.program))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path)


@pytest.fixture
def files(tmp_path: Path) -> list[bytes]:
    folder = tmp_path / "files"
    folder.mkdir()
    for name in HOSTILE:
        (folder / os.fsdecode(name)).write_bytes(b"content")
    return [bytes(folder) + b"/" + name for name in HOSTILE]


@pytest.mark.parametrize("entry", sorted((TOP / "packaging").rglob("*.desktop")), ids=lambda entry: entry.name)
def test_an_entry_is_valid(entry: Path) -> None:
    done = subprocess.run(["desktop-file-validate", "--no-hints", str(entry)], capture_output=True, text=True, check=False)
    complaints = {line.partition(": error: ")[2] for line in done.stdout.splitlines()}
    assert complaints == EXTENDED.get(entry.parent.name, set())


GIO = """
import os, sys
from gi.repository import Gio
entry, *paths = [os.fsencode(word) for word in sys.argv[1:]]
application = Gio.DesktopAppInfo.new_from_filename(os.fsdecode(entry))
application.launch([Gio.File.new_for_path(path) for path in paths], None)
"""


@pytest.mark.parametrize("name", ["thunar-send-to-vm", "thunar-open-in-dvm"])
def test_gio_passes_every_name_on_as_it_is(recorder: Recorder, files: list[bytes], tmp_path: Path, name: str) -> None:
    entry = recorder.entry(FILE_MANAGERS / f"thunar/{name}.desktop", tmp_path / "entry.desktop")
    subprocess.run([PYTHON, "-c", GIO, entry, *files], check=True)
    assert recorder.noted() == files


def test_thunar_itself_starts_both_for_all_that_is_selected(desk: Desk, recorder: Recorder, files: list[bytes], tmp_path: Path) -> None:
    for entry in (FILE_MANAGERS / "thunar").iterdir():
        recorder.entry(entry, tmp_path / "data/Thunar/sendto" / entry.name)
    environment = desk.environment | {"XDG_DATA_DIRS": f"{tmp_path}/data:/usr/share"} | LOCAL
    command = ["thunar", str(tmp_path / "files")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as thunar:
        try:
            told = until(lambda: [text for text in desk.texts() if text.startswith(f"{len(files)} files: ")], "the files are there")
            desk.clicks(told[0], "status bar")  # a window manager need not give the keyboard to a window that has just come
            desk.sees("files - Thunar", "frame", "ACTIVE")
            desk.press("ctrl+a")
            until(lambda: any(text.startswith("Selection: ") for text in desk.texts()), "all are selected")
            for label in ("Send to VM…", "Open in DisposableVM"):
                desk.press("Menu")
                desk.clicks("Send To", "menu")
                desk.sees(label, "menu item")
                desk.picture("f1-thunar", 0.25)
                desk.clicks(label, "menu item")
                assert sorted(recorder.noted()) == sorted(files)
        finally:
            thunar.kill()
    assert not Path("pwned").exists() and not (tmp_path / "files/pwned").exists()


@pytest.mark.parametrize("host", ["Caja", "Nautilus"])
class TestExtension:
    def press(self, host: str, label: str, program: Path, *uris: str) -> list[str]:
        """The labels of its entries; one of them is pressed."""
        extension = FILE_MANAGERS / f"{host.lower()}/qfilexchg_{host.lower()}.py"
        command = [PYTHON, str(Path(__file__).with_name("extension.py")), str(extension), host, label, str(program), *uris]
        environment = {"PYTHONPATH": str(TOP / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    @pytest.mark.parametrize("label", ["Send to VM…", "Open in DisposableVM"])
    def test_starts_the_program_with_every_name_as_it_is(self, recorder: Recorder, files: list[bytes], host: str, label: str) -> None:
        uris = [f"file://{quote(path)}" for path in files]
        assert self.press(host, label, recorder.program, *uris) == ["Send to VM…", "Open in DisposableVM"]
        assert recorder.noted() == files

    def test_opens_no_folders(self, recorder: Recorder, host: str) -> None:
        assert self.press(host, "", recorder.program, "file:///a", "file:///folder/") == ["Send to VM…"]

    @pytest.mark.parametrize("uri", ["trash:///a", "smb://server/a"])
    def test_has_no_entries_for_what_is_not_of_this_vm(self, recorder: Recorder, host: str, uri: str) -> None:
        assert self.press(host, "", recorder.program, "file:///a", uri) == []


NEMO = """
import os, sys
from gi.repository import Gio, GLib
command, *paths = [os.fsencode(word) for word in sys.argv[1:]]
uris = " ".join('"' + Gio.File.new_for_path(path).get_uri() + '"' for path in paths)
GLib.spawn_command_line_async(os.fsdecode(command).replace("%U", uris))
"""
"""How it expands and starts an action with ``Quote=double``."""


@pytest.mark.parametrize("name", ["send-to-vm", "open-in-dvm"])
def test_nemo_passes_uris_which_no_name_can_end(recorder: Recorder, files: list[bytes], tmp_path: Path, name: str) -> None:
    action = recorder.entry(FILE_MANAGERS / f"nemo/{name}.nemo_action", tmp_path / "action")
    keys = dict(line.split("=", 1) for line in action.read_text().splitlines() if "=" in line)
    assert (keys["Quote"], keys["UriScheme"], keys["Selection"]) == ("double", "file", "notnone")
    subprocess.run([PYTHON, "-c", NEMO, keys["Exec"], *files], check=True)
    assert local_paths([os.fsdecode(word) for word in recorder.noted()], "/run/user/1000") == [os.fsdecode(path) for path in files]
