from __future__ import annotations

import json
from dataclasses import fields, replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfilexchg.dom0.exchange import messages as m
from qfilexchg.dom0.exchange import status as module
from qfilexchg.dom0.exchange.phases import Course, Phase
from qfilexchg.dom0.exchange.status import LINE_MAX, BadStatus, Document, Outcome, Pendrive, Question, Status, Vm, encode, parse, vms
from qfilexchg.dom0.vms.hypervisor import RunningVm, VmId
from qfilexchg.protocol.names import DomainId, VmName

WORK, PERSONAL, DISP = (VmName.parse(name) for name in ("work", "personal", "disp3"))
STATUS = Status(
    20.5,
    (Vm(WORK, 1, False, "0a", None), Vm(DISP, 4, True, None, None)),
    (Pendrive("0a", Phase.ASKING, Course.COPY, WORK, None, 0, False, 1 << 30, None, None),),
    (Question(7, "copy", WORK, None, 4096, False, 10.0, 70.0),),
    (Document(DISP, WORK, 2, True, m.Fate.OPEN, 15.0),),
    (Outcome(1.5, WORK, PERSONAL, 4096, "delivered"),),
)


def test_what_is_encoded_is_parsed_again() -> None:
    assert parse(encode(STATUS)) == STATUS


@given(st.sampled_from(Phase), st.sampled_from(Course), st.sampled_from(m.Fate), st.floats(0, 2**40), st.none() | st.integers(0, 2**50))
def test_so_is_every_word_and_number_in_it(phase: Phase, course: Course, fate: m.Fate, time_s: float, used: int | None) -> None:
    pendrive = replace(STATUS.pendrives[0], phase=phase, course=course, since_s=time_s, used_bytes=used)
    status = replace(STATUS, pendrives=(pendrive,) * 3, documents=(replace(STATUS.documents[0], fate=fate),))
    assert parse(encode(status)) == status


def test_the_example_in_the_documentation_is_one_and_has_every_field() -> None:
    assert module.__doc__
    example = module.__doc__[module.__doc__.index('    {"status"') : module.__doc__.index("``phase`` and")]
    status = parse(json.dumps(json.loads(example)).encode() + b"\n")
    assert json.loads(encode(status)) == json.loads(example)
    assert all(getattr(status, field.name) for field in fields(Status))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}\n",
        b"[]\n",
        b"7\n",
        b"nonsense\n",
        b"\xff\n",
        b"[" * 100_000 + b"\n",
        encode(STATUS)[:-1],
        encode(STATUS).replace(b'"status": 1', b'"status": 2'),
        encode(STATUS).replace(b'"asking"', b'"floating"'),
        encode(STATUS).replace(b'"work"', b'"no name"'),
        encode(STATUS).replace(b'"fate"', b'"fete"'),
        encode(STATUS).replace(b'"vms": [', b'"vms": [7, '),
        encode(STATUS) + b" " * LINE_MAX + b"\n",
    ],
)
def test_what_is_none_is_said_in_one_line(line: bytes) -> None:
    with pytest.raises(BadStatus, match="is not understood") as raised:
        parse(line)
    assert "\n" not in str(raised.value)


def test_a_vms_slots_are_those_of_the_exchange() -> None:
    work, personal = (RunningVm(VmId(DomainId(n), UUID(int=n)), VmName.parse(name)) for n, name in ((1, "work"), (2, "personal")))
    entries = [
        m.Entry(m.PendriveId("0a"), Phase.ASKING, work, personal, 0, "", 1, 1),
        m.Entry(m.PendriveId("0b"), Phase.LOADED, personal, work, 0, "", 1, 1),
        m.Entry(m.PendriveId("0c"), Phase.DELETING, personal, work, 0, "", 1, 1),
    ]
    assert list(vms([(work, False), (personal, True)], entries)) == [
        Vm(work.name, 1, False, "0a", "0b"),
        Vm(personal.name, 2, True, None, None),
    ], "what is only asked about is not the receiver's yet"
