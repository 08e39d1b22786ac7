"""The type of a file by its name."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfilexchg.guest.globs import Globs

GLOBS = """\
# a comment
80:text/html:*.html
80:application/x-cd-image:*.iso
60:application/x-sharedlib:*.so.[0-9]*
50:text/x-c++src:*.C:cs
50:text/x-csrc:*.c:cs
50:application/x-core:core:cs
50:application/x-core:core
50:application/gzip:*.gz
50:application/x-compressed-tar:*.tar.gz
50:text/x-makefile:makefile
50:text/plain:*.txt
50:application/x-trash:*~
50:text/plain:*,v
50:video/x-anim:*.anim[1-9j]
50:video/mpeg:[0-9][0-9][0-9].vdr
50:video/mp2t:*.ts
50:text/vnd.trolltech.linguist:*.ts
50:audio/x-new:*.new:future,cs:more
50:audio/x-odd:x[!a-c]y[]]?
40:text/x-low:*.low.txt
10:text/x-makefile:makefile.*
10:text/x-readme:readme*
"""

DAMAGED = """\
:text/plain:*.a
fifty:text/plain:*.a
-5:text/plain:*.a
9999:text/plain:*.a
50:text:*.a
50:text/plain:
50:text/plain
²:text/plain:*.a

50:text/plain:[
"""


@pytest.fixture(scope="module")
def globs() -> Globs:
    return Globs([GLOBS])


@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("page.html", ["text/html"]),
        ("PAGE.HTML", ["text/html"]),
        ("main.C", ["text/x-c++src"]),
        ("main.c", ["text/x-csrc"]),
        ("core", ["application/x-core"]),
        ("Core", []),
        ("a.gz", ["application/gzip"]),
        ("a.tar.gz", ["application/x-compressed-tar"]),
        ("Makefile", ["text/x-makefile"]),
        ("Makefile.in", ["text/x-makefile"]),
        ("readme.txt", ["text/plain"]),
        ("readme", ["text/x-readme"]),
        ("a.low.txt", ["text/plain"]),
        ("report.txt~", ["application/x-trash"]),
        ("file.c,v", ["text/plain"]),
        ("libx.so.1.2", ["application/x-sharedlib"]),
        ("libx.so.x", []),
        ("libx.so.1.so.", ["application/x-sharedlib"]),
        ("a.anim7", ["video/x-anim"]),
        ("a.animj", ["video/x-anim"]),
        ("a.anim0", []),
        ("001.vdr", ["video/mpeg"]),
        ("1001.vdr", []),
        ("a.ts", ["video/mp2t", "text/vnd.trolltech.linguist"]),
        ("a.new", ["audio/x-new"]),
        ("a.NEW", []),
        ("xdy]!", ["audio/x-odd"]),
        ("xay]!", []),
        ("xdy]", []),
        (".txt", ["text/plain"]),
        ("txt", []),
        ("", []),
        ("*.txt", ["text/plain"]),
        ("$(reboot).txt", ["text/plain"]),
        ("İ.TXT", ["text/plain"]),
    ],
)
def test_the_heaviest_and_then_the_longest_pattern_counts(globs: Globs, name: str, types: list[str]) -> None:
    assert globs.types(name) == types


def test_damaged_lines_are_passed_over() -> None:
    globs = Globs([DAMAGED])
    assert globs.types("x.a") == []
    assert globs.types("[") == ["text/plain"]


def test_there_may_be_no_patterns() -> None:
    assert not Globs([])
    assert not Globs(["", "# nothing\n"])
    assert Globs(["50:a/b:*.x:cs"])
    assert Globs(["50:a/b:[xy]"])
    assert Globs(["50:a/b:x"]).types("anything") == []


def test_a_star_alone_is_any_name() -> None:
    assert Globs(["1:a/b:*"]).types("anything") == Globs(["1:a/b:**"]).types("anything") == ["a/b"]


def test_of_equal_patterns_the_first_folder_comes_first() -> None:
    assert Globs(["50:a/own:*.x", "50:a/system:*.x"]).types("file.x") == ["a/own", "a/system"]


def test_a_type_can_lose_the_patterns_of_later_folders_and_keep_those_of_its_own() -> None:
    globs = Globs(["50:a/b:*.new\n0:a/b:__NOGLOBS__", "50:a/b:*.old\n50:c/d:*.other"])
    assert [globs.types(f"file.{ending}") for ending in ("new", "old", "other")] == [["a/b"], [], ["c/d"]]


@given(pattern=st.text("ab.*?[]!-", min_size=1, max_size=8), name=st.text("ab.]-!", min_size=1, max_size=10))
def test_patterns_match_as_those_of_a_shell_do(pattern: str, name: str) -> None:
    matched = Globs([f"50:a/b:{pattern}:cs"]).types(name) == ["a/b"]
    if "-" not in pattern:  # fnmatch has ideas of its own about ranges that are empty
        assert matched is fnmatch.fnmatchcase(name, pattern)


@given(st.text(), st.text())
def test_nothing_raises_for_any_database_and_any_name(line: str, name: str) -> None:
    Globs([line, f"50:a/b:{line}"]).types(name)


def test_a_long_name_takes_no_long_time(globs: Globs) -> None:
    Globs(["50:a/b:*a*a*a*a*a*a*a*a[b]"]).types("a" * 255)
    assert globs.types("." * 255) == []
