"""Trees: kept as archives, unpacked for a run, entered, and deleted.

All that needs root is done by programs that are started for it, through sudo where the caller is not root. The caller's own folders,
the cache and what the host does itself, stay the caller's.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qfilexchg.dom0 import cache, debian
from qfilexchg.dom0.debian import Release
from qfilexchg.dom0.home import Home
from tests.machines import CHECKOUT
from tests.other_release import settings

PACKAGES = ("ca-certificates", "git")
"""What whoever has a checkout and reaches a mirror has. All else is for our own scripts to install."""
WORKPLACE = Path("/srv/qfilexchg")
"""The checkout, in a tree."""
REPORTS = Path("/srv/reports")
"""Reports in the form of JUnit, in a tree."""
PERSON = "person"
"""An ordinary user with sudo, in a tree."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PACKED = "root.tar"
_CERTIFICATES = Path("/usr/local/share/ca-certificates")
_INSIDE = Path(__file__).with_name("inside")
_SUDO_REFRESH_S = 60.0
"""sudo asks for the password again after some minutes; Debian's setting is 15."""


class NoRoot(Exception):
    """The caller can neither be root nor use sudo."""


class StillMounted(Exception):
    """A folder that is to be deleted has a mount below it."""


class Failed(Exception):
    """A step of making a tree failed; the program that did it has said why."""


def archive(home: Home, release: Release) -> Path:
    """Return the archive of a minimal system of ``release``, from the cache or made."""
    mirrors_and_proxies = [*debian.mirror_lines(release), *debian.fetching()]
    recipe = cache.content_hash([("debian.py", Path(debian.__file__))], release.value, *PACKAGES, *mirrors_and_proxies)
    folder = home.cache / "releases" / recipe
    made = cache.made(folder, lambda aside: debian.pack(aside / _PACKED, release, PACKAGES), lambda line: print(line, flush=True), keep=1)
    return made / _PACKED


def mounts_below(mountinfo: str, folder: Path) -> list[Path]:
    """Return what is mounted on ``folder`` or below it, by ``mountinfo`` (proc_pid_mountinfo(5))."""
    points = (line.split(" ")[4] for line in mountinfo.splitlines())
    paths = (Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point)) for point in points)
    return [path for path in paths if path == folder or folder in path.parents]


class Root:
    """Runs programs as root. A context: sudo's leave is kept while it lasts.

    Raises :exc:`NoRoot` on entry.
    """

    def __init__(self) -> None:
        self._sudo: tuple[str, ...] = () if os.geteuid() == 0 else ("sudo",)
        self._over = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Root:
        if self._sudo:
            ask = ("sudo", "-v") if sys.stdin.isatty() else ("sudo", "-n", "true")
            if not shutil.which("sudo") or subprocess.run(ask, check=False).returncode != 0:
                raise NoRoot
            self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def run(self, *argv: str | Path) -> None:
        """Run a program to its end. Raises :exc:`Failed`."""
        if subprocess.run((*self._sudo, *argv), stdin=subprocess.DEVNULL, check=False).returncode != 0:
            raise Failed(f"'{' '.join(map(str, argv))}' failed; what it said is above")

    def start(self, *argv: str | Path) -> subprocess.Popen[bytes]:
        """Start a program whose input is a pipe of ours."""
        return subprocess.Popen((*self._sudo, *argv), stdin=subprocess.PIPE)

    def delete(self, folder: Path) -> None:
        """Delete a folder, whoever owns what is in it. Raises :exc:`StillMounted` rather than to delete what is mounted there."""
        if mounts := mounts_below(Path("/proc/self/mountinfo").read_text(encoding="utf-8"), folder):
            raise StillMounted(f"{folder} is not deleted, as something is mounted at {mounts[0]}: unmount that, and delete it by hand")
        self.run("rm", "-rf", "--one-file-system", "--", folder)

    def _keep(self) -> None:
        while not self._over.wait(_SUDO_REFRESH_S):
            subprocess.run(("sudo", "-n", "-v"), stdin=subprocess.DEVNULL, capture_output=True, check=False)


