# SPDX-License-Identifier: GPL-3.0-or-later
"""The wall-clock counts what the job runs, and stands still while it is suspended."""

from __future__ import annotations

import pytest
from dockerjob.broker.clock import WallClock
from dockerjob_core.errors import WallClockError


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def clock(time: Time) -> WallClock:
    return WallClock(100, 50, time)


def test_the_limit_is_reached_when_that_time_has_passed(time: Time, clock: WallClock) -> None:
    time.now += 99
    clock.check()
    time.now += 1
    with pytest.raises(WallClockError, match="wall-clock limit of 100 s"):
        clock.check()


def test_suspended_time_does_not_count(time: Time, clock: WallClock) -> None:
    time.now += 90
    clock.stop()
    time.now += 40
    clock.check()
    clock.go_on()
    assert (clock.deadline, clock.suspended_seconds) == (1140.0, 40.0)
    time.now += 9
    clock.check()


def test_a_job_is_not_suspended_for_ever(time: Time, clock: WallClock) -> None:
    for _ in range(2):
        clock.stop()
        time.now += 20
        clock.go_on()
    clock.stop()
    time.now += 9
    clock.check()
    time.now += 1
    with pytest.raises(WallClockError, match="suspended for more than 50 s"):
        clock.check()


def test_the_latest_end_never_moves(time: Time, clock: WallClock) -> None:
    assert time.now + clock.lifetime == 1150.0
    clock.stop()
    time.now += 30
    assert time.now + clock.lifetime == 1150.0
    clock.go_on()
    assert time.now + clock.lifetime == 1150.0


def test_stopping_and_going_on_twice_is_once(time: Time, clock: WallClock) -> None:
    clock.go_on()
    clock.stop()
    time.now += 10
    clock.stop()
    time.now += 10
    clock.go_on()
    clock.go_on()
    assert clock.suspended_seconds == 20.0
    assert not clock.suspended


def test_the_sooner_of_two_limits_counts_and_says_so(time: Time, clock: WallClock) -> None:
    clock.bound(1000, "LSF's run limit of 9 s")
    assert clock.remaining == 100
    clock.bound(30, "LSF's run limit of 9 s")
    assert (clock.remaining, clock.lifetime) == (30, 80)
    clock.stop()
    time.now += 10
    clock.go_on()
    assert clock.remaining == 30
    time.now += 30
    with pytest.raises(WallClockError, match=r"^LSF's run limit of 9 s is reached$"):
        clock.check()
