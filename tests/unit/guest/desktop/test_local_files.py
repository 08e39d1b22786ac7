"""What a file manager hands over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfilexchg.guest.desktop.local_files import NotLocal, local_paths
from qfilexchg.guest.desktop.showing import NAME_MAX

RUNTIME = "/run/user/1000"


def test_paths_are_taken_as_they_are() -> None:
    names = ["/a b", "/$(x)", "/%20", "/-rf", "/line\nbreak", os.fsdecode(b"/\xff"), "/a:/b", "/folder/"]
    assert local_paths(names, RUNTIME) == names


def test_a_relative_path_is_made_an_absolute_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert local_paths(["-rf", "a:b"], RUNTIME) == [str(tmp_path / "-rf"), str(tmp_path / "a:b")]


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///a%20b", "/a b"),
        ("file://localhost/a", "/a"),
        ("FILE:///a%2fb%25U", "/a/b%U"),
        ("file:///%FF%0a'%22", os.fsdecode(b"/\xff\n'\"")),
        ("file:///写", "/写"),
    ],
)
def test_a_uri_of_a_local_file_is_its_path(uri: str, path: str) -> None:
    assert local_paths([uri], RUNTIME) == [path]


@pytest.mark.parametrize(
    "thing",
    [
        "trash:///a",
        "smb://server/share/a",
        "sftp://host/a",
        "mtp:/a",
        "file://server/a",
        "file:/a",
        "file:///a%00b",
        "",
        f"{RUNTIME}/gvfs/smb-share:server=a/b",
        f"file://{RUNTIME}/gvfs/x",
    ],
)
def test_anything_else_is_refused_with_all_that_was_chosen(thing: str) -> None:
    with pytest.raises(NotLocal) as caught:
        local_paths(["/good", thing], RUNTIME)
    assert caught.value.things == (thing,)


def test_a_link_to_elsewhere_is_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "gvfs/share").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "gvfs/share")
    with pytest.raises(NotLocal):
        local_paths([str(tmp_path / "link")], str(tmp_path))


def test_the_message_names_some_of_them_printably() -> None:
    message = str(NotLocal([f"trash:///{number}\x1b" for number in range(30)]))
    assert "trash:///0\\x1b, " in message and message.endswith("and 20 more")


def test_the_message_names_long_ones_by_their_beginning_and_end() -> None:
    message = str(NotLocal([f"smb://server/{'x' * 4000}/{number}.pdf" for number in range(10)]))
    assert "smb://server/xx" in message and "xx/9.pdf" in message
    assert len(message) < 10 * (NAME_MAX + 2) + 100


@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name and b"/" not in name))
def test_every_name_survives_the_way_through_a_uri(name: bytes) -> None:
    uri = "file:///x" + "".join(f"%{byte:02X}" for byte in name)
    assert local_paths([uri], RUNTIME) == [os.fsdecode(b"/x" + name)]
