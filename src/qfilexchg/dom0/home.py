"""Where everything of one installation lies: ``QFILEXCHG_HOME``, else the system's folders on Xen, and the XDG folders elsewhere.

Two homes share nothing but the cache, whose entries are named by their content's recipe and never change once they are there.
So two copies can run side by side, and a test is isolated by a home of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qfilexchg.dom0 import platform
from qfilexchg.dom0.platform import Platform
from qfilexchg.errors import CallerError, HostError
from qfilexchg.protocol.names import DomainId, VmName

SOCKET_PATH_MAX = 107
"""Bytes that fit into sockaddr_un.sun_path beside its NUL (unix(7))."""
_LONGEST_SOCKET = "domain/32751/run.0.socket"

VOLATILE = "volatile.img"
"""The disk to which a DisposableVM writes, in its folder."""

XEN_DATA = Path("/var/lib/qfilexchg")
XEN_RUN = Path("/run/qfilexchg")
XEN_CACHE = Path("/var/cache/qfilexchg")
XEN_STORE_SOCKET = Path("/run/xenstored/socket")


class HomeTooLong(HostError):
    """The runtime folder's path leaves no room for a Unix socket's name."""

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        self.run = run

    def __str__(self) -> str:
        room = SOCKET_PATH_MAX - len(_LONGEST_SOCKET) - 1
        return f"the path {self.run} is too long for Unix sockets: set QFILEXCHG_HOME to a folder with a path of at most {room - 4} bytes"


class HomeUnusable(HostError):
    """A folder of the home cannot be made."""

    def __init__(self, folder: Path, why: str) -> None:
        super().__init__(folder, why)
        self.folder = folder
        self.why = why

    def __str__(self) -> str:
        return f"the folder {self.folder} cannot be made ({self.why}): set QFILEXCHG_HOME to one that can"


class OneHome(CallerError):
    """A home of somebody's own on Xen."""

    def __str__(self) -> str:
        return f"on Xen there is one home, {XEN_DATA}, as the rules that keep dom0 from looking into disks go by it: unset QFILEXCHG_HOME"


class RootNeeded(CallerError):
    """A command that only root can carry out on Xen."""

    def __str__(self) -> str:
        return "on Xen this needs root, as xl does: put sudo before it"


