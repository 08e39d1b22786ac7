"""What a tree gets to know of the host."""

from __future__ import annotations

import configparser
from pathlib import Path

from tests.other_release.settings import named_paths, passed_on, pip_configuration, to_share

LISTED = """\
:env:.find-links='/opt/wheels'
global.cert='/etc/ssl/company.crt'
global.extra-index-url='\\nfile:///opt/index/simple\\nhttps://pip.example/simple'
install.constraint='/etc/constraints.txt'
"""


def test_proxies_and_pips_variables_are_passed_on_and_nothing_else() -> None:
    host = {"https_proxy": "p", "NO_PROXY": "n", "PIP_CERT": "c", "PIP_CONFIG_FILE": "f", "SECRET": "s", "PATH": "/bin"}
    assert passed_on(host) == {"https_proxy": "p", "NO_PROXY": "n", "PIP_CERT": "c"}


def test_pips_files_become_one_that_says_the_same() -> None:
    parsed = configparser.RawConfigParser()
    parsed.read_string(pip_configuration(LISTED))
    assert {section: dict(parsed[section]) for section in parsed.sections()} == {
        "global": {"cert": "/etc/ssl/company.crt", "extra-index-url": "file:///opt/index/simple\nhttps://pip.example/simple"},
        "install": {"constraint": "/etc/constraints.txt"},
    }


def test_a_host_without_settings_has_an_empty_one() -> None:
    assert pip_configuration("") == ""


def test_files_that_settings_name_are_found_and_an_index_with_what_lies_beside_it() -> None:
    apt = ['Acquire::https::CaInfo "/etc/ssl/mirror.crt";', 'Acquire::http::Proxy "http://proxy.example:3128";']
    expected = ("/opt/wheels", "/etc/ssl/company.crt", "/opt/index", "/etc/constraints.txt", "/etc/ssl/mirror.crt")
    assert list(map(str, named_paths(LISTED, apt))) == list(expected)


def test_what_the_tree_has_itself_or_nobody_has_is_not_shared_and_nothing_is_twice(tmp_path: Path) -> None:
    here, tree = tmp_path / "here", tmp_path / "tree"
    for folder in (here / "index/simple", here / "own", tree / (here / "own").relative_to("/")):
        folder.mkdir(parents=True)
    paths = [here / "index/simple", here / "index", here / "own", here / "nowhere", here / "index"]
    assert to_share(paths, tree) == [here / "index"]
