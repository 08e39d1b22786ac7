from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qfilexchg.dom0.debian import Release
from qfilexchg.dom0.vms.recipe import DESKTOP_RECIPE, RECIPE, recipe_hash
from qfilexchg.dom0.vms.template import Contents

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
