"""Which program opens a document."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qfilexchg.guest.applications import Databases
from tests.python import PYTHON
from tests.unit.guest.test_startup import CHECKOUT, DEAR

PDF = "application/pdf"


class Desktop:
    """A person's home and a system, each with databases of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {
            "HOME": str(root / "home"),
            "PATH": str(root / "bin"),
            "XDG_CONFIG_DIRS": str(root / "etc"),
            "XDG_DATA_DIRS": f"{root}/local:{root}/share",
        }
        self.write("share/mime/globs2", "50:application/pdf:*.pdf\n50:text/x-python:*.py\n50:text/plain:*.txt\n")
        self.write("share/mime/subclasses", "text/x-python text/plain\n")
        self.write("share/mime/aliases", "application/x-pdf application/pdf\n")

    def write(self, path: str, text: str) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def install(self, *names: str, types: str = "", folder: str = "share", more: str = "") -> None:
        for name in names:
            self.write(f"bin/{name}", "").chmod(0o755)
            entry = f"[Desktop Entry]\nType=Application\nExec={name} %f\nMimeType={types}\n{more}\n"
            self.write(f"{folder}/applications/{name}.desktop", entry)

    def prefer(self, path: str, mime_type: str = PDF, *, group: str = "Default Applications", names: str) -> None:
        target = self.root / path
        before = target.read_text() if target.exists() else ""
        self.write(path, f"{before}[{group}]\n{mime_type}={names}\n")

    def candidates(self, mime_type: str = PDF) -> list[str]:
        return [name.removesuffix(".desktop") for name in Databases.load(self.environment).candidates(mime_type)]

    def opener(self, mime_type: str = PDF) -> str | None:
        program = Databases.load(self.environment).program_for(mime_type, "/tmp/x")
        return program.name.removesuffix(".desktop") if program else None


@pytest.fixture
def desktop(tmp_path: Path) -> Desktop:
    return Desktop(tmp_path)


class TestDefaults:
    LISTS = (
        "home/.config/xfce-mimeapps.list",
        "home/.config/gnome-mimeapps.list",
        "home/.config/mimeapps.list",
        "etc/xfce-mimeapps.list",
        "etc/gnome-mimeapps.list",
        "etc/mimeapps.list",
        "home/.local/share/applications/xfce-mimeapps.list",
        "home/.local/share/applications/gnome-mimeapps.list",
        "home/.local/share/applications/mimeapps.list",
        "local/applications/xfce-mimeapps.list",
        "local/applications/gnome-mimeapps.list",
        "local/applications/mimeapps.list",
        "share/applications/xfce-mimeapps.list",
        "share/applications/gnome-mimeapps.list",
        "share/applications/mimeapps.list",
    )

    def test_lists_are_read_in_the_order_of_the_specification(self, desktop: Desktop) -> None:
        desktop.environment["XDG_CURRENT_DESKTOP"] = "XFCE::../etc:GNOME"
        for number, path in enumerate(self.LISTS):
            desktop.prefer(path, names=f"{number:02};")
        assert desktop.candidates() == [f"{number:02}" for number in range(len(self.LISTS))]

    def test_those_of_other_desktops_do_not_count(self, desktop: Desktop) -> None:
        desktop.prefer("etc/kde-mimeapps.list", names="okular.desktop")
        assert desktop.candidates() == []

    def test_one_that_is_not_there_or_cannot_be_used_gives_way_to_the_next(self, desktop: Desktop) -> None:
        desktop.install("hidden", more="Hidden=true")
        desktop.install("console", more="Terminal=true")
        desktop.install("untried", more="TryExec=missing")
        desktop.install("view")
        desktop.prefer("home/.config/mimeapps.list", names="missing.desktop;hidden.desktop;console.desktop")
        desktop.prefer("etc/mimeapps.list", names="untried.desktop;view.desktop;")
        assert desktop.candidates() == ["missing", "hidden", "console", "untried", "view"]
        assert desktop.opener() == "view"

    def test_the_systems_default_comes_before_what_the_person_added(self, desktop: Desktop) -> None:
        desktop.prefer("home/.config/mimeapps.list", group="Added Associations", names="paint.desktop")
        desktop.prefer("etc/mimeapps.list", names="view.desktop")
        assert desktop.candidates() == ["view", "paint"]

    def test_the_systems_default_can_be_removed_by_the_person(self, desktop: Desktop) -> None:
        desktop.prefer("etc/mimeapps.list", names="view.desktop;other.desktop")
        desktop.prefer("home/.config/mimeapps.list", group="Removed Associations", names="view.desktop")
        assert desktop.candidates() == ["other"]


