"""int8 through the engine and a real worker: EFT, adapters, a reward model, biases and log-probabilities.

Rounded models are models: what holds of a pair and its large model in float32 holds of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from tests.adapters import save_adapter
from tests.fakes import answer
from tests.tiny import save_tiny_classifier
from tests.vnni import claim_vnni
from tests.worker.eft import EFT, TUNED, eft_config
from tests.worker.reward_models import Oracle
from tests.worker.test_engine_on_workers import assert_nothing_is_held
from tests.worker.test_int8_models import rounded
from tests.worker.test_logprobs_on_workers import answers
from w2s_core.build.engine import build_engine
from w2s_core.config import (
    AdapterConfig,
    EngineConfig,
    LargeModelConfig,
    PairConfig,
    RewardModelConfig,
    ServedModelConfig,
)
from w2s_core.engine.engine import Engine
from w2s_core.types import GenerationRequest, Guidance, SamplingParams, TextPrompt
from w2s_core.worker.int8 import quantize_linears

pytestmark = pytest.mark.asyncio(loop_scope="session")

SAMPLING = SamplingParams(max_tokens=24, seed=11)
BIASED = SamplingParams(max_tokens=24, seed=4, presence_penalty=0.8, repetition_penalty=1.2, logit_bias=((100, 4.0),))
ASK = GenerationRequest("plain", (TextPrompt("Once upon a time"),), SAMPLING, n=3)
BY_ADAPTER = Guidance("eft", {"adapted": 1.0})
SEARCH = Guidance("cbs", {"adapted": 1.0}, beam_width=3, successors=3, chunk_length=4)
REWARDED = Guidance("best_of_n", {}, successors=4, reward_models={"helpful": 1.0})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> dict[str, Path]:
    """Those of `folders`, an adapter of the large model, and a reward model."""
    root = tmp_path_factory.mktemp("int8")
    adapter = save_adapter(root / "adapter", folders["large"], seed=1)
    return folders | {"adapter": adapter, "helpful": save_tiny_classifier(root / "helpful", seed=5)}


@pytest.fixture(scope="module")
def config(saved: dict[str, Path]) -> EngineConfig:
    """Served besides those of `eft_config`: `adapted`, of which the pair `adapted` is the difference from `large`."""
    config, large = eft_config(saved), str(saved["large"])
    adapted = AdapterConfig(large, str(saved["adapter"]))
    return replace(
        config,
        large_models={**config.large_models, "adapted": LargeModelConfig(adapted)},
        served_models={**config.served_models, "adapted": ServedModelConfig("adapted")},
        pairs={**config.pairs, "adapted": PairConfig(adapted, large)},
        reward_models={"helpful": RewardModelConfig(str(saved["helpful"]))},
        workers=replace(config.workers, quantization="int8"),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def engine(config: EngineConfig) -> AsyncIterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        claim_vnni(patch)
        async with build_engine(config) as built:
            yield built


@pytest.mark.parametrize("sampling", [SAMPLING, BIASED, SamplingParams(max_tokens=24, temperature=0)])
@pytest.mark.parametrize(("guidance", "tuned"), [(TUNED, "tuned"), (BY_ADAPTER, "adapted")])
async def test_a_base_that_is_the_untuned_model_samples_as_the_tuned_one(
    engine: Engine, sampling: SamplingParams, guidance: Guidance, tuned: str
) -> None:
    request = replace(ASK, sampling=sampling)
    steered = [y.tokens for y in await answer(engine, replace(request, guidance=guidance))]
    assert steered == [y.tokens for y in await answer(engine, replace(request, model=tuned))]
    assert steered != [y.tokens for y in await answer(engine, request)]


@pytest.mark.parametrize("adapted", [False, True])
async def test_logprobs_of_prompt_and_answer_are_the_rounded_models_own(
    engine: Engine, saved: dict[str, Path], adapted: bool
) -> None:
    """Before biases and penalties."""
    asked = replace(BIASED, logprobs=2)
    request = replace(ASK, sampling=asked, n=1, with_tokens=True, with_prompt=True, prompt_logprobs=2)
    prompts, tokens = await answers(engine, replace(request, model="adapted") if adapted else request)
    told = [*prompts[0].tokens, *tokens[0]]
    model = rounded(saved["large"], saved["adapter"] if adapted else None)
    with torch.inference_mode():
        logprobs = model(torch.tensor([[token.token for token in told]])).logits[0].log_softmax(-1)
    own = [float(logprobs[i, token.token]) for i, token in enumerate(told[1:])]
    assert [token.logprob for token in told[1:]] == pytest.approx(own, abs=1e-2)
    assert 100 in [token.token for token in tokens[0]], "the bias changes what is drawn"


async def test_a_reward_is_the_rounded_models(engine: Engine, saved: dict[str, Path]) -> None:
    found = await answer(engine, replace(ASK, n=4, guidance=REWARDED))
    oracle = Oracle(saved["helpful"])
    exact = [oracle.reward("Once upon a time", y) for y in found]
    quantize_linears(oracle._model.base_model)
    own = [oracle.reward("Once upon a time", y) for y in found]
    assert [y.score for y in found] == pytest.approx(own, abs=2e-2)
    assert own != pytest.approx(exact, abs=4e-2), "the two can be told apart"


async def test_an_answer_is_the_same_alone_and_among_others(engine: Engine) -> None:
    kinds = [
        replace(ASK, guidance=EFT),
        replace(ASK, guidance=BY_ADAPTER),
        replace(ASK, guidance=SEARCH),
        replace(ASK, guidance=REWARDED),
        replace(ASK, sampling=BIASED),
        replace(ASK, model="adapted"),
    ]
    others = [replace(ASK, sampling=replace(SAMPLING, seed=seed), n=1) for seed in range(20)]
    alone = [await answer(engine, request) for request in kinds]
    together = await asyncio.gather(*(answer(engine, request) for request in kinds + others))
    for before, after in zip(alone, together, strict=False):
        assert [y.tokens for y in before] == [y.tokens for y in after]
    await assert_nothing_is_held(engine)
