"""A reward model at a provider guides as the same model in a worker does; a provider that dies fails its requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from tests.fakes import answer
from tests.remote.fake_classifier import MODEL, FakeClassifier
from tests.tiny import save_tiny, save_tiny_classifier
from tests.worker.test_engine_on_workers import assert_nothing_is_held
from w2s_core.build.engine import build_engine
from w2s_core.config import (
    EngineConfig,
    LargeModelConfig,
    PairConfig,
    RemoteRewardModelConfig,
    RewardModelConfig,
    ServedModelConfig,
    WorkersConfig,
)
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import RequestFinished
from w2s_core.errors import UpstreamError
from w2s_core.types import ChatPrompt, GenerationRequest, Guidance, Hypothesis, SamplingParams, TextPrompt

pytestmark = pytest.mark.asyncio(loop_scope="session")

GUIDANCE = Guidance("cbs", {}, 3, 3, 4)
ASK = GenerationRequest("m", (TextPrompt("Once upon"),), SamplingParams(max_tokens=20, seed=3), GUIDANCE)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def both(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Engine, FakeClassifier]]:
    """`near` and `far`: one reward model, in a worker and at a provider that is sent token ids; `text`: sent texts."""
    root = tmp_path_factory.mktemp("models")
    labels = ("bad", "good")
    rewards = str(save_tiny_classifier(root / "rewards", family="qwen2", labels=labels, pairs=True))
    provider = FakeClassifier(Path(rewards))
    async with provider.served() as url:
        far = RemoteRewardModelConfig(base_url=f"{url}/v1", model=MODEL, label=1, max_retries=0)
        config = EngineConfig(
            {"large": LargeModelConfig(str(save_tiny(root / "large")))},
            {"m": ServedModelConfig("large")},
            {"same": PairConfig(str(save_tiny(root / "tuned", seed=1)), str(save_tiny(root / "untuned", seed=2)))},
            reward_models={
                "near": RewardModelConfig(rewards, label="good"),
                "far": replace(far, tokenizer=rewards),
                "text": replace(far, prompt_template="{prompt}"),
            },
            workers=WorkersConfig(devices=("cpu",), threads=1, dtype="float32"),
        )
        async with build_engine(config) as engine:
            yield engine, provider


async def guided(engine: Engine, name: str, request: GenerationRequest, **changes: object) -> list[Hypothesis]:
    assert request.guidance is not None
    guidance = replace(request.guidance, reward_models={name: 1.0}, **changes)  # type: ignore[arg-type]
    return await answer(engine, replace(request, guidance=guidance))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("changes", [{}, {"pairs": {"same": 0.5}}, {"method": "best_of_n", "successors": 6}])
async def test_it_picks_as_the_same_model_in_a_worker(
    both: tuple[Engine, FakeClassifier], changes: dict[str, object], seed: int
) -> None:
    engine, _ = both
    for prompt in (TextPrompt("Once upon"), ChatPrompt(({"role": "user", "content": "Hi"},))):
        request = replace(ASK, prompts=(prompt,), sampling=replace(ASK.sampling, seed=seed))
        [near], [far] = [await guided(engine, name, request, **changes) for name in ("near", "far")]
        assert far.tokens == near.tokens
        assert far.scores["far"] == pytest.approx(near.scores["near"], abs=1e-3)


async def test_texts_that_are_sent_give_the_same_rewards(both: tuple[Engine, FakeClassifier]) -> None:
    engine, _ = both
    request = replace(ASK, sampling=SamplingParams(max_tokens=20, seed=3, ignore_eos=True))
    [near], [text] = [await guided(engine, name, request) for name in ("near", "text")]
    assert text.tokens == near.tokens
    assert text.scores["text"] == pytest.approx(near.scores["near"], abs=1e-3)


async def test_what_it_costs_is_told(both: tuple[Engine, FakeClassifier]) -> None:
    engine, provider = both
    provider.calls.clear()
    guidance = replace(GUIDANCE, reward_models={"far": 1.0}, trace=True)
    *_, finished = [event async for event in engine.generate(replace(ASK, guidance=guidance))]
    assert isinstance(finished, RequestFinished)
    assert finished.guidance is not None
    assert finished.guidance.upstream is not None
    assert finished.guidance.upstream.calls == len(provider.calls) <= finished.guidance.chunks
    assert finished.guidance.scored_tokens == finished.guidance.upstream.prompt_tokens > 0
    assert finished.guidance.tree is not None
    assert all(y.scores.keys() == {"far"} for round_ in finished.guidance.tree[0] for y in round_)


async def test_a_provider_that_fails_fails_its_requests_alone(both: tuple[Engine, FakeClassifier]) -> None:
    engine, provider = both
    provider.failures.append(500)
    near = asyncio.create_task(guided(engine, "near", ASK))
    with pytest.raises(UpstreamError, match=r"provider of `far` failed \(500\)"):
        await guided(engine, "far", ASK)
    assert await near
    assert await guided(engine, "far", ASK)
    await assert_nothing_is_held(engine)
