"""The real engine over fake models through HTTP: faults that only the two together can have."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import httpx
import pytest

from tests.fakes import DEFAULT_GUIDANCE, FakeLargeModel, FakeScorer, fake_engine, letters
from tests.server.conftest import Connect, Serve
from w2s_core.config import Limits, ServedModelConfig
from w2s_core.engine import planning
from w2s_core.engine.engine import Engine
from w2s_core.types import SamplingParams

PATH = "/v1/completions"


async def post(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post(PATH, json={"model": "plain", "prompt": "x", **body})


@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_the_same_seed_gives_the_same_alone_and_among_others(connect: Connect, model: str) -> None:
    client = await connect(fake_engine(FakeLargeModel(letters(eos=0.02))))
    alone = (await post(client, model=model, seed=5, max_tokens=30)).json()["choices"][0]["text"]
    crowd = await asyncio.gather(*(post(client, model=model, seed=seed, max_tokens=30) for seed in range(9)))
    assert crowd[5].json()["choices"][0]["text"] == alone
    assert len({response.json()["choices"][0]["text"] for response in crowd}) > 1


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_defaults_hold_for_every_kind_of_request(connect: Connect, path: str, model: str) -> None:
    """The model's file makes it greedy, the served model stops it after 20 tokens, and the request says otherwise."""
    large = FakeLargeModel(letters(eos=0.0))
    large.default_sampling = SamplingParams(temperature=0, max_tokens=9)
    served = {
        "plain": ServedModelConfig("large", sampling={"max_tokens": 20}),
        "guided": ServedModelConfig("large", DEFAULT_GUIDANCE, {"max_tokens": 20}),
    }
    client = await connect(Engine({"large": large}, {"positive": FakeScorer()}, served))

    async def ask(**changes: Any) -> list[str]:
        body = {"model": model, "messages": [{"role": "user", "content": "x"}], "prompt": "x", **changes}
        del body["prompt" if "chat" in path else "messages"]
        response = await client.post(path, json=body)
        return [choice.get("text") or choice["message"]["content"] for choice in response.json()["choices"]]

    assert await ask() == ["a" * 20]
    assert await ask(max_tokens=None, temperature=None) == ["a" * 20]
    assert await ask(max_tokens=5) == ["a" * 5]
    if "chat" not in path:
        assert await ask(best_of=2) == ["a" * 20]
    [drawn] = await ask(temperature=1, seed=1)
    assert set(drawn) != {"a"}


async def test_guided_text_is_streamed_before_the_end(connect: Connect) -> None:
    client = await connect(fake_engine(FakeLargeModel(letters(eos=0.0))))
    guidance = {"beam_width": 4, "successors": 4, "chunk_length": 5}
    ask = {"model": "guided", "seed": 2, "max_tokens": 64, "guidance": guidance}
    whole = (await post(client, **ask)).json()["choices"][0]["text"]
    response = await post(client, **ask, stream=True)
    frames = [json.loads(frame.removeprefix("data: ")) for frame in response.text.split("\n\n")[:-2]]
    texts = [choice["text"] for frame in frames for choice in frame["choices"]]
    assert "".join(texts) == whole
    assert sum(map(bool, texts)) > 1


