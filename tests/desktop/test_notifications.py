"""Notices on a real session bus, shown by a notification service of the test's own."""

from __future__ import annotations

import itertools
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from jeepney import DBusAddress, MessageType, message_bus, new_error, new_method_call, new_method_return
from jeepney.io.blocking import open_dbus_connection

from qfilexchg.dom0.consent import notifications as module
from qfilexchg.dom0.consent.notifications import PACE_S, TRANSFERS_MAX, WAITING_MAX, Notifications
from tests.python import PYTHON

TIMEOUT_S = 20
NAME = "org.freedesktop.Notifications"
BUS = """<busconfig>
<type>session</type>
<listen>unix:dir={folder}</listen>
<servicedir>{folder}/services</servicedir>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy>
</busconfig>
"""


@dataclass(frozen=True)
class Shown:
    """One call of Notify, and the number that it was given."""

    number: int
    replaces: int
    summary: str
    body: str
    category: str


class Service:
    """A notification service: it takes the name, numbers what it shows from ``first`` on, and remembers it."""

    def __init__(self, capabilities: tuple[str, ...] = ("body", "body-markup"), first: int = 1) -> None:
        self.shown: queue.Queue[Shown] = queue.Queue()
        self.refuses = 0
        self._capabilities = list(capabilities)
        self._numbers = itertools.count(first)
        self._connection = open_dbus_connection("SESSION")
        self._connection.send(message_bus.RequestName(NAME))  # calls that were waiting for it come before the reply
        self._has_name = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._has_name.wait(TIMEOUT_S)

    def next(self) -> Shown:
        return self.shown.get(timeout=TIMEOUT_S)

    def end(self) -> None:
        """It goes off the bus, and its name with it."""
        with open_dbus_connection("SESSION") as other:
            address = DBusAddress("/", bus_name=self._connection.unique_name, interface="org.example.Test")
            other.send_and_get_reply(new_method_call(address, "End"), timeout=TIMEOUT_S)
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        with self._connection as connection:
            while True:
                call = connection.receive()
                if call.header.message_type is MessageType.method_return:
                    self._has_name.set()
                if call.header.message_type is not MessageType.method_call:
                    continue
                match call.header.fields[3]:
                    case "GetCapabilities":
                        connection.send(new_method_return(call, "as", (self._capabilities,)))
                    case "Notify" if self.refuses:
                        self.refuses -= 1
                        connection.send(new_error(call, "org.example.Refused"))
                    case "Notify":
                        _, replaces, _, summary, body, _, hints, _ = call.body
                        number = replaces or next(self._numbers)
                        self.shown.put(Shown(number, replaces, summary, body, hints["category"][1]))
                        connection.send(new_method_return(call, "u", (number,)))
                    case _:
                        connection.send(new_method_return(call))
                        return


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A session bus of the test's own, on which nothing is, and the folder of what it starts when it is called."""
    services = tmp_path / "services"
    services.mkdir()
    configuration = tmp_path / "bus.conf"
    configuration.write_text(BUS.format(folder=tmp_path))
    command = ("dbus-daemon", f"--config-file={configuration}", "--nofork", "--print-address")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", daemon.stdout.readline().strip())
        yield services
        daemon.kill()


@pytest.fixture
def service(bus: Path) -> Iterator[Service]:
    service = Service()
    yield service
    service.end()


@pytest.fixture
def notifications() -> Iterator[Notifications]:
    notifications = Notifications()
    yield notifications
    notifications.close()


