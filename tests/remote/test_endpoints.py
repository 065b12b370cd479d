"""Which base_url takes a call: health, affinity and fail-over."""

from __future__ import annotations

from collections import Counter

from tests.remote.conftest import Time
from w2s_core.remote.endpoints import Endpoint, Endpoints

URLS = [f"http://host-{i}:8000/v1" for i in range(4)]


def endpoints(time: Time | None = None, urls: list[str] = URLS) -> Endpoints:
    return Endpoints(urls, failures=1, cooldown_s=5.0, clock=(time or Time()).clock)


def chosen(group: Endpoints, affinity: int | None = None, *tried: Endpoint) -> Endpoint:
    endpoint = group.choose(affinity, set(tried))
    assert endpoint is not None
    return endpoint


def fail(endpoint: Endpoint) -> None:
    endpoint.breaker.record_failure(probe=endpoint.breaker.begin_call())


def test_a_prefix_meets_the_same_endpoint_in_every_replica() -> None:
    """Also in one that lists them in another order."""
    one, other = endpoints(), endpoints(urls=URLS[::-1])
    assert [chosen(one, a).url for a in range(50)] == [chosen(other, a).url for a in range(50)]


def test_prefixes_spread() -> None:
    """400 over 4: fewer than 60 at one of them has a probability below 1e-6 each."""
    group = endpoints()
    counts = Counter(chosen(group, affinity).url for affinity in range(400))
    assert min(counts[url] for url in URLS) >= 60


def test_the_loss_of_one_moves_its_own_prefixes_only_and_they_return() -> None:
    time = Time()
    group = endpoints(time)
    before = {a: chosen(group, a) for a in range(100)}
    lost = before[0]
    fail(lost)
    for affinity, home in before.items():
        assert (chosen(group, affinity) is home) == (home is not lost)
    time.now += 5
    probing = chosen(group, 0)
    assert probing is lost
    probing.breaker.begin_call()
    probing.breaker.record_success()
    assert {a: chosen(group, a) for a in range(100)} == before


def test_without_affinity_the_least_busy_is_taken() -> None:
    group = endpoints()
    for _ in range(8):
        chosen(group).calls += 1
    assert group.calls == 8
    assert all(chosen(group, a).calls == 2 for a in range(50)), "two each"


def test_a_prefix_meets_the_same_endpoint_however_busy_that_is() -> None:
    """Its cached prefix is worth more than a shorter queue."""
    group = endpoints()
    for affinity in range(20):
        home = chosen(group, affinity)
        home.calls += 5
        assert chosen(group, affinity) is home
        home.calls -= 5


def test_without_affinity_idle_ones_take_turns() -> None:
    group = endpoints()
    assert len({chosen(group).url for _ in range(60)}) > 1


def test_untried_ones_come_first_then_those_that_do_not_rest() -> None:
    time = Time()
    group = endpoints(time)
    first = chosen(group, 7)
    second = chosen(group, 7, first)
    assert second is not first
    second.paused_until = time.now + 1
    third = chosen(group, 7, first)
    assert third not in (first, second)
    fourth = chosen(group, 7, first, third)
    assert chosen(group, 7, first, third, fourth) is second, "it rests, but was not tried"
    assert not group.can_fail_over({first, third, fourth})
    time.now += 1
    assert group.can_fail_over({first, third, fourth})
    assert chosen(group, 7, first, second, third, fourth) is first, "all tried: begin again"


def test_when_all_are_down_it_says_for_how_long() -> None:
    time = Time()
    group = endpoints(time)
    while (endpoint := group.choose(3)) is not None:
        assert group.available
        fail(endpoint)
        time.now += 0.5
    assert not group.available
    assert group.retry_after_s == 3, "the first failed 2.0 s ago"
    time.now += 60
    assert group.available
    assert group.retry_after_s == 1
