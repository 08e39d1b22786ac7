"""Requests and replies, as the tools of 2010 and ours write them, and as a hostile VM might."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfilexchg.protocol.names import NAME_MAX, BadDomainId, BadName, DomainId, VmName
from qfilexchg.protocol.qpen import (
    KILL_REASONS,
    REQUEST_MAX,
    SEQ_MAX,
    BadReply,
    BadRequest,
    Reply,
    Request,
    parse_reply,
    parse_request,
)

names = st.from_regex(r"\A[A-Za-z][A-Za-z0-9_-]{0,63}\Z")
ids = st.from_regex(r"\A[A-Za-z0-9]{1,32}\Z")


class TestRequest:
    @pytest.mark.parametrize(
        ("line", "request_"),
        [
            (b"new", Request("new")),
            (b"  new   size=5  id=a1 ", Request("new", size_bytes=5, request_id="a1")),
            (b"send personal", Request("send", target=VmName.parse("personal"))),
            (b"send personal 3", Request("send", target=VmName.parse("personal"), seq=3)),
            (b"send disposable 4", Request("send", seq=4)),
            (b"send disposable 4 view=only", Request("send", seq=4, view_only=True)),
            (b"send disposable 4 view=all", Request("send", seq=4)),
            (b"send personal 3 view=only", Request("send", target=VmName.parse("personal"), seq=3)),
            (b"new view=only why=failed", Request("new")),
            (b"forget 4", Request("forget", seq=4)),
            (b"umount", Request("umount")),
            (b"killme", Request("killme")),
            (b"killme why=no-program", Request("killme", why="no-program")),
            (b"killme why=boredom", Request("killme")),
            (b"killme why=", Request("killme")),
            (b"cancel id=x", Request("cancel", request_id="x")),
            (b"status", Request("status")),
            (b"umount now please", Request("umount")),
            (b"new colour=blue", Request("new")),
            (b"new id=a id=b", Request("new", request_id="a")),
        ],
    )
    def test_what_is_understood(self, line: bytes, request_: Request) -> None:
        assert parse_request(line) == request_

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            (b"", "unknown"),
            (b"   ", "unknown"),
            (b"format c:", "unknown"),
            (b"NEW", "unknown"),
            (b"new\n", "not printable"),
            (b"new\0", "not printable"),
            (b"send \x1b[31mwork", "not printable"),
            ("send persönlich".encode(), "not printable"),
            (b"n" * (REQUEST_MAX + 1), "longer"),
            (b"send", "unknown"),
            (b"send -rf", "not a VM name"),
            (b"send ../work", "not a VM name"),
            (b"send " + b"a" * (NAME_MAX + 1), "not a VM name"),
            (b"send work x", "decimal"),
            (b"send work -1", "decimal"),
            (b"send work %d" % (SEQ_MAX + 1), "above"),
            (b"send disposable", "needs a sequence"),
            (b"send disposable 0", "1 or more"),
            (b"forget", "needs a sequence"),
            (b"forget 0", "1 or more"),
            (b"forget me", "decimal"),
            (b"new size=0", "at least 1"),
            (b"new size=1e9", "decimal"),
            (b"new size=" + b"9" * 19, "decimal"),
            (b"new id=", "letters and digits"),
            (b"new id=" + b"a" * 33, "letters and digits"),
            (b"new id=a-b", "letters and digits"),
        ],
    )
    def test_what_is_refused(self, line: bytes, why: str) -> None:
        with pytest.raises(BadRequest, match=why) as caught:
            parse_request(line)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 400

    @given(st.binary(max_size=300))
    def test_any_bytes_are_a_request_or_refused(self, line: bytes) -> None:
        try:
            request = parse_request(line)
        except BadRequest:
            return
        assert parse_request(request.encode()) == request

    @given(names, st.integers(0, SEQ_MAX), ids)
    def test_what_is_encoded_is_understood(self, name: str, seq: int, request_id: str) -> None:
        if name != "disposable":
            request = Request("send", target=VmName.parse(name), seq=seq, request_id=request_id)
            assert parse_request(request.encode()) == request

    @given(st.integers(1, SEQ_MAX), ids, st.booleans(), st.sampled_from(("", *KILL_REASONS)))
    def test_what_is_encoded_of_a_document_is_understood(self, seq: int, request_id: str, view_only: bool, why: str) -> None:
        for request in (
            Request("send", seq=seq, request_id=request_id, view_only=view_only),
            Request("forget", seq=seq, request_id=request_id),
            Request("killme", request_id=request_id, why=why),
        ):
            assert parse_request(request.encode()) == request

    def test_requests_that_differ_in_one_field_are_not_equal(self) -> None:
        requests = {Request("killme"), Request("killme", why="failed"), Request("send", seq=1), Request("send", seq=1, view_only=True)}
        assert len(requests) == 4
        assert repr(Request("send", seq=1, view_only=True)) == "Request('send disposable 1 view=only')"


class TestReply:
    @given(ids, st.sampled_from(("accepted", "delivered", "denied", "failed")), st.text("abc= -", max_size=9).map(str.strip))
    def test_what_is_encoded_is_understood(self, request_id: str, state: str, detail: str) -> None:
        reply = Reply(request_id, state, detail)  # type: ignore[arg-type]
        assert parse_reply(reply.encode()) == reply

    @pytest.mark.parametrize("line", [b"", b"a", b"a maybe", b"\xff accepted"])
    def test_what_is_no_reply(self, line: bytes) -> None:
        with pytest.raises(BadReply):
            parse_reply(line)


class TestNames:
    @pytest.mark.parametrize("text", ["work", "a", "Work-2_b", "a" * NAME_MAX])
    def test_good_names(self, text: str) -> None:
        assert VmName.parse(text) == text

    @pytest.mark.parametrize("text", ["", "1work", "-work", "_w", "a b", "a\n", "ä", "a/b", "a.b", "a" * (NAME_MAX + 1), "a%s", "<b>"])
    def test_bad_names(self, text: str) -> None:
        with pytest.raises(BadName, match="is not a VM name"):
            VmName.parse(text)

    def test_a_label_has_room_for_eleven_characters(self) -> None:
        assert VmName.parse("personal-archive").volume_label == "personal-ar"

    @pytest.mark.parametrize("text", ["0", "1", "32751"])
    def test_good_domain_ids(self, text: str) -> None:
        assert DomainId.parse(text) == int(text)

    @pytest.mark.parametrize("text", ["", "-1", "+1", "01", " 1", "1 ", "32752", "99999999", "x", "١"])
    def test_bad_domain_ids(self, text: str) -> None:
        with pytest.raises(BadDomainId):
            DomainId.parse(text)
