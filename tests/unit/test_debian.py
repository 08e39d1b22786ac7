from __future__ import annotations

import pytest

from qfilexchg.dom0.debian import InstallFailed, Release, mirrors, package_name, reaching, release_of

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
        "Packages\tDebian\tmain\tbookworm\tfile:/srv/mirror/",
        "Translations\tDebian\tmain\tbookworm\thttp://other.example/",
        "Packages\t$(ORIGIN)\tmain\t$(CODENAME)\thttp://other.example/",
        "nonsense",
    ],
    ids=["another's", "not main", "another release", "a disc", "a folder", "no packages", "never fetched", "nonsense"],
)
def test_what_is_no_mirror_of_debian_is_left_out(other: str) -> None:
    assert list(mirrors(f"{other}\n{BOOKWORM}", Release.BOOKWORM)) == list(mirrors(BOOKWORM, Release.BOOKWORM))
    assert list(mirrors(other, Release.BOOKWORM)) == []


@pytest.mark.parametrize("missing", [0, 2], ids=["the release itself", "its security updates"])
def test_without_the_release_or_its_security_updates_they_are_not_used(missing: int) -> None:
    lines = BOOKWORM.splitlines()
    del lines[missing]
    assert list(mirrors("\n".join(lines), Release.BOOKWORM)) == []


def test_of_the_hosts_settings_those_are_taken_that_say_how_to_reach_a_mirror() -> None:
    dump = """\
Acquire "";
Acquire::AllowInsecureRepositories "true";
Acquire::http::Proxy "http://proxy.example:3128";
Acquire::https::CaInfo "/etc/ssl/ours.pem";
Acquire::ForceIPv4 "true";
Acquire::IndexTargets::deb::Packages::MetaKey "x";
Acquire::Check-Valid-Until "false";
"""
    assert [line.split()[0] for line in reaching(dump)] == [
        "Acquire::http::Proxy",
        "Acquire::https::CaInfo",
        "Acquire::ForceIPv4",
        "Acquire::Check-Valid-Until",
    ]


def test_a_failed_installation_names_the_mirrors() -> None:
    assert "The mirrors: http://mirror.example/debian/, http://security" in str(
        InstallFailed(Release.BOOKWORM, list(mirrors(BOOKWORM, Release.BOOKWORM)))
    )
    assert "The mirrors: mmdebstrap's own" in str(InstallFailed(Release.BOOKWORM, []))


@pytest.mark.parametrize("name", ["hello", "g++", "libstdc++6", "0ad", "a.b", "linux-image-amd64"])
def test_the_name_of_a_package_is_one(name: str) -> None:
    assert package_name(name) == name


@pytest.mark.parametrize("word", ["", "a", "vim-", "-y", "Vim", "vim=1", "vim/sid", "./vim.deb", "vim\n", "?essential", "vim:i386"])
def test_what_apt_would_take_for_something_else_is_no_name(word: str) -> None:
    with pytest.raises(ValueError, match="not the name of a Debian package"):
        package_name(word)
