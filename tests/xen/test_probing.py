"""Nothing in dom0 looks into a pendrive, whatever a VM has written on it. udev, udisks, LVM and multipath are all there and would."""

from __future__ import annotations

import re

import pytest

from tests.xen.dom0 import SPOOL, Dom0
from tests.xen.steps import PENCTL, given
from tests.xen.vm import XenVm

# How the bytes come to be, in a file of dom0's that is nobody's pendrive. A VM writes the same on its pendrive.
_MAKE = {
    "vfat": "truncate -s 64M image && mkfs.vfat -n LOOKEDAT image",
    "partition table": r"truncate -s 64M image && printf 'label: dos\n2048,20480,83\n,,c\n' | sfdisk -q image",
    "LVM physical volume": """truncate -s 64M image && loop=$(losetup -f --show image) &&
        pvcreate -q --config 'devices { global_filter = ["a|.*|"] use_devicesfile = 0 }' "$loop" && losetup -d "$loop" """,
}
_HEAD_BYTES = 4096
"""Of the image: enough for all that looks at it."""
_WRITE = f"""
for i in $(seq 100); do [ -b /dev/xvdg ] && break; sleep 0.1; done
cat > head && dd if=head of=/dev/xvdg bs={_HEAD_BYTES} conv=fsync 2> /dev/null
"""
_LINKS = 'find /dev/disk ! -path "*/by-diskseq/*" -lname "*/$1" -o ! -path "*/by-diskseq/*" -lname "*/$1p*"'
_OPEN = """
for fd in /proc/[0-9]*/fd/*; do
    case $(readlink "$fd") in "$1"/* | "/dev/$2" | "/dev/$2"p*) ls -l "$fd" ;; esac
done
true
"""
_ANNOUNCE = 'udevadm trigger --action=add "/sys/block/$1" && udevadm trigger --action=change "/sys/block/$1" && udevadm settle'


@pytest.mark.parametrize("content", sorted(_MAKE))
def test_a_pendrive_is_not_looked_at_and_the_same_bytes_elsewhere_are(dom0: Dom0, work: XenVm, content: str) -> None:
    dom0.sh(f"systemctl start udisks2 && mkdir /srv/elsewhere && cd /srv/elsewhere && {_MAKE[content]}")
    head = dom0.run("head", "-c", str(_HEAD_BYTES), "/srv/elsewhere/image").stdout
    given(work)
    work.output("sh", "-c", _WRITE, user="root", input=head)
    pendrive = _device(dom0, SPOOL)
    # Now that there is something on it, it is announced again as when it was new.
    dom0.sh(_ANNOUNCE, pendrive)
    assert dom0.sh('head -c "$2" "/dev/$1" | sha256sum', pendrive, str(_HEAD_BYTES)) == dom0.sh(
        f"head -c {_HEAD_BYTES} /srv/elsewhere/image | sha256sum"
    )
    assert _known(dom0, pendrive) == []
    assert dom0.sh(_LINKS, pendrive) == ""
    assert dom0.sh(_OPEN, SPOOL, pendrive) == ""
    assert dom0.sh('find "/sys/block/$1/" -maxdepth 1 -name "$1p*"', pendrive) == ""
    assert "LOOKEDAT" not in dom0.sh('udisksctl info -b "/dev/$1" 2> /dev/null || true', pendrive)

    # What would be, without our rules.
    dom0.sh("losetup -f --show -P /srv/elsewhere/image && udevadm settle")
    elsewhere = _device(dom0, "/srv/elsewhere")
    dom0.sh(_ANNOUNCE, elsewhere)
    assert _known(dom0, elsewhere) != []
    if content == "vfat":
        assert dom0.sh(_LINKS, elsewhere) != ""
        assert "LOOKEDAT" in dom0.sh('udisksctl info -b "/dev/$1"', elsewhere)
    work.output(PENCTL, "cancel")
    dom0.nothing_left()


def _device(dom0: Dom0, folder: str) -> str:
    """The loop device of the one file below ``folder`` that has one."""
    (name,) = re.findall(rf"^/dev/(loop\d+): .*\({folder}/", dom0.output("losetup", "-a"), re.MULTILINE)
    return str(name)


def _known(dom0: Dom0, device: str) -> list[str]:
    """What udev's database holds of the content of a device."""
    listed = dom0.output("udevadm", "info", "--query=property", f"--path=/sys/block/{device}").splitlines()
    return [line for line in listed if line.startswith(("ID_FS_", "ID_PART_", "LVM_"))]
