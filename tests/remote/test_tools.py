"""Tools and structured output with a remote large model, over HTTP: what is sent, and what is made of the responses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes import FakeScorer
from tests.remote.fake_provider import FakeProvider
from tests.server.conftest import loaded
from tests.tiny import byte_tokenizer
from w2s_core.config import ServedModelConfig
from w2s_core.engine.engine import Engine
from w2s_core.large.capabilities import probe_large_model
from w2s_core.large.remote import RemoteLargeModel
from w2s_core.remote.capability_probe import CapabilityProbe
from w2s_core.structured.tool_formats import resolve_tool_format
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Guidance, Tokens

TEMPLATE = (
    "{% for t in tools or [] %}<tool_call>{{ t.function.name }};{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
)
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "tools": [TOOL], "max_tokens": 120}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
CBS = Guidance("cbs", {"likes-a": 1.0}, beam_width=2, successors=2, chunk_length=7)
BEST = {"method": "best_of_n", "successors": 2}
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HFTokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer(TEMPLATE).save_pretrained(folder)
    return HFTokenizer(str(folder))


def saying(tokenizer: HFTokenizer, text: str, flavor: str) -> FakeProvider:
    """A provider whose model says just this, and then ends."""
    tokens = tokenizer.encode(text, special_tokens=False)
    opening = tokenizer.encode("<assistant>", special_tokens=False)

    def after(context: Tokens) -> Mapping[int, float]:
        begins = [i for i in range(len(context) + 1) if context[max(0, i - len(opening)) : i] == opening]
        said = len(context) - max(begins, default=0)  # the probe at the start is no conversation
        assert tokenizer.eos is not None
        return {tokens[said] if said < len(tokens) else tokenizer.eos: 1.0}

    return FakeProvider(tokenizer, after, flavor=flavor)


@asynccontextmanager
async def client_of(provider: FakeProvider) -> AsyncIterator[httpx.AsyncClient]:
    tokenizer = provider.tokenizer
    probe: Any = CapabilityProbe(
        provider, partial(probe_large_model, provider, provider.config, tokenizer, "large_models.far")
    )  # type: ignore[arg-type]
    large = RemoteLargeModel(provider, tokenizer, probe, resolve_tool_format("auto", tokenizer.chat_template))  # type: ignore[arg-type]
    served = {"plain": ServedModelConfig("far"), "guided": ServedModelConfig("far", CBS)}
    engine = Engine({"far": large}, {"likes-a": FakeScorer()}, served, components=[probe])
    async with loaded(engine) as app:  # type: ignore[arg-type]
        provider.calls.clear()
        transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://here", timeout=60) as client:
            yield client


async def ask(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/chat/completions", json=ASK | body)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def called(message: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in message["tool_calls"]]


@pytest.mark.parametrize("flavor", ["vllm", "openai"])
@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_calls_are_read_out_of_what_a_provider_draws(tokenizer: HFTokenizer, model: str, flavor: str) -> None:
    provider = saying(tokenizer, "Let me see.\n" + CALL, flavor)
    async with client_of(provider) as client:
        choice = await ask(client, model=model)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    assert called(choice["message"]) == [("weather", {"city": "Zürich"})]
    prompt = provider.calls[0]["prompt"]
    assert (prompt if isinstance(prompt, str) else tokenizer.decode(prompt)).startswith("<tool_call>weather;<user>Hi")


@pytest.mark.parametrize("flavor", ["vllm", "openai"])
@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_streamed_as_well(tokenizer: HFTokenizer, model: str, flavor: str) -> None:
    async with client_of(saying(tokenizer, CALL, flavor)) as client:
        response = await client.post("/v1/chat/completions", json=ASK | {"model": model, "stream": True})
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    functions = [call["function"] for delta in deltas for call in delta.get("tool_calls", [])]
    assert [function["name"] for function in functions if "name" in function] == ["weather"]
    assert json.loads("".join(function["arguments"] for function in functions)) == {"city": "Zürich"}


@pytest.mark.parametrize("choice", ["required", NAMED])
@pytest.mark.parametrize("how", [{"model": "plain"}, {"model": "guided", "guidance": BEST}])
async def test_a_call_that_must_be_is_the_providers_grammar(
    tokenizer: HFTokenizer, choice: Any, how: dict[str, Any]
) -> None:
    provider = saying(tokenizer, CALL, "vllm")
    async with client_of(provider) as client:
        answer = await ask(client, tool_choice=choice, **how)
    assert called(answer["message"]) == [("weather", {"city": "Zürich"})]
    [call] = provider.calls
    grammar = call["structured_outputs"]["grammar"]
    assert grammar.startswith("start:")
    assert '"city"' in grammar


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("tool_choice", {"tool_choice": "required"}),
        ("response_format", {"response_format": {"type": "json_object"}, "tools": None}),
    ],
)
async def test_what_must_be_so_cannot_be_searched_chunk_by_chunk(
    tokenizer: HFTokenizer, field: str, asked: dict[str, Any]
) -> None:
    """Nor, at a provider that speaks text alone, be had at all."""
    for flavor, model in (("vllm", "guided"), ("openai", "plain")):
        provider = saying(tokenizer, CALL, flavor)
        async with client_of(provider) as client:
            response = await client.post("/v1/chat/completions", json=ASK | {"model": model} | asked)
        assert response.status_code == 400
        assert response.json()["error"]["param"].startswith(field)
        assert not provider.calls
