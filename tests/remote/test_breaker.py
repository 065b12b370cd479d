"""The circuit breaker alone, on a clock that moves only when the test moves it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.remote.conftest import Time
from w2s_core.remote.breaker import CircuitBreaker

COOLDOWN_S = 5.0


def opened(time: Time, failures: int = 3) -> CircuitBreaker:
    breaker = CircuitBreaker(failures, COOLDOWN_S, time.clock)
    for _ in range(failures):
        assert breaker.allows_call
        breaker.record_failure(probe=breaker.begin_call())
    return breaker


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    breaker = opened(Time())
    assert not breaker.allows_call
    assert not breaker.closed
    assert breaker.cooldown_left_s == COOLDOWN_S


def test_a_success_between_failures_starts_the_count_again() -> None:
    breaker = CircuitBreaker(3, COOLDOWN_S, Time().clock)
    for _ in range(10):
        breaker.record_failure(probe=breaker.begin_call())
        breaker.record_failure(probe=breaker.begin_call())
        breaker.begin_call()
        breaker.record_success()
    assert breaker.closed


def test_more_attempts_of_one_call_count_once() -> None:
    breaker = CircuitBreaker(3, COOLDOWN_S, Time().clock)
    for attempt in range(10):
        breaker.record_failure(probe=breaker.begin_call(), counts=attempt == 0)
    assert breaker.closed


def test_after_the_cooldown_one_call_probes() -> None:
    time = Time()
    breaker = opened(time)
    time.now += COOLDOWN_S - 0.1
    assert not breaker.allows_call
    time.now += 0.1
    assert breaker.allows_call
    assert breaker.begin_call()
    assert not breaker.allows_call, "one at a time"


def test_a_probe_that_succeeds_closes() -> None:
    time = Time()
    breaker = opened(time)
    time.now += COOLDOWN_S
    breaker.begin_call()
    breaker.record_success()
    assert breaker.closed
    breaker.record_failure(probe=breaker.begin_call())
    assert breaker.closed, "the count has started again"


@pytest.mark.parametrize("counts", [True, False])
def test_a_probe_that_fails_opens_for_another_cooldown(counts: bool) -> None:
    time = Time()
    breaker = opened(time)
    time.now += COOLDOWN_S
    breaker.record_failure(probe=breaker.begin_call(), counts=counts)
    assert not breaker.allows_call
    assert breaker.cooldown_left_s == COOLDOWN_S


def test_a_probe_whose_caller_left_makes_room_for_another() -> None:
    time = Time()
    breaker = opened(time)
    time.now += COOLDOWN_S
    breaker.record_cancelled(probe=breaker.begin_call())
    assert breaker.allows_call


def test_stragglers_from_before_neither_prolong_the_cooldown_nor_end_the_probe() -> None:
    time = Time()
    breaker = CircuitBreaker(1, COOLDOWN_S, time.clock)
    straggler, other = breaker.begin_call(), breaker.begin_call()
    breaker.record_failure(probe=breaker.begin_call())
    time.now += COOLDOWN_S - 1
    breaker.record_failure(probe=straggler)
    assert breaker.cooldown_left_s == 1
    time.now += 1
    assert breaker.begin_call()
    breaker.record_cancelled(probe=other)
    assert not breaker.allows_call, "the probe is still under way"


@given(st.lists(st.sampled_from(["ok", "fail", "leave", "wait"]), max_size=60))
def test_it_never_locks_up(steps: list[str]) -> None:
    """Whatever happened, when no call is under way and the cooldown is over, one may pass."""
    time = Time()
    breaker = CircuitBreaker(2, COOLDOWN_S, time.clock)
    for step in steps:
        if step == "wait":
            time.now += 2
        elif breaker.allows_call:
            probe = breaker.begin_call()
            if step == "ok":
                breaker.record_success()
            elif step == "fail":
                breaker.record_failure(probe=probe)
            else:
                breaker.record_cancelled(probe=probe)
    time.now += COOLDOWN_S
    assert breaker.allows_call
