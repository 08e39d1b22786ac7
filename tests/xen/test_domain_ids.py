"""A domain id that is another VM's by the time the person answers: the answer was for the VM that was asked about."""

from __future__ import annotations

from pathlib import Path

from tests.xen import create_domains
from tests.xen.dom0 import Dom0
from tests.xen.steps import LETTER, holders, plain_domain, receive, received, sending
from tests.xen.vm import XenVm

WRAP_DEADLINE_S = 300.0


def test_a_receiver_that_was_started_again_meanwhile_is_not_the_one_that_was_allowed(dom0: Dom0, work: XenVm, personal: XenVm) -> None:
    with dom0.person() as person:
        copying = sending(work, "personal")
        question = person.question()
        personal.destroy()
        assert person.withdrawal() == question.id
        person.say(question, True)
        assert copying.wait().returncode == 3
        personal.start()
        dom0.nothing_left()
        again = sending(work, "personal")
        person.answer(True)
        assert again.wait().returncode == 0
    assert receive(personal) == received()


def test_the_same_domain_id_comes_back_and_the_answer_does_not_count_for_it(dom0: Dom0, work: XenVm, personal: XenVm) -> None:
    domain = personal.domain
    dom0.write("/srv/create_domains.py", Path(create_domains.__file__).read_bytes())
    assert dom0.output("python3", "/srv/create_domains.py", deadline_s=WRAP_DEADLINE_S).strip() == str(create_domains.LAST)
    other = plain_domain(dom0, "personal")
    with dom0.person() as person:
        copying = sending(work, "personal")
        question = person.question()
        with dom0.deaf_daemon():
            # libxl itself gives no id again for a minute; another toolstack would. One of this second counts as recent to it even so.
            dom0.output("xl", "destroy", domain)
            dom0.until('! xl list "$1" > /dev/null 2>&1', domain)
            dom0.output("sleep", "2")
            dom0.output("env", "LIBXL_DOMID_REUSE_TIMEOUT=0", "xl", "create", "-q", "-p", other)
            assert dom0.output("xl", "domid", "personal").strip() == domain
            person.say(question, True)
        # Which it hears first is chance: the yes, and then that the VM has ended, on which it is too late for a plain denial; or the end.
        assert copying.wait().returncode in (1, 3), copying.said
    assert "arriving" not in dom0.log()
    assert work.output("cat", "letter.txt") == LETTER
    assert holders(dom0) == []
    dom0.nothing_left()
