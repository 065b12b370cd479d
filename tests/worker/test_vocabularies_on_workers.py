"""Models whose embedding, logits and tokenizer say different sizes: nothing is drawn or read that one of them lacks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests.fakes import answer
from tests.tiny import EOS, VOCABULARY, save_tiny
from tests.worker.test_engine_on_workers import ASK, assert_nothing_is_held
from w2s_core.build.engine import build_engine
from w2s_core.config import EngineConfig, LargeModelConfig, PairConfig, ServedModelConfig, WorkersConfig
from w2s_core.engine.engine import Engine
from w2s_core.errors import RequestError
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import ChatPrompt, Guidance, Prompt, SamplingParams, TextPrompt, TokenPrompt

pytestmark = pytest.mark.asyncio(loop_scope="session")

BEYOND = "<extra42>"  # the token 300
TURN_END, TURN_END_ID = "<extra0>", 258


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    """`padded` has more logits than tokens, as Qwen 2.5; `short` has more tokens than embeddings.

    The tokenizer of `padded` ends turns with a token that the model's own configuration does not name.
    """
    root = tmp_path_factory.mktemp("uneven")
    padded = save_tiny(root / "padded", vocabulary=VOCABULARY + 60)
    short = save_tiny(root / "short", tokens=VOCABULARY + 40)
    PreTrainedTokenizerFast.from_pretrained(padded, eos_token=TURN_END).save_pretrained(padded)
    pair = [str(save_tiny(root / name, seed=seed)) for name, seed in (("tuned", 1), ("untuned", 2))]
    guidance = Guidance("cbs", {"pair": 1.0}, beam_width=4, successors=4, chunk_length=6)
    short_pair = PairConfig(str(short), str(short), prompt_template="{prompt}")
    return EngineConfig(
        large_models={"padded": LargeModelConfig(str(padded)), "short": LargeModelConfig(str(short))},
        pairs={"pair": PairConfig(pair[0], pair[1], prompt_template="Q: {prompt}"), "short": short_pair},
        served_models={
            "padded": ServedModelConfig("padded"),
            "short": ServedModelConfig("short"),
            "guided": ServedModelConfig("padded", guidance),
        },
        workers=WorkersConfig(devices=("cpu",), threads=1, dtype="float32"),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def engine(uneven: EngineConfig) -> AsyncIterator[Engine]:
    async with build_engine(uneven) as built:
        yield built


async def test_logits_beyond_the_tokenizer_are_never_drawn(engine: Engine) -> None:
    for temperature in (0.0, 2.0, 10.0):
        sampling = SamplingParams(max_tokens=60, temperature=temperature, seed=1, ignore_eos=True, logprobs=5)
        for request in (replace(ASK, model="padded", n=8), replace(ASK, model="guided", n=2)):
            for y in await answer(engine, replace(request, sampling=sampling)):
                assert max(y.tokens) < VOCABULARY
                assert max(token for top in y.alternatives for token, _ in top) < VOCABULARY
    await assert_nothing_is_held(engine)


@pytest.mark.parametrize("end", [EOS, TURN_END_ID])
@pytest.mark.parametrize("model", ["padded", "guided"])
async def test_both_the_models_and_the_tokenizers_eos_end_an_answer(engine: Engine, model: str, end: int) -> None:
    sampling = SamplingParams(max_tokens=20, seed=1, logit_bias=((end, 100.0),), min_tokens=3)
    [y] = await answer(engine, replace(ASK, model=model, sampling=sampling))
    assert (y.ended, y.ending, y.finish_reason, len(y.tokens)) == (True, end, "stop", 3)
    assert not {EOS, TURN_END_ID} & set(y.tokens), "min_tokens bans both"
    [y] = await answer(engine, replace(ASK, model=model, sampling=replace(sampling, min_tokens=0, ignore_eos=True)))
    assert y.tokens == (end,) * 20


REFUSED: list[tuple[Prompt, str]] = [
    (TextPrompt(f"a{BEYOND}b"), "prompt"),
    (TokenPrompt((5, VOCABULARY)), "prompt"),
    (ChatPrompt(({"role": "user", "content": BEYOND},)), "messages"),
]


async def test_what_the_embedding_lacks_is_refused_and_neighbours_go_on(engine: Engine) -> None:
    neighbour = replace(ASK, model="short", sampling=SamplingParams(max_tokens=60, seed=2), n=3)
    alone = [y.tokens for y in await answer(engine, neighbour)]
    company = asyncio.ensure_future(answer(engine, neighbour))
    for prompt, field in REFUSED:
        with pytest.raises(RequestError, match=f"{BEYOND}|between 0 and 299") as refused:
            await answer(engine, replace(ASK, model="short", prompts=(prompt,)))
        assert refused.value.param == field
    guided = replace(ASK, model="padded", guidance=Guidance("cbs", {"short": 1.0}, 1, 2, 6))
    with pytest.raises(RequestError, match=f"pair cannot read `{BEYOND}`"):
        await answer(engine, replace(guided, prompts=(TextPrompt(BEYOND),)))
    assert [y.tokens for y in await company] == alone
    await assert_nothing_is_held(engine)


async def test_a_tokenizers_size_counts_ids_that_are_missing(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 7}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    assert HFTokenizer(str(tmp_path)).size == 8
