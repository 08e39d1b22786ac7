"""Runs in the VM as root what the person in dom0 asks for through ``qvm-run`` and its like; the protocol is in protocol/run.py.

Each port carries one session at a time. Everything is one loop over edge-triggered epoll: a port whose other side is closed says
so for ever, and would keep a level-triggered loop spinning. After any event of a port all its descriptors are tried until none
makes progress, so no edge is missed. Nothing is read from a command while what it said before has not left, and nothing from the
port while the command has not taken its input: memory is bounded by a few frames, and whoever is slow slows down the other.

On Xen the one port is the VM's console. It is always read, as dom0 does not send more there than was granted (protocol/console.py).

The VM trusts dom0, as any VM must, and nobody else can open the ports.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import select
import sys
from time import monotonic

from qfilexchg.guest.console import Console, hush_kernel, open_console
from qfilexchg.protocol.channels import RUN_PORTS
from qfilexchg.protocol.run import EXIT, PAYLOAD_MAX, START, STDERR, STDIN, STDOUT, WINDOW, BadFrame, Decoder, Start, frame, hello

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Mapping, Sequence
    from typing import Final, NoReturn
else:
    import _signal as signal  # the same calls, without the enums: those cost more than all else here

SYSFS_PORTS: Final = "/sys/class/virtio-ports"
_READ_BYTES: Final = 64 << 10
_EDGES: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLHUP | select.EPOLLET
_TIOCSCTTY: Final = 0x540E
_TIOCSWINSZ: Final = 0x5414
_CANNOT_RUN: Final = 126
_NOT_FOUND: Final = 127
HANG_UP_S: Final = 1.0
"""How long a port must say that it is hung up until that is believed."""
_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_ROOT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Command:
    """A command and our ends of its standard streams. It leads a session, and so a process group, of its own."""

    def __init__(self, start: Start) -> None:
        """Raises KeyError for an unknown user."""
        account = pwd.getpwnam(start.user)
        if start.window:
            ours, theirs = os.openpty()
            _set_window(ours, start.window)
            streams = (theirs, theirs, theirs)
            self._stdin: int | None = ours
            self.outputs = {ours: STDOUT}
            self._ends = [ours]
        else:
            (stdin, to), (out, stdout), (err, stderr) = (os.pipe() for _ in range(3))
            streams = (stdin, stdout, stderr)
            self._stdin = to
            self.outputs = {out: STDOUT, err: STDERR}
            self._ends = [to, out, err]
        self.terminal = start.window is not None
        self.pid = os.fork()
        if self.pid == 0:
            _become(account, start, streams)
        for end in set(streams):
            os.close(end)
        for end in self._ends:
            os.set_blocking(end, False)
        self.pidfd = os.pidfd_open(self.pid)
        self.status: int | None = None
        self._input = bytearray()
        self._input_ends = False

    def descriptors(self) -> tuple[int, ...]:
        return (*self._ends, self.pidfd)

    @property
    def hungry(self) -> bool:
        """Whether all input so far is taken."""
        return not self._input

    def give(self, data: bytes) -> None:
        """Add to the input; the empty string ends it."""
        if self._stdin is None or self._input_ends:
            return
        self._input += data
        self._input_ends = not data
        if self._input_ends and self.terminal:
            self._input += b"\x04"

    def feed(self) -> bool:
        """Hand input on as far as it is taken; whether any was."""
        if self._stdin is None:
            return False
        try:
            taken = os.write(self._stdin, self._input) if self._input else 0
        except BlockingIOError:
            return False
        except OSError:  # nobody reads it any more
            self._input.clear()
            taken = 0
            self._input_ends = True
        del self._input[:taken]
        if self._input_ends and not self._input:
            if not self.terminal:
                os.close(self._stdin)
                self._ends.remove(self._stdin)
            self._stdin = None
        return taken > 0

    def resize(self, rows: int, columns: int) -> None:
        if self.terminal:
            _set_window(self._ends[0], (rows, columns))

    def output(self) -> bytes | None:
        """A frame of output, if there is any now. After the command's end, what its children still hold open is left to them."""
        self._reap()
        for end, kind in list(self.outputs.items()):
            try:
                data = os.read(end, PAYLOAD_MAX)
            except BlockingIOError:
                if self.status is None:
                    continue
                data = b""
            except OSError:  # a terminal that nobody has open
                data = b""
            if data:
                return frame(kind, data)
            if self.status is not None or not self.terminal:
                del self.outputs[end]
        return None

    def _reap(self) -> None:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self.status = code if code >= 0 else 128 - code

    def hang_up(self) -> None:
        """End the command's process group as a closed terminal would, and forget the streams."""
        try:
            os.killpg(self.pid, signal.SIGHUP)
            os.killpg(self.pid, signal.SIGCONT)
        except ProcessLookupError:
            pass
        self.close()

    def close(self) -> None:
        for end in self._ends:
            os.close(end)
        self._ends.clear()
        self.outputs.clear()
        self._stdin = None


