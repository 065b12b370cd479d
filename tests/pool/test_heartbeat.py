"""Heartbeat: only a ping that the worker leaves unanswered counts as silence, never a pause of the parent itself."""

from __future__ import annotations

from functools import partial

import pytest

from tests.pool.test_restarts import SPEC, Clock, lives
from w2s_core.pool.heartbeat import Heartbeat, check_interval_s
from w2s_core.pool.pool import WorkerPool

__all__ = ["lives"]  # a fixture

TIMEOUT_S, PAUSE_S = 60.0, 3600.0


class Watch:
    """A heartbeat and its clock. `check` is what the pool does at each check, `seconds` after the one before."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self.clock = Clock()
        self.heartbeat = Heartbeat(timeout_s, self.clock)
        self.interval_s = check_interval_s(timeout_s)

    def check(self, seconds: float | None = None) -> bool:
        self.clock.now += self.interval_s if seconds is None else seconds
        timed_out = self.heartbeat.check()
        if not self.heartbeat.awaiting_pong:
            self.heartbeat.ping_sent()
        return timed_out

    def seconds_until_timeout(self, seconds: float | None = None) -> float:
        """How long an unanswered ping takes to time out, if the checks are `seconds` apart."""
        asked = self.clock.now
        for _ in range(1000):
            if self.check(seconds):
                return self.clock.now - asked
        raise AssertionError("a silent worker never times out")


@pytest.mark.parametrize("timeout_s", [0.3, 1.0, 60.0, 600.0])
def test_an_unanswered_ping_times_out(timeout_s: float) -> None:
    watch = Watch(timeout_s)
    assert not watch.check(PAUSE_S), "it has not been asked before"
    assert timeout_s <= watch.seconds_until_timeout() <= timeout_s + 2 * watch.interval_s


def test_a_worker_that_answers_never_times_out() -> None:
    watch = Watch()
    for _ in range(200):
        assert not watch.check()
        watch.heartbeat.pong_received()


def test_a_slow_answer_in_time_starts_the_count_again() -> None:
    watch = Watch()
    for _ in range(3):
        assert not any(watch.check() for _ in range(int(TIMEOUT_S)))
        watch.heartbeat.pong_received()


def test_other_reports_are_signs_of_life_too() -> None:
    watch = Watch()
    for _ in range(200):
        assert not watch.check()
        watch.heartbeat.report_received()
    assert watch.heartbeat.awaiting_pong


@pytest.mark.parametrize("silent_s", [0, 1, 30, 59])
def test_a_pause_of_the_parent_is_not_the_workers_silence(silent_s: int) -> None:
    """However long the worker has been silent: the pong that waits for the parent is delivered before it is judged."""
    watch = Watch()
    watch.check()
    assert not any(watch.check() for _ in range(silent_s))
    assert not watch.check(PAUSE_S)
    watch.heartbeat.pong_received()
    assert not watch.check()
    assert watch.seconds_until_timeout() >= TIMEOUT_S - 2, "the pause counts for nothing afterwards"


def test_repeated_pauses_do_not_add_up() -> None:
    watch = Watch()
    for _ in range(200):
        assert not watch.check(PAUSE_S)
        watch.heartbeat.pong_received()


def test_a_silent_worker_times_out_even_if_the_parent_is_always_late() -> None:
    watch = Watch()
    watch.check()
    late_s = 5 * watch.interval_s
    assert watch.seconds_until_timeout(late_s) <= (TIMEOUT_S + 2) * late_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of every worker's heartbeat."""
    clock = Clock()
    monkeypatch.setattr("w2s_core.pool.pool.Heartbeat", partial(Heartbeat, clock=clock))
    return clock


async def test_a_healthy_worker_survives_a_pause_of_the_parent(
    lives: list[str], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives += ["lives"]
    pool = WorkerPool([SPEC], heartbeat_timeout_s=TIMEOUT_S)
    await pool.start()
    try:
        [worker] = pool.workers
        kills: list[float] = []
        with monkeypatch.context() as patch:
            patch.setattr(worker._process, "kill", lambda: kills.append(clock.now))
            clock.now += PAUSE_S  # not asked yet
            worker.check_heartbeat()
            clock.now += PAUSE_S  # asked, and the answer could not be delivered
            worker.check_heartbeat()
            assert kills == []
            for _ in range(int(TIMEOUT_S) + 2):  # now it is silent while the parent runs
                clock.now += 1
                worker.check_heartbeat()
            assert kills
    finally:
        await pool.stop()
