"""What tests with documents in DisposableVMs do and wait for on Xen."""

from __future__ import annotations

import re

from tests.xen.dom0 import HOME, Dom0
from tests.xen.running import Running
from tests.xen.vm import XenVm


def write(vm: XenVm, name: str, text: str) -> None:
    vm.sh('printf %s "$2" > "$1"', name, text)


def make(vm: XenVm, size: str, *names: str, first_line: str = "") -> str:
    """Files of the same random bytes, after a first line; their SHA-256. Made in the VM: its console is slow."""
    script = '{ [ -z "$2" ] || echo "$2"; head -c "$1" /dev/urandom; } > "$3"; a=$3; shift 3; for b; do cp "$a" "$b"; done; sha256sum "$a"'
    return vm.sh(script, size, first_line, *names).split()[0]


def sha256(vm: XenVm, name: str) -> str:
    return vm.output("sha256sum", name).split()[0]


def opening(vm: XenVm, name: str, *options: str) -> Running:
    """qvm-open-in-dvm under way in a VM, where no other command can run meanwhile."""
    return vm.popen("qvm-open-in-dvm", *options, name)


def opened(dom0: Dom0, asker: str, seq: int = 1) -> XenVm:
    """Wait until a document is open, and return the DisposableVM that has it."""
    line = f"{asker}'s document {seq}: open"
    dom0.logged(line)
    found = re.search(rf"(disp\d+), {re.escape(line)}", dom0.log())
    assert found
    return XenVm(dom0, found[1])


def close(vm: XenVm, name: str, text: str = "") -> None:
    """Add ``text`` to a document that is open in a DisposableVM, and end the editor that would keep it open forever.

    An editor that waits by looking, again and again, would take more of the processor than all else does.
    """
    end = "kill $(grep -lsz '^1000000$' /proc/[0-9]*/cmdline | cut -d / -f 3)"
    vm.sh(f'printf %s "$2" >> "/tmp/$1"; {end}', name, text)


def no_disposable_left(dom0: Dom0) -> None:
    """Return when no DisposableVM, no record, no file, no disk and no key of one is left, and no pendrive."""
    dom0.nothing_left()
    dom0.until("! xl list | grep -q '^disp'")
    dom0.until(f"! ls -A {HOME}/vms | grep -q ^disp && ! losetup -a | grep -q -e volatile -e deleted")
    dom0.until('[ "$(xenstore-list /local/domain | wc -l)" = "$(xl list | tail -n +2 | wc -l)" ]')
    assert "disp" not in dom0.output("qvm-ls")
