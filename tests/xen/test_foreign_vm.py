"""A domU that is not in the collection takes part as soon as it runs and has the VM package."""

from __future__ import annotations

from tests.xen.dom0 import HOME, Dom0
from tests.xen.steps import plain_domain, receive, received, sending
from tests.xen.vm import XenVm


def test_a_domu_that_somebody_has_made_by_xl_can_receive_and_starts_again_without_what_it_had(dom0: Dom0, work: XenVm) -> None:
    dom0.sh("truncate -s 64M /srv/home.img && mke2fs -q -F -t ext4 /srv/home.img")
    disks = (f"format=raw,vdev=xvda,access=ro,target={HOME}/template/root.img", "format=raw,vdev=xvdb,access=rw,target=/srv/home.img")
    dom0.output("xl", "create", "-q", plain_domain(dom0, "foreign", *disks, on_reboot="restart"))
    dom0.logged("foreign runs as domain")
    foreign = XenVm(dom0, "foreign")
    assert "foreign" not in dom0.output("qvm-ls")
    with dom0.person() as person:
        copying = sending(work, "foreign")
        question = person.answer(True)
        assert (question.target, question.target_label) == ("foreign", None)
        done = copying.wait()
        assert done.returncode == 0, done.stderr
    assert receive(foreign) == received()
    dom0.nothing_left()

    dom0.rule("work foreign allow")
    assert sending(work, "foreign", "mounted").wait().returncode == 0
    foreign.sh("for i in $(seq 600); do mountpoint -q /mnt/incoming && break; sleep 0.1; done")
    before = foreign.domain
    dom0.output("xl", "reboot", before)
    # xl makes it again with the disks that it had, pendrives included.
    dom0.until('now=$(xl domid foreign) && [ "$now" != "$1" ]', before)
    dom0.nothing_left()
    again = XenVm(dom0, "foreign")
    dom0.logged(f"foreign runs as domain {again.domain}")
    assert sending(work, "foreign", "after").wait().returncode == 0
    assert receive(again) == received("after")
    dom0.nothing_left()
