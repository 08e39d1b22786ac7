"""How a desktop entry starts a program with a document."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qfilexchg.guest.desktop_entry import Command, DesktopEntry, Executables, uri, words

HOSTILE = "/tmp/-x %f $(reboot) `id` 'q\" %U\n;.pdf"
PATHS = st.binary(min_size=1, max_size=40).map(lambda name: "/tmp/" + os.fsdecode(name.replace(b"\0", b"%f")))


def opened(exec_value: str, path: str = HOSTILE, icon: str = "eye") -> list[str] | None:
    """The argument list for ``path``, of an entry called *A Viewer*."""
    command = Command.parse(exec_value, "A Viewer", icon, "/usr/share/applications/view.desktop")
    return [command.program, *command.arguments(path)] if command else None


class TestWords:
    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("", []),
            ("view %f", ["view", "%f"]),
            ("  view\t--now \n", ["view", "--now"]),
            ('"two words" ""', ["two words", ""]),
            (r'"a \" b \` c \$ d \\ e \n"', ['a " b ` c $ d \\ e \\n']),
            ("'single \\ quotes' --a='b c'", ["single \\ quotes", "--a=b c"]),
            (r"two\ words", ["two words"]),
            ("end\\", ["end"]),
            ('"open', None),
            ("'open", None),
            ('"open\\', None),
        ],
    )
    def test_they_stand_between_blanks_and_quotes_hold_them_together(self, text: str, found: list[str] | None) -> None:
        assert words(text) == found

    @given(st.lists(st.text(), max_size=5))
    def test_what_is_quoted_comes_back(self, wanted: list[str]) -> None:
        quoted = (word.replace("\\", r"\\").replace('"', r"\"").replace("$", r"\$").replace("`", r"\`") for word in wanted)
        assert words(" ".join(f'"{word}"' for word in quoted)) == wanted


class TestCommand:
    @pytest.mark.parametrize("code", ["%f", "%F", '"%f"', "'%F'"])
    def test_the_path_is_one_argument_whatever_is_in_it(self, code: str) -> None:
        assert opened(f"view --now {code} --end") == ["view", "--now", HOSTILE, "--end"]

    @pytest.mark.parametrize("code", ["%u", "%U"])
    def test_a_uri_has_no_character_that_means_anything(self, code: str) -> None:
        assert opened(f"view {code}", "/tmp/ä b%'\n.pdf") == ["view", "file:///tmp/%C3%A4%20b%25%27%0A.pdf"]

    def test_the_path_can_be_a_part_of_an_argument(self) -> None:
        assert opened('view --file=%f.x "--to=%%"') == ["view", f"--file={HOSTILE}.x", "--to=%"]
        assert opened("view --file=%u%%", "/tmp/a") == ["view", "--file=file:///tmp/a%"]

    @pytest.mark.parametrize(
        ("exec_value", "argv"),
        [
            ("view %i %f", ["view", "--icon", "eye", "/x"]),
            ("view %f %i --c=%c %k", ["view", "/x", "--icon", "eye", "--c=A Viewer", "/usr/share/applications/view.desktop"]),
            ("view %d %D %n %N %v %m %f", ["view", "/x"]),
            ("view --old=%d %f --i=%i", ["view", "--old=", "/x", "--i="]),
            ("view 100%% %f", ["view", "100%", "/x"]),
        ],
    )
    def test_other_field_codes_stand_for_what_the_entry_says_or_for_nothing(self, exec_value: str, argv: list[str]) -> None:
        assert opened(exec_value, "/x") == argv

    def test_an_entry_without_an_icon_passes_none(self) -> None:
        assert opened("view %i %f", "/x", icon="") == ["view", "/x"]

    def test_a_command_that_names_no_place_gets_the_document_last(self) -> None:
        assert opened("view --now") == ["view", "--now", HOSTILE]

    @pytest.mark.parametrize(
        "exec_value",
        ["", " ", "%f", "%i", "%F view", 'view "%f', "view %f %f", "view %f%f", "view %f %U", "view %z", "view %", "view %f %", "view %f%"],
    )
    def test_one_that_breaks_the_rules_is_not_used(self, exec_value: str) -> None:
        assert opened(exec_value, icon="") is None

    @pytest.mark.parametrize(
        "exec_value",
        [
            'sh -c "view %f"',
            r'sh -c "view \"%f\""',
            "sh -c 'view \"%f\"'",
            "view 'system(%u)'",
            "view --run=`%f`",
            r"sh -c view\ %f",
            "sh -c %f",
            "/bin/bash --norc -c %f",
            "env A=b sh -c view%f",
            "bash %F",
            "bash",
            "env zsh -c",
        ],
    )
    def test_one_that_would_have_a_shell_read_the_name_is_not_used(self, exec_value: str) -> None:
        assert opened(exec_value) is None

    def test_a_shell_may_pass_the_name_on_as_an_argument(self) -> None:
        script = 'exec view "$1"'
        assert opened(f"sh -c '{script}' sh %f") == ["sh", "-c", script, "sh", HOSTILE]
        assert opened(f"sh -c '{script}' sh") == ["sh", "-c", script, "sh", HOSTILE]

    @given(st.text(), PATHS)
    @example("view %f", "/tmp/%f")
    def test_no_text_raises_and_the_path_is_in_one_argument_alone(self, exec_value: str, path: str) -> None:
        argv = opened(exec_value, path)
        without = opened(exec_value, "/")
        assert (argv is None) is (without is None)
        if argv is not None and without is not None:
            assert len(argv) == len(without)
            assert sum(one != other for one, other in zip(argv, without, strict=True)) == 1

    @given(st.lists(st.sampled_from(["--now", "%i", "%c", "%k", "%d", "100%%", '"two words"']), max_size=4), st.integers(0, 4), PATHS)
    def test_the_path_is_exactly_one_argument_wherever_it_stands(self, others: list[str], at: int, path: str) -> None:
        argv = opened(" ".join(["view", *others[:at], "%f", *others[at:]]), path)
        assert argv is not None
        assert argv.count(path) == 1


@given(PATHS)
def test_a_uri_is_ascii_and_leads_back_to_the_path(path: str) -> None:
    written = uri(path)
    assert written.isascii()
    assert written.isprintable()
    assert unquote_to_bytes(written.removeprefix("file://")) == os.fsencode(path)


class TestExecutables:
    def test_the_first_folder_that_has_the_program_counts(self, tmp_path: Path) -> None:
        for folder, mode in (("a", 0o644), ("b", 0o755), ("c", 0o755)):
            program(tmp_path / folder / "view", mode)
        executables = Executables({"PATH": f"relative::{tmp_path}/missing:{tmp_path}/a:{tmp_path}/b:{tmp_path}/c"})
        assert executables.find("view") == f"{tmp_path}/b/view"
        assert executables.find(f"{tmp_path}/c/view") == f"{tmp_path}/c/view"

    @pytest.mark.parametrize("name", ["", "missing", "..", "b/view", "./view", "/", "/missing/view", "vi\0ew"])
    def test_what_is_no_program_is_not_found(self, tmp_path: Path, name: str) -> None:
        program(tmp_path / "b/view")
        assert Executables({"PATH": str(tmp_path)}).find(name) is None

    def test_without_a_path_the_usual_folders_are_looked_through(self) -> None:
        found = Executables({}).find("sh")
        assert found is not None
        assert found.endswith("/bin/sh")

    def test_a_terminal_emulator_may_be_there(self, tmp_path: Path) -> None:
        assert Executables({"PATH": str(tmp_path)}).terminal == ()
        program(tmp_path / "gnome-terminal")
        assert Executables({"PATH": str(tmp_path)}).terminal == (f"{tmp_path}/gnome-terminal", "--")
        program(tmp_path / "x-terminal-emulator")
        assert Executables({"PATH": str(tmp_path)}).terminal == (f"{tmp_path}/x-terminal-emulator", "-e")


class TestLoad:
    def load(self, folder: Path, *lines: str) -> DesktopEntry | None:
        program(folder / "bin/view")
        path = folder / "view.desktop"
        path.write_text("\n".join(("[Desktop Entry]", "Type=Application", "Name=View", *lines, "[Desktop Action new]", "Exec=other")))
        return DesktopEntry.load(str(path), Executables({"PATH": f"{folder}/bin"}))

    def test_a_program_is_started_by_its_path(self, tmp_path: Path) -> None:
        entry = self.load(tmp_path, "Exec=view %f", "NoDisplay=true", "MimeType=text/plain;image/png;", "TryExec=view")
        assert entry is not None
        assert entry.argv("/x") == (f"{tmp_path}/bin/view", "/x")
        assert entry.executables == (f"{tmp_path}/bin/view",)
        assert entry.types == ("text/plain", "image/png")
        assert entry.folder is None

    def test_escapes_of_the_string_are_undone_before_quotes(self, tmp_path: Path) -> None:
        entry = self.load(tmp_path, r'Exec=view "a\\\\b" "\\$HOME" x\sy %f')
        assert entry is not None
        assert entry.argv("/x")[1:] == ("a\\b", "$HOME", "x", "y", "/x")

    def test_it_is_started_in_the_folder_that_it_wants_if_there_is_one(self, tmp_path: Path) -> None:
        for folder, wanted in ((str(tmp_path), str(tmp_path)), ("/missing/folder", None), ("bin", None)):
            entry = self.load(tmp_path, "Exec=view", f"Path={folder}")
            assert entry is not None
            assert entry.folder == wanted

    @pytest.mark.parametrize(
        "lines",
        [
            (),
            ("Exec=",),
            ("Exec=missing %f",),
            ("Exec=view %z",),
            ("Exec=view %f", "TryExec=missing"),
            ("Exec=view %f", "Hidden=true"),
            ("Exec=view %f", "Type=Link"),
            ("Exec=view %f", "Terminal=true"),
        ],
    )
    def test_one_that_cannot_be_used_is_as_if_it_were_not_there(self, tmp_path: Path, lines: tuple[str, ...]) -> None:
        assert self.load(tmp_path, *lines) is None

    def test_neither_is_a_file_that_is_none(self, tmp_path: Path) -> None:
        executables = Executables({"PATH": str(tmp_path)})
        assert DesktopEntry.load(str(tmp_path / "missing.desktop"), executables) is None
        (tmp_path / "damaged.desktop").write_bytes(b"\0\xff" * 100)
        assert DesktopEntry.load(str(tmp_path / "damaged.desktop"), executables) is None

    def test_a_program_for_the_terminal_is_started_in_one(self, tmp_path: Path) -> None:
        program(tmp_path / "bin/xterm")
        entry = self.load(tmp_path, "Exec=view -R %F", "Terminal=true")
        assert entry is not None
        assert entry.argv("/x") == (f"{tmp_path}/bin/xterm", "-e", f"{tmp_path}/bin/view", "-R", "/x")
        assert entry.executables == (f"{tmp_path}/bin/xterm", f"{tmp_path}/bin/view")


def program(path: Path, mode: int = 0o755) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    path.chmod(mode)
