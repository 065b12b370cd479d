"""The breaker alone, on a clock that only moves when told."""

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
        assert breaker.admits
        breaker.failed(probe=breaker.enter())
    return breaker


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    breaker = opened(Time())
    assert not breaker.admits
    assert not breaker.closed
    assert breaker.remaining_s == COOLDOWN_S


def test_a_success_between_failures_starts_the_count_again() -> None:
    breaker = CircuitBreaker(3, COOLDOWN_S, Time().clock)
    for _ in range(10):
        breaker.failed(probe=breaker.enter())
        breaker.failed(probe=breaker.enter())
        breaker.enter()
        breaker.succeeded()
    assert breaker.closed


def test_more_attempts_of_one_call_count_once() -> None:
    breaker = CircuitBreaker(3, COOLDOWN_S, Time().clock)
    for attempt in range(10):
        breaker.failed(probe=breaker.enter(), counts=attempt == 0)
    assert breaker.closed


def test_after_the_cooldown_one_call_probes() -> None:
    time = Time()
    breaker = opened(time)
    time.now += COOLDOWN_S - 0.1
    assert not breaker.admits
    time.now += 0.1
    assert breaker.admits
    assert breaker.enter()
    assert not breaker.admits, "one at a time"


def test_a_probe_that_succeeds_closes() -> None:
    time = Time()
    breaker = opened(time)
    time.now += COOLDOWN_S
    breaker.enter()
    breaker.succeeded()
    assert breaker.closed
    breaker.failed(probe=breaker.enter())
    assert breaker.closed, "the count has started again"


@pytest.mark.parametrize("counts", [True, False])
def test_a_probe_that_fails_opens_for_another_cooldown(counts: bool) -> None:
    time = Time()
    breaker = opened(time)
    time.now += COOLDOWN_S
    breaker.failed(probe=breaker.enter(), counts=counts)
    assert not breaker.admits
    assert breaker.remaining_s == COOLDOWN_S


def test_a_probe_whose_caller_left_makes_room_for_another() -> None:
    time = Time()
    breaker = opened(time)
    time.now += COOLDOWN_S
    breaker.abandoned(probe=breaker.enter())
    assert breaker.admits


def test_stragglers_from_before_neither_prolong_the_cooldown_nor_end_the_probe() -> None:
    time = Time()
    breaker = CircuitBreaker(1, COOLDOWN_S, time.clock)
    straggler, other = breaker.enter(), breaker.enter()
    breaker.failed(probe=breaker.enter())
    time.now += COOLDOWN_S - 1
    breaker.failed(probe=straggler)
    assert breaker.remaining_s == 1
    time.now += 1
    assert breaker.enter()
    breaker.abandoned(probe=other)
    assert not breaker.admits, "the probe is still under way"


@given(st.lists(st.sampled_from(["ok", "fail", "leave", "wait"]), max_size=60))
def test_it_never_locks_up(steps: list[str]) -> None:
    """Whatever happened, when no call is under way and the cooldown is over, one may pass."""
    time = Time()
    breaker = CircuitBreaker(2, COOLDOWN_S, time.clock)
    for step in steps:
        if step == "wait":
            time.now += 2
        elif breaker.admits:
            probe = breaker.enter()
            if step == "ok":
                breaker.succeeded()
            elif step == "fail":
                breaker.failed(probe=probe)
            else:
                breaker.abandoned(probe=probe)
    time.now += COOLDOWN_S
    assert breaker.admits
