"""The configuration files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfilexchg.dom0.configuration import FILE_MAX, BadConfiguration, Configuration, load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "qfilexchg.toml"


def test_without_files_everything_has_its_default(file: Path) -> None:
    configuration = load((file,))
    assert configuration == Configuration()
    assert configuration.pendrive_size_bytes == 1 << 30
    assert configuration.pendrive_max_bytes == 64 << 30
    assert configuration.question_timeout_s == 60


def test_a_later_file_goes_before_an_earlier_one_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "system").write_text("question_timeout_s = 30\nqueue_timeout_s = 10")
    (tmp_path / "own").write_text("# mine\nquestion_timeout_s = 45")
    configuration = load((tmp_path / "system", tmp_path / "own"))
    assert (configuration.question_timeout_s, configuration.queue_timeout_s) == (45, 10)


@pytest.mark.parametrize(
    ("text", "key", "why"),
    [
        ("pendrive_size = 1", "pendrive_size", "is unknown; the keys are pendrive_size_bytes, pendrive_max_bytes"),
        ('question_timeout_s = "60"', "question_timeout_s", "takes a whole number, and not str"),
        ("question_timeout_s = 60.0", "question_timeout_s", "not float"),
        ("question_timeout_s = true", "question_timeout_s", "not bool"),
        ("question_timeout_s = 0", "question_timeout_s", "takes a number from 5 to 3600"),
        ("vm_memory_mb = -1", "vm_memory_mb", "takes a number from 64"),
        ("disposables_max = 0", "disposables_max", "takes a number from 1 to 1000"),
        ("preload = 17", "preload", "takes a number from 0 to 16"),
        ("disposable_memory_mb = 191", "disposable_memory_mb", "takes a number from 192"),
        ("[question_timeout_s]\nx = 1", "question_timeout_s", "not dict"),
        ("pendrive_size_bytes = 2097152\npendrive_max_bytes = 1048576", "pendrive_size_bytes", "above pendrive_max_bytes"),
        ('"\\u001b[2J" = 1', r"\x1b[2J", "is unknown"),
        ("question_timeout_s", "", "is not TOML"),
        ("a = " + "[" * 5000, "", "is not TOML"),
        ("#" * (FILE_MAX + 1), "", "is longer than"),
    ],
)
def test_what_is_wrong_is_named_with_its_file_and_key(file: Path, text: str, key: str, why: str) -> None:
    file.write_text(text)
    with pytest.raises(BadConfiguration) as caught:
        load((file,))
    assert caught.value.key == key
    assert str(caught.value).startswith(f"{file}: {key}")
    assert why in str(caught.value)


def test_a_file_that_cannot_be_read_is_not_taken_for_missing(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match="cannot be read"):
        load((tmp_path,))


def test_a_file_that_is_not_utf8_is_refused(file: Path) -> None:
    file.write_bytes(b"# \xff")
    with pytest.raises(BadConfiguration, match="is not UTF-8"):
        load((file,))


@given(st.integers(5, 3600))
def test_every_number_within_the_limits_is_taken(tmp_path_factory: pytest.TempPathFactory, number: int) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_text(f"question_timeout_s = {number}")
    assert load((file,)).question_timeout_s == number
