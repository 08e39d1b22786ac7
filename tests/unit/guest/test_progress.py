"""What a person sees while a copy runs."""

from __future__ import annotations

import io

import pytest

from qfilexchg.guest.progress import REDRAW_S, Progress, duration, printable, size

MIB = 1 << 20


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def last_line(stream: io.StringIO) -> str:
    return stream.getvalue().rpartition("\r")[2].removesuffix("\x1b[K")


def test_a_terminal_shows_bytes_files_and_the_time_left(clock: Clock) -> None:
    stream = Terminal()
    progress = Progress(stream, clock)
    progress.begin(40 * MIB, 300)
    progress.file_done()
    clock.now += 5
    progress.advance(10 * MIB)
    assert last_line(stream) == " 25%  10.0 MiB of 40.0 MiB  1 of 300 files  15 s left"


def test_the_time_left_is_not_guessed_at_once(clock: Clock) -> None:
    stream = Terminal()
    progress = Progress(stream, clock)
    progress.begin(4 * MIB, 1)
    clock.now += 1
    progress.advance(MIB)
    assert last_line(stream).endswith("0 of 1 files")


def test_it_is_drawn_a_few_times_a_second(clock: Clock) -> None:
    stream = Terminal()
    progress = Progress(stream, clock)
    progress.begin(1000, 1000)
    for _ in range(1000):
        clock.now += REDRAW_S / 10
        progress.advance(1)
    assert 80 <= stream.getvalue().count("\r") <= 101


def test_empty_files_are_all_there_is(clock: Clock) -> None:
    stream = Terminal()
    progress = Progress(stream, clock)
    progress.begin(0, 2)
    progress.file_done()
    assert last_line(stream) == "100%  0 B of 0 B  1 of 2 files"


def test_elsewhere_only_what_is_said_is_written(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress(stream, clock)
    progress.begin(10, 1)
    progress.state("asking", "Asking…")
    clock.now += 10
    progress.advance(10)
    progress.file_done()
    progress.say("Delivered.")
    assert stream.getvalue() == "Delivered.\n"


def test_what_is_said_takes_the_place_of_the_drawn_line(clock: Clock) -> None:
    stream = Terminal()
    progress = Progress(stream, clock)
    progress.state("asking", "Asking…")
    progress.say("Delivered.")
    progress.say("Again.")
    assert stream.getvalue() == "\rAsking…\x1b[K\r\x1b[KDelivered.\nAgain.\n"


def test_a_terminal_that_went_away_stops_nothing(clock: Clock) -> None:
    stream = Terminal()
    progress = Progress(stream, clock)
    stream.close()
    progress.state("asking", "Asking…")
    progress.say("Delivered.")


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (MIB - 1, "1.0 MiB"),
        (64 * MIB, "64.0 MiB"),
        (3 << 30, "3.0 GiB"),
        (2 << 40, "2.0 TiB"),
    ],
)
def test_sizes_are_rounded(size_bytes: int, text: str) -> None:
    assert size(size_bytes) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (3599, "59:59 min"), (7260, "2:01 h")])
def test_times_are_rounded(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("Grüße 写真", "Grüße 写真"), ("a\nb\x1b[2J", "a\\nb\\x1b[2J"), ("caf\udce9", "caf\\udce9"), ("\u202egpj", "\\u202egpj")],
)
def test_a_name_cannot_write_to_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown
