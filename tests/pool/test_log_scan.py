"""The log of a worker's death in the middle of requests contains no prompt and no answer."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import aclosing

import pytest

from tests.fakes import answer
from tests.worker.conftest import config, folders
from w2s_core.build.engine import build_engine
from w2s_core.config import EngineConfig
from w2s_core.pool.pool import WorkerPool
from w2s_core.types import GenerationRequest, SamplingParams, TextPrompt

__all__ = ["config", "folders"]  # fixtures
PROMPT = "Zanzibar"
ASK = GenerationRequest("guided", (TextPrompt(PROMPT),), SamplingParams(max_tokens=120, seed=5))


async def test_a_workers_death_logs_no_prompt_and_no_answer(
    config: EngineConfig, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    async with build_engine(config) as engine:
        waiting = asyncio.create_task(answer(engine, ASK))
        pool = engine._worker_pool
        assert isinstance(pool, WorkerPool)
        async with aclosing(engine.generate(ASK)) as events:
            async for _ in events:
                os.kill(pool.workers[0].pid, signal.SIGKILL)
                break
        [best, *_] = await waiting
    written = caplog.text + "".join(capfd.readouterr())
    assert "worker" in caplog.text, "its death is logged"
    assert PROMPT not in written
    assert best.text[:20] not in written
