"""Rate limits per API key: the token bucket against an oracle, concurrent requests, and both over HTTP."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from fractions import Fraction

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.access.keys import ApiKey, KeyRing
from server.access.limits import KeyUsage, Lease
from server.access.policy import Policy, load_keys
from server.settings.config import ServerConfig
from tests.fakes import FakeLargeModel, fake_engine, letters
from tests.server.conftest import Connect
from tests.server.fake_engine import Block, FakeEngine
from w2s_core.engine.events import TextCommitted
from w2s_core.errors import OverloadedError

PATH = "/v1/completions"
BODY = {"model": "plain", "prompt": "x", "max_tokens": 5}
SOON = 60  # seconds; only a failing test waits that long


def bearing(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def entered(usage: KeyUsage, key: ApiKey, sampled: int) -> None:
    usage.acquire(key).release(sampled)


def refused(enter: Callable[[], object]) -> OverloadedError:
    with pytest.raises(OverloadedError) as refusal:
        enter()
    return refusal.value


def test_tokens_are_a_bucket_that_fills_with_time(clock: Clock) -> None:
    usage, key = KeyUsage(clock), ApiKey("alice", b"", tokens_per_minute=60)
    entered(usage, key, 59)
    entered(usage, key, 31)  # one token was left, so it was let in: 30 more than there were
    error = refused(lambda: usage.acquire(key))
    assert error.retry_after_s == 31
    assert "`alice`" in str(error)
    assert "tokens_per_minute of 60" in str(error)
    clock.now += 30
    assert refused(lambda: usage.acquire(key)).retry_after_s == 1
    clock.now += error.retry_after_s - 30
    entered(usage, key, 0)
    clock.now += 10**6
    entered(usage, key, 60)
    refused(lambda: usage.acquire(key))  # a bucket holds a minute's worth, however long nobody came


def test_time_before_a_charge_does_not_pay_for_it(clock: Clock) -> None:
    usage, key = KeyUsage(clock), ApiKey("alice", b"", tokens_per_minute=60)
    lease = usage.acquire(key)
    clock.now += 60
    lease.release(120)
    assert refused(lambda: usage.acquire(key)).retry_after_s == 61


class Oracle:
    """A key's bucket, recomputed from every charge and every limit that it has had."""

    def __init__(self, now: float, limit: int | None) -> None:
        self.charges: list[tuple[float, int]] = []
        self.limits = [(now, limit)]

    def used(self, now: float) -> Fraction:
        """What the charges from any one on exceed what the bucket has regained since, at most."""
        debts = [
            sum(charge for _, charge in self.charges[first:]) - self._regained(since, now)
            for first, (since, _) in enumerate(self.charges)
        ]
        return max([Fraction(0), *debts])

    def _regained(self, since: float, now: float) -> Fraction:
        spans = zip(self.limits, [*self.limits[1:], (now, None)], strict=True)
        return sum(
            (Fraction(max(0, int(end - max(begin, since)))) * (rate or 0) / 60 for (begin, rate), (end, _) in spans),
            Fraction(0),
        )

    def reload(self, now: float, limit: int | None) -> None:
        self.limits.append((now, limit))
        if limit is None:  # nothing is counted without a limit
            self.charges = []

    def charge(self, now: float, tokens: int) -> None:
        if self.limits[-1][1] is not None:
            self.charges.append((now, tokens))


LIMITS = st.sampled_from([None, 60, 120, 6000])
STEPS = st.one_of(
    st.tuples(st.just("wait"), st.integers(0, 90)),
    st.tuples(st.just("acquire"), st.just(0)),
    st.tuples(st.just("release"), st.integers(0, 300)),
    st.tuples(st.just("reload"), LIMITS),
)


@settings(max_examples=300)
@given(limit=LIMITS, steps=st.lists(STEPS, max_size=30))
def test_the_bucket_equals_one_computed_from_scratch(limit: int | None, steps: list[tuple[str, int | None]]) -> None:
    clock = Clock()
    usage, oracle, leases = KeyUsage(clock), Oracle(clock.now, limit), list[Lease]()
    for step, number in steps:
        key, used = ApiKey("alice", b"", tokens_per_minute=limit), oracle.used(clock.now)
        if step == "wait":
            clock.now += number or 0
        elif step == "reload":
            limit = number
            usage.reload(KeyRing([ApiKey("alice", b"", tokens_per_minute=limit)]))
            oracle.reload(clock.now, limit)
        elif step == "release" and leases:
            leases.pop().release(number or 0)
            oracle.charge(clock.now, number or 0)
        elif step == "acquire" and limit is not None and used >= limit:
            wait_s = math.floor((used - limit) * 60 / limit) + 1
            assert refused(lambda key=key: usage.acquire(key)).retry_after_s == wait_s
        elif step == "acquire":
            leases.append(usage.acquire(key))


