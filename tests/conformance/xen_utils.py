"""Debian's own test program for the store, ``test-xenstore``, taken out of its package.

The package xen-utils would make the host boot Xen; so it is downloaded by apt and unpacked into the cache, not installed.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from qfilexchg.dom0.home import Home

DOWNLOAD_TIMEOUT_S = 300
UNPACK_TIMEOUT_S = 60


def program() -> Path:
    """The program; downloaded unless the cache has it. Needs the libraries that come with the package xenstore-utils, and fits them."""
    cache = Home.from_environment().cache
    query = ("dpkg-query", "--show", "--showformat=${source:Upstream-Version}", "xenstore-utils")
    version = subprocess.run(query, check=True, capture_output=True, text=True).stdout
    package_name = f"xen-utils-{'.'.join(version.split('.')[:2])}"
    unpacked = cache / package_name
    if not unpacked.exists():
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as name:
            folder = Path(name)
            subprocess.run(
                ["apt-get", "download", "--", package_name], cwd=folder, check=True, timeout=DOWNLOAD_TIMEOUT_S, stdout=subprocess.DEVNULL
            )
            [package] = folder.glob("*.deb")
            subprocess.run(["dpkg-deb", "--extract", "--", package, folder / "root"], check=True, timeout=UNPACK_TIMEOUT_S)
            (folder / "root").rename(unpacked)
    [found] = unpacked.glob("usr/lib/xen-*/bin/test-xenstore")
    return found
