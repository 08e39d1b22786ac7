from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from qfilexchg.dom0 import cache
from qfilexchg.dom0.debian import Release
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms.template import (
    BadTemplate,
    Contents,
    Template,
    TemplateMissing,
    current,
    discard,
    existing,
    images,
    kept,
    replace,
    use,
    used,
)


def test_a_desktop_needs_more_memory(tmp_path: Path) -> None:
    template = Template(tmp_path)
    assert not template.has_desktop
    plain_mib = template.memory_min_mib
    template.describe(Contents(Release.TRIXIE, desktop=True), 0)
    assert template.has_desktop and template.memory_min_mib > plain_mib


def test_no_template_is_said_with_the_command_that_builds_one(tmp_path: Path) -> None:
    home = Home(tmp_path, tmp_path / "run", tmp_path / "cache")
    with pytest.raises(TemplateMissing, match="qvm-template build"):
        current(home)
    (tmp_path / "template").symlink_to(tmp_path / "cache/images/gone")
    with pytest.raises(TemplateMissing):
        current(home)


def test_a_folder_without_a_template_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(BadTemplate, match=str(tmp_path)):
        existing(tmp_path)
    for name in ("kernel", "initrd", "root.img"):
        (tmp_path / name).touch()
    assert existing(tmp_path).folder == tmp_path


NOW_S = 1_800_000_000.0
PLAIN = Contents(Release.TRIXIE)


def home_of(name: str, tmp_path: Path) -> Home:
    """One of several homes that share a cache."""
    home = Home(tmp_path / name, tmp_path / name / "run", tmp_path / "cache")
    home.make()
    return home


def made(home: Home, name: str, contents: Contents = PLAIN, age_days: float = 0) -> Template:
    """A template in the cache."""
    template = Template(images(home) / name)
    template.folder.mkdir(parents=True)
    template.describe(contents, NOW_S - age_days * 86400)
    return template


def test_what_is_in_it_and_when_it_was_made_is_written_down(tmp_path: Path) -> None:
    contents = Contents(Release.BOOKWORM, desktop=True, packages=("gimp", "vlc"))
    template = made(home_of("one", tmp_path), "aa", contents)
    assert (template.contents, template.made_s) == (contents, NOW_S)


ABOUT = {"release": "trixie", "desktop": False, "packages": ["vim"], "made_s": 1}


@pytest.mark.parametrize(
    "about",
    [
        "",
        "{}",
        "[]",
        *(
            json.dumps({**ABOUT, **wrong})
            for wrong in (
                {"release": "sid"},
                {"desktop": "no"},
                {"packages": "vim"},
                {"packages": ["/etc/passwd"]},
                {"packages": ["-y"]},
                {"packages": [7]},
                {"made_s": "1"},
                {"made_s": float("nan")},
                {"made_s": None},
            )
        ),
    ],
)
def test_one_that_does_not_say_what_is_in_it_is_as_old_as_its_disk(tmp_path: Path, about: str) -> None:
    template = Template(tmp_path)
    template.about.write_text(about)
    template.root.touch()
    os.utime(template.root, (NOW_S, NOW_S))
    assert (template.contents, template.made_s, template.has_desktop) == (None, NOW_S, False)


@pytest.mark.parametrize(("age_days", "stale"), [(-1, False), (0, False), (30.9, False), (31, True), (400, True)])
def test_one_of_more_than_thirty_days_is_said_to_be_old_with_the_cure(tmp_path: Path, age_days: float, stale: bool) -> None:
    said = made(home_of("one", tmp_path), "aa", age_days=age_days).stale(NOW_S)
    assert (said is not None) == stale
    if said:
        assert f"{age_days} days old" in said and "'qvm-template update'" in said


def test_a_vm_that_names_a_release_boots_from_the_last_template_of_it_that_was_used(tmp_path: Path) -> None:
    home = home_of("one", tmp_path)
    old, new = made(home, "aa", Contents(Release.BOOKWORM)), made(home, "bb", Contents(Release.TRIXIE))
    for template in (old, new):
        use(home, template)
    assert (current(home), current(home, Release.TRIXIE), current(home, Release.BOOKWORM)) == (new, new, old)


