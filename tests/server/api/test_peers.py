"""What clients of OpenAI and vLLM look for: found by running the API suites of vLLM and llama.cpp on the server."""

from __future__ import annotations

import re
from typing import Any

import pytest

from server.app import VERSION, create_app
from server.engine_host import EngineHost
from server.settings.config import ServerConfig, load_settings
from tests.fakes import fake_engine
from tests.server.api.test_answers import CHAT, COMPLETIONS, chunks, whole
from tests.server.api.test_requests import BOTH, Asker
from tests.server.api.test_requests import ask as ask  # noqa: PLC0414  (a fixture)
from tests.server.conftest import Connect
from tests.server.fake_engine import FakeEngine, hypothesis
from w2s_core.engine.events import ChoiceFinished, RequestFinished

PATHS = pytest.mark.parametrize("path", [COMPLETIONS, CHAT])


@pytest.mark.parametrize("tools", [{}, {"tools": None}, {"tools": []}])
async def test_a_choice_of_tools_needs_tools(ask: Asker, tools: dict[str, Any]) -> None:
    for choice in ("auto", "required"):
        assert await ask.refused("chat", tool_choice=choice, **tools) == "tool_choice"
    await ask.asked("chat", tool_choice="none", **tools)


@PATHS
async def test_usage_in_every_chunk_needs_usage_at_all(connect: Connect, path: str) -> None:
    options = {"include_usage": False, "continuous_usage_stats": True}
    assert all("usage" not in chunk for chunk in await chunks(await connect(), path, stream_options=options))


@PATHS
@pytest.mark.parametrize("obfuscated", [True, False, None])
async def test_obfuscation_may_be_asked_for(connect: Connect, path: str, obfuscated: bool | None) -> None:
    options = {"include_obfuscation": obfuscated}
    plain = await chunks(await connect(), path)
    streamed = await chunks(await connect(), path, stream_options=options)
    assert [chunk["choices"] for chunk in streamed] == [chunk["choices"] for chunk in plain]


@PATHS
async def test_usage_says_how_much_of_the_prompt_was_cached(connect: Connect, path: str) -> None:
    script = [ChoiceFinished(0, hypothesis("x"), False), RequestFinished(9, 1, None, cached_tokens=7)]
    client = await connect(FakeEngine(script))
    expected = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    expected |= {"prompt_tokens_details": {"cached_tokens": 7}}  # type: ignore[dict-item]
    assert (await whole(client, path))["usage"] == expected
    *_, last = await chunks(client, path, stream_options={"include_usage": True})
    assert last["usage"] == expected


async def test_vllms_fields_are_null_where_they_were_not_asked_for(connect: Connect) -> None:
    client = await connect()
    chat = await whole(client, CHAT)
    assert (chat["prompt_logprobs"], chat["prompt_token_ids"]) == (None, None)
    [choice] = (await whole(client, COMPLETIONS))["choices"]
    assert (choice["prompt_logprobs"], choice["prompt_token_ids"]) == (None, None)


@PATHS
async def test_the_fingerprint_names_the_build(connect: Connect, path: str) -> None:
    client = await connect()
    answer = await whole(client, path)
    assert answer["system_fingerprint"] == f"w2s-{VERSION}"
    assert {chunk["system_fingerprint"] for chunk in await chunks(client, path)} == {f"w2s-{VERSION}"}


def test_the_fingerprint_names_the_configuration() -> None:
    """What can change an answer changes it, and the rest of the configuration does not."""

    def fingerprint(**flags: Any) -> str:
        return load_settings(flags=flags).fingerprint

    plain = fingerprint()
    assert re.fullmatch("[0-9a-f]{8}", plain)
    assert fingerprint(server={"port": 9000, "api_keys": "secret"}) == plain
    assert fingerprint(workers={"dtype": "bfloat16"}) != plain
    guidance = {"pairs": {"positive": 2.0}}
    assert fingerprint(served_models={"smollm2-positive": {"large": "smollm2", "guidance": guidance}}) != plain
    app = create_app(EngineHost(fake_engine), ServerConfig(), plain)
    assert app.state.system_fingerprint == f"w2s-{VERSION}-{plain}"


@BOTH
async def test_all_ids_that_do_not_exist_are_named(connect: Connect, endpoint: str) -> None:
    asker = Asker(await connect(fake_engine()), FakeEngine())
    response = await asker.post(endpoint, logit_bias={"5": 1, "900": 1, "1000": -1})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "logit_bias"
    assert "900" in error["message"]
    assert "1000" in error["message"]
    assert "256" in error["message"], "the largest id"
    many = {str(token): 1 for token in range(1000, 3000)}
    message = (await asker.post(endpoint, logit_bias=many)).json()["error"]["message"]
    assert "1,990 more" in message
    assert len(message) < 300


@pytest.mark.parametrize("header", ["x-api-key", "X-Api-Key"])
async def test_a_key_may_come_as_load_balancers_send_it(connect: Connect, header: str) -> None:
    client = await connect(config=ServerConfig(api_keys=("one", "two")))
    assert (await client.get("/v1/models", headers={header: "two"})).status_code == 200
    assert (await client.get("/v1/models", headers={header: "three"})).status_code == 401
    assert (await client.get("/v1/models", headers={header: ""})).status_code == 401
    both = {header: "one", "authorization": "Bearer wrong"}
    assert (await client.get("/v1/models", headers=both)).status_code == 401, "the standard header counts"
    both = {header: "wrong", "authorization": "Bearer one"}
    assert (await client.get("/v1/models", headers=both)).status_code == 200


async def test_what_vllm_has_and_we_refuse_is_refused_by_name(ask: Asker) -> None:
    assert await ask.refused("chat", echo=True) == "echo"
    assert await ask.refused("chat", structured_outputs={"structural_tag": "x"}) == "structured_outputs.structural_tag"
    assert await ask.refused("chat", response_format={"type": "structural_tag"}) == "response_format"
