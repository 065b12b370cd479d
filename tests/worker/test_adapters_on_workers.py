"""Adapters through a real worker: what folders of merged weights give, beside a base that notices nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from tests.adapters import save_adapter, save_merged
from tests.fakes import answer
from tests.tiny import TEMPLATE, byte_tokenizer, save_tiny
from tests.worker.test_engine_on_workers import assert_nothing_is_held, pool_of
from tests.worker.test_worker_metrics import KINDS, metrics_after_pong
from w2s_core.build.engine import build_engine
from w2s_core.config import (
    AdapterConfig,
    EngineConfig,
    LargeModelConfig,
    ModelReference,
    PairConfig,
    ServedModelConfig,
    WorkersConfig,
)
from w2s_core.engine.engine import Engine
from w2s_core.errors import ConfigurationError
from w2s_core.types import ChatPrompt, GenerationRequest, Guidance, Hypothesis, Prompt, SamplingParams, TextPrompt

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = TextPrompt("Once upon a time")
CHAT = ChatPrompt(({"role": "user", "content": "Hi"},))
ASK = GenerationRequest("base", (PROMPT,), SamplingParams(max_tokens=24, seed=11), guidance=Guidance("none"))
TEXTS = ("there was", " naïve abcd", "", "x" * 60)
ALONE, BOTH = "alone", "both"  # a pair of an adapter and its base, and one of two adapters
FAMILIES = ("llama", "gpt2", "qwen2")
family = pytest.mark.parametrize("family", FAMILIES)


@dataclass(frozen=True)
class Models:
    """Folders: a base, two adapters of other ranks, and the same with merged weights."""

    base: Path
    tuned: Path
    untuned: Path
    merged_tuned: Path
    merged_untuned: Path

    def config(self, prefix: str = "") -> EngineConfig:
        """Every pair twice, of adapters and of merged weights, named `adapted-` and `merged-` behind the prefix."""
        base, tuned = str(self.base), AdapterConfig(str(self.base), str(self.tuned))
        merged = str(self.merged_tuned)
        pairs: dict[str, tuple[ModelReference, ModelReference]] = {
            "adapted-alone": (tuned, base),
            "merged-alone": (merged, base),
            "adapted-both": (tuned, str(self.untuned)),
            "merged-both": (merged, str(self.merged_untuned)),
        }
        large: dict[str, ModelReference] = {"base": base, "adapted": str(self.tuned), "merged": merged}
        return EngineConfig(
            {prefix + name: LargeModelConfig(reference) for name, reference in large.items()},
            {prefix + name: ServedModelConfig(prefix + name) for name in large},
            {prefix + name: PairConfig(*references) for name, references in pairs.items()},
            WorkersConfig(devices=("cpu",), threads=1, dtype="float32"),
        )


def save_models(root: Path, family: str) -> Models:
    base = save_tiny(root / "base", family=family)
    tuned = save_adapter(root / "tuned", base, seed=1, rank=3)
    untuned = save_adapter(root / "untuned", base, seed=2, rank=6)
    merged = [save_merged(root / f"merged-{adapter.name}", base, adapter) for adapter in (tuned, untuned)]
    return Models(base, tuned, untuned, *merged)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Models]:
    return {family: save_models(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def engine(models: dict[str, Models]) -> AsyncIterator[Engine]:
    """All families in one worker; names begin with theirs."""
    first, *others = (saved.config(f"{family}-") for family, saved in models.items())
    for config in others:
        large, served = first.large_models | config.large_models, first.served_models | config.served_models  # type: ignore[operator]
        first = replace(first, large_models=large, served_models=served, pairs=first.pairs | config.pairs)  # type: ignore[operator]
    async with build_engine(first) as built:
        yield built


async def scores(engine: Engine, pair: str, prompt: Prompt) -> list[float]:
    tokenizer = byte_tokenizer()
    candidates = [
        replace(Hypothesis(), tokens=tuple(tokenizer.encode(text)), text=text, ended=ended)
        for text in TEXTS
        for ended in (False, True)
    ]
    async with engine._planner.scorers[pair].open(prompt) as scoring:
        return [score.total for score in await scoring.score(candidates)]


@family
@pytest.mark.parametrize("pair", [ALONE, BOTH])
@pytest.mark.parametrize("prompt", [PROMPT, CHAT])
async def test_a_pairs_log_ratios_are_those_of_merged_weights(
    engine: Engine, family: str, pair: str, prompt: Prompt
) -> None:
    adapted = await scores(engine, f"{family}-adapted-{pair}", prompt)
    merged = await scores(engine, f"{family}-merged-{pair}", prompt)
    assert adapted == pytest.approx(merged, rel=1e-5, abs=1e-4)
    assert max(map(abs, adapted)) > 1


@pytest.mark.parametrize("pair", [ALONE, BOTH])
async def test_a_pairs_two_forwards_are_one(engine: Engine, pair: str) -> None:
    """Both jobs come in one message where the sender has both. It may meet the first alone, but not every time."""
    forwards = {}
    for kind in ("merged", "adapted"):
        before = await steps(engine)
        for number in range(10):
            await scores(engine, f"llama-{kind}-{pair}", TextPrompt(f"{number} {pair} times"))
        forwards[kind] = await steps(engine) - before
    assert forwards["merged"] == 2 * 10
    assert 10 <= forwards["adapted"] < 2 * 10


async def steps(engine: Engine) -> float:
    """The forwards that have been counted so far."""
    found = await metrics_after_pong(engine)
    return sum(found[f"w2s_step_duration_seconds_count{{kind={kind}}}"] for kind in KINDS)


def base_alone(models: Models, name: str) -> EngineConfig:
    """Of the large models only the base, and no pairs."""
    large, served = {name: LargeModelConfig(str(models.base))}, {name: ServedModelConfig(name)}
    return replace(models.config(), large_models=large, served_models=served, pairs={})


def told(answers: list[Hypothesis]) -> list[tuple[tuple[int, ...], float]]:
    return [(y.tokens, round(y.score, 3)) for y in answers]


@family
@pytest.mark.parametrize("pair", [ALONE, BOTH])
@pytest.mark.parametrize("method", ["cbs", "best_of_n", "eft"])
async def test_guided_answers_are_those_of_merged_weights(engine: Engine, family: str, pair: str, method: str) -> None:
    found, ask = {}, replace(ASK, model=f"{family}-base", n=3)
    for kind in (f"{family}-adapted", f"{family}-merged"):
        guidance = {
            "cbs": Guidance("cbs", {f"{kind}-{pair}": 1.0}, beam_width=3, successors=3, chunk_length=4),
            "best_of_n": Guidance("best_of_n", {f"{kind}-{pair}": 1.0}, successors=5),
            "eft": Guidance("eft", {f"{kind}-{pair}": 1.5}),
        }[method]
        found[kind] = await answer(engine, replace(ask, guidance=guidance))
    adapted, merged = found.values()
    assert [y.tokens for y in adapted] == [y.tokens for y in merged]
    for one, other in zip(adapted, merged, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert one.score == pytest.approx(other.score, rel=1e-5, abs=1e-3)
    assert told(adapted) != told(await answer(engine, ask))


@family
async def test_a_large_model_may_be_an_adapter(engine: Engine, family: str) -> None:
    requests = [replace(ASK, model=f"{family}-{name}", n=3) for name in ("adapted", "merged", "base")]
    adapted, merged, base = [await answer(engine, request) for request in requests]
    assert [y.tokens for y in adapted] == [y.tokens for y in merged]
    assert [y.tokens for y in adapted] != [y.tokens for y in base]
    for one, other in zip(adapted, merged, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


async def test_the_base_answers_as_ever_among_its_adapters(engine: Engine, models: dict[str, Models]) -> None:
    """In steps that it shares with them, before and after them; as in an engine that has no adapters."""
    plain = replace(ASK, model="llama-base", n=4)
    eft = replace(plain, guidance=Guidance("eft", {"llama-adapted-both": 1.0}), n=2)
    cbs = replace(plain, guidance=Guidance("cbs", {"llama-adapted-alone": 1.0}, 2, 2, 4), n=1)
    async with build_engine(base_alone(models["llama"], "llama-base")) as other:
        expected = await answer(other, plain)
    alone = [await answer(engine, request) for request in (plain, eft, cbs)]
    for requests in ([plain, eft, cbs], [cbs, eft, plain]):
        together = await asyncio.gather(*(answer(engine, request) for request in requests))
        by_request = together if requests[0] is plain else together[::-1]
        for one, other_answers in zip([expected, *alone[1:]], by_request, strict=True):
            assert [y.tokens for y in one] == [y.tokens for y in other_answers]
            for y, z in zip(one, other_answers, strict=True):
                assert y.logprobs == pytest.approx(z.logprobs, abs=1e-4)
    await assert_nothing_is_held(engine)


async def test_every_model_has_its_own_cache(engine: Engine, models: dict[str, Models]) -> None:
    """The adapter's folder alone and the mapping of it are one model."""
    [state] = await pool_of(engine).inspect()
    assert set(state.slots_used) == {name for saved in models.values() for name in pool_names(saved)}


