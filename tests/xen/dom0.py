"""dom0 of a Xen machine, in the hands of a test: commands run in it as somebody would type them there."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from qfilexchg.dom0.vms import run
from qfilexchg.dom0.vms.qemu.channels import AllPortsBusy
from qfilexchg.lab.xen.machine import Machine
from tests.person import Person
from tests.xen.running import DEADLINE_S, Running

HOME = "/var/lib/qfilexchg"
SPOOL = f"{HOME}/spool"
AGENT_SOCKET = "/run/qfilexchg/agent.socket"
RULES = f"{HOME}/policy.d/10-test.policy"
UNIT = "qfilexchgd.service"
_PORT_STEP_S = 0.05
_EVIDENCE = {
    "qfilexchgd.log": "journalctl --no-pager -o short-monotonic -u qfilexchgd",
    "journal.log": "journalctl --no-pager -o short-monotonic -b",
    "xenstore.txt": "xenstore-ls -fp",
    "xl.txt": "xl list -v; xl vcpu-list",
    "losetup.txt": "losetup -a; ls -lR /var/lib/qfilexchg",
    "processes.txt": "ps -ef",
    "xl-logs.txt": "tail -n 50 /var/log/xen/*.log",
}


class Dom0:
    """dom0 of a machine that runs. Its commands are root's unless another user is named."""

    def __init__(self, machine: Machine, loop: asyncio.AbstractEventLoop) -> None:
        self.machine = machine
        self.loop = loop

    @contextlib.asynccontextmanager
    async def session(self, argv: Sequence[str], user: str = "root", window: tuple[int, int] | None = None) -> AsyncIterator[run.Session]:
        """A command's session, when one of the machine's ports is free."""
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    try:
                        begun = await stack.enter_async_context(self.machine.session(argv, user=user, window=window))
                        break
                    except AllPortsBusy:
                        await asyncio.sleep(_PORT_STEP_S)
            yield begun

    def popen(self, *argv: str, user: str = "root", window: tuple[int, int] | None = None) -> Running:
        """A command that goes on; on a terminal of (rows, columns) with ``window``. At most four can at a time."""
        return Running(self.loop, argv, lambda: self.session(argv, user, window))

    def run(self, *argv: str, user: str = "root", input: bytes = b"", deadline_s: float = DEADLINE_S) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end, whatever its status."""
        running = self.popen(*argv, user=user)
        if input:
            running.write(input)
        return running.wait(deadline_s)

    def output(self, *argv: str, user: str = "root", input: bytes = b"", deadline_s: float = DEADLINE_S) -> str:
        """What a command prints, which must succeed."""
        done = self.run(*argv, user=user, input=input, deadline_s=deadline_s)
        assert done.returncode == 0, f"{argv} in dom0: status {done.returncode}, {done.stderr.decode(errors='replace')}"
        return done.stdout.decode()

    def sh(self, script: str, *arguments: str, user: str = "root", deadline_s: float = DEADLINE_S) -> str:
        """What a script of the shell's prints, which must succeed. ``$1`` is the first argument."""
        return self.output("sh", "-c", script, "sh", *arguments, user=user, deadline_s=deadline_s)

    def until(self, condition: str, *arguments: str) -> None:
        """Return when a condition of the shell's holds. For what only a look can tell: a file that is gone."""
        waiting = f"until {condition}; do sleep 0.1; done"
        done = self.run("timeout", f"{DEADLINE_S:.0f}", "sh", "-c", waiting, "sh", *arguments, deadline_s=DEADLINE_S + 30)
        assert done.returncode == 0, f"in vain: {condition} {arguments}: {done.stderr.decode(errors='replace')}"

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Lay down a file."""
        self.output("sh", "-c", 'cat > "$1" && chmod "$2" "$1"', "sh", path, f"{mode:o}", input=data)

    def rule(self, text: str) -> None:
        """The one file of rules that a test has."""
        self.write(RULES, f"{text}\n".encode())

    def person(self) -> Person:
        """An agent of the user's, who is root neither here nor in any VM. A context."""
        return Person(self.popen("socat", "-", f"UNIX-CONNECT:{AGENT_SOCKET}", user="user"))

    def log(self) -> str:
        """All that qfilexchgd has said so far."""
        return self.output("journalctl", "--no-pager", "-o", "cat", "-u", "qfilexchgd")

    def logged(self, *texts: str) -> None:
        """Return when each of the texts has been said by qfilexchgd."""
        script = 'for text; do grep -q -m 1 -F -e "$text" <(journalctl -f -n all -o cat -u qfilexchgd 2> /dev/null) || exit 1; done'
        done = self.run("timeout", f"{DEADLINE_S:.0f}", "bash", "-c", script, "bash", *texts, deadline_s=DEADLINE_S + 30)
        assert done.returncode == 0, f"qfilexchgd does not say {texts}: {self.log()[-4000:]}"

    def kill_daemon(self) -> None:
        """As when it crashes: systemd starts another, for which this waits."""
        before = self.daemon()
        self.output("kill", "-KILL", before)
        self.until(f'p=$(systemctl show -P MainPID {UNIT}) && [ "$p" != 0 ] && [ "$p" != "$1" ] && systemctl -q is-active {UNIT}', before)

    def daemon(self) -> str:
        """The process id of qfilexchgd."""
        return self.output("systemctl", "show", "-P", "MainPID", UNIT).strip()

    def configure(self, settings: str) -> None:
        """Add to the settings, and let the daemon read them."""
        self.sh('printf "%s\\n" "$1" >> "$2" && systemctl restart "$3"', settings, f"{HOME}/qfilexchg.toml", UNIT)

    @contextlib.contextmanager
    def deaf_daemon(self) -> Iterator[None]:
        """While it does not run on, as when others have the processor: then it hears of everything at once."""
        daemon = self.daemon()
        self.output("kill", "-STOP", daemon)
        yield
        self.output("kill", "-CONT", daemon)

    def nothing_left(self) -> None:
        """Return when no pendrive is left in dom0: no image, no loop device, no backend."""
        backends = "/local/domain/0/backend/vbd"
        self.until(
            '[ -z "$(ls -A "$1")" ] && ! losetup -a | grep -q "$1" && ! xenstore-ls -f "$2" 2> /dev/null | grep -q "$1"', SPOOL, backends
        )

    def save_evidence(self, folder: Path) -> None:
        """Write to ``folder`` what tells how the machine is now, and what was said in it."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.machine.console_log.exists():
            (folder / "console.log").write_bytes(self.machine.console_log.read_bytes())
        for name, script in _EVIDENCE.items():
            self._save(folder / name, script)
        for domain in self._try("xl list | awk 'NR > 2 { print $2 }'").decode().split():
            console = '{ timeout 1 socat -u "$(xenstore-read /local/domain/$1/console/tty),raw,echo=0" - || true; } | tail -c 65536'
            self._save(folder / f"guest-{domain}-console.log", console, domain)

    def _save(self, file: Path, script: str, *arguments: str) -> None:
        file.write_bytes(self._try(script, *arguments))

    def _try(self, script: str, *arguments: str) -> bytes:
        try:
            done = self.run("timeout", "20", "sh", "-c", script, "sh", *arguments, deadline_s=30)
        except Exception as error:
            return str(error).encode()
        return done.stdout + done.stderr