def test_no_template_of_a_release_is_said_with_the_command_that_builds_one(tmp_path: Path) -> None:
    home = home_of("one", tmp_path)
    use(home, made(home, "aa", Contents(Release.TRIXIE)))
    with pytest.raises(TemplateMissing, match="qvm-template build --release bookworm"):
        current(home, Release.BOOKWORM)


def test_a_new_one_takes_the_place_of_the_old_one_which_goes(tmp_path: Path) -> None:
    home = home_of("one", tmp_path)
    other, old, new = (
        made(home, name, Contents(release))
        for name, release in (("aa", Release.BOOKWORM), ("bb", Release.TRIXIE), ("cc", Release.TRIXIE))
    )
    for template in (other, old):
        use(home, template)
    replace(home, old, new)
    discard(home, old, print)
    assert used(home) == {new.folder: [None, Release.TRIXIE], other.folder: [Release.BOOKWORM]}
    assert sorted(path.name for path in images(home).glob("[a-f]*")) == ["aa", "cc"]


def test_one_of_a_release_that_no_other_vm_boots_from_is_replaced_for_those_alone_that_name_it(tmp_path: Path) -> None:
    home = home_of("one", tmp_path)
    old, default, new = (
        made(home, name, Contents(release))
        for name, release in (("aa", Release.BOOKWORM), ("bb", Release.TRIXIE), ("cc", Release.BOOKWORM))
    )
    for template in (old, default):
        use(home, template)
    replace(home, old, new)
    assert (current(home), current(home, Release.BOOKWORM)) == (default, new)


def test_one_that_another_home_boots_from_stays_until_that_home_is_gone(tmp_path: Path) -> None:
    one, other = home_of("one", tmp_path), home_of("other", tmp_path)
    old, new, newer = (made(one, name) for name in ("aa", "bb", "cc"))
    use(one, old)
    use(other, old)
    replace(one, old, new)
    discard(one, old, print)
    assert old.folder.exists() and kept(one) == {old.folder, new.folder}
    shutil.rmtree(other.data)
    assert kept(one) == {new.folder}
    assert len(list((one.cache / "homes").iterdir())) == 2, "its disk may come back"
    for mark in (one.cache / "homes").iterdir():
        os.utime(mark, (0, 0), follow_symlinks=False)
    assert kept(one) == {new.folder}
    assert [mark.readlink() for mark in (one.cache / "homes").iterdir()] == [one.data]
    replace(one, new, newer)
    discard(one, new, print)
    assert not new.folder.exists()


def test_one_that_is_used_is_known_when_the_cache_is_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "elsewhere")
    home = home_of("one", tmp_path)
    old, new = made(home, "aa"), made(home, "bb")
    use(home, old)
    os.utime(old.folder, (0, 0))
    cache.prune(images(home), kept=kept(home))
    assert old.folder.exists()
    replace(home, old, new)
    discard(home, old, print)
    assert not old.folder.exists() and new.folder.exists()


@pytest.mark.parametrize("other", ["a file", "closed"])
def test_a_home_that_cannot_be_looked_at_disturbs_nobody(tmp_path: Path, other: str) -> None:
    home, strange = home_of("one", tmp_path), home_of("other", tmp_path)
    template = made(home, "aa")
    for each in (home, strange):
        use(each, template)
    shutil.rmtree(strange.data)
    if other == "a file":
        strange.data.touch()
    else:
        strange.data.mkdir(mode=0)
    (home.cache / "homes/.half-made").symlink_to("nowhere")
    assert kept(home) == {template.folder}


def test_one_that_was_built_elsewhere_is_never_deleted(tmp_path: Path) -> None:
    home = home_of("one", tmp_path)
    foreign = Template(tmp_path / "elsewhere")
    foreign.folder.mkdir()
    use(home, foreign)
    replace(home, foreign, made(home, "aa"))
    discard(home, foreign, print)
    assert foreign.folder.exists()


def test_one_of_which_nothing_is_there_is_as_old_as_can_be(tmp_path: Path) -> None:
    assert Template(tmp_path).made_s == 0 and Template(tmp_path).package_versions() == {}
    assert "'qvm-template build'" in str(Template(tmp_path).stale(NOW_S))