class TestAssociations:
    @pytest.mark.parametrize("cached", [True, False])
    def test_programs_say_themselves_what_they_open(self, desktop: Desktop, cached: bool) -> None:
        desktop.install("b", types=f"{PDF};image/png;")
        desktop.install("a", types="application/x-pdf")
        desktop.install("c", types="text/plain")
        if cached:
            desktop.write("share/applications/mimeinfo.cache", f"[MIME Cache]\n{PDF}=b.desktop;a.desktop;\n")
        assert desktop.candidates() == (["b", "a"] if cached else ["a", "b"])

    def test_a_cache_is_believed_but_for_entries_that_are_gone(self, desktop: Desktop) -> None:
        desktop.install("uncached", types=PDF)
        desktop.write("share/applications/mimeinfo.cache", f"[MIME Cache]\n{PDF}=gone.desktop;\n")
        assert desktop.candidates() == []

    def test_what_was_added_comes_first(self, desktop: Desktop) -> None:
        desktop.install("a", types=PDF)
        desktop.install("z")
        desktop.prefer("etc/mimeapps.list", group="Added Associations", names="z.desktop;gone.desktop")
        assert desktop.candidates() == ["z", "gone", "a"]

    def test_what_was_removed_is_gone_from_later_folders_but_not_from_earlier_ones(self, desktop: Desktop) -> None:
        desktop.install("own", types=PDF, folder="local")
        desktop.install("system", types=PDF)
        desktop.prefer("share/applications/mimeapps.list", group="Removed Associations", names="own.desktop;system.desktop")
        assert desktop.candidates() == ["own"]
        desktop.prefer("home/.config/mimeapps.list", group="Removed Associations", names="own.desktop")
        assert desktop.candidates() == []

    def test_a_desktops_own_list_cannot_add_or_remove(self, desktop: Desktop) -> None:
        desktop.environment["XDG_CURRENT_DESKTOP"] = "XFCE"
        desktop.install("a", types=PDF)
        desktop.prefer("etc/xfce-mimeapps.list", group="Removed Associations", names="a.desktop")
        desktop.prefer("etc/xfce-mimeapps.list", group="Added Associations", names="b.desktop")
        assert desktop.candidates() == ["a"]

    def test_an_entry_hides_one_of_the_same_name_in_a_later_folder(self, desktop: Desktop) -> None:
        desktop.install("view", types=PDF)
        desktop.install("view", types="image/png", folder="home/.local/share")
        assert desktop.candidates() == []
        assert desktop.opener("image/png") == "view"

    def test_a_hidden_entry_hides_too(self, desktop: Desktop) -> None:
        desktop.install("view", types=PDF)
        desktop.install("view", types=PDF, folder="home/.local/share", more="Hidden=true")
        desktop.write("home/.local/share/applications/mimeinfo.cache", f"[MIME Cache]\n{PDF}=view.desktop\n")
        assert desktop.opener() is None

    def test_entries_in_subfolders_have_dashes_in_their_names(self, desktop: Desktop) -> None:
        desktop.write("bin/kate", "").chmod(0o755)
        entry = f"[Desktop Entry]\nType=Application\nExec=kate\nMimeType={PDF}\n"
        desktop.write("share/applications/kde/apps/kate.desktop", entry)
        desktop.write("share/applications/kde/apps/kate.txt", entry)
        assert desktop.candidates() == ["kde-apps-kate"]
        assert desktop.opener() == "kde-apps-kate"

    def test_another_name_of_a_type_is_that_type(self, desktop: Desktop) -> None:
        desktop.prefer("etc/mimeapps.list", "application/x-pdf", names="alias.desktop")
        desktop.prefer("etc/mimeapps.list", names="proper.desktop")
        assert desktop.candidates() == desktop.candidates("application/x-pdf") == ["proper", "alias"]

    def test_what_a_type_is_a_special_case_of_comes_after_it(self, desktop: Desktop) -> None:
        desktop.install("edit", types="text/plain;text/x-python")
        desktop.install("dump", types="application/octet-stream")
        desktop.install("snake", types="text/x-python")
        desktop.prefer("etc/mimeapps.list", "text/plain", names="notes.desktop")
        assert desktop.candidates("text/x-python") == ["edit", "snake", "notes", "dump"]