def _set_window(terminal: int, window: tuple[int, int]) -> None:
    rows, columns = window
    fcntl.ioctl(terminal, _TIOCSWINSZ, b"".join(number.to_bytes(2, sys.byteorder) for number in (rows, columns, 0, 0)))


def _become(account: pwd.struct_passwd, start: Start, streams: tuple[int, int, int]) -> NoReturn:
    """In the forked child: take on the user's identity and environment and become the command."""
    status = _CANNOT_RUN
    try:
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        if start.window:
            fcntl.ioctl(0, _TIOCSCTTY, 0)
            os.fchown(0, account.pw_uid, -1)
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python
            signal.signal(ignored, signal.SIG_DFL)
        if os.geteuid() != account.pw_uid or account.pw_uid == 0:
            os.initgroups(account.pw_name, account.pw_gid)
            os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
            os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
        os.umask(0o022)
        try:
            os.chdir(account.pw_dir)
        except OSError as error:
            os.write(2, b"qvm-run: %s: %s; going on in /\n" % (account.pw_dir.encode(), os.strerror(error.errno or errno.EIO).encode()))
            os.chdir("/")
        os.execvpe(start.argv[0], start.argv, _environment(account, start))  # noqa: S606 -- argv as dom0 gave it, no shell wanted
    except FileNotFoundError:
        status = _NOT_FOUND
        os.write(2, b"qvm-run: %s: command not found\n" % start.argv[0])
    except OSError as error:
        os.write(2, b"qvm-run: %s: %s\n" % (start.argv[0], os.strerror(error.errno or errno.EIO).encode()))
    finally:
        os._exit(status)


def _environment(account: pwd.struct_passwd, start: Start) -> Mapping[str, str]:
    environment = {
        "HOME": account.pw_dir,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "SHELL": account.pw_shell,
        "PATH": _PATH if account.pw_uid else _ROOT_PATH,
        "LANG": "C.UTF-8",
    }
    if start.window:
        environment["TERM"] = "xterm-256color"
    runtime = f"/run/user/{account.pw_uid}"
    if os.path.isdir(runtime):
        environment["XDG_RUNTIME_DIR"] = runtime
    return environment


