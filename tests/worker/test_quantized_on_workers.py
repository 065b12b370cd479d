"""A tiny quantized model of every kind answers guided requests in a worker; one that cannot run stops the start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from tests.fakes import answer
from tests.quantized import KINDS, claim, save_quantized
from tests.tiny import save_tiny
from tests.worker.test_engine_on_workers import ASK, assert_nothing_is_held
from w2s_core.build.engine import build_engine
from w2s_core.config import EngineConfig, LargeModelConfig, ServedModelConfig
from w2s_core.engine.engine import Engine
from w2s_core.errors import UnsupportedModelError
from w2s_core.types import Guidance

pytestmark = pytest.mark.asyncio(loop_scope="module")


def installed() -> list[str]:
    import importlib.util

    return [kind for kind, (module, _) in KINDS.items() if module is None or importlib.util.find_spec(module)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(config: EngineConfig, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    """One worker with a model of each kind, and the shared pairs."""
    root = tmp_path_factory.mktemp("quantized")
    folders = {kind: save_quantized(root / kind, kind) for kind in installed()}
    guidance = Guidance("cbs", {"same": 1.0}, beam_width=3, successors=3, chunk_length=4)
    quantized = replace(
        config,
        large_models={kind: LargeModelConfig(str(folder)) for kind, folder in folders.items()},
        served_models={kind: ServedModelConfig(kind, guidance) for kind in folders},
    )
    async with build_engine(quantized) as made:
        yield made


@pytest.mark.parametrize("kind", KINDS)
async def test_a_guided_answer(kind: str, engine: Engine) -> None:
    if kind not in engine.served_models:
        pytest.skip(f"needs {KINDS[kind][0]}")
    request = replace(ASK, model=kind)
    first, *others = await asyncio.gather(*(answer(engine, request) for _ in range(3)))
    assert all(y.length for y in first)
    if kind != "bitsandbytes-8bit":  # it multiplies columns otherwise where any row of the batch has a large value
        assert [[y.text for y in other] for other in others] == [[y.text for y in first]] * 2
    await assert_nothing_is_held(engine)


async def test_one_that_cannot_run_stops_the_start(config: EngineConfig, tmp_path: Path) -> None:
    """While another worker is still loading."""
    magic = claim(save_tiny(tmp_path / "magic"), {"quant_method": "magic"})
    workers = replace(config.workers, devices=("cpu:0", "cpu:1"))
    large = {"large": LargeModelConfig(str(magic), devices=("cpu:1",))}
    engine = build_engine(replace(config, workers=workers, large_models=large))
    with pytest.raises(UnsupportedModelError, match=r"^large_models\.large\.model: .* is quantized by magic .*\.$"):
        await engine.__aenter__()
