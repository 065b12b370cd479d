"""The engine with a real worker process: requests that can never fit, and configurations, refused by name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from tests.fakes import answer
from tests.tiny import save_tiny
from tests.worker.test_engine_on_workers import ASK, FOREIGN, PROMPT, assert_nothing_is_held
from w2s_core.build.engine import build_engine
from w2s_core.config import EngineConfig, LargeModelConfig, PairConfig, ServedModelConfig
from w2s_core.engine.engine import Engine
from w2s_core.errors import ConfigurationError, ContextLengthError, UnavailableError
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Guidance, SamplingParams, TextPrompt

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_device_that_is_no_workers_is_refused_by_name(config: EngineConfig) -> None:
    large = {"large": replace(config.large_models["large"], devices=("cuda:7",))}
    with pytest.raises(ConfigurationError, match=r"large_models\.large\.devices"):
        build_engine(replace(config, large_models=large))


CRAMPED = {
    "short chunks": Guidance("cbs", {"small": 1.0}, 2, 2, 8),
    "one chunk": Guidance("cbs", {"small": 1.0}, 3, 2, 30),
    "whole answers": Guidance("best_of_n", {"small": 1.0}, successors=4),
    "two pairs": Guidance("best_of_n", {"small": 1.0, "large": 0.5}, successors=4),
    "no untuned model": Guidance("cbs", {"alone": 1.0}, 2, 2, 4),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("small"), pairs=True, context_length=16))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cramped(config: EngineConfig, folders: dict[str, Path], small: str) -> AsyncIterator[Engine]:
    """Pairs with a context of 16 tokens, and one with room."""
    references = {"small": (small, small), "alone": (small, None), "large": (str(folders["tuned"]),) * 2}
    pairs = {name: PairConfig(*models, prompt_template="") for name, models in references.items()}
    served = {name: ServedModelConfig("large", guidance) for name, guidance in CRAMPED.items()}
    async with build_engine(replace(config, pairs=pairs, served_models=served)) as engine:
        yield engine


@pytest.mark.parametrize("include_stop", [False, True])
@pytest.mark.parametrize("model", CRAMPED)
async def test_an_answer_that_outgrows_the_pair_ends_where_the_pair_is_full(
    cramped: Engine, small: str, model: str, include_stop: bool
) -> None:
    tokenizer = HFTokenizer(small)
    sampling = SamplingParams(
        max_tokens=100, seed=1, ignore_eos=True, include_stop_str_in_output=include_stop, skip_special_tokens=False
    )
    for n in (1, 2):
        for y in await answer(cramped, replace(ASK, model=model, sampling=sampling, n=n)):
            assert y.finish_reason == "length"
            assert 5 < len(tokenizer.encode(y.as_scored.text, special_tokens=False)) <= 15
            assert len(y.tokens) == len(y.logprobs)
    await assert_nothing_is_held(cramped)


async def test_what_the_kv_cache_could_never_hold_is_refused_at_once(config: EngineConfig) -> None:
    """100 tokens of KV (256 bytes each), a context of 512: the prompt takes 16, so 84 are left for an answer."""
    small = replace(config, workers=replace(config.workers, kv_cache_gb=256 * 100 / 1e9))
    async with build_engine(small) as engine:
        assert {model.context_length for model in engine.served_models.values()} == {100}
        for model in ("plain", "guided"):
            with pytest.raises(ContextLengthError, match=r"100 tokens.*101") as caught:
                await answer(engine, replace(ASK, model=model, sampling=SamplingParams(max_tokens=85)))
            assert caught.value.param == "prompt"
        assert len(PROMPT.text) == 16
        greedy = SamplingParams(temperature=0)
        for guidance in (None, Guidance("cbs", {"same": 1.0}, 1, 1, 9)):
            [longest] = await answer(engine, replace(ASK, model="plain", sampling=greedy, guidance=guidance))
            assert longest.length == 84, "choose a prompt whose greedy answer does not end"
        tight = replace(FOREIGN, beam_width=1, successors=1)
        # With its own prompt of 100 tokens the pair has no room for any answer.
        ask = replace(ASK, sampling=SamplingParams(max_tokens=1), guidance=tight)
        unscorable = replace(ask, prompts=(TextPrompt("x" * 97),))
        with pytest.raises(ContextLengthError, match=r"100 tokens.*101"):
            await answer(engine, unscorable)
        await assert_nothing_is_held(engine)
    with pytest.raises(UnavailableError):  # now its pool is stopped
        await answer(engine, ask)


async def test_a_pair_without_chat_template_needs_a_prompt_template(folders: dict[str, Path], tmp_path: Path) -> None:
    bare = save_tiny(tmp_path / "bare", template=None)
    large = {"large": LargeModelConfig(str(folders["large"]))}
    served = {"plain": ServedModelConfig("large")}
    with pytest.raises(ConfigurationError, match="prompt_template"):
        build_engine(EngineConfig(large, served, {"bare": PairConfig(str(bare), str(bare))}))


@pytest.mark.parametrize(
    ("served", "message"),
    [
        ({"x": ServedModelConfig("nobody")}, "served_models.x.large"),
        ({"x": ServedModelConfig("large", Guidance("cbs", {"nobody": 1.0}))}, "served_models.x.guidance.pairs"),
    ],
)
async def test_names_that_lead_nowhere_are_refused(
    config: EngineConfig, served: dict[str, ServedModelConfig], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build_engine(replace(config, served_models=served))


async def test_weights_that_cannot_be_loaded_are_the_operators_error(config: EngineConfig, tmp_path: Path) -> None:
    broken = save_tiny(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"nonsense")
    engine = build_engine(replace(config, large_models={"large": LargeModelConfig(str(broken))}))
    with pytest.raises(ConfigurationError, match="header too large"):
        await engine.__aenter__()
