"""What a window shows of a VM tool that runs, and when."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfilexchg.guest import outcome
from qfilexchg.guest.desktop.opening import Opening
from qfilexchg.guest.desktop.sending import ARCHIVE, SKIP, Sending
from qfilexchg.guest.desktop.showing import END_S, NAME_MAX, NOTES_MAX, STDERR_MAX, End, Refused, Showing, View, things
from qfilexchg.protocol.names import VmName

PERSONAL = VmName.parse("personal")


def sending(*options: str) -> Sending:
    return Sending(["/home/user/report.pdf"], PERSONAL, options)


def opening(waiting: int = 0) -> Opening:
    return Opening("/home/user/report.pdf", waiting)


def tell(showing: Showing, **fields: object) -> View:
    showing.hear(json.dumps(fields))
    return showing.view


def stage(showing: Showing, *words: str) -> View:
    for word in words:
        tell(showing, stage=word, text=f"{word}…")
    return showing.view


def end(showing: Showing, status: int, text: str = "") -> View:
    tell(showing, end=status, text=text)
    showing.ended(status, "")
    return showing.view


class TestSending:
    def test_before_the_tool_has_said_anything_it_can_be_cancelled(self) -> None:
        view = sending().view
        assert (view.heading, view.text, view.cancel, view.can_leave) == ("Sending report.pdf to personal", "Starting…", "Cancel", False)

    def test_a_stage_is_shown_in_the_tools_words(self) -> None:
        showing = sending()
        assert stage(showing, "asking").text == "asking…"
        assert showing.view.fraction is None

    def test_bytes_files_and_time_left_are_shown_while_it_is_copied(self) -> None:
        showing = sending()
        stage(showing, "copying")
        view = tell(showing, bytes=1 << 20, of_bytes=4 << 20, files=1, of_files=7, left_s=61.2)
        assert (view.fraction, view.counts) == (0.25, "1.0 MiB of 4.0 MiB · 1 of 7 files · 1:01 min left")
        assert stage(showing, "asking").counts == ""

    @pytest.mark.parametrize(("files", "of_files", "fraction"), [(1, 4, 0.25), (0, 0, None)])
    def test_empty_files_are_counted(self, files: int, of_files: int, fraction: float | None) -> None:
        showing = sending()
        stage(showing, "copying")
        assert tell(showing, bytes=0, of_bytes=0, files=files, of_files=of_files, left_s=None).fraction == fraction

    def test_the_end_is_what_the_tool_told_when_it_is_gone(self) -> None:
        showing = sending()
        tell(showing, stage="delivered", text="Delivered to personal: 7 files.")
        assert tell(showing, end=0, text="").end is None
        showing.ended(0, "")
        view = showing.view
        assert (view.end, view.heading, view.text) == (End.GOOD, "Sent to personal", "Delivered to personal: 7 files.")
        assert view.can_leave and not view.cancel and view.closes_s is None

    @pytest.mark.parametrize(
        ("status", "kind", "heading"),
        [
            (outcome.BROKEN, End.BAD, "Not sent: something failed"),
            (outcome.REFUSED, End.NO, "Not sent: denied"),
            (outcome.CANNOT_BE_HELD, End.NO, "Not sent: a pendrive cannot hold this"),
            (outcome.NO_ROOM, End.NO, "Not sent: too much for one pendrive"),
            (outcome.OCCUPIED, End.NO, "Not sent: something else is being sent"),
            (77, End.BAD, "Not sent: something failed"),
        ],
    )
    def test_each_status_has_its_heading_and_the_tools_reason(self, status: int, kind: End, heading: str) -> None:
        view = end(sending(), status, "dom0 said so")
        assert (view.end, view.heading, view.text) == (kind, heading, "Dom0 said so")

    def test_a_message_that_begins_with_a_path_keeps_it(self) -> None:
        assert end(sending(), 1, "/tmp/a changed").text == "/tmp/a changed"

    def test_what_cannot_be_held_can_be_left_out_or_packed(self) -> None:
        showing = sending()
        tell(showing, problem="a?", why="its name has ?", left_out=False)
        tell(showing, more_problems=3, left_out=False)
        assert showing.view.problems == ()
        view = end(showing, 4, "leave them out with --skip")
        assert (view.problems, view.offers) == (("a?: its name has ?", "and 3 more"), (SKIP, ARCHIVE))

    def test_what_no_archive_can_hold_can_only_be_left_out(self) -> None:
        showing = sending(ARCHIVE)
        tell(showing, problem="socket", why="it is a socket", left_out=False)
        assert end(showing, 4).offers == (SKIP,)

    def test_where_nothing_is_left_only_packing_remains(self) -> None:
        showing = sending(SKIP)
        tell(showing, problem="link", why="it is a link", left_out=True)
        assert end(showing, 4, "nothing is left to be sent").offers == (ARCHIVE,)
        showing = sending(SKIP, ARCHIVE)
        tell(showing, problem="socket", why="it is a socket", left_out=True)
        view = end(showing, 4, "nothing is left to be sent")
        assert (view.offers, view.text, view.problems) == ((), "Nothing is left to be sent", ("socket: it is a socket",))

    def test_an_archive_that_is_too_large_has_no_offers(self) -> None:
        assert end(sending(ARCHIVE), 4, "the archive would have 5 GiB").offers == ()

    def test_what_was_left_out_is_shown_at_a_good_end(self) -> None:
        showing = sending(SKIP)
        tell(showing, problem="link", why="it is a link", left_out=True)
        view = end(showing, 0)
        assert (view.end, view.heading) == (End.PARTLY, "Sent to personal, but not everything")
        assert view.problems == ("link: it is a link",)


class TestCancel:
    def test_is_passed_on_once(self) -> None:
        showing = sending()
        assert showing.cancel()
        assert not showing.cancel()
        assert (showing.view.text, showing.view.cancel, showing.view.can_leave) == ("Cancelling…", "", False)

    def test_ends_and_the_window_goes_by_itself(self) -> None:
        showing = sending()
        showing.cancel()
        view = end(showing, outcome.CANCELLED, "cancelled")
        assert (view.end, view.heading, view.closes_s) == (End.NO, "Cancelled: nothing was sent", END_S)

    def test_that_is_too_late_leaves_the_tool_its_work(self) -> None:
        showing = sending()
        showing.cancel()
        view = stage(showing, "too-late")
        assert (view.text, view.cancel, view.can_leave) == ("too-late…", "", True)
        assert not showing.cancel()
        assert end(showing, 0).end is End.GOOD

    def test_of_a_tool_that_was_not_ready_is_a_cancellation(self) -> None:
        showing = sending()
        showing.cancel()
        showing.ended(None, "Traceback: KeyboardInterrupt")
        assert showing.view.heading == "Cancelled: nothing was sent"

    @pytest.mark.parametrize(("status", "said"), [(1, "Traceback: OSError"), (None, "")])
    def test_of_a_tool_that_breaks_afterwards_is_a_failure(self, status: int | None, said: str) -> None:
        showing = sending()
        stage(showing, "asking")
        assert showing.cancel()
        showing.ended(status, said)
        view = showing.view
        assert (view.end, view.heading, view.closes_s) == (End.BAD, "Not sent: something failed", None)
        assert "did not say why" in view.text and view.text.endswith(said or "why.")

    def test_of_what_has_ended_is_nothing(self) -> None:
        showing = sending()
        end(showing, 0)
        assert not showing.cancel()


class TestATool:
    def test_that_does_not_say_why_it_ended_is_a_failure(self) -> None:
        showing = sending()
        showing.ended(0, "")
        assert (showing.view.end, showing.status) == (End.BAD, outcome.BROKEN)
        assert showing.view.text == "Qvm-copy-to-vm ended with status 0, and did not say why."

    @pytest.mark.parametrize(("status", "how"), [(2, "ended with status 2"), (None, "was ended by a signal")])
    def test_that_breaks_shows_the_end_of_what_it_wrote(self, status: int | None, how: str) -> None:
        showing = sending()
        showing.ended(status, "x" * STDERR_MAX + "line\n\x1b[2Jlast\n")
        assert how in showing.view.text
        assert showing.view.text.endswith("line\n\\x1b[2Jlast")
        assert len(showing.view.text) < STDERR_MAX + 100

    def test_that_could_not_be_started_is_said_to_be_so(self) -> None:
        showing = sending()
        showing.not_started("Argument list too long\x1b")
        assert (showing.status, showing.view.end) == (outcome.BROKEN, End.BAD)
        assert showing.view.text == "Qvm-copy-to-vm could not be started: Argument list too long\\x1b"

    @pytest.mark.parametrize("line", ["", "no JSON", "3", '{"stage": 1, "text": "x"}', '{"bytes": "many"}', '{"else": true}', "[" * 99999])
    def test_whose_line_is_not_understood_is_not_disturbed(self, line: str) -> None:
        showing = sending()
        before = stage(showing, "asking")
        showing.hear(line)
        assert showing.view == before

    def test_notes_are_kept_to_the_latest(self) -> None:
        showing = sending()
        for number in range(NOTES_MAX + 5):
            tell(showing, note=f"{number}")
        assert len(showing.view.notes) == NOTES_MAX
        assert showing.view.notes[-1] == f"{NOTES_MAX + 4}"

    @given(st.text(), st.text())
    def test_nothing_that_it_tells_can_hide_a_letter_or_move_a_cursor(self, text: str, name: str) -> None:
        showing = Sending([f"/{name.replace(chr(0), '')}"], PERSONAL)
        tell(showing, stage="asking", text=text)
        tell(showing, note=text)
        tell(showing, problem=text, why=text, left_out=False)
        shown = [showing.view.text, showing.view.heading, *showing.view.notes, *end(showing, 4, text).problems]
        assert all(part.isprintable() for part in shown)


class TestOpening:
    def test_is_out_of_the_way_while_the_document_is_open(self) -> None:
        showing = opening()
        assert not stage(showing, "getting", "copying", "asking", "handed-over", "preparing", "starting").aside
        view = stage(showing, "delivered", "open")
        assert (view.aside, view.working, view.heading) == (True, False, "report.pdf is open in a DisposableVM")
        assert stage(showing, "returning", "returned").aside

    @pytest.mark.parametrize(
        ("word", "text"),
        [
            ("blocked", "It was changed there. Eject the pendrive that is here: the document waits for that."),
            ("not-placed", "not-placed…"),
        ],
    )
    def test_comes_forward_when_the_person_has_to_do_something(self, word: str, text: str) -> None:
        showing = opening()
        stage(showing, "open", "returning")
        view = stage(showing, word)
        assert (view.aside, view.heading, view.text) == (False, "report.pdf comes back", text)

    @pytest.mark.parametrize("word", ["returning", "blocked", "returned", "not-placed"])
    def test_cannot_be_ended_any_more_once_it_comes_back_and_its_window_stays(self, word: str) -> None:
        showing = opening()
        stage(showing, "open")
        assert showing.view.stays
        view = stage(showing, word)
        assert (view.cancel, view.stays, view.can_leave) == ("", True, False)
        assert not showing.cancel()
        assert showing.view == view

    @pytest.mark.parametrize(
        ("word", "heading"), [("unchanged", "report.pdf was not changed"), ("replaced", "report.pdf has come back changed")]
    )
    def test_a_good_end_goes_by_itself(self, word: str, heading: str) -> None:
        showing = opening()
        stage(showing, "open", word)
        view = end(showing, 0)
        assert (view.end, view.heading, view.aside, view.closes_s) == (End.GOOD, heading, False, END_S)

    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (outcome.BROKEN, End.BAD),
            (outcome.REFUSED, End.NO),
            (outcome.BESIDE, End.PARTLY),
            (outcome.NO_PROGRAM, End.NO),
            (outcome.ENDED, End.BAD),
        ],
    )
    def test_any_other_end_stays(self, status: int, kind: End) -> None:
        showing = opening()
        stage(showing, "open")
        view = end(showing, status, "report.pdf is as it was")
        assert (view.end, view.text, view.closes_s, view.aside) == (kind, "report.pdf is as it was", None, False)

    def test_to_end_it_while_it_is_open_takes_two_presses(self) -> None:
        showing = opening()
        stage(showing, "open")
        assert not showing.cancel()
        assert (showing.view.aside, showing.view.cancel) == (False, "End DisposableVM")
        assert "lost" in showing.view.text
        assert showing.cancel()
        assert not showing.view.aside
        assert not showing.cancel()

    def test_between_the_two_presses_it_can_be_kept(self) -> None:
        showing = opening()
        stage(showing, "open")
        showing.cancel()
        assert showing.view.confirming
        showing.keep()
        assert (showing.view.confirming, showing.view.aside) == (False, True)
        assert not showing.cancel()

    def test_a_press_before_it_was_open_does_not_count_as_the_first(self) -> None:
        showing = opening()
        stage(showing, "open")
        showing.cancel()
        stage(showing, "returning")
        stage(showing, "open")
        assert not showing.cancel()

    def test_the_next_may_follow_once_it_is_delivered(self) -> None:
        showing = opening(waiting=2)
        assert stage(showing, "getting").text == "getting…\n2 more to open after this."
        stage(showing, "handed-over", "starting")
        assert not showing.handed_over
        assert stage(showing, "delivered").text == "delivered…"
        assert showing.handed_over

    @pytest.mark.parametrize(
        ("count", "notes"), [(0, ()), (1, ("1 more document was not opened.",)), (2, ("2 more documents were not opened.",))]
    )
    def test_those_that_do_not_follow_are_told(self, count: int, notes: tuple[str, ...]) -> None:
        showing = opening()
        showing.cancel()
        end(showing, outcome.CANCELLED)
        showing.not_followed(count)
        assert showing.view.notes == notes
        assert (showing.view.closes_s is None) == bool(count)

    def test_those_that_do_not_follow_are_not_promised_any_more(self) -> None:
        showing = opening(waiting=2)
        stage(showing, "asking")
        showing.cancel()
        showing.not_followed(2)
        assert stage(showing, "too-late").text == "It is too late to stop: it is closed there."


def test_a_refusal_is_an_end() -> None:
    view = Refused("only files of this VM").view
    assert (view.end, view.text, view.can_leave) == (End.NO, "Only files of this VM", True)


def test_names_are_short_and_printable() -> None:
    assert things(["/a/b\x1b\n"]) == "b\\x1b\\n"
    assert things(["/a/"]) == "a"
    assert things(["/"]) == "/"
    assert things(["a", "b", "c"]) == "3 files and folders"
    long = things(["/" + "a" * 200 + ".pdf"])
    assert len(long) == NAME_MAX and long.endswith(".pdf")