class TestFolders:
    def test_the_person_may_have_put_theirs_elsewhere(self, desktop: Desktop) -> None:
        desktop.environment |= {"XDG_CONFIG_HOME": f"{desktop.root}/c", "XDG_DATA_HOME": f"{desktop.root}/d"}
        desktop.prefer("c/mimeapps.list", names="c.desktop")
        desktop.prefer("d/applications/mimeapps.list", names="d.desktop")
        desktop.prefer("home/.config/mimeapps.list", names="unread.desktop")
        assert desktop.candidates() == ["c", "d"]

    def test_relative_ones_are_passed_over(self, desktop: Desktop, monkeypatch: pytest.MonkeyPatch) -> None:
        desktop.environment |= {"XDG_CONFIG_HOME": "etc", "XDG_CONFIG_DIRS": f"share/applications:{desktop.root}/etc"}
        desktop.prefer("etc/mimeapps.list", names="a.desktop")
        desktop.prefer("home/.config/mimeapps.list", names="b.desktop")
        monkeypatch.chdir(desktop.root)
        assert desktop.candidates() == ["b", "a"]

    def test_there_may_be_no_home_and_nothing_else(self, tmp_path: Path) -> None:
        nowhere = str(tmp_path)
        databases = Databases.load({"XDG_DATA_DIRS": nowhere, "XDG_CONFIG_DIRS": nowhere, "PATH": nowhere})
        assert databases.type_of("/missing/x.pdf") == PDF
        assert databases.program_for(PDF, "/missing/x.pdf") is None

    def test_those_of_this_very_system_can_be_read(self) -> None:
        assert Databases.load().type_of("/missing/x.txt") == "text/plain"


class TestProgramFor:
    def test_it_gets_the_document_as_an_absolute_path(self, desktop: Desktop, monkeypatch: pytest.MonkeyPatch) -> None:
        desktop.install("view", types=PDF, more=f"Path={desktop.root}")
        databases = Databases.load(desktop.environment)
        program = databases.program_for(databases.type_of("/tmp/-x $(id).pdf"), "/tmp/-x $(id).pdf")
        assert program is not None
        assert program.argv == (f"{desktop.root}/bin/view", "/tmp/-x $(id).pdf")
        assert (program.folder, program.name) == (str(desktop.root), "view.desktop")
        monkeypatch.chdir(desktop.root)
        relative = databases.program_for(PDF, "-rf.pdf")
        assert relative is not None
        assert relative.argv[1] == f"{desktop.root}/-rf.pdf"

    def test_nothing_is_read_any_more_once_all_is_loaded(self, desktop: Desktop) -> None:
        desktop.install("view", types=PDF)
        databases = Databases.load(desktop.environment)
        for path in (*desktop.root.rglob("*.desktop"), *desktop.root.rglob("mime/*")):
            path.unlink()
        program = databases.program_for(databases.type_of("/missing/x.pdf"), "/missing/x.pdf")
        assert program is not None

    @settings(max_examples=50)
    @given(name=st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1))
    def test_every_name_is_one_argument(self, tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
        desktop = Desktop(tmp_path_factory.mktemp("desktop"))
        desktop.install("view", types="application/octet-stream")
        databases = Databases.load(desktop.environment)
        program = databases.program_for(databases.type_of(f"/missing/{name}"), f"/missing/{name}")
        assert program is not None
        assert program.argv[1:] == (f"/missing/{name}",)


def test_the_programs_of_usual_types_are_named_to_be_warmed(desktop: Desktop) -> None:
    desktop.install("xterm")
    desktop.install("view", "other", types=PDF)
    desktop.install("edit", types="text/plain", more="Terminal=true")
    desktop.prefer("etc/mimeapps.list", names="missing.desktop;view.desktop")
    databases = Databases.load(desktop.environment)
    found = databases.programs([PDF, "text/plain", "text/x-python", "image/png"])
    assert found == {f"{desktop.root}/bin/{name}" for name in ("view", "edit", "xterm")}


def test_little_is_imported_for_it() -> None:
    program = "import sys; sys.path.insert(0, 'src'); import qfilexchg.guest.applications; print(*sys.modules)"
    result = subprocess.run([*PYTHON, "-IS", "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert not set(result.stdout.split()) & (DEAR | {"fnmatch", "urllib", "glob", "shlex"})
