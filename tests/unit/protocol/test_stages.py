"""What dom0 tells of a document, as it is written and as a VM reads it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfilexchg.protocol import keys
from qfilexchg.protocol.names import NAME_MAX, VmName
from qfilexchg.protocol.qpen import KILL_REASONS
from qfilexchg.protocol.stages import ENDINGS, FINAL_STAGES, BadStage, Stage, parse_stage

DISP3 = VmName.parse("disp3")


@pytest.mark.parametrize(
    ("line", "stage"),
    [
        (b"starting", Stage("starting")),
        (b"preparing", Stage("preparing")),
        (b"open disp3", Stage("open", DISP3)),
        (b"returning disp3", Stage("returning", DISP3)),
        (b"returned disp3", Stage("returned", DISP3)),
        (b"unchanged disp3", Stage("unchanged", DISP3)),
        *((b"ended disp3 " + why.encode(), Stage("ended", DISP3, why)) for why in ENDINGS),
    ],
)
def test_each_stage_is_written_as_it_is_read(line: bytes, stage: Stage) -> None:
    assert stage.encode() == line and parse_stage(line) == stage
    assert stage.final is (stage.word in FINAL_STAGES)
    assert stage.final is line.startswith((b"returned", b"unchanged", b"ended"))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"starting disp3",
        b"open",
        b"open 3",
        b"open disp3 now",
        b"open  disp3",
        b"open " + b"d" * (NAME_MAX + 1),
        b"ended disp3",
        b"ended disp3 boredom",
        b"unchanged d\xc3\xa4sp",
        b"vanished disp3",
        b"failed - no-memory",
    ],
)
def test_what_is_no_stage_is_refused(line: bytes) -> None:
    with pytest.raises(BadStage, match="not understood") as caught:
        parse_stage(line)
    assert str(caught.value).isprintable()


@given(st.binary(max_size=150))
def test_any_bytes_are_a_stage_or_refused(line: bytes) -> None:
    try:
        stage = parse_stage(line)
    except BadStage:
        return
    assert stage.encode() == line


def test_a_stage_is_a_value() -> None:
    assert len({Stage("open", DISP3), Stage("open", DISP3), Stage("returning", DISP3)}) == 2
    assert Stage("open", DISP3) != "open disp3"
    assert repr(Stage("ended", DISP3, "failed")) == "Stage('ended disp3 failed')"


def test_a_vm_can_end_with_each_reason_that_it_may_give() -> None:
    assert set(KILL_REASONS) - {"unchanged"} < set(ENDINGS)


def test_a_document_has_a_key_of_its_own() -> None:
    assert keys.document(7) == "qubes_documents/7"