def pool_names(models: Models) -> set[str]:
    return {
        str(models.base),
        f"{models.base} with {models.tuned}",
        f"{models.base} with {models.untuned}",
        str(models.merged_tuned),
        str(models.merged_untuned),
    }


async def test_a_conversation_has_the_adapters_own_chat_template(tmp_path: Path) -> None:
    models = save_models(tmp_path, "llama")
    byte_tokenizer("{{ messages[0].content }}!").save_pretrained(models.tuned)
    byte_tokenizer("{{ messages[0].content }}!").save_pretrained(models.merged_tuned)
    config = replace(base_alone(models, "base"), pairs=models.config().pairs)
    async with build_engine(config) as engine:
        own = await scores(engine, "adapted-alone", CHAT)
        assert own == pytest.approx(await scores(engine, "merged-alone", CHAT), rel=1e-5, abs=1e-4)
        byte_tokenizer(TEMPLATE).save_pretrained(models.tuned)
    async with build_engine(config) as engine:
        assert own != pytest.approx(await scores(engine, "adapted-alone", CHAT), abs=1e-2)


async def test_an_adapter_of_another_base_stops_the_start_by_its_key(tmp_path: Path) -> None:
    base, other = save_tiny(tmp_path / "base"), save_tiny(tmp_path / "other", family="gpt2")
    adapter = AdapterConfig(str(other), str(save_adapter(tmp_path / "adapter", base)))
    config = EngineConfig({}, {}, {"p": PairConfig(str(other), adapter)}, WorkersConfig(devices=("cpu",), threads=1))
    with pytest.raises(ConfigurationError, match=r"pairs\.p\.untuned: the adapter .* is one of another base\."):
        async with build_engine(config):
            pass
