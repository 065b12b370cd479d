"""Whatever a provider sends, a call ends in a right answer or one of this package's errors, and so does the next."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.remote.fake_provider import FakeProvider, events_of, words
from tests.remote.odd_answers import BODIES, HEADERS, STATUSES, TAMPERING, Tamper, nothing, provider_of
from w2s_core.config import RemoteLargeModelConfig
from w2s_core.errors import W2SError
from w2s_core.large.capabilities import LargeModelCapabilities, probe_large_model
from w2s_core.large.remote import RemoteLargeModel
from w2s_core.remote.capability_probe import CapabilityProbe
from w2s_core.remote.prompt_logprobs import LOGPROB_METHODS, LogprobMethod
from w2s_core.remote.provider import Provider
from w2s_core.scorers.pair_model import PairModel
from w2s_core.scorers.remote import PairCapabilities, RemotePairModel, RemoteScorer, probe_pair_model
from w2s_core.search.randomness import root_key
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Hypothesis, SamplingParams, TextPrompt

CONFIG = RemoteLargeModelConfig(base_url="http://far/v1", model="remote-model")
SAMPLING = SamplingParams(max_tokens=30, logprobs=2, stop=("ab",))
EXAMPLES = settings(max_examples=150)


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    """The result of `work`; None where it fails with an error of this package, which can be shown."""

    async def attempt() -> Any:
        try:
            return await work()
        except W2SError as error:
            return error

    result = asyncio.run(attempt())
    if isinstance(result, W2SError):
        str(result).encode()
        assert "sk-secret" not in str(result)
        return None
    return result


@settings(max_examples=400)
@given(status=STATUSES, headers=HEADERS, body=BODIES, streamed=st.booleans())
def test_any_response(status: int, headers: list[tuple[bytes, bytes]], body: bytes, streamed: bool) -> None:
    responses = [
        httpx.Response(status, headers=headers, stream=httpx.ByteStream(body)),
        httpx.Response(200, json={"choices": []}),
    ]

    async def call() -> Any:
        provider = await provider_of(lambda _: responses.pop(0))

        async def once() -> Any:
            if streamed:
                return await provider.stream("/completions", {}, Events)
            return await provider.post("/completions", {})

        with suppress(W2SError):
            await once()
        result = await once()  # the next call is none the worse
        await provider.stop()
        return result

    assert run(call) is not None


class Events(list[Any]):
    feed = list.append


def tampered(fake: FakeProvider, tamper: Tamper) -> Callable[[httpx.Request], Awaitable[httpx.Response]]:
    """Answers as `fake` does, tampered with; of a stream the list of its events."""

    async def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, content=json.dumps(tamper(await fake.get("/models"))))
        body = json.loads(request.content)
        answer = await fake.post("/completions", body)
        if not body.get("stream"):
            return httpx.Response(200, content=json.dumps(tamper(answer)))
        events = tamper(events_of(answer))
        data = [json.dumps(event) for event in (events if isinstance(events, list) else [events])]
        lines = "".join(f"data: {line}\n\n" for line in [*data, "[DONE]"])
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=lines)

    return handle  # type: ignore[return-value]


@EXAMPLES
@given(
    tamper=TAMPERING, flavor=st.sampled_from(["vllm", "openai"]), length=st.sampled_from([3, 20]), n=st.integers(1, 3)
)
def test_any_completion(tokenizer: HFTokenizer, tamper: Tamper, flavor: Any, length: int, n: int) -> None:
    """Short and long ones, which are streamed."""
    fake = FakeProvider(tokenizer, words(tokenizer, eos=0.1), flavor=flavor)
    fake.spoil = add_alternatives
    capabilities = LargeModelCapabilities(500, token_ids=flavor == "vllm", streams=True)

    async def draw() -> Any:
        provider = await provider_of(tampered(fake, tamper))  # type: ignore[arg-type]
        model = RemoteLargeModel(provider, tokenizer, known(provider, capabilities))
        async with model.open(model.encode(TextPrompt("Say")), SAMPLING, rows=n) as proposals:
            beam = [Hypothesis(key=root_key(1))]
            for _ in range(2):
                beam = await proposals.propose([y for y in beam if not y.finished] or beam[:1], k=n, length=length)
                check_drawn(model, beam)
            last = beam[0]
            if not last.finished:
                async for longer in proposals.grow(last, length=9):
                    check_drawn(model, [longer])
            assert 0 <= proposals.sampled_tokens < 2**40
        await provider.stop()
        return last

    found = run(draw)
    assert found is not None or tamper is not nothing


def add_alternatives(answer: dict[str, Any]) -> None:
    for choice in answer["choices"]:
        names = [f"token_id:{token}" for token in choice.get("token_ids", ())] or choice["logprobs"]["tokens"]
        choice["logprobs"]["top_logprobs"] = [{name: -1.0, "token_id:7": -2.0} for name in names]


def known(provider: Provider, capabilities: Any) -> CapabilityProbe[Any]:
    """A probe that has found these."""

    async def find() -> Any:
        return capabilities

    probe: CapabilityProbe[Any] = CapabilityProbe(provider, find)
    probe._capabilities = capabilities
    return probe


def check_drawn(model: RemoteLargeModel, hypotheses: Sequence[Hypothesis]) -> None:
    """Everything that the engine makes of a hypothesis can be made of these."""
    for y in hypotheses:
        assert model.decoder.decode(y.tokens).startswith(y.text) or y.finish_reason
        y.text.encode()
        assert len(y.tokens) <= len(y.logprobs) <= y.length
        assert all(-9999 <= value <= 0 for value in y.logprobs)
        assert len(y.alternatives) == len(y.logprobs)
        for token, value in [pair for place in y.alternatives for pair in place]:
            assert -9999 <= value <= 0
            (model.decoder.token_text(token).text or "").encode()
        for token in y.tokens:
            (model.decoder.token_text(token).text or "").encode()


@EXAMPLES
@given(tamper=TAMPERING, flavor=st.sampled_from(["auto", "openai"]), method=st.sampled_from(["vllm", "openai"]))
def test_any_answer_to_a_probe(tokenizer: HFTokenizer, tamper: Tamper, flavor: Any, method: Any) -> None:
    fake = FakeProvider(tokenizer, words(tokenizer), flavor=method)
    config = RemoteLargeModelConfig(base_url="http://far/v1", model="remote-model", flavor=flavor)

    async def probe() -> Any:
        provider = await provider_of(tampered(fake, tamper))  # type: ignore[arg-type]
        found = [await probe_large_model(provider, config, tokenizer, "large_models.far")]
        found.append(await probe_pair_model(provider, config, tokenizer, "pairs.x.tuned"))  # type: ignore[arg-type]
        await provider.stop()
        return found

    found = run(probe)
    if found is not None:
        assert found[0].context_length > 0
    assert found is not None or tamper is not nothing


@EXAMPLES
@given(tamper=TAMPERING, method=st.sampled_from(LOGPROB_METHODS), in_ids=st.booleans())
def test_any_score(tokenizer: HFTokenizer, tamper: Tamper, method: LogprobMethod, in_ids: bool) -> None:
    fake = FakeProvider(tokenizer, words(tokenizer, tuple("Sayb☃")))

    async def score() -> Any:
        models = []
        for _ in range(2):
            provider = await provider_of(tampered(fake, tamper))  # type: ignore[arg-type]
            encoder = PairModel("far", tokenizer, shares_tokens=False) if in_ids else None
            models.append(RemotePairModel(provider, encoder, known(provider, PairCapabilities(method, 500))))
        async with RemoteScorer(*models, None).open(TextPrompt("Say")) as scoring:
            scores = await scoring.score(
                [Hypothesis(text="ab☃"), Hypothesis(text="a", ended=True, finish_reason="stop")]
            )
            assert scoring.scored_tokens >= 0
        for model in models:
            await model.provider.stop()
        return scores

    scores = run(score)
    if scores is not None:
        assert all(math.isfinite(found.total) for found in scores)
