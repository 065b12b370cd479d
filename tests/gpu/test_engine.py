"""Guided requests through worker processes on GPUs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.fakes import answer
from tests.worker.conftest import config, folders
from tests.worker.test_engine_on_workers import ASK, FOREIGN, assert_nothing_is_held, kill_in_the_middle, pool_of
from w2s_core.build.engine import build_engine
from w2s_core.config import EngineConfig
from w2s_core.types import SamplingParams

__all__ = ["config", "folders"]  # fixtures


def on(config: EngineConfig, *devices: str, dtype: str = "float32") -> EngineConfig:
    return replace(config, workers=replace(config.workers, devices=devices, dtype=dtype))  # type: ignore[arg-type]


async def test_a_guided_request_in_bfloat16(config: EngineConfig) -> None:
    async with build_engine(on(config, "cuda:0", dtype="bfloat16")) as engine:
        assert {info.dtype for info in pool_of(engine).workers[0].models.values()} == {"bfloat16"}
        for request in (ASK, replace(ASK, guidance=FOREIGN), replace(ASK, best_of=4), replace(ASK, model="plain", n=3)):
            first, again = [await answer(engine, request) for _ in range(2)]
            assert [y.text for y in first] == [y.text for y in again]
            assert all(y.length for y in first)
        await assert_nothing_is_held(engine)


async def test_auto_takes_the_gpu(config: EngineConfig) -> None:
    workers = replace(config.workers, devices="auto", dtype="auto")
    async with build_engine(replace(config, workers=workers)) as engine:
        found = [worker.spec.device for worker in pool_of(engine).workers]
        assert found == [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        await answer(engine, ASK)


async def test_a_search_survives_its_workers_death(config: EngineConfig) -> None:
    async with build_engine(on(config, "cuda:0")) as engine:
        await kill_in_the_middle(engine)


async def test_two_gpus_share_the_requests(config: EngineConfig, folders: dict[str, Path]) -> None:
    """The answers are those of one GPU; then large model and pair each on a GPU of its own."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    requests = [replace(ASK, sampling=SamplingParams(max_tokens=30, seed=seed)) for seed in range(6)]
    both = on(config, "cuda:0", "cuda:1")
    async with build_engine(both) as engine:
        together = await asyncio.gather(*(answer(engine, request) for request in requests))
        for request, answers in zip(requests, together, strict=True):
            assert [y.text for y in await answer(engine, request)] == [y.text for y in answers]
        await assert_nothing_is_held(engine)
    far = replace(
        both,
        large_models={"large": replace(config.large_models["large"], devices=("cuda:0",))},
        pairs={name: replace(pair, devices=("cuda:1",)) for name, pair in config.pairs.items()},
    )
    async with build_engine(far) as engine:
        for request, answers in zip(requests, together, strict=True):
            assert [y.text for y in await answer(engine, request)] == [y.text for y in answers]
