"""Reward models with a real worker process: searches equal those of an oracle that rewards whole texts from scratch."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from tests.fakes import answer
from tests.tiny import EOS, save_tiny_classifier
from tests.worker.reward_models import HELPFUL, LABELS, Oracle, reward_config, reward_folders
from tests.worker.test_engine_on_workers import assert_nothing_is_held, pool_of
from w2s_core.build.engine import build_engine
from w2s_core.config import EngineConfig, RewardModelConfig, ServedModelConfig
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import RequestFinished
from w2s_core.errors import ConfigurationError
from w2s_core.types import ChatPrompt, GenerationRequest, Guidance, Hypothesis, SamplingParams, TextPrompt

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = TextPrompt("Once upon a time")
ENDING = SamplingParams(max_tokens=24, seed=11, logit_bias=((EOS, 3.0),))  # some answers end
ASK = GenerationRequest("rewarded", (PROMPT,), ENDING)
PLAIN = {"plain": ServedModelConfig("large")}


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return reward_folders(tmp_path_factory.mktemp("classifiers"))


@pytest.fixture(scope="module")
def config(folders: dict[str, Path], classifiers: dict[str, Path]) -> EngineConfig:
    return reward_config(folders, classifiers)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def engine(config: EngineConfig) -> AsyncIterator[Engine]:
    async with build_engine(config) as engine:
        yield engine


@pytest.fixture(scope="module")
def oracle(engine: Engine, classifiers: dict[str, Path], config: EngineConfig) -> Engine:
    """The same large model, in the same worker, with rewards from outside."""
    oracles = {
        "helpful": Oracle(classifiers["llama"]),
        "good": Oracle(classifiers["gpt2"], label=2, template="Q: {prompt}", shares_tokens=False),
        "bad": Oracle(classifiers["gpt2"], label=0, template="", shares_tokens=False),
        "kind": Oracle(classifiers["qwen3"]),
    }
    scorers = {"same": engine._planner.scorers["same"], **oracles}
    keys = dict.fromkeys(oracles, "reward_models")
    return Engine(engine._planner.large_models, scorers, config.served_models, scorer_keys=keys)


ALONE = [replace(HELPFUL, reward_models={name: 1.0}) for name in ("helpful", "good", "bad", "kind")]
TOGETHER = [
    replace(HELPFUL, reward_models={"helpful": 1.0, "good": -0.5}),
    replace(HELPFUL, pairs={"same": 0.3}, reward_models={"kind": 2.0}),
    replace(HELPFUL, pairs={"same": 1.0}, reward_models={"good": 1.0}, combine="min", repetition=1.0),
]
BEST = [
    Guidance("best_of_n", {}, successors=6, reward_models={"good": 1.0}),
    Guidance("cbs", {}, 1, 4, 1, reward_models={"kind": 1.0}, length_penalty=1.0, early_stopping=True),
]


@pytest.mark.parametrize("guidance", [*ALONE, *TOGETHER, *BEST])
@pytest.mark.parametrize("seed", range(3))
async def test_a_search_equals_the_oracles(engine: Engine, oracle: Engine, guidance: Guidance, seed: int) -> None:
    request = replace(ASK, guidance=replace(guidance, trace=True), sampling=replace(ENDING, seed=seed))
    trees = []
    for each in (engine, oracle):
        *_, finished = [event async for event in each.generate(request)]
        assert isinstance(finished, RequestFinished)
        assert finished.guidance is not None
        assert finished.guidance.tree is not None
        [tree] = finished.guidance.tree
        trees.append(tree)
    for own, expected in zip(*trees, strict=True):
        assert [(y.text, y.parent, y.kept) for y in own] == [(y.text, y.parent, y.kept) for y in expected]
        for y, by_oracle in zip(own, expected, strict=True):
            assert y.scores == pytest.approx(by_oracle.scores, abs=1e-3)
            assert y.rank == pytest.approx(by_oracle.rank, abs=1e-2)
    await assert_nothing_is_held(engine)


async def test_some_of_those_answers_end(engine: Engine) -> None:
    """Guards the test above: the EOS of an answer is part of what is rewarded."""
    found = await answer(engine, replace(ASK, guidance=BEST[0], n=6))
    assert {y.ended for y in found} == {True, False}


@pytest.mark.parametrize("x", ["", "Once"])
async def test_a_fixed_text_gets_its_reward(engine: Engine, classifiers: dict[str, Path], x: str) -> None:
    request = GenerationRequest("rewarded", (PROMPT,), SamplingParams(max_tokens=0), score_prefix=x)
    weights = {"helpful": 1.0, "good": -2.0}
    [scored] = await answer(engine, replace(request, guidance=replace(HELPFUL, reward_models=weights)))
    y = Hypothesis(text=PROMPT.text[len(x) :])
    expected = {
        "helpful": Oracle(classifiers["llama"], shares_tokens=False).reward(x, y),
        "good": Oracle(classifiers["gpt2"], label=2, template="Q: {prompt}", shares_tokens=False).reward(x, y),
    }
    assert scored.scores == pytest.approx(expected, abs=1e-3)
    assert scored.score == pytest.approx(expected["helpful"] - 2 * expected["good"], abs=1e-3)


async def test_a_conversation_is_read_in_the_models_own_template(engine: Engine, classifiers: dict[str, Path]) -> None:
    chat = ChatPrompt(({"role": "user", "content": "Hi"},))
    [found] = await answer(engine, replace(ASK, prompts=(chat,)))
    expected = Oracle(classifiers["llama"]).reward("<user>Hi\n<assistant>", found)
    assert found.scores == pytest.approx({"helpful": expected}, abs=1e-3)


async def test_an_answer_ends_where_the_reward_models_context_does(config: EngineConfig, tmp_path: Path) -> None:
    short = save_tiny_classifier(tmp_path / "short", context_length=40)
    foreign = save_tiny_classifier(tmp_path / "foreign", context_length=40, pairs=True)
    models = {"short": RewardModelConfig(str(short)), "foreign": RewardModelConfig(str(foreign))}
    sampling = SamplingParams(max_tokens=200, seed=1, ignore_eos=True)
    async with build_engine(replace(config, pairs={}, reward_models=models, served_models=PLAIN)) as engine:
        for name in models:
            guidance = replace(HELPFUL, reward_models={name: 1.0})
            [found] = await answer(engine, replace(ASK, model="plain", guidance=guidance, sampling=sampling))
            assert found.finish_reason == "length"
            assert 8 < len(found.tokens) <= 40


async def test_a_search_survives_its_workers_death(mortal: Engine) -> None:
    both = Guidance("cbs", {"same": 0.5}, 3, 3, 4, reward_models={"good": 1.0, "kind": 1.0})
    long = SamplingParams(max_tokens=100, seed=5)
    requests = [replace(ASK, sampling=long), replace(ASK, sampling=long, guidance=both)]
    undisturbed = [await answer(mortal, request) for request in requests]
    tasks = [asyncio.create_task(answer(mortal, request)) for request in requests]
    async with aclosing(mortal.generate(requests[0])) as events:
        async for _ in events:  # the worker is in the middle of it
            os.kill(pool_of(mortal).workers[0].pid, signal.SIGKILL)
            break
    disturbed = await asyncio.gather(*tasks)
    assert [[y.text for y in ys] for ys in disturbed] == [[y.text for y in ys] for ys in undisturbed]
    assert mortal.ready
    await assert_nothing_is_held(mortal)


async def test_a_reward_model_may_live_on_a_device_of_its_own(config: EngineConfig, engine: Engine) -> None:
    far = replace(
        config,
        workers=replace(config.workers, devices=("cpu:0", "cpu:1")),
        large_models={"large": replace(config.large_models["large"], devices=("cpu:0",))},
        pairs={},
        reward_models={"helpful": replace(config.reward_models["helpful"], devices=("cpu:1",))},
    )
    expected = await answer(engine, ASK)
    async with build_engine(far) as divided:
        assert [len(worker.models) for worker in pool_of(divided).workers] == [1, 1]
        assert [y.text for y in await answer(divided, ASK)] == [y.text for y in expected]


async def test_a_client_that_leaves_frees_its_session(engine: Engine) -> None:
    request = replace(ASK, sampling=SamplingParams(max_tokens=400, seed=1))
    async with aclosing(engine.generate(request)) as events:
        async for _ in events:
            break
    await assert_nothing_is_held(engine)


async def test_a_model_that_is_no_reward_model_stops_the_start(config: EngineConfig, folders: dict[str, Path]) -> None:
    models = {"helpful": RewardModelConfig(str(folders["tuned"]))}
    with pytest.raises(ConfigurationError, match=r"^reward_models\.helpful\.model: .*no weights for a head"):
        async with build_engine(replace(config, reward_models=models)):
            pass


async def test_a_label_that_is_missing_stops_the_start(config: EngineConfig, classifiers: dict[str, Path]) -> None:
    models = {"helpful": RewardModelConfig(str(classifiers["gpt2"]))}
    listed = ", ".join(f"{i} \\({name}\\)" for i, name in enumerate(LABELS))
    with pytest.raises(ConfigurationError, match=rf"^reward_models\.helpful\.label: .*choose one of {listed}"):
        async with build_engine(replace(config, reward_models=models)):
            pass


async def test_a_template_that_the_tokenizer_lacks_is_named_by_its_key(config: EngineConfig, tmp_path: Path) -> None:
    models = {"helpful": RewardModelConfig(str(save_tiny_classifier(tmp_path / "bare", template=None)))}
    with pytest.raises(ConfigurationError, match=r"^reward_models\.helpful: its tokenizer has no chat template"):
        build_engine(replace(config, reward_models=models))


async def test_one_name_in_two_sections_is_refused(config: EngineConfig) -> None:
    models = {**config.reward_models, "same": config.reward_models["helpful"]}
    with pytest.raises(ConfigurationError, match=r"^reward_models\.same: `same` is already a name in pairs\.$"):
        build_engine(replace(config, reward_models=models))


async def test_a_served_model_must_name_reward_models_that_exist(config: EngineConfig) -> None:
    with pytest.raises(ConfigurationError, match=r"^served_models\.rewarded\.guidance\.reward_models: .*`helpful`"):
        build_engine(replace(config, reward_models={}))
