"""Grammars through real worker processes: the search's identities hold inside them, and they outlive their worker."""

from __future__ import annotations

import json
import os
import re
import signal
from contextlib import aclosing
from dataclasses import replace

import pytest

from tests.fakes import answer
from tests.worker.test_engine_on_workers import assert_nothing_is_held, pool_of
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import RequestFinished, TextCommitted
from w2s_core.errors import RequestError
from w2s_core.types import GenerationRequest, Grammar, Guidance, SamplingParams, TextPrompt

pytestmark = pytest.mark.asyncio(loop_scope="session")

PATTERN = "(red|green|blue)(, (red|green|blue)){6,9}[.]"
COLOURS = Grammar("regex", PATTERN, "guided_regex")
ASK = GenerationRequest("guided", (TextPrompt("Colours: "),), SamplingParams(max_tokens=90, seed=11, grammar=COLOURS))


async def test_one_beam_one_successor_is_plain_sampling(engine: Engine) -> None:
    [plain] = await answer(engine, replace(ASK, model="plain"))
    assert plain.ended
    assert re.fullmatch(PATTERN, plain.text)
    for length in (1, 7, 100):
        [guided] = await answer(engine, replace(ASK, guidance=Guidance("cbs", {"same": 1.0}, 1, 1, length)))
        assert (guided.tokens, guided.text, guided.ended) == (plain.tokens, plain.text, True)
        assert guided.logprobs == pytest.approx(plain.logprobs, abs=1e-4)


async def test_every_candidate_of_every_chunk_obeys(engine: Engine) -> None:
    guidance = Guidance("cbs", {"same": 1.0}, 3, 3, 4, trace=True)
    events = [event async for event in engine.generate(replace(ASK, guidance=guidance))]
    finished = events[-1]
    assert isinstance(finished, RequestFinished)
    assert finished.guidance is not None
    assert finished.guidance.tree is not None
    [tree] = finished.guidance.tree
    candidates = [candidate for chunk in tree for candidate in chunk]
    colours = re.compile(r"((red|green|blue)(, |[.]$))*")
    for candidate in candidates:
        rest = candidate.text[colours.match(candidate.text).end() :]  # type: ignore[union-attr]
        assert any(beginning.startswith(rest) for beginning in ("red,", "green,", "blue,"))
        assert (candidate.finish_reason == "stop") <= bool(re.fullmatch(PATTERN, candidate.text))
    assert len({candidate.text for candidate in candidates}) > len(tree), "candidates differ"
    await assert_nothing_is_held(engine)


@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_a_grammar_outlives_its_worker(mortal: Engine, model: str) -> None:
    request = replace(ASK, model=model)
    undisturbed = await answer(mortal, request)
    text, killed = "", False
    async with aclosing(mortal.generate(request)) as events:
        async for event in events:
            if isinstance(event, TextCommitted):
                text += event.text
                if not killed and "," in text:
                    killed = True
                    [worker] = pool_of(mortal).workers
                    os.kill(worker.pid, signal.SIGKILL)
    assert killed
    assert text == undisturbed[0].text
    assert re.fullmatch(PATTERN, text)


async def test_what_cannot_be_followed_is_refused_before_anything_runs(engine: Engine) -> None:
    for grammar in (Grammar("regex", "((", "f"), Grammar("json", json.dumps({"type": "string", "format": "x"}), "f")):
        with pytest.raises(RequestError) as refused:
            await answer(engine, replace(ASK, sampling=replace(ASK.sampling, grammar=grammar)))
        assert refused.value.param == "f"
