"""A reasoning model on a real worker and behind another instance: thoughts, then grammars, calls and the search."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.remote.test_second_instance import _nothing, http_client
from tests.server.conftest import loaded, uvicorn_server
from tests.tiny import END_THINK, TEMPLATE, save_tiny
from w2s_core.build.engine import build_engine
from w2s_core.config import (
    EngineConfig,
    LargeModelConfig,
    PairConfig,
    RemoteLargeModelConfig,
    ServedModelConfig,
    WorkersConfig,
)
from w2s_core.types import Guidance

pytestmark = pytest.mark.asyncio(loop_scope="session")

WORKERS = WorkersConfig(devices=("cpu",), threads=1, dtype="float32")
GUIDED = Guidance("cbs", {"pair": 1.0}, beam_width=2, successors=2, chunk_length=4)
WRITABLE = {str(ord(c) - 33): 90 for c in "abcdefgh"} | {str(END_THINK): 90}  # letters and the end of thoughts
GREEDY: dict[str, Any] = {
    "temperature": 0,
    "logit_bias": WRITABLE,
    "messages": [{"role": "user", "content": "Yes"}],  # which thinks long, and then answers
}
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 60, "seed": 1}
PET = {"type": "object", "properties": {"kind": {"enum": ["cat", "dog"]}}, "required": ["kind"]}
MODELS = pytest.mark.parametrize("model", ["local", "local-guided", "ids", "ids-guided", "text", "text-guided"])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """Of an instance with one reasoning model: in its worker, and behind another instance, by ids and by text."""
    root = tmp_path_factory.mktemp("thinker")
    template = "{% if tools %}tools{% endif %}" + TEMPLATE + "<think>"
    large, tuned, untuned = (
        save_tiny(root / name, seed=seed, template=template, thinks=True)
        for seed, name in enumerate(("large", "tuned", "untuned"))
    )
    provider = EngineConfig({"m": LargeModelConfig(str(large))}, {"m": ServedModelConfig("m")}, workers=WORKERS)
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(loaded(build_engine(provider)))  # type: ignore[arg-type]
        behind.router.lifespan_context = _nothing  # type: ignore[attr-defined]  # it has begun
        url, _ = await stack.enter_async_context(uvicorn_server(behind))
        engine = build_engine(_config(url, large, tuned, untuned))
        yield await stack.enter_async_context(http_client(engine))


def _config(url: str, large: Path, tuned: Path, untuned: Path) -> EngineConfig:
    config: dict[str, Any] = {
        "base_url": f"{url}/v1",
        "model": "m",
        "tokenizer": str(large),
        "reasoning_format": "qwen3",
    }
    models: dict[str, Any] = {
        "local": LargeModelConfig(str(large), tool_format="hermes", reasoning_format="qwen3"),
        "ids": RemoteLargeModelConfig(**config, flavor="vllm", tool_format="hermes"),
        "text": RemoteLargeModelConfig(**config, flavor="openai", tool_format="hermes"),
    }
    served = {name: ServedModelConfig(name) for name in models}
    served |= {f"{name}-guided": ServedModelConfig(name, GUIDED) for name in models}
    return EngineConfig(models, served, {"pair": PairConfig(str(tuned), str(untuned), prompt_template="")}, WORKERS)


async def ask(client: httpx.AsyncClient, model: str, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/chat/completions", json={"model": model, **ASK, **body})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


@MODELS
async def test_thoughts_and_answer_wherever_the_model_runs(client: httpx.AsyncClient, model: str) -> None:
    found, local = await ask(client, model, **GREEDY), await ask(client, "local", **GREEDY)
    message, expected = found["choices"][0]["message"], local["choices"][0]["message"]
    assert message["reasoning_content"]
    assert message["content"]
    assert (message["reasoning_content"], message["content"]) == (expected["reasoning_content"], expected["content"])
    for usage in (found["usage"], local["usage"]):
        del usage["prompt_tokens_details"]  # the provider's cache is not ours
    assert found["usage"] == local["usage"]
    assert found["usage"]["completion_tokens"] == 60


@pytest.mark.parametrize("model", ["local", "local-guided", "ids"])
async def test_a_grammar_holds_behind_thoughts(client: httpx.AsyncClient, model: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "pet", "schema": PET, "strict": True}}
    bias = {str(END_THINK): 3}
    for seed in range(3):
        answer = await ask(client, model, response_format=form, logit_bias=bias, seed=seed, max_tokens=300)
        [choice] = answer["choices"]
        assert json.loads(choice["message"]["content"])["kind"] in ("cat", "dog")
        assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


@pytest.mark.parametrize("model", ["local", "local-guided"])
async def test_a_call_is_required_behind_thoughts(client: httpx.AsyncClient, model: str) -> None:
    tool = {"type": "function", "function": {"name": "pet", "parameters": PET | {"additionalProperties": False}}}
    body = {
        "tools": [tool],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "logit_bias": {str(END_THINK): 3},
        "max_tokens": 300,
    }
    [choice] = (await ask(client, model, **body))["choices"]
    [call] = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"])["kind"] in ("cat", "dog")
    assert choice["message"]["reasoning_content"]


@pytest.mark.parametrize("model", ["local", "local-guided", "ids-guided"])
async def test_stop_strings_hold_behind_thoughts(client: httpx.AsyncClient, model: str) -> None:
    whole = (await ask(client, model, **GREEDY))["choices"][0]["message"]
    stop = whole["content"][3]
    assert stop in whole["reasoning_content"]
    [choice] = (await ask(client, model, **GREEDY, stop=stop))["choices"]
    assert choice["message"]["reasoning_content"] == whole["reasoning_content"]
    assert choice["message"]["content"] == whole["content"].split(stop)[0]
    assert choice["finish_reason"] == "stop"


async def test_a_plain_answer_is_the_one_behind_its_thoughts(client: httpx.AsyncClient) -> None:
    """Greedy, thoughts and answer are the text that the same model writes without a reasoning format."""
    shown = {"logprobs": True, "return_token_ids": True}
    whole = (await ask(client, "local", **GREEDY, **shown))["choices"][0]
    greedy = {**GREEDY, **shown, "logprobs": 0}
    del greedy["messages"]
    prompt = "<user>Yes\n<assistant><think>"
    body = {"model": "local", "prompt": prompt, "max_tokens": 60, "add_special_tokens": False, **greedy}
    raw = (await client.post("/v1/completions", json=body)).json()["choices"][0]
    assert whole["token_ids"] == raw["token_ids"]
    logprobs = [entry["logprob"] for entry in whole["logprobs"]["content"]]
    assert logprobs == pytest.approx(raw["logprobs"]["token_logprobs"], abs=1e-4)


async def test_a_search_of_both_is_scored_as_one_text(client: httpx.AsyncClient) -> None:
    [choice] = (await ask(client, "local-guided", guidance={"thoughts": True}, logit_bias=WRITABLE))["choices"]
    message = choice["message"]
    raw = f"{message['reasoning_content']}</think>{message['content']}"
    scored = {"model": "local-guided", "prompt": raw, "echo": True, "max_tokens": 0, "add_special_tokens": False}
    [text] = (await client.post("/v1/completions", json=scored)).json()["choices"]
    assert text["guidance"]["score"] == pytest.approx(choice["guidance"]["score"], abs=1e-3)
