"""A model over two GPUs of one worker: logits and answers as on one, and quantized models there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.fakes import answer
from tests.quantized import KINDS, save_quantized
from tests.tiny import FAMILIES, save_tiny
from tests.worker.conftest import config, folders
from tests.worker.test_engine_on_workers import ASK, assert_nothing_is_held
from tests.worker.test_lora import logits
from w2s_core.build.engine import build_engine
from w2s_core.config import EngineConfig
from w2s_core.pool.specs import ModelSpec, WorkerSpec
from w2s_core.worker.loading import load_models

__all__ = ["config", "folders"]  # fixtures
BOTH = "cuda:0+cuda:1"


@pytest.fixture(autouse=True)
def two_gpus() -> Iterator[None]:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    yield
    torch.cuda.empty_cache()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_one_gpu(family: str, tmp_path: Path) -> None:
    specs = {"m": ModelSpec(str(save_tiny(tmp_path / "model", family=family)), False)}
    one, two = (load_models(WorkerSpec(device, "float32", 1, 10**6, specs))["m"] for device in ("cuda:0", BOTH))
    assert len(two[0].cache.bytes_per_token_by_device()) == 2
    torch.testing.assert_close(logits(two[0]), logits(one[0]), rtol=1e-5, atol=1e-5)
    assert two[1].kv_slots == one[1].kv_slots


def test_free_memory_of_both_counts(tmp_path: Path) -> None:
    specs = {"m": ModelSpec(str(save_tiny(tmp_path / "model")), False)}
    _, info = load_models(WorkerSpec(BOTH, "float32", 1, 0, specs))["m"]
    left = min(torch.cuda.mem_get_info(device)[0] for device in (0, 1))
    assert info.kv_slots * info.kv_bytes_per_token > 7 * left  # 0.8 of each, of which 0.2 are left


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", ["cuda:0", BOTH])
def test_quantized_models(kind: str, device: str, tmp_path: Path) -> None:
    if module := KINDS[kind][0]:
        pytest.importorskip(module)
    specs = {"m": ModelSpec(str(save_quantized(tmp_path / "model", kind)), False)}
    runner, _ = load_models(WorkerSpec(device, "bfloat16", 1, 10**6, specs))["m"]
    assert logits(runner).isfinite().all()


async def test_answers_are_those_of_one_gpu(config: EngineConfig) -> None:
    texts = []
    for device in ("cuda:0", BOTH):
        workers = replace(config.workers, devices=(device,), dtype="float32")
        large = {"large": replace(config.large_models["large"], devices=(device,))}
        async with build_engine(replace(config, workers=workers, large_models=large)) as engine:
            answers = await asyncio.gather(*(answer(engine, request) for request in (ASK, replace(ASK, best_of=4))))
            texts.append([[y.text for y in each] for each in answers])
            await assert_nothing_is_held(engine)
    assert texts[0] == texts[1]
