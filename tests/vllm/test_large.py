"""SmolLM2 behind vLLM as a large model of this server."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest

from benchmarks.server_process import Server
from benchmarks.vllm_process import CONTEXT_LENGTH
from tests.vllm.conftest import Front
from w2s_core.engine.events import ChoiceFinished
from w2s_core.types import GenerationRequest, Hypothesis, SamplingParams, TextPrompt

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session")]

REVIEW = "Here is a movie review: This movie is"
MESSAGES: Any = [{"role": "user", "content": "Write one sentence about a film."}]
WIDE = {"beam_width": 4, "successors": 4, "chunk_length": 5}
LONG = {"beam_width": 2, "successors": 2, "chunk_length": 30}
PARROTS = "Repeat: 🦜🦜🦜🦜\n🦜🦜"
_PATIENCE_S = 60  # for what another process does in its own time


async def complete(demo: Front, model: str, **changes: Any) -> Any:
    settings = {"prompt": REVIEW, "max_tokens": 20, "seed": 7, "temperature": 0.9} | changes
    return await demo.client.completions.create(model=model, **settings)


async def greedy(demo: Front, model: str, prompt: str, tokens: int) -> Hypothesis:
    request = GenerationRequest(model, (TextPrompt(prompt),), SamplingParams(max_tokens=tokens, temperature=0))
    [found] = [event.hypothesis async for event in demo.engine.generate(request) if isinstance(event, ChoiceFinished)]
    return found


@pytest.mark.parametrize("prompt", ["Once upon a time", REVIEW, "The capital of France is", PARROTS])
async def test_greedy_is_the_same_near_and_far(demo: Front, prompt: str) -> None:
    near, far = [await greedy(demo, model, prompt, 40) for model in ("near", "far")]
    assert far.tokens == near.tokens
    assert far.text == near.text
    assert far.logprobs == pytest.approx(near.logprobs, abs=1e-3)


async def test_greedy_by_text_alone_is_the_same_where_text_is_cut_as_tokens_are(demo: Front) -> None:
    """Every piece is encoded anew with what is before it, so only plain prose promises this."""
    for prompt in ("Once upon a time", REVIEW):
        near, text = [await greedy(demo, model, prompt, 40) for model in ("near", "text")]
        assert text.text == near.text


async def test_an_answer_that_the_model_ends_is_the_same_near_and_far(demo: Front) -> None:
    chat = "<|im_start|>user\nSay only: hi<|im_end|>\n<|im_start|>assistant\n"
    near, far, text = [await greedy(demo, model, chat, 60) for model in ("near", "far", "text")]
    assert near.finish_reason == far.finish_reason == text.finish_reason == "stop"
    assert (far.tokens, far.text, far.ended) == (near.tokens, near.text, True)
    assert (text.text, text.ended) == (near.text, True)


@pytest.mark.parametrize("model", ["far", "far-positive", "text", "text-positive"])
async def test_a_completion_is_the_same_streamed_and_not(demo: Front, model: str) -> None:
    guidance = {"extra_body": {"guidance": {"beam_width": 2, "successors": 2}}} if "positive" in model else {}
    whole = (await complete(demo, model, **guidance)).choices[0]
    stream = await complete(demo, model, stream=True, **guidance)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == whole.text
    assert len(whole.text) > 20
    assert whole.finish_reason == "length"


@pytest.mark.parametrize("model", ["far", "far-positive", "text-positive"])
async def test_a_chat_streams_and_tells_its_usage(demo: Front, model: str) -> None:
    settings: Any = {"model": model, "messages": MESSAGES, "max_tokens": 20, "seed": 7}
    stream = await demo.client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **settings)
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    whole = await demo.client.chat.completions.create(**settings)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert 0 < whole.usage.completion_tokens <= 20


@pytest.mark.parametrize(("guidance", "tokens"), [(WIDE, 64), (LONG, 120)], ids=["4/4/5", "2/2/30"])
async def test_a_search_is_paid_for_and_pays(demo: Front, guidance: dict[str, int], tokens: int) -> None:
    """It draws W·K rows of `tokens`, says so, and its answer scores above one that nobody steered."""
    alone = {"beam_width": 1, "successors": 1, "chunk_length": tokens}
    ignore = {"ignore_eos": True, "top_k": 50}
    steered, plain = [
        await complete(demo, "far-positive", max_tokens=tokens, seed=3, extra_body={"guidance": how, **ignore})
        for how in (guidance, alone)
    ]
    rows = guidance["beam_width"] * guidance["successors"]
    chunks = -(-tokens // guidance["chunk_length"])
    report = steered.guidance
    assert steered.usage.completion_tokens == tokens
    assert report["chunks"] == chunks
    assert report["sampled_tokens"] == report["upstream"]["completion_tokens"] == rows * tokens
    assert report["upstream"]["calls"] == guidance["beam_width"] * chunks
    assert steered.choices[0].guidance["score"] > plain.choices[0].guidance["score"] + 2
    assert "\ufffd" not in steered.choices[0].text


async def test_samples_of_one_request_differ_and_come_again_with_their_seed(demo: Front) -> None:
    """Four beams of four, first chunk: vLLM gives choice i of a call the seed + i, so neighbouring seeds would repeat
    whole rows. 16 rows of 8 tokens at temperature 1 coincide by chance hardly ever."""
    guidance = {"guidance": WIDE | {"chunk_length": 8, "trace": True}}
    first, again = [
        await complete(demo, "far-positive", max_tokens=8, temperature=1, extra_body=guidance) for _ in range(2)
    ]
    [[round_]] = first.guidance["tree"]
    assert len({candidate["text"] for candidate in round_}) >= 15
    assert again.choices[0].text == first.choices[0].text


async def test_half_characters_are_never_shown(demo: Front) -> None:
    """A parrot is three tokens, and a chunk here is one."""
    for model in ("far-positive", "text-positive"):
        guidance = {"guidance": {"beam_width": 1, "successors": 1, "chunk_length": 1}}
        answer = await complete(demo, model, prompt=PARROTS, temperature=0, max_tokens=9, extra_body=guidance)
        assert answer.choices[0].text.startswith("🦜🦜")
        assert "\ufffd" not in answer.choices[0].text


async def test_vllms_sampling_is_asked_for(demo: Front) -> None:
    only = {"allowed_token_ids": [28, 30]}  # "," and "."
    answer = await complete(demo, "far-positive", extra_body=only)
    assert set(answer.choices[0].text) <= {",", "."}
    with pytest.raises(openai.BadRequestError) as refused:
        await complete(demo, "text-positive", extra_body=only)
    assert refused.value.param == "allowed_token_ids"


async def test_a_stop_string_ends_an_answer_across_chunks(demo: Front) -> None:
    whole = (await complete(demo, "far", temperature=0, max_tokens=30)).choices[0].text
    stop = whole[20:26]
    for model in ("far", "text", "far-positive"):
        answer = await complete(demo, model, temperature=0, max_tokens=30, stop=stop)
        assert answer.choices[0].text == whole[: whole.index(stop)]
        assert answer.choices[0].finish_reason == "stop"


async def test_what_does_not_fit_the_context_is_refused_here(demo: Front) -> None:
    """vLLM would silently draw fewer tokens."""
    for changes in ({"prompt": "film " * 2 * CONTEXT_LENGTH}, {"max_tokens": CONTEXT_LENGTH}):
        with pytest.raises(openai.BadRequestError, match=f"maximum context length is {CONTEXT_LENGTH} tokens") as long:
            await complete(demo, "far-positive", **changes)
        assert long.value.code == "context_length_exceeded"


async def test_a_client_that_leaves_ends_the_calls_at_vllm(demo: Front, vllm: Server) -> None:
    stream = await complete(demo, "far-positive", max_tokens=500, stream=True, extra_body={"guidance": WIDE})
    async for _ in stream:
        break
    await stream.close()
    async with asyncio.timeout(_PATIENCE_S), httpx.AsyncClient(base_url=vllm.url) as client:
        while await requests_at(client):
            await asyncio.sleep(0.1)
    assert demo.engine.admission.rows_running == 0


async def requests_at(vllm: httpx.AsyncClient) -> float:
    """Running or waiting."""
    lines = (await vllm.get("/metrics")).text.splitlines()
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting{")
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(names))


async def test_long_calls_are_streamed(demo: Front) -> None:
    """So the other tests with answers of more than eight tokens merge vLLM's events."""
    for model in ("far", "text"):
        assert demo.engine._planner.large_models[model]._probe.capabilities.streams  # type: ignore[attr-defined]
