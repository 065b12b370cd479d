"""Issue by issue what a user of the demo is promised, with the official client and real models."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import Demo

pytestmark = pytest.mark.asyncio(loop_scope="session")

REVIEW = "Here is a movie review: This movie is"
MESSAGES: Any = [{"role": "user", "content": "Write one sentence about a film."}]
NARROW = {"guidance": {"beam_width": 1, "successors": 1}}
SMALL = {"guidance": {"beam_width": 2, "successors": 2}}


async def complete(demo: Demo, model: str = "smollm2-positive", **changes: Any) -> str:
    settings = {"prompt": REVIEW, "max_tokens": 20, "seed": 7, "temperature": 0.9} | changes
    settings["extra_body"] = {"min_p": 0.0} | changes.get("extra_body", {})  # the two models' defaults differ
    answer = await demo.client.completions.create(model=model, **settings)
    return answer.choices[0].text


async def test_the_served_models_are_listed(demo: Demo) -> None:
    assert [model.id async for model in demo.client.models.list()] == ["smollm2", "smollm2-positive"]
    assert (await demo.client.models.retrieve("smollm2-positive")).id == "smollm2-positive"


@pytest.mark.parametrize("model", ["smollm2", "smollm2-positive"])
async def test_a_completion_is_the_same_streamed_and_not(demo: Demo, model: str) -> None:
    whole = await complete(demo, model)
    stream = await demo.lenient.completions.create(
        model=model, prompt=REVIEW, max_tokens=20, seed=7, temperature=0.9, stream=True, extra_body={"min_p": 0.0}
    )
    assert "".join([chunk.choices[0].text async for chunk in stream]) == whole
    assert len(whole) > 20


@pytest.mark.parametrize("model", ["smollm2", "smollm2-positive"])
async def test_a_chat_is_the_same_streamed_and_not(demo: Demo, model: str) -> None:
    settings: Any = {"model": model, "messages": MESSAGES, "max_tokens": 20, "seed": 7}
    whole = await demo.client.chat.completions.create(**settings)
    stream = await demo.client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **settings)
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


async def test_the_same_seed_gives_the_same_text_alone_and_among_eight_others(demo: Demo) -> None:
    """Up to rounding, which batches of other shapes do differently: about one search in a thousand differs."""
    alone = await complete(demo, extra_body=SMALL)
    others = [
        complete(demo, "smollm2", prompt="Once upon a time" + " there" * i, seed=i, max_tokens=15) for i in range(4)
    ] + [complete(demo, prompt="The acting" + " really" * i, seed=i, extra_body=SMALL, max_tokens=15) for i in range(4)]
    among, *_ = await asyncio.gather(complete(demo, extra_body=SMALL), *others)
    assert among == alone


async def test_guidance_of_one_row_is_plain_sampling_token_for_token(demo: Demo) -> None:
    """Tiny models do so with every setting (tests/worker/test_sampling_extras.py)."""
    plain = await complete(demo, "smollm2")
    assert await complete(demo, extra_body=NARROW) == plain


async def test_a_search_streams_while_it_searches(demo: Demo) -> None:
    """CBS 4/4/5 over 64 tokens: the beam agrees on a beginning long before the end."""
    guidance = {"guidance": {"beam_width": 4, "successors": 4, "chunk_length": 5}, "min_p": 0.0}
    settings: Any = {"prompt": REVIEW, "max_tokens": 64, "seed": 3, "temperature": 0.7, "extra_body": guidance}
    stream = await demo.lenient.completions.create(model="smollm2-positive", stream=True, **settings)
    texts = [chunk.choices[0].text async for chunk in stream]
    events = [text for text in texts if text]
    whole = await complete(demo, **settings)
    assert "".join(texts) == whole
    assert len(events) > 3
    assert len("".join(events[: len(events) // 2])) < len(whole) * 0.8, "all came at the end"


async def test_guidance_raises_the_pairs_score(demo: Demo) -> None:
    """One seed, but 16 candidates a chunk against 1: a search that steers at all wins by several nats."""
    scores = []
    as_published = {"repetition": 0, "fluency": 0, "early_stopping": False}
    for guidance in ({"beam_width": 1, "successors": 1}, {"beam_width": 4, "successors": 4}):
        settings: Any = {"prompt": REVIEW, "max_tokens": 30, "seed": 5, "temperature": 1}
        settings["extra_body"] = {"guidance": guidance | as_published, "min_p": 0}
        answer = await demo.client.completions.create(model="smollm2-positive", **settings)
        scores.append(answer.choices[0].guidance["scores"]["positive"])  # type: ignore[attr-defined]
    assert scores[1] > scores[0] + 3


@pytest.mark.parametrize("model", ["smollm2", "smollm2-positive"])
async def test_the_demo_knows_the_capital_of_france(demo: Demo, model: str) -> None:
    """With its own sampling and brakes, which a newcomer gets who asks for nothing else."""
    question: Any = [{"role": "user", "content": "What is the capital of France?"}]
    answers = [
        await demo.client.chat.completions.create(model=model, messages=question, max_tokens=40, seed=seed)
        for seed in range(4)
    ]
    assert sum("Paris" in (answer.choices[0].message.content or "") for answer in answers) >= 3
    assert sum(answer.choices[0].finish_reason == "stop" for answer in answers) >= 3


async def test_a_client_that_leaves_frees_its_rows(demo: Demo) -> None:
    settings: Any = {"prompt": REVIEW, "max_tokens": 500, "stream": True}
    for model in ("smollm2", "smollm2-positive"):
        stream = await demo.lenient.completions.create(model=model, **settings)
        async for _ in stream:
            break
        assert demo.engine.admission.rows_running > 0
        await stream.close()
        while demo.engine.admission.rows_running:
            await asyncio.sleep(0)
        await demo.assert_nothing_is_held()


async def test_errors_are_openais(demo: Demo) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await complete(demo, "gpt-4")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        await complete(demo, extra_body={"guidance": {"beam_width": 0}})
    assert bad.value.param == "guidance.beam_width"
    with pytest.raises(openai.BadRequestError) as unknown:
        await complete(demo, extra_body={"guidnace": {}})
    assert unknown.value.param == "guidnace"
    with pytest.raises(openai.BadRequestError, match="maximum context length is 8192 tokens") as long:
        await complete(demo, prompt="film " * 9000)
    assert long.value.code == "context_length_exceeded"
    await demo.assert_nothing_is_held()


async def test_curl_without_any_client_library(demo: Demo) -> None:
    async with httpx.AsyncClient(base_url=demo.url) as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 200
        answer = await client.post(
            "/v1/chat/completions", json={"model": "smollm2", "messages": MESSAGES, "max_tokens": 3}, timeout=100
        )
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 3
