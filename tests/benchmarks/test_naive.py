"""The baseline is faithful: with the engine's random numbers, the published search returns the engine's answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from benchmarks.naive import Beam, Model, NaiveSearch, Pair, multinomial, shared_noise
from tests.tiny import EOS, save_tiny
from w2s_core.build.engine import build_engine
from w2s_core.config import EngineConfig, LargeModelConfig, PairConfig, ServedModelConfig, WorkersConfig
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import ChoiceFinished
from w2s_core.types import GenerationRequest, Guidance, Hypothesis, SamplingParams, TextPrompt

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = TextPrompt("Once upon a time")
PAIRS = {"same": (1, 2, False, None), "foreign": (3, 4, True, "Q: {prompt}"), "bare": (3, 4, True, "")}
SEEDS = range(3)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads of such small models mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("naive")
    models = {name: save_tiny(root / name, family=name) for name in ("llama", "gpt2")}
    models["ending"] = save_tiny(root / "ending")
    (root / "ending" / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, *range(150, 170)]}))
    for name, (tuned, untuned, pairs, _) in PAIRS.items():
        models[f"{name}-tuned"] = save_tiny(root / f"{name}-tuned", seed=tuned, pairs=pairs)
        models[f"{name}-untuned"] = save_tiny(root / f"{name}-untuned", seed=untuned, pairs=pairs)
    return models


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def engine(folders: dict[str, Path]) -> AsyncIterator[Engine]:
    large = ("llama", "gpt2", "ending")
    config = EngineConfig(
        large_models={name: LargeModelConfig(str(folders[name])) for name in large},
        pairs={
            name: PairConfig(str(folders[f"{name}-tuned"]), str(folders[f"{name}-untuned"]), prompt_template=template)
            for name, (*_, template) in PAIRS.items()
        },
        served_models={name: ServedModelConfig(name) for name in large},
        workers=WorkersConfig(devices=("cpu",), threads=1, dtype="float32"),
    )
    async with build_engine(config) as engine:
        yield engine


@cache
def load(folder: Path) -> Model:
    return Model(str(folder))


async def ours(engine: Engine, request: GenerationRequest) -> Hypothesis:
    [found] = [event.hypothesis async for event in engine.generate(request) if isinstance(event, ChoiceFinished)]
    return found


def naive(folders: dict[str, Path], request: GenerationRequest) -> tuple[Beam, str]:
    guidance, sampling = request.guidance, request.sampling
    assert guidance is not None
    [name] = guidance.pairs
    pair = Pair(load(folders[f"{name}-tuned"]), load(folders[f"{name}-untuned"]), PAIRS[name][3])
    large = load(folders[request.model])
    search = NaiveSearch(
        large,
        pair,
        w=guidance.beam_width,
        k=guidance.successors,
        length=guidance.chunk_length,
        temperature=sampling.temperature,
    )
    prompt = tuple(large.tokenizer(PROMPT.text)["input_ids"])
    found = search.run(prompt, sampling.max_tokens or 0, seed=sampling.seed or 0, draw=shared_noise)
    assert {"prompt", "decoding", "drawing", "scoring"} <= search.timer.seconds.keys()
    return found, large.decode(found.tokens)


def assert_same(theirs: tuple[Beam, str], found: Hypothesis) -> None:
    beam, text = theirs
    assert (beam.tokens, beam.ended, text) == (found.tokens, found.ended, found.text)
    assert beam.score == pytest.approx(found.score, abs=1e-3)
    assert beam.key == found.key


def asked(pair: str, seed: int, model: str = "llama", **sampling: float) -> GenerationRequest:
    guidance = Guidance("cbs", {pair: 1.0}, beam_width=3, successors=3, chunk_length=4)
    params = replace(SamplingParams(max_tokens=30, seed=seed), **sampling)  # type: ignore[arg-type]
    return GenerationRequest(model, (PROMPT,), params, guidance)


@pytest.mark.parametrize("pair", PAIRS)
async def test_naive_gives_the_engines_answers(engine: Engine, folders: dict[str, Path], pair: str) -> None:
    for seed in SEEDS:
        request = asked(pair, seed)
        assert_same(naive(folders, request), await ours(engine, request))


async def test_so_it_does_for_another_family(engine: Engine, folders: dict[str, Path]) -> None:
    for seed in SEEDS:
        request = asked("same", seed, "gpt2")
        assert_same(naive(folders, request), await ours(engine, request))


async def test_so_it_does_where_answers_end(engine: Engine, folders: dict[str, Path]) -> None:
    """A model with many EOS tokens: some hypotheses are carried finished, some win, the pair scores its EOS."""
    ends = []
    for pair in ("same", "foreign"):
        for seed in range(12):
            request = asked(pair, seed, "ending")
            found = await ours(engine, request)
            assert_same(naive(folders, request), found)
            ends.append(found.ended)
    assert any(ends), "no answer ended: this test shows nothing"
    assert not all(ends), "every answer ended: this test shows less than it should"


async def test_so_it_does_where_successors_are_equal(engine: Engine, folders: dict[str, Path]) -> None:
    """Cold sampling draws the same chunk again and again: without merging, copies would fill the beam."""
    for seed in SEEDS:
        request = asked("foreign", seed, temperature=0.2)
        assert_same(naive(folders, request), await ours(engine, request))


async def test_the_published_draw_follows_the_probabilities() -> None:
    """9,000 draws of (0.2, 0, 0.8): a frequency off by 0.03 is 7 standard deviations away."""
    torch.manual_seed(0)
    probabilities = torch.tensor([[0.2, 0.0, 0.8]]).repeat(9000, 1)
    drawn = multinomial(probabilities, [0] * 9000, 0)
    shared = shared_noise(probabilities, range(9000), 5)
    for tokens in (drawn, shared):
        assert tokens.bincount(minlength=3)[1] == 0
        assert (tokens == 2).float().mean().item() == pytest.approx(0.8, abs=0.03)


async def test_log_probabilities_do_not_depend_on_the_padding(folders: dict[str, Path]) -> None:
    model = load(folders["llama"])
    answers = [(1, 2, 3), (4,), (5, EOS, 7, 8, 9)]
    with torch.inference_mode():
        together = model.logprobs((65, 66), answers)
        assert together == pytest.approx([model.logprobs((65, 66), [answer])[0] for answer in answers], abs=1e-4)
