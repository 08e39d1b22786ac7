from __future__ import annotations

import errno
import shutil
import threading
from pathlib import Path

import pytest

from qfilexchg.dom0.debian import Release
from qfilexchg.dom0.home import Home
from qfilexchg.dom0.vms import recipe as recipes
from qfilexchg.dom0.vms.recipe import (
    DESKTOP_RECIPE,
    RECIPE,
    BuildFailed,
    ContentsUnknown,
    NotAdded,
    build,
    change,
    changes,
    recipe_hash,
    update,
)
from qfilexchg.dom0.vms.template import Contents, Template, current, images, use

TRIXIE = Contents(Release.TRIXIE)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    file = tmp_path / "vm.deb"
    file.write_bytes(b"package")
    return file


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RECIPE, tmp_path / "image"))


def test_a_template_is_named_by_its_recipe_wherever_that_lies(recipe: Path, package: Path) -> None:
    assert recipe_hash(TRIXIE, recipe, package) == recipe_hash(TRIXIE, RECIPE, package)


def test_another_release_and_any_change_of_the_recipe_or_the_package_name_another_template(recipe: Path, package: Path) -> None:
    names = {recipe_hash(TRIXIE, recipe, package)}
    (recipe / "packages").write_text((recipe / "packages").read_text() + "strace\n")
    names.add(recipe_hash(TRIXIE, recipe, package))
    (recipe / "masked-units").rename(recipe / "masked")
    names.add(recipe_hash(TRIXIE, recipe, package))
    package.write_bytes(b"another")
    names.add(recipe_hash(TRIXIE, recipe, package))
    names.add(recipe_hash(Contents(Release.BOOKWORM), recipe, package))
    names.add(recipe_hash(Contents(Release.TRIXIE, packages=("strace",)), recipe, package))
    assert len(names) == 6


def test_a_desktop_that_is_laid_over_names_another_template_and_leaves_the_plain_ones_name(recipe: Path, package: Path) -> None:
    plain, over = recipe_hash(TRIXIE, recipe, package), recipe_hash(TRIXIE, recipe, package, DESKTOP_RECIPE)
    assert recipe_hash(TRIXIE, recipe, package) == plain != over
    (recipe / "init").write_text("another")
    assert recipe_hash(TRIXIE, recipe, package, DESKTOP_RECIPE) != over


def test_the_desktop_has_all_that_the_plain_template_has_but_its_kernel() -> None:
    plain, desktop = (set((recipe / "packages").read_text().split()) for recipe in (RECIPE, DESKTOP_RECIPE))
    assert plain - desktop == {"linux-image-cloud-amd64"} and "linux-image-amd64" in desktop


def test_moving_bytes_from_one_file_to_the_next_names_another_template(tmp_path: Path, package: Path) -> None:
    names = set()
    for number, contents in enumerate((("ab", "c"), ("a", "bc"))):
        recipe = tmp_path / str(number)
        recipe.mkdir()
        for name, content in zip("xy", contents, strict=True):
            (recipe / name).write_text(content)
        names.add(recipe_hash(TRIXIE, recipe, package))
    assert len(names) == 2


def test_units_are_masked_once_each_in_order() -> None:
    units = (RECIPE / "masked-units").read_text().split()
    assert units == sorted(set(units))


@pytest.fixture
def home(tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home whose templates are made at once, of nothing."""
    home = Home(tmp_path / "home", tmp_path / "home/run", tmp_path / "cache")
    monkeypatch.setattr(recipes, "_vm_package", lambda workshop, say: package)

    def fill(made: Template, contents: Contents, *_: object) -> None:
        made.versions.write_text("bash 1\n")
        made.describe(contents, 0)

    monkeypatch.setattr(recipes, "_build", fill)
    return home


def silent(line: str) -> None:
    """Nobody is told."""


def add(home: Home, *packages: str) -> Template:
    return change(home, None, set(packages), set(), silent)


def packages(home: Home) -> tuple[str, ...]:
    contents = current(home).contents
    assert contents
    return contents.packages


def test_what_is_added_is_kept_by_updates_and_by_a_build_and_can_be_removed(home: Home) -> None:
    plain = build(home, Release.TRIXIE, silent)
    add(home, "gimp")
    add(home, "vlc", "gimp")
    assert packages(home) == ("gimp", "vlc")
    list(update(home, silent))
    assert packages(home) == ("gimp", "vlc")
    build(home, Release.TRIXIE, silent, desktop=True)
    assert packages(home) == ("gimp", "vlc")
    change(home, None, set(), {"vlc"}, silent)
    assert packages(home) == ("gimp",)
    build(home, Release.BOOKWORM, silent)
    assert packages(home) == (), "it was added to the other release"
    assert plain.folder.exists(), "the plain one may be asked for again"


def test_what_was_never_added_cannot_be_removed(home: Home) -> None:
    build(home, Release.TRIXIE, silent)
    with pytest.raises(NotAdded, match="bash was not added"):
        change(home, None, set(), {"bash"}, silent)


def test_an_update_takes_the_place_of_each_template_and_removes_the_old_ones(home: Home) -> None:
    old = [build(home, release, silent) for release in Release]
    new = [made for made, _ in update(home, silent)]
    assert len(new) == 2 and not set(old) & set(new)
    assert {folder.name for folder in images(home).iterdir() if folder.name != ".lock"} == {made.folder.name for made in new}
    assert [current(home, release).folder.name for release in Release] == [f"{made.folder.name}.2" for made in old]


def test_of_two_that_add_at_once_each_finds_what_the_other_has_added(home: Home) -> None:
    build(home, Release.TRIXIE, silent)
    others = [threading.Thread(target=add, args=(home, name)) for name in ("gimp", "vlc")]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert packages(home) == ("gimp", "vlc")


def test_one_that_does_not_say_what_is_in_it_cannot_be_made_anew(home: Home, tmp_path: Path) -> None:
    home.make()
    use(home, Template(tmp_path))
    with pytest.raises(ContentsUnknown, match="'qvm-template build' makes one that does"):
        list(update(home, silent))


def test_a_full_disk_is_said_in_a_sentence_and_changes_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build(home, Release.TRIXIE, silent)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(recipes, "_build", fail)
    with pytest.raises(BuildFailed, match="nothing was changed: No space left on device"):
        add(home, "gimp")
    assert current(home) == before


def test_an_update_tells_which_packages_are_another_version_new_or_gone() -> None:
    old = {"bash": "5.2-1", "dash": "0.5-1", "linux-6.1": "1"}
    new = {"bash": "5.2-2", "dash": "0.5-1", "linux-6.2": "1"}
    assert changes(old, new) == ["bash: 5.2-1 → 5.2-2", "linux-6.1: 1 → gone", "linux-6.2: new → 1"]
    assert changes(old, old) == ["no package has changed"]
