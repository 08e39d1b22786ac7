"""The type of a file, and what else a file of that type is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfilexchg.guest.mime_types import MimeTypes, of_content

GLOBS = """\
50:application/pdf:*.pdf
50:text/vnd.trolltech.linguist:*.ts
50:video/mp2t:*.ts
50:application/x-ole-storage:*.two
50:application/pdf:*.two
50:text/x-one:*.texts
50:text/x-other:*.texts
"""
SUBCLASSES = """\
text/x-python application/x-executable
text/x-python text/plain
text/x-c++src text/x-csrc
image/svg+xml application/xml
application/xml text/plain
a/child a/alias
loop/one loop/two
loop/two loop/one
damaged
three words here
"""
ALIASES = "application/x-pdf application/pdf\na/alias a/parent\ninode/alias inode/directory\n"


def database(folder: Path, **files: str) -> str:
    (folder / "mime").mkdir(parents=True)
    for name, text in files.items():
        (folder / "mime" / name).write_text(text)
    return str(folder)


@pytest.fixture
def types(tmp_path: Path) -> MimeTypes:
    return MimeTypes.load([database(tmp_path / "share", globs2=GLOBS, subclasses=SUBCLASSES, aliases=ALIASES), str(tmp_path / "missing")])


@pytest.mark.parametrize(
    ("mime_type", "line"),
    [
        ("text/x-python", ["text/x-python", "application/x-executable", "text/plain", "application/octet-stream"]),
        ("text/x-c++src", ["text/x-c++src", "text/x-csrc", "text/plain", "application/octet-stream"]),
        ("text/markdown", ["text/markdown", "text/plain", "application/octet-stream"]),
        ("text/plain", ["text/plain", "application/octet-stream"]),
        ("image/svg+xml", ["image/svg+xml", "application/xml", "text/plain", "application/octet-stream"]),
        ("application/x-pdf", ["application/pdf", "application/octet-stream"]),
        ("a/child", ["a/child", "a/parent", "application/octet-stream"]),
        ("loop/one", ["loop/one", "loop/two", "application/octet-stream"]),
        ("application/octet-stream", ["application/octet-stream"]),
        ("inode/alias", ["inode/directory"]),
        ("unheard/of", ["unheard/of", "application/octet-stream"]),
    ],
)
def test_a_type_is_also_what_it_is_a_special_case_of(types: MimeTypes, mime_type: str, line: list[str]) -> None:
    assert list(types.ancestry(mime_type)) == line


def test_the_first_folder_says_what_another_name_means(tmp_path: Path) -> None:
    folders = [database(tmp_path / "own", aliases="a/x b/own"), database(tmp_path / "system", aliases="a/x b/system\na/y b/y")]
    types = MimeTypes.load(folders)
    assert [types.canonical(name) for name in ("a/x", "a/y", "a/z")] == ["b/own", "b/y", "a/z"]


@pytest.mark.parametrize(
    ("head", "mime_type"),
    [
        (None, "application/octet-stream"),
        (b"", "text/plain"),
        (b"%PDF-1.7\n%\xe2\xe3", "application/pdf"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "image/png"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "image/jpeg"),
        (b"GIF89a\1\0", "image/gif"),
        (b"PK\x03\x04\x14\0", "application/zip"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "application/x-ole-storage"),
        (b"{\\rtf1\\ansi", "application/rtf"),
        ("Notepad".encode("utf-16"), "text/plain"),
        ("Grüße\n".encode(), "text/plain"),
        ("Grüße\n".encode("latin-1"), "text/plain"),
        ("€".encode() * 1365 + b"\xe2", "text/plain"),
        (b"\x1b[31mred\x1b[0m\r\n\x08", "text/plain"),
        (b"x" * 49 + b"\x01", "text/plain"),
        (b"x" * 48 + b"\x01", "application/octet-stream"),
        (b"x" * 4000 + b"\0", "application/octet-stream"),
        (b"\x7fELF\2\1\1\0", "application/octet-stream"),
    ],
)
def test_content_is_known_by_its_beginning(head: bytes | None, mime_type: str) -> None:
    assert of_content(head) == mime_type


@given(st.binary())
def test_any_content_has_a_type(head: bytes) -> None:
    assert "/" in of_content(head)


class TestOfFile:
    def write(self, path: Path, content: bytes) -> str:
        path.write_bytes(content)
        return str(path)

    def test_a_name_that_says_enough_is_believed(self, types: MimeTypes, tmp_path: Path) -> None:
        assert types.of_file(self.write(tmp_path / "x.pdf", b"GIF89a")) == "application/pdf"
        assert types.of_file("/missing/x.pdf") == "application/pdf"

    def test_a_name_that_says_nothing_leaves_it_to_the_content(self, types: MimeTypes, tmp_path: Path) -> None:
        assert types.of_file(self.write(tmp_path / "attachment", b"%PDF-1.4")) == "application/pdf"
        assert types.of_file(self.write(tmp_path / "pdf.unknown", b"words")) == "text/plain"
        assert types.of_file(self.write(tmp_path / "empty", b"")) == "text/plain"

    def test_what_cannot_be_read_is_just_bytes(self, types: MimeTypes, tmp_path: Path) -> None:
        assert types.of_file(str(tmp_path)) == "application/octet-stream"
        assert types.of_file(str(tmp_path / "missing")) == "application/octet-stream"

    @pytest.mark.parametrize(
        ("name", "content", "mime_type"),
        [
            ("a.ts", b"<?xml version='1.0'?>", "text/vnd.trolltech.linguist"),
            ("a.ts", b"G\x40\0\x10\0\0", "video/mp2t"),
            ("a.two", b"%PDF-", "application/pdf"),
            ("a.two", b"words", "application/x-ole-storage"),
            ("a.texts", b"\0\1", "text/x-one"),
        ],
    )
    def test_between_two_types_the_content_decides(
        self, types: MimeTypes, tmp_path: Path, name: str, content: bytes, mime_type: str
    ) -> None:
        assert types.of_file(self.write(tmp_path / name, content)) == mime_type

    def test_a_pipe_is_not_waited_for(self, types: MimeTypes, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        assert types.of_file(str(tmp_path / "pipe")) == "text/plain"

    @pytest.mark.parametrize(
        ("name", "mime_type"),
        [
            ("x.PDF", "application/pdf"),
            ("x.docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
            ("x.odt", "application/vnd.oasis.opendocument.text"),
            ("x.md", "text/markdown"),
            ("x.log", "text/plain"),
            ("x.svg", "image/svg+xml"),
            ("x.unknown", "application/octet-stream"),
        ],
    )
    def test_usual_documents_are_known_without_a_database(self, tmp_path: Path, name: str, mime_type: str) -> None:
        assert MimeTypes.load([str(tmp_path)]).of_file(f"/missing/{name}") == mime_type

    @given(st.text())
    def test_no_name_raises(self, name: str) -> None:
        assert "/" in MimeTypes.load([]).of_file(f"/missing/{name}")