class Port:
    """One port and its session."""

    def __init__(self, descriptor: int, watch: Callable[[int, Port], None], console: Console | None = None) -> None:
        self._port = descriptor
        self._console = console
        self._watch = watch
        self._decoder = Decoder()
        self._out = bytearray()
        self._command: Command | None = None
        self._ended: list[Command] = []
        watch(descriptor, self)

    def hung_up(self) -> None:
        """dom0's side is closed."""
        self._out.clear()
        self._end_session(Command.hang_up)

    def step(self) -> bool:
        """Do a little of all that can be done now; whether anything was."""
        self._ended = [command for command in self._ended if not _ended(command)]
        progress = self._flush()
        if self._command:
            progress |= self._command.feed()
        hungry = self._command is None or self._command.hungry
        if self._console:
            if hungry:
                self._console.taken()
            progress |= self._read_console(self._console)
        elif hungry and not self._out:
            progress |= self._read()
        if self._command and not self._out:
            progress |= self._take_output(self._command)
        return progress

    def _flush(self) -> bool:
        if not self._out:
            return False
        try:
            del self._out[: self._console.write(self._out) if self._console else os.write(self._port, self._out)]
        except BlockingIOError:
            return False
        except OSError:  # the other side is gone; EPOLLHUP follows
            self._out.clear()
        return True

    def _read(self) -> bool:
        data = bytearray()
        try:
            # The driver hands out one page at a time.
            while len(data) < _READ_BYTES and (page := os.read(self._port, _READ_BYTES)):
                data += page
        except BlockingIOError:
            pass
        self._feed(data)
        return bool(data)

    def _read_console(self, console: Console) -> bool:
        try:
            begins, data = console.read()
        except BlockingIOError:
            return False
        if begins:
            self._out.clear()
            self._decoder = Decoder()
            self._end_session(Command.hang_up)
        self._feed(data)
        return True

    def _feed(self, data: bytes | bytearray) -> None:
        try:
            for kind, payload in self._decoder.feed(data):
                self._take(kind, payload)
        except BadFrame:
            self._end_session(Command.hang_up)

    def _take(self, kind: int, payload: bytes) -> None:
        if kind == START:
            self._end_session(Command.hang_up)
            self._begin(Start.parse(payload))
        elif self._command and kind == STDIN:
            self._command.give(payload)
        elif self._command and kind == WINDOW and len(payload) == 4:
            self._command.resize(int.from_bytes(payload[:2], "big"), int.from_bytes(payload[2:], "big"))

    def _begin(self, start: Start) -> None:
        self._out[:] = hello(start.nonce)
        if not start.argv:
            self._out += frame(EXIT, b"\0")
            return
        try:
            self._command = Command(start)
        except (KeyError, OSError) as error:
            why = "no such user" if isinstance(error, KeyError) else str(error.strerror)
            self._out += frame(STDERR, f"qvm-run: {start.user}: {why}\n".encode()) + frame(EXIT, bytes((_CANNOT_RUN,)))
            return
        for descriptor in self._command.descriptors():
            self._watch(descriptor, self)

    def _take_output(self, command: Command) -> bool:
        output = command.output()
        if output is not None:
            self._out += output
        elif command.status is not None and not command.outputs:
            self._out += frame(EXIT, bytes((command.status,)))
            self._end_session(Command.close)
        else:
            return False
        return True

    def _end_session(self, end: Callable[[Command], None]) -> None:
        if self._command:
            end(self._command)
            self._ended.append(self._command)
            self._command = None


def _ended(command: Command) -> bool:
    """Reap a command that nobody waits for any more, if it has ended."""
    command.output()
    if command.status is None:
        return False
    os.close(command.pidfd)
    return True


def open_ports(folder: str = SYSFS_PORTS) -> list[int]:
    """Open the run ports that this VM has. Their names are read from sysfs: udev's links may still be under way."""
    ports = []
    for device in sorted(os.listdir(folder)):
        with open(f"{folder}/{device}/name", encoding="ascii") as file:
            name = file.read().strip()
        if name in RUN_PORTS:
            ports.append(os.open(f"/dev/{device}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
    return ports


class HangUps:
    """Which ports are hung up. dom0's bytes overtake the word that it has opened the port: a port with a new session may still say so."""

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._doubted: dict[int, float] = {}

    def hear(self, port: int, events: int) -> None:
        """What epoll says of a port."""
        if events & select.EPOLLHUP:
            self._doubted.setdefault(port, self._now() + HANG_UP_S)
        else:
            self._doubted.pop(port, None)

    def take(self) -> list[int]:
        """The ports that are hung up, each once."""
        now = self._now()
        ports = [port for port, at in self._doubted.items() if at <= now]
        for port in ports:
            del self._doubted[port]
        return ports

    @property
    def wait_s(self) -> float | None:
        """Until when to look again, if there is a doubt."""
        return max(0.0, min(self._doubted.values()) - self._now()) if self._doubted else None


def serve(ports: Sequence[int], consoles: Sequence[int] = ()) -> NoReturn:
    """Serve the ports and the consoles, which are open, for ever."""
    epoll = select.epoll()
    owners: dict[int, Port] = {}
    hang_ups = HangUps()

    def watch(descriptor: int, port: Port) -> None:
        owners[descriptor] = port
        epoll.register(descriptor, _EDGES)

    active = {Port(descriptor, watch) for descriptor in ports}
    active |= {Port(descriptor, watch, Console(descriptor)) for descriptor in consoles}
    while True:
        for descriptor, events in epoll.poll(0 if active else hang_ups.wait_s):
            if descriptor in ports:
                hang_ups.hear(descriptor, events)
            active.add(owners[descriptor])
        for descriptor in hang_ups.take():
            owners[descriptor].hung_up()
            active.add(owners[descriptor])
        active = {port for port in active if port.step()}


def main() -> None:
    """Serve the consoles that are the arguments; without any, the ports that this VM has."""
    if consoles := [open_console(path) for path in sys.argv[1:]]:
        hush_kernel()
        serve((), consoles)
    serve(open_ports())


if __name__ == "__main__":
    main()