@pytest.mark.usefixtures("bus")
class TestShown:
    def test_a_notice_says_which_vms_and_then_what(self, service: Service, notifications: Notifications) -> None:
        assert notifications.show("4f0c", "work → personal: delivered")
        assert service.next() == Shown(1, 0, "work → personal", "Delivered", "transfer.complete")

    def test_the_next_of_the_same_transfer_takes_its_place(self, service: Service, notifications: Notifications) -> None:
        told = ("waits until personal has ejected another pendrive", "failed, it was busy for too long", "delivered")
        seen = []
        for text in told:
            notifications.show("4f0c", f"work → personal: {text}")
            seen.append(service.next())
        assert [(shown.number, shown.replaces) for shown in seen] == [(1, 0), (1, 1), (1, 1)]
        assert [shown.category for shown in seen] == ["transfer", "transfer.error", "transfer.complete"]

    def test_another_transfer_and_what_is_of_none_have_one_of_their_own(self, service: Service, notifications: Notifications) -> None:
        numbers = []
        for key in ("4f0c", None, "0a", None, "4f0c"):
            notifications.show(key, "vault asked for a pendrive")
            numbers.append(service.next().number)
        assert numbers == [1, 2, 3, 4, 1]

    def test_of_what_comes_fast_only_the_last_is_shown(self, service: Service, notifications: Notifications) -> None:
        for number in range(100):
            notifications.show("4f0c", f"work → personal: step {number}")
        seen = [service.next()]
        while seen[-1].body != "Step 99":
            seen.append(service.next())
        assert len(seen) <= 3
        assert {shown.number for shown in seen} == {1}

    def test_a_flood_is_bounded(self, service: Service, notifications: Notifications, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(10 * WAITING_MAX):
            notifications.show(None, f"notice {number}")
        monkeypatch.setattr(module, "PACE_S", 0)
        seen = [service.next()]
        while seen[-1].body != f"notice {10 * WAITING_MAX - 1}":
            seen.append(service.next())
        assert len(seen) <= WAITING_MAX + 2

    def test_old_transfers_are_forgotten(self, service: Service, notifications: Notifications, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "PACE_S", 0)
        for number in range(TRANSFERS_MAX + 1):
            notifications.show(f"t{number}", "work → personal: delivered")
            service.next()
        notifications.show("t0", "work → personal: delivered")
        notifications.show("t9", "work → personal: delivered")
        assert [service.next().number for _ in range(2)] == [TRANSFERS_MAX + 2, 10]


class TestText:
    HOSTILE = "work → personal: failed, <b>&amp; \x1b[31m\u202e"

    @pytest.mark.parametrize(
        ("capabilities", "summary", "body"),
        [
            (("body", "body-markup"), "work → personal", "Failed, &lt;b&gt;&amp;amp; \\x1b[31m\\u202e"),
            (("body",), "work → personal", "Failed, <b>&amp; \\x1b[31m\\u202e"),
            ((), "work → personal: failed, <b>&amp; \\x1b[31m\\u202e", ""),
        ],
    )
    @pytest.mark.usefixtures("bus")
    def test_nothing_in_it_is_markup_or_moves_a_cursor(self, capabilities: tuple[str, ...], summary: str, body: str) -> None:
        service, notifications = Service(capabilities), Notifications()
        notifications.show("4f0c", self.HOSTILE)
        shown = service.next()
        assert (shown.summary, shown.body) == (summary, body)
        notifications.close()
        service.end()


@pytest.mark.usefixtures("bus")
class TestNoService:
    def test_nothing_is_shown_and_nothing_raised(self, notifications: Notifications) -> None:
        assert not notifications.show("4f0c", "work → personal: delivered")

    def test_one_that_comes_later_is_found(self, notifications: Notifications) -> None:
        assert not notifications.show("4f0c", "work → personal: asked")
        service = Service()
        while not notifications.show("4f0c", "work → personal: delivered"):
            pass  # each call has it looked for again
        assert service.next().body == "Delivered"
        service.end()

    def test_one_that_is_another_now_is_not_asked_to_replace_what_it_never_showed(self, notifications: Notifications) -> None:
        service = Service()
        while not notifications.show("4f0c", "work → personal: delivered"):
            pass
        assert service.next().number == 1
        service.end()
        service = Service(first=7)
        notifications.show("4f0c", "work → personal: denied")
        assert service.next() == Shown(7, 0, "work → personal", "Denied", "transfer.error")
        service.end()

    def test_one_that_refuses_is_asked_once_more(self, service: Service, notifications: Notifications) -> None:
        service.refuses = 1
        notifications.show("4f0c", "work → personal: delivered")
        assert service.next().body == "Delivered"

    def test_one_that_refuses_always_ends_nothing(self, service: Service, notifications: Notifications) -> None:
        service.refuses = 2
        notifications.show("4f0c", "work → personal: denied")
        while service.refuses:
            threading.Event().wait(PACE_S / 10)  # nothing tells that it was refused twice
        while not notifications.show("4f0c", "work → personal: delivered"):
            pass
        assert service.next().body in {"Denied", "Delivered"}


def test_a_service_that_is_started_when_it_is_called_is_one(bus: Path, tmp_path: Path, notifications: Notifications) -> None:
    root = Path(__file__).parents[2]
    script = f"""#!{sys.executable}
import sys
sys.path[:0] = {[str(root), str(root / "src")]!r}
from tests.desktop.test_notifications import Service
service = Service()
open({str(tmp_path / "shown")!r}, "w").write(service.next().body)
service.end()
"""
    program = tmp_path / "service"
    program.write_text(script)
    program.chmod(0o755)
    (bus / f"{NAME}.service").write_text(f"[D-BUS Service]\nName={NAME}\nExec={program}\n")
    with open_dbus_connection("SESSION") as connection:
        address = DBusAddress("/org/freedesktop/DBus", bus_name="org.freedesktop.DBus", interface="org.freedesktop.DBus")
        connection.send_and_get_reply(new_method_call(address, "ReloadConfig"), timeout=TIMEOUT_S)
    while not notifications.show("4f0c", "work → personal: delivered"):
        pass
    written = tmp_path / "shown"
    for _ in range(1000):
        if written.exists() and written.read_text():
            break
        threading.Event().wait(TIMEOUT_S / 1000)  # a file that is written tells nobody
    assert written.read_text() == "Delivered"


@pytest.mark.parametrize("address", ["", "unix:path=/nowhere/at/all", "nonsense"])
def test_without_a_bus_nothing_is_shown_and_nothing_raised(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
    notifications = Notifications()
    assert not notifications.show("4f0c", "work → personal: delivered")
    notifications.close()
    assert not notifications.show("4f0c", "work → personal: delivered")


def test_without_jeepney_nothing_is_shown_and_nothing_raised() -> None:
    script = """
import sys
sys.modules["jeepney"] = None
from qfilexchg.dom0.consent.notifications import Notifications
notifications = Notifications()
assert not notifications.show("4f0c", "work → personal: delivered")
notifications.close()
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([*PYTHON, "-c", script], env=environment, check=True, timeout=TIMEOUT_S)
