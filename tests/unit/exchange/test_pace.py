from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from qfilexchg.dom0.exchange.pace import BURST, WINDOW_S, Pace
from qfilexchg.dom0.vms.hypervisor import VmId
from qfilexchg.protocol.names import DomainId

WORK, PERSONAL = (VmId(DomainId(number), UUID(int=number)) for number in (1, 2))


class Clock:
    """Time passes only in sleeps, and when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> Pace:
    return Pace(clock.now, clock.sleep)


async def attach(pace: Pace, vm: VmId, times: int) -> None:
    for _ in range(times):
        await pace.wait(vm)


async def test_a_burst_goes_through_at_once(pace: Pace, clock: Clock) -> None:
    await attach(pace, WORK, BURST)
    assert not clock.slept


async def test_a_loop_is_slowed_down_to_a_burst_in_each_window_and_nothing_is_lost(pace: Pace, clock: Clock) -> None:
    await attach(pace, WORK, 5 * BURST)
    assert clock.now_s - 1000 == 4 * WINDOW_S


async def test_a_vm_that_loops_delays_only_itself(pace: Pace, clock: Clock) -> None:
    await attach(pace, WORK, BURST)
    await attach(pace, PERSONAL, BURST)
    assert not clock.slept


async def test_places_are_free_again_after_a_window(pace: Pace, clock: Clock) -> None:
    await attach(pace, WORK, BURST)
    clock.now_s += WINDOW_S
    await attach(pace, WORK, BURST)
    assert not clock.slept


async def test_a_steady_pace_below_the_limit_never_waits(pace: Pace, clock: Clock) -> None:
    for _ in range(5 * BURST):
        await pace.wait(WORK)
        clock.now_s += WINDOW_S / BURST
    assert not clock.slept


async def test_those_who_wait_at_the_same_time_get_a_turn_each(clock: Clock) -> None:
    turns: list[float] = []

    async def note(seconds: float) -> None:
        turns.append(seconds)

    pace = Pace(clock.now, note)
    await attach(pace, WORK, BURST)
    await asyncio.gather(*(pace.wait(WORK) for _ in range(BURST + 1)))
    assert turns == [WINDOW_S] * BURST + [2 * WINDOW_S]


async def test_vms_that_are_quiet_are_forgotten(pace: Pace, clock: Clock) -> None:
    await attach(pace, WORK, 1)
    clock.now_s += WINDOW_S
    await attach(pace, PERSONAL, 1)
    assert pace._taken.keys() == {PERSONAL}
