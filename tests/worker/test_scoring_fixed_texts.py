"""Texts that are only scored, through a real worker: what transformers says of them from scratch, in bounded memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes import answer
from tests.worker.test_engine_on_workers import assert_nothing_is_held, logprob
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import RequestFinished
from w2s_core.errors import ContextLengthError
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import GenerationRequest, Guidance, SamplingParams, TextPrompt

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEXT = "Once upon a time, naïve abcd dabc €"
ASK = GenerationRequest("guided", (TextPrompt(TEXT),), SamplingParams(max_tokens=0), score_prefix="Once upon")
BOTH = Guidance("cbs", {"same": 1.0, "foreign": -0.5})


def from_scratch(folders: dict[str, Path], pair: str, x: str, y: str) -> float:
    prefix = "" if pair == "same" else "foreign-"
    tokenizer = HFTokenizer(str(folders[f"{prefix}tuned"]))
    prompt = tokenizer.encode(x, special_tokens=True) or tokenizer.empty_prompt
    tokens = tokenizer.encode(y, special_tokens=False)
    tuned, untuned = (logprob(folders[f"{prefix}{which}"], prompt, tokens) for which in ("tuned", "untuned"))
    return tuned - untuned


@pytest.mark.parametrize("behind", [None, "Once upon", TEXT[:-1]])
async def test_scores_are_those_of_the_text_from_scratch(
    engine: Engine, folders: dict[str, Path], behind: str | None
) -> None:
    [scored] = await answer(engine, replace(ASK, guidance=BOTH, score_prefix=behind))
    x = behind or ""
    expected = {
        "same": from_scratch(folders, "same", x, TEXT[len(x) :]),
        "foreign": from_scratch(folders, "foreign", f"Q: {x}", TEXT[len(x) :]),
    }
    assert scored.scores == pytest.approx(expected, abs=1e-3)
    assert scored.score == pytest.approx(expected["same"] - 0.5 * expected["foreign"], abs=1e-3)
    assert (scored.text, scored.tokens, scored.length) == ("", (), 0)
    await assert_nothing_is_held(engine)


async def test_a_text_of_several_slices(engine: Engine, folders: dict[str, Path]) -> None:
    """500 tokens, of which one forward takes 256: no more logits than those are ever there at once."""
    text = "abcd efgh " * 50
    long = replace(ASK, prompts=(TextPrompt(text),), score_prefix=None)
    events = [event async for event in engine.generate(long)]
    finished = events[-1]
    assert isinstance(finished, RequestFinished)
    assert finished.guidance is not None
    assert (finished.completion_tokens, finished.guidance.sampled_tokens, finished.guidance.chunks) == (0, 0, 0)
    assert finished.guidance.scored_tokens == pytest.approx(2 * 500, abs=4)
    [scored] = await answer(engine, long)
    assert scored.score == pytest.approx(from_scratch(folders, "same", "", text), abs=5e-3)
    await assert_nothing_is_held(engine)


async def test_a_text_that_a_pair_cannot_hold_is_refused(engine: Engine) -> None:
    """512 tokens of context: the large model just holds the text, the pair needs a BOS before it."""
    with pytest.raises(ContextLengthError) as caught:
        await answer(engine, replace(ASK, prompts=(TextPrompt("a" * 512),), score_prefix=None))
    assert caught.value.param == "prompt"
    await assert_nothing_is_held(engine)
