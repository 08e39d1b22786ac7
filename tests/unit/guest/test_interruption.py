"""Signals that are heeded at checkpoints only."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from qfilexchg.guest.interruption import Cancelled, Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_heeded_at_the_next_checkpoint_once(number: signal.Signals) -> None:
    with Interruption() as interruption:
        interruption.check()
        os.kill(os.getpid(), number)
        with pytest.raises(Cancelled):
            interruption.check()
        interruption.check()


def test_a_signal_ends_a_wait() -> None:
    with Interruption() as interruption:
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        began = time.monotonic()
        with pytest.raises(Cancelled):
            interruption.wait((), 30)
        timer.join()
        assert time.monotonic() - began < 10


def test_a_wait_ends_with_its_descriptor_or_its_time() -> None:
    reader, writer = os.pipe()
    with Interruption() as interruption:
        assert not interruption.wait((reader,), 0)
        assert not interruption.wait((reader,), -1)
        os.write(writer, b"x")
        assert interruption.wait((reader,), 30)
    os.close(reader)
    os.close(writer)


def test_the_clean_up_heeds_no_signal() -> None:
    with Interruption() as interruption:
        interruption.shield()
        os.kill(os.getpid(), signal.SIGINT)
        interruption.check()
        assert not interruption.wait((), 0.01)
        assert interruption.wanted


def test_where_nothing_was_to_be_cleaned_up_a_signal_that_came_meanwhile_is_heeded() -> None:
    with Interruption() as interruption:
        interruption.shield()
        os.kill(os.getpid(), signal.SIGINT)
        interruption.unshield()
        with pytest.raises(Cancelled):
            interruption.wait((), 30)


def test_what_was_there_before_is_there_after() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    descriptors = os.listdir("/proc/self/fd")
    with Interruption():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    assert os.listdir("/proc/self/fd") == descriptors
    assert signal.set_wakeup_fd(-1) == -1
