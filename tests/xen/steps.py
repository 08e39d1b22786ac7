"""What tests on Xen do and wait for, in the words of a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.xen.dom0 import HOME, SPOOL, Dom0
from tests.xen.running import Running
from tests.xen.vm import XenVm

PENCTL = "/usr/lib/qubes/qubes_penctl"
LETTER = "Dear Bank, "
OUTGOING, INCOMING = 51808, 51824
"""What Xen calls the disks xvdg and xvdh (xen-vbd-interface(7))."""

_SEND = 'printf "Dear Bank, " > "$2" && exec qvm-copy-to-vm "$1" "$2"'
_RECEIVE = """
for i in $(seq 600); do mountpoint -q /mnt/incoming && break; sleep 0.1; done
cd /mnt/incoming && for file in *; do printf '%s: ' "$file" && cat "$file" && echo; done
cd / && umount /mnt/incoming
"""


def sending(vm: XenVm, target: str, name: str = "letter.txt") -> Running:
    """qvm-copy-to-vm under way in a VM; its status is that of the command."""
    return vm.popen("sh", "-c", _SEND, "sh", target, name)


def receive(vm: XenVm) -> list[str]:
    """What lies on the pendrive that comes, which is then ejected: a line for each file."""
    return vm.sh(_RECEIVE).splitlines()


def received(name: str = "letter.txt") -> list[str]:
    return [f"{name}: {LETTER}"]


def given(vm: XenVm) -> None:
    """Let a VM have an empty pendrive, as the outgoing one."""
    assert vm.output(PENCTL, "new").split() == ["accepted", "attached"]


def holders(dom0: Dom0) -> list[str]:
    """Which disks of which domains have a pendrive now, as ``DOMAIN/NUMBER``, by dom0's own word."""
    listed = dom0.sh("xenstore-ls -f /local/domain/0/backend/vbd")
    return [line.split("/")[6] + "/" + line.split("/")[7] for line in listed.splitlines() if f'/params = "{SPOOL}/' in line]


def plain_domain(dom0: Dom0, name: str, *disks: str, on_reboot: str = "destroy") -> str:
    """The path of an xl configuration as somebody might have one, for a domU that is no VM of ours. It boots the template's kernel."""
    template = f"{HOME}/template"
    settings = f"""
name = "{name}"
type = "pv"
kernel = "{template}/kernel"
ramdisk = "{template}/initrd"
cmdline = "root=/dev/xvda ro console=hvc0"
memory = 200
disk = [{", ".join(f'"{disk}"' for disk in disks)}]
on_poweroff = "destroy"
on_reboot = "{on_reboot}"
on_crash = "destroy"
"""
    path = f"/srv/{name}.cfg"
    dom0.write(path, settings.encode())
    return path


@contextmanager
def paused(vm: XenVm) -> Iterator[None]:
    """Hold a VM where it is, so that what needs its help waits for it. It may end meanwhile."""
    vm.dom0.output("xl", "pause", vm.domain)
    yield
    vm.dom0.run("xl", "unpause", vm.domain)
