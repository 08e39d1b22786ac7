"""What a VM's own root can do with the store and with dom0: ask, and no more."""

from __future__ import annotations

from tests.xen.dom0 import Dom0
from tests.xen.steps import PENCTL
from tests.xen.vm import XenVm

# Each line that it prints is something that should have failed.
_WRITE = """
for key in name vm qubes_vm_type qubes_qpen_reply qubes_blocksrc qubes_transaction_seq qubes_view_only qubes_documents/1 device/new \\
    device/qubes_used_mem/new console/tty "/local/domain/$1/device/qpen" "/local/domain/$1/qubes_qpen_reply" /local/domain/0/new \\
    "/local/domain/0/backend/vbd/$2/51808/params" "/local/domain/0/backend/vbd/$2/51808/physical-device"
do xenstore-write "$key" x 2> /dev/null && echo "wrote $key"; done
for key in name qubes_qpen_reply device "/local/domain/$1/device/qpen"
do xenstore-rm "$key" 2> /dev/null && echo "removed $key"; done
for key in name qubes_qpen_reply device device/qpen
do xenstore-chmod "$key" "b$1" 2> /dev/null && echo "opened $key"; done
for key in "/local/domain/$1" "/local/domain/$1/device/qpen" "/local/domain/$1/name" /local/domain/0 /vm
do xenstore-read "$key" 2> /dev/null && echo "read $key"; xenstore-ls "$key" 2> /dev/null && echo "listed $key"; done
true
"""


def test_a_vms_root_can_write_its_request_and_nothing_else_of_the_exchange(dom0: Dom0, work: XenVm, personal: XenVm) -> None:
    assert work.output(PENCTL, "new", user="root").split() == ["accepted", "attached"]
    before = dom0.sh('xenstore-ls -fp "/local/domain/$1" && xenstore-ls -fp "/local/domain/$2"', work.domain, personal.domain)
    assert work.sh(_WRITE, personal.domain, work.domain, user="root") == ""
    after = dom0.sh('xenstore-ls -fp "/local/domain/$1" && xenstore-ls -fp "/local/domain/$2"', work.domain, personal.domain)
    assert after == before

    perms = {
        line.split(" = ")[0].split("/", 4)[-1]: line.rsplit("   ", 1)[-1]
        for line in before.splitlines()
        if f"/domain/{work.domain}/" in line
    }
    readable, writable = f"(n0,r{work.domain})", f"(n0,b{work.domain})"
    assert perms["device/qpen"] == writable
    assert {perms[key] for key in ("name", "vm", "qubes_vm_type", "qubes_qpen_reply")} == {readable}

    # The request is there to be written, by anybody in the VM.
    work.sh("xenstore-write device/qpen 'format c:'")
    dom0.until('xenstore-read "$1" | grep -q "failed bad-request"', f"/local/domain/{work.domain}/qubes_qpen_reply")
    dom0.logged("work: bad request")

    # It can be removed too, and is made again.
    work.sh("xenstore-rm device/qpen")
    dom0.until('xenstore-exists "$1"', f"/local/domain/{work.domain}/device/qpen")
    assert work.output(PENCTL, "cancel").split()[-1] == "cancelled"
    dom0.nothing_left()
