"""Worker metrics: what Pongs carry, and restarts."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import aclosing
from dataclasses import replace

import pytest

from tests.fakes import answer
from tests.pool.test_restarts import SPEC, lives, until
from tests.telemetry.test_metrics import values
from tests.worker.test_engine_on_workers import ASK, pool_of
from w2s_core.engine.engine import Engine
from w2s_core.pool.backoff import Backoff
from w2s_core.pool.pool import WorkerPool
from w2s_core.telemetry.metrics import Metrics
from w2s_core.types import SamplingParams, TextPrompt

__all__ = ["lives"]  # a fixture
KINDS = ("decode", "prefill", "score")


async def metrics_after_pong(engine: Engine) -> dict[str, float]:
    """The metrics after a Ping that is sent now has been answered."""
    [worker] = pool_of(engine).workers
    for _ in range(2):  # the first Pong may answer an earlier Ping
        await until(lambda: not worker._heartbeat.awaiting_pong)
        worker.check_heartbeat()
    await until(lambda: not worker._heartbeat.awaiting_pong)
    return values(engine.metrics)


@pytest.mark.asyncio(loop_scope="session")
async def test_steps_of_every_kind_are_timed(engine: Engine) -> None:
    before = await metrics_after_pong(engine)
    await answer(engine, replace(ASK, prompts=(TextPrompt("A prompt that nobody had before"),)))
    after = await metrics_after_pong(engine)
    steps = {k: after[f"w2s_step_duration_seconds_count{{kind={k}}}"] for k in KINDS}
    new = {k: count - before[f"w2s_step_duration_seconds_count{{kind={k}}}"] for k, count in steps.items()}
    assert new["prefill"] == 3, "the large model's and the pair's; each fits one slice"
    assert new["decode"] >= 24 - 1, "one for each token of the longest answer but what came with the prompt"
    assert new["score"] > 0
    again = await metrics_after_pong(engine)
    assert {k: again[f"w2s_step_duration_seconds_count{{kind={k}}}"] for k in KINDS} == steps, "no step twice"


@pytest.mark.asyncio(loop_scope="session")
async def test_kv_usage_is_reported_while_it_is_held(engine: Engine) -> None:
    long = replace(ASK, model="plain", sampling=SamplingParams(max_tokens=200, seed=1, ignore_eos=True))
    async with aclosing(engine.generate(long)) as events:
        await anext(events)
        usage = (await metrics_after_pong(engine))["w2s_kv_cache_usage_ratio{worker=0}"]
        assert 0 < usage < 1
    assert (await metrics_after_pong(engine))["w2s_kv_cache_usage_ratio{worker=0}"] == 0


async def test_restarts_are_counted_by_worker(lives: list[str]) -> None:
    lives += ["lives", "lives", "fails", "lives"]
    metrics = Metrics()
    pool = WorkerPool([SPEC, SPEC], backoff=lambda: Backoff(sleep=lambda _: asyncio.sleep(0)), metrics=metrics)
    await pool.start()
    try:
        assert [values(metrics)[f"w2s_worker_restarts_total{{worker={n}}}"] for n in (0, 1)] == [0, 0]
        os.kill(pool.workers[1].pid, signal.SIGKILL)
        await until(lambda: not lives and pool.ready)
        assert [values(metrics)[f"w2s_worker_restarts_total{{worker={n}}}"] for n in (0, 1)] == [0, 2]
    finally:
        await pool.stop()