def test_a_reload_forgets_keys_that_are_gone_once_their_requests_have_ended(clock: Clock) -> None:
    usage = KeyUsage(clock)
    for number in range(50):
        key = ApiKey(f"key-{number}", b"", tokens_per_minute=60)
        usage.reload(KeyRing([key]))
        lease = usage.acquire(key)
        if number < 49:
            lease.release(5)
    usage.reload(KeyRing([]))
    assert list(usage._accounts) == ["key-49"], "its request is running"
    lease.release(5)
    usage.reload(KeyRing([]))
    assert not usage._accounts


def test_a_reload_changes_a_bucket_from_then_on(clock: Clock) -> None:
    """Through the policy: half a minute at the old limit regains 30 tokens, whatever the new limit is."""
    policy = Policy(ServerConfig(api_keys={"alice": {"key": "a", "tokens_per_minute": 60}}))
    policy.usage = KeyUsage(clock)
    key = policy.keys.find("a")
    assert key is not None
    entered(policy.usage, key, 100)
    clock.now += 30
    config = ServerConfig(api_keys={"alice": {"key": "a", "tokens_per_minute": 10}})
    policy.update(config, load_keys(config))
    key = policy.keys.find("a")
    assert key is not None
    assert refused(lambda: policy.usage.acquire(key)).retry_after_s == 361


def test_each_key_has_its_own(clock: Clock) -> None:
    usage = KeyUsage(clock)
    alice, bob = (ApiKey(name, b"", max_concurrent_requests=1, tokens_per_minute=60) for name in ("alice", "bob"))
    lease = usage.acquire(alice)
    assert "max_concurrent_requests is 1" in str(refused(lambda: usage.acquire(alice)))
    entered(usage, bob, 100)
    lease.release(0)
    entered(usage, alice, 0)
    refused(lambda: usage.acquire(bob))


def test_a_key_without_limits_is_never_refused(clock: Clock) -> None:
    usage, key = KeyUsage(clock), ApiKey("alice", b"")
    for _ in range(100):
        usage.acquire(key)
    entered(usage, key, 10**9)


async def test_more_requests_at_once_than_a_key_may_have(connect: Connect) -> None:
    engine = FakeEngine([TextCommitted(0, "Hello"), Block()])
    keys = {"alice": {"key": "a", "max_concurrent_requests": 1}, "bob": "b"}
    client = await connect(engine, ServerConfig(api_keys=keys))
    asking = asyncio.create_task(client.post(PATH, json=BODY, headers=bearing("a")))
    await asyncio.wait_for(engine.blocked.wait(), SOON)
    response = await client.post(PATH, json=BODY, headers=bearing("a"))
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    error = response.json()["error"]
    assert error["code"] == "rate_limit_exceeded"
    assert "max_concurrent_requests" in error["message"]
    assert (await client.get("/v1/models", headers=bearing("b"))).status_code == 200
    asking.cancel()
    await asyncio.wait({asking})
    assert (await client.get("/v1/models", headers=bearing("a"))).status_code == 200, "whoever leaves gives its place"


@pytest.mark.parametrize("stream", [True, False])
async def test_tokens_that_were_sampled_are_what_a_request_costs(connect: Connect, stream: bool) -> None:
    """Five tokens of answer with W·K = 4 cost twenty: pruned tokens count like returned ones."""
    engine = fake_engine(FakeLargeModel(letters(eos=0.0)))
    keys = {"alice": {"key": "a", "tokens_per_minute": 21}}
    client: httpx.AsyncClient = await connect(engine, ServerConfig(api_keys=keys))
    body = BODY | {"model": "guided", "stream": stream}
    statuses = [(await client.post(PATH, json=body, headers=bearing("a"))).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    response = await client.post(PATH, json=body, headers=bearing("a"))
    assert 50 <= int(response.headers["retry-after"]) <= 56, "19 tokens too many at 21 a minute"
    assert "tokens_per_minute" in json.loads(response.text)["error"]["message"]
