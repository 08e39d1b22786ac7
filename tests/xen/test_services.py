"""What keeps qfilexchgd company in dom0: the store that comes late and goes away, and the doctor who looks at everything."""

from __future__ import annotations

import re

from qfilexchg.dom0.cli.doctor import BUILD_PROGRAMS
from qfilexchg.dom0.platform import Platform
from tests.xen.dom0 import HOME, UNIT, Dom0
from tests.xen.vm import XenVm

STORE = "/run/xenstored/socket"
RULES = "/usr/lib/udev/rules.d/59-qfilexchg-dom0.rules"
PENCTL = "/usr/lib/qubes/qubes_penctl"


def findings(dom0: Dom0) -> tuple[int, dict[str, tuple[str, str]]]:
    """The doctor's status, and each verdict with what is said."""
    done = dom0.run("qfilexchg", "doctor")
    lines = (re.fullmatch(r"(\S+) +(.+?)  +(.+)", line) for line in done.stdout.decode().splitlines())
    return done.returncode, {line[2]: (line[1], line[3]) for line in lines if line}


def test_a_daemon_that_is_there_before_the_store_waits_for_it_and_says_so(dom0: Dom0, work: XenVm) -> None:
    dom0.sh(f"systemctl stop {UNIT} && mv {STORE} {STORE}.aside && systemctl start {UNIT}")
    dom0.logged("waiting, and nothing can be asked meanwhile")
    process = dom0.daemon()
    assert re.search(r'Status: "waiting: .*xenstored', dom0.sh(f"systemctl status {UNIT}; true"))
    dom0.output("mv", f"{STORE}.aside", STORE)
    dom0.until(f"systemctl status {UNIT} | grep -q 'Status: \"serving\"'")
    work.output(PENCTL, "new")
    work.output(PENCTL, "cancel")
    dom0.nothing_left()
    assert dom0.daemon() == process


def test_a_daemon_whose_store_dies_takes_back_what_it_asks_waits_and_serves_again(dom0: Dom0, work: XenVm) -> None:
    work.output(PENCTL, "new")
    with dom0.person() as person:
        asking = work.popen(PENCTL, "send", "personal")
        question = person.question()
        process = dom0.daemon()
        store = dom0.output("pidof", "oxenstored").strip()
        program = dom0.output("readlink", f"/proc/{store}/exe").strip()
        dom0.output("kill", "-KILL", store)
        assert person.withdrawal() == question.id
        dom0.logged("waiting, and nothing can be asked meanwhile")
        asking.close()
        dom0.sh(f"rm -f {STORE}; {program} --pid-file /run/xenstore.pid")
        dom0.until(f"systemctl status {UNIT} | grep -q 'Status: \"serving\"'")
    assert dom0.daemon() == process
    assert dom0.output("systemctl", "show", "-P", "NRestarts", UNIT) == "0\n"


class TestDoctor:
    def test_a_machine_that_works_has_nothing_to_be_mended(self, dom0: Dom0) -> None:
        with dom0.person():
            status, found = findings(dom0)
        assert status == 0, found
        notes = {what for what, (verdict, _) in found.items() if verdict != "ok"}
        assert {"mmdebstrap", "fakeroot"} <= notes <= set(BUILD_PROGRAMS[Platform.XEN]), found
        assert {"template", "savefile", "qfilexchgd", "xenstored", "keys", "xl", "udev rules", "loop devices", "agent"} <= set(found)
        assert "of 2 VMs" in found["keys"][1]

    def test_what_is_broken_is_named_with_its_cure(self, dom0: Dom0, work: XenVm) -> None:
        dom0.sh(
            f"""systemctl stop {UNIT}; mv {RULES} /root
            sed -i 's/^disposable_memory_mb = .*/disposable_memory_mb = 200/' {HOME}/qfilexchg.toml
            xenstore-chmod "/local/domain/$1/device/qpen" n0 r$1""",
            work.domain,
        )
        status, found = findings(dom0)
        assert status == 1
        for what, verdict, cure in (
            ("qfilexchgd", "note", "qvm-start"),
            ("agent", "note", "start qfilexchg-agent"),
            ("udev rules", "BAD", "install qfilexchg-dom0 again"),
            ("savefile", "note", "made with another .*; it is made when a document is opened, or by qvm-create-default-dvm"),
            ("keys", "BAD", r"work's device/qpen is n0,r\d+ and not n0,b\d+: .*start the VM again"),
        ):
            assert found[what][0] == verdict and re.search(cure, found[what][1]), (what, found[what])
