from __future__ import annotations

import time
from pathlib import Path

import pytest

from qfilexchg.dom0.cli import template as command
from qfilexchg.dom0.debian import Release
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import template
from qfilexchg.dom0.vms.collection import Collection, Label
from qfilexchg.dom0.vms.template import Contents, Template
from qfilexchg.protocol.names import VmName


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("QFILEXCHG_HOME", str(tmp_path))
    home = Home.from_environment()
    home.make()
    return home


def used(home: Home, contents: Contents, *, age_s: float = 0) -> Template:
    found = Template(home.data / f"made-{contents.release.value}")
    found.folder.mkdir()
    found.describe(contents, time.time() - age_s)
    template.use(home, found)
    return found


def test_the_list_tells_of_each_its_release_its_age_what_was_added_and_which_vms_boot_from_it(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    old = used(home, Contents(Release.BOOKWORM, packages=("gimp", "vlc")), age_s=40 * 86400 + 1)
    new = used(home, Contents(Release.TRIXIE, desktop=True), age_s=3601)
    Collection(home.collection).add(VmName.parse("work"), Label.RED, 256, Release.BOOKWORM)
    Collection(home.collection).add(VmName.parse("other"), Label.RED, 256)
    assert command.main(["list"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["RELEASE", "DESKTOP", "AGE", "ADDED", "FOR", "FOLDER"]
    assert [row.split() for row in rows] == [
        ["trixie", "yes", "1", "h", "-", "all", "others", str(new.folder)],
        ["bookworm", "no", "40", "d", "gimp", "vlc", "work", str(old.folder)],
    ]


@pytest.mark.parametrize("word", ["", "-y", "vim-", "Gimp", "gimp=1", "../x", "a b", "x;reboot", "gi\nmp"])
def test_what_is_no_name_of_a_package_is_refused_before_anything_is_done(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        command.main(["install", "--", word])
    assert refused.value.code == 2 and "is not the name of a Debian package" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["sid", "", "Trixie", "13"])
def test_a_release_that_cannot_be_built_is_refused_with_those_that_can(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        command.main(["build", "--release", word])
    assert refused.value.code == 2 and "bookworm or trixie" in capsys.readouterr().err