@pytest.mark.parametrize("stream", [True, False])
async def test_a_long_trace_ends_early_and_says_so(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """Its chunks are whole, and each of several prompts has an equal share."""
    monkeypatch.setattr(planning, "MAX_TREE_CHARACTERS", 2 * 4 * (200 + 3 + 200 + 6))
    client = await connect(fake_engine(FakeLargeModel(letters(eos=0.0))))
    reports = []
    for max_tokens in (6, 7):
        ask = {"model": "guided", "seed": 2, "max_tokens": max_tokens, "guidance": {"trace": True}, "stream": stream}
        response = await post(client, **ask, prompt=["x", "y"])
        text = response.text.split("data: ")[-2] if stream else response.text
        reports.append(json.loads(text)["guidance"])
    assert [report["chunks"] for report in reports] == [4, 6]
    assert [[len(prompt) for prompt in report["tree"]] for report in reports] == [[2, 2], [2, 2]]
    assert [report.get("tree_truncated") for report in reports] == [None, True]


async def test_running_usage_grows_to_the_total(connect: Connect) -> None:
    client = await connect(fake_engine(FakeLargeModel(letters(eos=0.0))))
    options = {"include_usage": True, "continuous_usage_stats": True}
    response = await post(client, stream=True, stream_options=options, max_tokens=20)
    usages = [json.loads(frame.removeprefix("data: "))["usage"] for frame in response.text.split("\n\n")[:-2]]
    counts = [usage["completion_tokens"] for usage in usages]
    assert counts == sorted(counts)
    assert counts[0] > 0
    assert counts[-1] == 20
    assert len({usage["prompt_tokens"] for usage in usages}) == 1


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"max_tokens": 1000}, 400, "prompt", "context_length_exceeded"),
        ({"model": "guided", "n": 3}, 400, "n", None),
        ({"best_of": 2, "n": 3}, 400, "best_of", None),
        ({"guidance": {"pairs": {"nobody": 1}}}, 400, "guidance.pairs", None),
        ({"guidance": {"beam_width": 2}}, 400, "guidance.pairs", None),  # a plain model has none of its own
        ({"guidance": {"beam_width": 2}, "best_of": 4}, 400, "guidance.pairs", None),
        ({"model": "guided", "guidance": {"pairs": {}}}, 400, "guidance.pairs", None),
        ({"guidance": {"pairs": {"positive": 1}, "beam_width": 65}}, 400, "guidance", None),
    ],
)
async def test_what_the_engine_refuses(
    connect: Connect, body: dict[str, Any], status: int, param: str, code: str | None
) -> None:
    client = await connect(fake_engine())
    response = await post(client, **body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["param"].startswith(param)
    assert error["code"] == code


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_a_client_that_leaves_frees_its_rows(serve: Serve, model: str, stream: bool) -> None:
    reached, freed = asyncio.Event(), asyncio.Event()

    async def gate() -> None:
        reached.set()
        try:
            await asyncio.Event().wait()
        finally:
            freed.set()

    large = FakeLargeModel(gate=gate)
    engine = fake_engine(large)
    async with httpx.AsyncClient(base_url=await serve(engine)) as client:
        asking = asyncio.create_task(post(client, model=model, stream=stream))
        await asyncio.wait_for(reached.wait(), 60)
        assert engine.admission.rows_running > 0
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.wait_for(freed.wait(), 60)
        await post(client, model="nobody")  # a whole round trip later at the latest
    assert engine.admission.rows_running == 0
    assert large.open_sessions == 0


async def test_a_full_queue_is_429(serve: Serve) -> None:
    reached = asyncio.Event()

    async def gate() -> None:
        reached.set()
        await asyncio.Event().wait()

    engine = fake_engine(FakeLargeModel(gate=gate), limits=Limits(max_rows=1, max_queued_rows=0))
    async with httpx.AsyncClient(base_url=await serve(engine)) as client:
        running = asyncio.create_task(post(client))
        await asyncio.wait_for(reached.wait(), 60)
        refused = await post(client)
        running.cancel()
    assert refused.status_code == 429
    assert refused.headers["retry-after"]
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
async def test_a_pair_whose_score_is_no_number_is_a_500_that_names_it(connect: Connect, value: float) -> None:
    engine = fake_engine(scorers={"positive": FakeScorer(lambda text, ended: value if "b" in text else 0.0)})
    response = await post(await connect(engine), model="guided", seed=1)
    assert response.status_code == 500
    assert "score of `positive`" in response.json()["error"]["message"]
    assert engine.admission.rows_running == 0


async def test_a_deadline_is_504(connect: Connect) -> None:
    async def gate() -> None:
        await asyncio.Event().wait()

    client = await connect(fake_engine(FakeLargeModel(gate=gate), limits=Limits(request_timeout_s=0.01)))
    response = await post(client)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "timeout"
