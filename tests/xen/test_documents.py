"""Documents in DisposableVMs on Xen: three at once; whoever dies; a savefile that cannot be used."""

from __future__ import annotations

import re
import time

from tests.xen.documents import close, make, no_disposable_left, opened, opening, sha256, write
from tests.xen.dom0 import HOME, UNIT, Dom0
from tests.xen.vm import XenVm

SETTINGS = f"{HOME}/qfilexchg.toml"

_MARK = "for folder in /etc /home/user /tmp /var /usr; do echo mine > $folder/mine; done"
_IDENTITY = """
hostname
cat /etc/machine-id /proc/sys/kernel/random/uuid
head -c 16 /dev/urandom | od -An -tx1
date +%s
xenstore-read qubes_random_seed | wc -c
ls -d /etc/mine /home/user/mine /tmp/mine /var/mine /usr/mine 2> /dev/null | wc -l
cat /sys/block/xvda/ro /sys/block/xvdc/ro
dd if=/dev/zero of=/dev/xvda count=1 2> /dev/null || echo refused
ls /sys/class/net
"""


def test_three_documents_are_in_three_vms_that_share_nothing(dom0: Dom0, work: XenVm) -> None:
    digest = make(work, "1M", "closed.txt", "looked-at.txt", "edited.txt", first_line="forever")
    before = work.output("stat", "-c", "%i %Y %Z", "closed.txt", "looked-at.txt")
    assert opening(work, "closed.txt", "--no-wait").wait().returncode == 0
    closed = opened(dom0, "work", 1)
    closed.sh(_MARK, user="root")
    assert opening(work, "looked-at.txt", "--view-only", "--no-wait").wait().returncode == 0
    edited_in_dvm = opening(work, "edited.txt")
    vms = [closed, opened(dom0, "work", 2), opened(dom0, "work", 3)]

    looks = [vm.sh(_IDENTITY, user="root").splitlines() for vm in vms]
    assert [look[0] for look in looks] == [vm.name for vm in vms]
    for line in range(4):
        assert len({look[line] for look in looks}) == 3, looks
    for look, marks in zip(looks, ("5", "0", "0"), strict=True):
        assert abs(int(look[4]) - time.time()) < 60, "the clock is right"
        # The key is empty but for the newline of who prints it; the root's disk is read-only, to root too; no network.
        assert look[5:] == ["1", marks, "1", "0", "refused", "lo"], look
    listed = dom0.output("qvm-ls").splitlines()
    for vm in vms:
        (row,) = (line.split() for line in listed if line.startswith(vm.name))
        assert {"running", vm.domain, "green", "DisposableVM", "work"} <= set(row), row
        modes = dom0.sh('for disk in 51712 51744; do xenstore-read "/local/domain/0/backend/vbd/$1/$disk/mode"; done', vm.domain)
        assert modes == "r\nw\n"
    # What each writes is in a file that has no name any more.
    disks = dom0.sh(
        'for domain; do losetup -n -O BACK-FILE "$(xenstore-read "/local/domain/0/backend/vbd/$domain/51744/node")"; done',
        *(vm.domain for vm in vms),
    ).splitlines()
    assert disks == [f"{HOME}/vms/{vm.name}/volatile.img (deleted)" for vm in vms]

    copy = vms[1].sh("cd /tmp; stat -c %a looked-at.txt; sha256sum < looked-at.txt; chmod 600 looked-at.txt")
    assert copy.split() == ["400", digest, "-"]
    close(vms[1], "looked-at.txt", "more\n")
    close(vms[0], "closed.txt")
    expected = vms[2].sh("(cat /tmp/edited.txt; echo edited) | sha256sum").split()[0]
    close(vms[2], "edited.txt", "edited\n")
    done = edited_in_dvm.wait()
    assert done.returncode == 0, edited_in_dvm.said
    assert re.search(rf"returned: edited.txt now has the changes of {vms[2].name}\n", edited_in_dvm.said), edited_in_dvm.said
    assert sha256(work, "edited.txt") == expected != digest
    no_disposable_left(dom0)
    assert sha256(work, "closed.txt") == sha256(work, "looked-at.txt") == digest
    assert work.output("stat", "-c", "%i %Y %Z", "closed.txt", "looked-at.txt") == before
    assert f"{vms[0].name}, work's document 1: unchanged" in dom0.log()
    # Nobody has waited for the first: what is noted of it is forgotten with time.
    assert set(work.output("ls", "-A", ".dvm").split()) == {"seq", "1", "1.original"}


def test_neither_a_disposablevm_nor_an_asker_that_dies_leaves_anything(dom0: Dom0, work: XenVm, personal: XenVm) -> None:
    write(personal, "letter.txt", "forever\n")
    write(work, "letter.txt", "forever\n")
    hopeless = opening(personal, "letter.txt")
    lost = opening(work, "letter.txt")
    opened(dom0, "personal").destroy()
    done = hopeless.wait()
    assert done.returncode == 9 and "ended before the document was closed" in hopeless.said, hopeless.said
    assert personal.output("cat", "letter.txt") == "forever\n"
    without_asker = opened(dom0, "work")
    work.destroy()
    lost.close()
    dom0.logged(f"{without_asker.name}, work's document 1: killed")
    no_disposable_left(dom0)


def test_a_document_survives_that_qfilexchgd_is_killed_at_each_stage(dom0: Dom0, work: XenVm) -> None:
    write(work, "letter.txt", "forever\n")
    process = opening(work, "letter.txt")
    dom0.until("pgrep -f 'xl restor[e]' > /dev/null")
    dom0.kill_daemon()
    vm = opened(dom0, "work")
    dom0.kill_daemon()
    expected = vm.sh("head -c 16M /dev/urandom >> /tmp/letter.txt; sha256sum < /tmp/letter.txt").split()[0]
    close(vm, "letter.txt")
    dom0.logged(f"{vm.name} → ·: giving → clean")
    dom0.kill_daemon()
    done = process.wait()
    assert done.returncode == 0, process.said
    assert sha256(work, "letter.txt") == expected
    no_disposable_left(dom0)


class TestSavefile:
    def test_one_that_is_stale_is_made_again_and_the_document_opens(self, dom0: Dom0, work: XenVm) -> None:
        before = dom0.output("readlink", "-f", f"{HOME}/savefiles/current")
        dom0.sh(f"sed -i 's/^disposable_memory_mb = .*/disposable_memory_mb = 200/' {SETTINGS} && systemctl restart {UNIT}")
        write(work, "letter.txt", "append\n")
        with dom0.person() as person:
            process = opening(work, "letter.txt")
            assert "made with another" in person.notice("stale")
            done = process.wait()
        assert done.returncode == 0, process.said
        assert re.fullmatch(r"append\nedited in disp\d+\n", work.output("cat", "letter.txt"))
        after = dom0.output("readlink", "-f", f"{HOME}/savefiles/current")
        assert after != before
        assert dom0.output("ls", f"{HOME}/savefiles").split() == sorted(["current", after.strip().rpartition("/")[2]])
        no_disposable_left(dom0)

    def test_one_that_is_truncated_is_not_used(self, dom0: Dom0, work: XenVm) -> None:
        dom0.output("truncate", "--size=1M", f"{HOME}/savefiles/current/memory")
        write(work, "letter.txt", "append\n")
        with dom0.person() as person:
            process = opening(work, "letter.txt")
            person.notice("the savefile is damaged")
            dom0.logged("the savefile is damaged: making one", "default-dvm runs")
            process.close()
