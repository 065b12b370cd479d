"""Pairs without an untuned model (`untuned: null`) on a real worker: log π_tuned alone, in a search and by EFT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.fakes import answer
from tests.worker.test_engine_on_workers import assert_nothing_is_held, logprob, pool_of
from w2s_core.build.engine import build_engine
from w2s_core.config import EngineConfig, ServedModelConfig
from w2s_core.engine.engine import Engine
from w2s_core.errors import RequestError
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import GenerationRequest, Guidance, SamplingParams, TextPrompt

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = TextPrompt("Once upon a time")
ASK = GenerationRequest("plain", (PROMPT,), SamplingParams(max_tokens=24, seed=11))
SEARCH = Guidance("cbs", {"alone": 1.0, "foreign-alone": 0.5}, beam_width=3, successors=3, chunk_length=4)
TEXT = "Once upon a time, naïve abcd dabc €"


@pytest.fixture
def only_alone(config: EngineConfig) -> EngineConfig:
    """The shared configuration with these pairs alone, by the names that a search of the shared engine has."""
    pairs = {"alone": config.pairs["alone"], "foreign": config.pairs["foreign-alone"]}
    guidance = replace(SEARCH, pairs={"alone": 1.0, "foreign": 0.5})
    served = config.served_models | {"guided": ServedModelConfig("large", guidance)}
    return replace(config, pairs=pairs, served_models=served)


def from_scratch(folders: dict[str, Path], pair: str, x: str, y: str, *, ended: bool = False) -> float:
    """log π_tuned of the answer y to the prompt x, by transformers alone."""
    name, seen = {"alone": ("tuned", f"Q: {x}"), "foreign-alone": ("foreign-tuned", x)}[pair]
    tokenizer = HFTokenizer(str(folders[name]))
    assert tokenizer.eos is not None
    tokens = tokenizer.encode(y, special_tokens=False) + ((tokenizer.eos,) if ended else ())
    return logprob(folders[name], tokenizer.encode(seen, special_tokens=True), tokens)


async def test_a_worker_is_told_to_load_the_tuned_models_alone(
    only_alone: EngineConfig, folders: dict[str, Path]
) -> None:
    [worker] = pool_of(build_engine(only_alone))._specs
    assert set(worker.models) == {str(folders[name]) for name in ("large", "tuned", "foreign-tuned")}


async def test_scores_of_a_search_are_log_likelihoods_from_scratch(engine: Engine, folders: dict[str, Path]) -> None:
    for y in await answer(engine, replace(ASK, guidance=SEARCH, n=3)):
        assert y.scores["foreign-alone"] == pytest.approx(
            from_scratch(folders, "foreign-alone", PROMPT.text, y.text, ended=y.ended), abs=1e-3
        )
        tokenizer = HFTokenizer(str(folders["tuned"]))
        tokens = y.tokens + ((tokenizer.eos,) if y.ended and tokenizer.eos is not None else ())
        alone = logprob(folders["tuned"], tokenizer.encode(f"Q: {PROMPT.text}", special_tokens=True), tokens)
        assert y.scores["alone"] == pytest.approx(alone, abs=1e-3)
        assert y.scores["alone"] < 0
        assert y.score == pytest.approx(y.scores["alone"] + 0.5 * y.scores["foreign-alone"], abs=1e-4)
    await assert_nothing_is_held(engine)


async def test_a_fixed_text_over_http(client: httpx.AsyncClient, engine: Engine, folders: dict[str, Path]) -> None:
    """It costs the tokens of one model per pair: BOS, prompt and answer, once."""
    x, y = TEXT[:9], TEXT[9:]
    guidance = {"pairs": {"alone": 1.0}, "prompt": x}
    body = {"model": "plain", "prompt": TEXT, "max_tokens": 0, "echo": True, "guidance": guidance}
    response = (await client.post("/v1/completions", json=body)).raise_for_status().json()
    [choice] = response["choices"]
    expected = from_scratch(folders, "alone", x, y)
    assert choice["guidance"]["scores"] == {"alone": pytest.approx(expected, abs=1e-3)}
    assert response["guidance"]["scored_tokens"] <= 1 + len(f"Q: {TEXT}".encode())
    await assert_nothing_is_held(engine)


@pytest.mark.parametrize("weight", [1.5, -0.5])
async def test_eft_equals_a_plain_loop(engine: Engine, folders: dict[str, Path], weight: float) -> None:
    """GenARM: log π_base + β · log π_r per token, here with the log-softmax that the engine leaves out."""
    sampling = SamplingParams(max_tokens=20, temperature=0)
    [found] = await answer(engine, replace(ASK, sampling=sampling, guidance=Guidance("eft", {"alone": weight})))
    tokenizer = HFTokenizer(str(folders["large"]))
    question, asked = (tokenizer.encode(text, special_tokens=True) for text in (PROMPT.text, "Q: " + PROMPT.text))
    terms = [("large", question, 1.0), ("tuned", asked, weight)]
    models = {name: AutoModelForCausalLM.from_pretrained(folders[name]) for name in ("large", "tuned")}
    tokens: tuple[int, ...] = ()
    while len(tokens) < 20 and tokenizer.eos not in tokens:
        with torch.no_grad():
            logprobs = [
                w * models[name](torch.tensor([prompt + tokens])).logits[0, -1].log_softmax(-1)
                for name, prompt, w in terms
            ]
        tokens += (int(torch.stack(logprobs).sum(0).argmax()),)
    assert found.tokens + ((found.ending,) if found.ending is not None else ()) == tokens


async def test_eft_needs_its_vocabulary(engine: Engine) -> None:
    with pytest.raises(RequestError, match=r"foreign-alone\.tuned has another vocabulary"):
        await answer(engine, replace(ASK, guidance=Guidance("eft", {"foreign-alone": 1.0})))