@dataclass(frozen=True)
class Tree:
    """An unpacked system with a copy of the checkout at :data:`WORKPLACE`."""

    root: Root
    folder: Path
    variables: dict[str, str]
    shared: list[Path]

    @classmethod
    def unpack(cls, root: Root, packed: Path, folder: Path) -> Tree:
        """Unpack a tree into ``folder``, which is made, and let it know what the host knows of the network. Raises :exc:`Failed`."""
        folder.mkdir(mode=0o755)
        root.run("tar", "-C", folder, "-xpf", packed, "--numeric-owner")
        pip = subprocess.run((sys.executable, "-m", "pip", "config", "list"), capture_output=True, text=True, check=True).stdout
        with tempfile.NamedTemporaryFile(suffix=".tar", dir=folder.parent) as file:
            _pack_additions(Path(file.name), pip)
            root.run("tar", "-C", folder, "-xpf", file.name)
        shared = settings.to_share(settings.named_paths(pip, debian.fetching()), folder)
        tree = cls(root, folder, settings.passed_on(os.environ), shared)
        script = f"update-ca-certificates >/dev/null && mkdir {REPORTS} && cd {WORKPLACE} && git init -q && git add -A"
        if tree.run("sh", "-c", script, deadline_s=60):
            raise Failed("the tree could not be prepared; why is above")
        return tree

    def add_person(self) -> None:
        """Add :data:`PERSON`, who owns the checkout and may use sudo without a password. Raises :exc:`Failed`."""
        install = "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends sudo >/dev/null"
        sudo = f"echo '{PERSON} ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/{PERSON}"
        script = f"{install} && useradd -m {PERSON} && {sudo} && chown -R {PERSON}: {WORKPLACE}"
        if self.run("sh", "-c", script, deadline_s=300):
            raise Failed("the tree got no ordinary user; why is above")

    def run(self, *command: str, deadline_s: float, user: str = "root", **variables: str) -> int:
        """Run a command in the checkout to its end and return its status. Nothing that it started is left.

        At the deadline, and when the caller is interrupted, all that runs in the tree is killed.
        """
        home = "/root" if user == "root" else f"/home/{user}"
        words = {"HOME": home, "PATH": _PATH, "LANG": "C.UTF-8", "TERM": "dumb", **self.variables, **variables}
        as_user = () if user == "root" else ("runuser", "-u", user, "--")
        # Who is started by nohup or in the background has signals ignored, which tests of signals do not survive.
        clean = ("env", "-i", "--default-signal", "-C", str(WORKPLACE), *(f"{name}={value}" for name, value in words.items()))
        inner = (*as_user, *clean, *command)
        namespaces = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private")
        running = self.root.start(*namespaces, "sh", _INSIDE, self.folder, *self.shared, "--", *inner)
        try:
            return running.wait(deadline_s)
        except subprocess.TimeoutExpired:
            print(f"not done within {deadline_s / 60:.0f} minutes; it is ended", flush=True)
            return 1
        finally:
            assert running.stdin
            with contextlib.suppress(BrokenPipeError):
                running.stdin.close()
            running.wait()

    def path(self, path: Path) -> Path:
        """Return where ``path`` of the tree is on the host."""
        return self.folder / path.relative_to("/")


def _pack_additions(packed: Path, pip_listed: str) -> None:
    """Make a tar file of what is laid over a tree: the checkout without what git ignores, and the host's settings."""
    with tarfile.open(packed, "w", dereference=True) as tar:
        for path in (Path("/etc/hosts"), Path("/etc/resolv.conf"), *_certificates()):
            if path.exists():
                tar.add(path, str(path.relative_to("/")), filter=_of_root)
    with tempfile.TemporaryDirectory() as folder, tarfile.open(packed, "a") as tar:
        configuration = Path(folder, "pip.conf")
        configuration.write_text(settings.pip_configuration(pip_listed), encoding="utf-8")
        tar.add(configuration, "etc/pip.conf", filter=_of_root)
        for name in _known_to_git():
            tar.add(CHECKOUT / name, str(WORKPLACE.relative_to("/") / name), recursive=False, filter=_of_root)


def _certificates() -> Iterator[Path]:
    yield from sorted(path for path in _CERTIFICATES.rglob("*.crt") if path.is_file())


def _known_to_git() -> Iterator[str]:
    listed = subprocess.run(("git", "ls-files", "-coz", "--exclude-standard"), cwd=CHECKOUT, capture_output=True, check=True).stdout
    for name in os.fsdecode(listed).split("\0"):
        if name and os.path.lexists(CHECKOUT / name):
            yield name


def _of_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return info