@dataclass(frozen=True, slots=True)
class Home:
    """The folders of one installation.

    ``data`` survives a reboot, ``run`` need not, ``cache`` can be deleted at any time while nothing runs.
    """

    data: Path
    run: Path
    cache: Path
    platform: Platform = Platform.QEMU

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] | None = None, on: Platform | None = None, *, for_everybody: bool = False
    ) -> Home:
        """The home that the environment names, ``on`` this computer's platform unless another is named. Creates nothing.

        Raises :exc:`HomeTooLong`, :exc:`OneHome`, :exc:`platform.NotDom0`, and :exc:`RootNeeded` unless it is ``for_everybody``: for a
        command that only connects to the daemon.
        """
        env = os.environ if environment is None else environment
        on = on or platform.here()
        if on is Platform.XEN and os.geteuid() != 0 and not for_everybody:
            raise RootNeeded
        if on is Platform.XEN:
            if env.get("QFILEXCHG_HOME"):
                raise OneHome
            return cls(XEN_DATA, XEN_RUN, XEN_CACHE, on)
        user = Path(env.get("HOME") or "/")
        cache = Path(env.get("XDG_CACHE_HOME") or user / ".cache") / "qfilexchg"
        if own := env.get("QFILEXCHG_HOME"):
            data = Path(own).absolute()
            run = data / "run"
        else:
            data = Path(env.get("XDG_DATA_HOME") or user / ".local/share") / "qfilexchg"
            run = Path(env["XDG_RUNTIME_DIR"]) / "qfilexchg" if env.get("XDG_RUNTIME_DIR") else data / "run"
        if len(os.fsencode(run / _LONGEST_SOCKET)) > SOCKET_PATH_MAX:
            raise HomeTooLong(run)
        return cls(data, run, cache, on)

    def make(self) -> None:
        """Create the folders that are missing, closed to other users, and on Xen ``run`` open to agents. Raises :exc:`HomeUnusable`."""
        if self.of_the_system and self.data.resolve() != self.data:
            raise HomeUnusable(self.data, "it is reached by a link, and udev's rules go by the path: mount or bind the other folder there")
        for folder in (self.data, self.run, self.cache, self.spool, self.kept, self.savefiles, self.log, self.policy):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if folder == self.run and self.platform is Platform.XEN:
                    folder.chmod(0o755)
            except OSError as error:
                raise HomeUnusable(folder, error.strerror or str(error)) from error

    @property
    def of_the_system(self) -> bool:
        """Whether it is the one home of a Xen computer, whose daemon systemd starts."""
        return self.platform is Platform.XEN and self.data == XEN_DATA

    @property
    def store(self) -> Path:
        """The run folder of qxenstored."""
        return self.run / "store"

    @property
    def store_socket(self) -> Path:
        """Where dom0's programs reach the store: on Xen the one that all of the computer's VMs have."""
        return XEN_STORE_SOCKET if self.platform is Platform.XEN else self.store / "socket"

    def store_domain_socket(self, domain: DomainId) -> Path:
        """Whoever connects here is ``domain`` to qxenstored."""
        return self.store / "domain" / str(int(domain))

    @property
    def agent_socket(self) -> Path:
        """Where consent agents register with qfilexchgd."""
        return self.run / "agent.socket"

    @property
    def daemon_lock(self) -> Path:
        """Held by the qfilexchgd that serves this home; holds its process id.

        Beside the journal and the spool, which only one may have: the runtime folder is another one where XDG_RUNTIME_DIR is not set.
        """
        return self.data / "qfilexchgd.lock"

    @property
    def domains(self) -> Path:
        """A folder for each QEMU VM that runs."""
        return self.run / "domain"

    def domain(self, domain: DomainId) -> Path:
        """Sockets, name and process of a running QEMU VM."""
        return self.domains / str(int(domain))

    @property
    def template(self) -> Path:
        """A link to the template, in the cache, that this home's VMs boot from."""
        return self.data / "template"

    @property
    def templates(self) -> Path:
        """A link for each release of Debian, to the template of VMs that are to be of this release."""
        return self.data / "templates"

    @property
    def vms(self) -> Path:
        """A folder for each VM that is not somebody else's."""
        return self.data / "vms"

    def vm(self, name: VmName) -> Path:
        """What a VM keeps: its private disk and its logs."""
        return self.vms / name

    def volatile(self, name: VmName) -> Path:
        """The disk to which a DisposableVM writes."""
        return self.vm(name) / VOLATILE

    @property
    def savefiles(self) -> Path:
        """The savefile of DisposableVMs, and those that are being made."""
        return self.data / "savefiles"

    @property
    def default_script(self) -> Path:
        """What is run in a DisposableVM before it is saved, if the person wants that."""
        return self.data / "dvm-prerun"

    @property
    def current_savefile(self) -> Path:
        """A link to the savefile from which DisposableVMs are made."""
        return self.savefiles / "current"

    @property
    def spool(self) -> Path:
        """Pendrives."""
        return self.data / "spool"

    @property
    def kept(self) -> Path:
        """Pendrives that could be neither delivered nor given back; the person is told of each."""
        return self.data / "kept"

    @property
    def journal(self) -> Path:
        return self.data / "journal.sqlite"

    @property
    def collection(self) -> Path:
        return self.data / "collection.sqlite"

    @property
    def policy(self) -> Path:
        return self.data / "policy.d"

    @property
    def configuration(self) -> Path:
        return self.data / "qfilexchg.toml"

    @property
    def log(self) -> Path:
        return self.data / "log"
