"""What a run of the other release's tests comes to, and what it does not delete."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from qfilexchg.dom0.debian import Release
from tests.other_release import __main__ as run
from tests.other_release.trees import Root, StillMounted, mounts_below

TOP = Path(__file__).resolve().parents[3]
MOUNTINFO = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
41 22 0:35 / /var/tmp/run/tree\\040two/proc rw - proc proc rw
42 22 0:36 / /var/tmp/running rw - tmpfs tmpfs rw
"""


def test_each_release_is_the_other_of_another() -> None:
    assert {run.other_than(release) for release in Release} == set(Release)
    assert all(run.other_than(release) is not release for release in Release)


@pytest.mark.parametrize(("status", "passed"), [(0, 1), (1, 0)])
def test_a_part_without_reports_is_one_test(status: int, passed: int) -> None:
    assert run.judged(status, None) == Counter(passed=passed, failed=1 - passed)


@pytest.mark.parametrize(
    ("status", "tests", "failures", "skipped", "failed"),
    [(0, 5, 0, 2, 0), (1, 5, 2, 0, 2), (1, 5, 0, 0, 1), (0, 2, 0, 2, 1), (5, 0, 0, 0, 1)],
    ids=["passed", "failed", "ended badly after its tests", "skipped all", "had none"],
)
def test_a_part_counts_the_tests_that_were_executed(
    tmp_path: Path, status: int, tests: int, failures: int, skipped: int, failed: int
) -> None:
    report = tmp_path / "report.xml"
    suite = f'<testsuite tests="{tests}" failures="{failures}" errors="0" skipped="{skipped}"/>'
    report.write_text(f"<testsuites>{suite}</testsuites>")
    assert run.judged(status, report) == Counter(passed=tests - failures - skipped, failed=failed, skipped=skipped)


def test_a_part_that_wrote_no_report_has_failed(tmp_path: Path) -> None:
    assert run.judged(0, tmp_path / "none") == Counter(failed=1)


def test_what_is_mounted_below_a_folder_is_found_by_its_real_name() -> None:
    assert mounts_below(MOUNTINFO, Path("/var/tmp/run")) == [Path("/var/tmp/run/tree two/proc")]
    assert mounts_below(MOUNTINFO, Path("/var/tmp/run/tree two/proc")) == [Path("/var/tmp/run/tree two/proc")]
    assert mounts_below(MOUNTINFO, Path("/var/tmp/other")) == []


def test_a_folder_with_a_mount_below_it_is_not_deleted() -> None:
    with pytest.raises(StillMounted, match="unmount that"):
        Root().delete(Path("/proc"))


def test_the_tests_of_a_savefiles_way_have_the_names_by_which_they_are_run() -> None:
    functions = {node.name for node in ast.walk(ast.parse((TOP / run.SAVEFILES).read_text())) if isinstance(node, ast.FunctionDef)}
    assert {run.MADE, run.STALE} <= functions


def test_about_a_dozen_tests_on_real_vms_are_marked() -> None:
    marked = sum(file.read_text().count(f"@pytest.mark.{run.MARK}\n") for file in (TOP / "tests/vm").glob("test_*.py"))
    assert 10 <= marked <= 16
