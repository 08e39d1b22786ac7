from __future__ import annotations

import pytest

from qfilexchg.dom0.debian import Release, mirrors, release_of

BOOKWORM = """\
Packages\tDebian\tmain\tbookworm\thttp://mirror.example/debian/
Packages\tDebian\tmain\tbookworm-updates\thttp://mirror.example/debian/
Packages\tDebian\tmain\tbookworm-security\thttp://security.example/debian-security/
"""


@pytest.mark.parametrize("release", Release)
def test_the_release_of_a_debian_host_is_its_own(release: Release) -> None:
    assert release_of({"ID": "debian", "VERSION_CODENAME": release.value}) is release


@pytest.mark.parametrize("os_release", [{}, {"ID": "ubuntu", "VERSION_CODENAME": "noble"}, {"ID": "debian", "VERSION_CODENAME": "forky"}])
def test_on_any_other_host_it_is_the_newest(os_release: dict[str, str]) -> None:
    assert release_of(os_release) is Release.TRIXIE


def test_the_mirrors_of_the_host_are_used() -> None:
    assert list(mirrors(BOOKWORM, Release.BOOKWORM)) == [
        "deb http://mirror.example/debian/ bookworm main",
        "deb http://mirror.example/debian/ bookworm-updates main",
        "deb http://security.example/debian-security/ bookworm-security main",
    ]


def test_the_mirrors_of_the_host_serve_another_release_too() -> None:
    assert list(mirrors(BOOKWORM, Release.TRIXIE)) == [line.replace("bookworm", "trixie") for line in mirrors(BOOKWORM, Release.BOOKWORM)]


@pytest.mark.parametrize(
    "other",
    [
        "Packages\tGoogle\tmain\tbookworm\thttp://other.example/",
        "Packages\tDebian\tnon-free\tbookworm\thttp://other.example/",
        "Packages\tDebian\tmain\tsid\thttp://other.example/",
        "Packages\tDebian\tmain\tbookworm\tcdrom:[Debian 12]/",
        "Translations\tDebian\tmain\tbookworm\thttp://other.example/",
        "Packages\t$(ORIGIN)\tmain\t$(CODENAME)\thttp://other.example/",
        "non\tsense",
    ],
    ids=["another's", "not main", "another release", "a disc", "no packages", "never fetched", "nonsense"],
)
def test_what_is_no_mirror_of_debian_is_left_out(other: str) -> None:
    assert list(mirrors(f"{other}\n{BOOKWORM}", Release.BOOKWORM)) == list(mirrors(BOOKWORM, Release.BOOKWORM))
    assert list(mirrors(other, Release.BOOKWORM)) == []


def test_updates_alone_are_no_mirror() -> None:
    assert list(mirrors(BOOKWORM.splitlines()[1], Release.BOOKWORM)) == []
