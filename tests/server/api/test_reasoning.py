"""Reasoning over HTTP: `reasoning_content` apart from `content`, whole and streamed, beside tools and usage."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes import FakeLargeModel, fake_engine
from tests.server.api.test_tools import CALL, MESSAGES, NOW, TOOL, called, saying
from tests.server.conftest import Connect

THOUGHTS = "I could call\n<tool_call>\n" + CALL + "\n</tool_call>\nbut why?"


def thinking(answer: str) -> FakeLargeModel:
    """A fake model that thinks, and thereby quotes a tool call, before it answers."""
    data = f"<think>\n{THOUGHTS}\n</think>\n\n{answer}"
    large = saying(data)
    inner = large.distribution

    def distribution(prompt: Any, drawn: Any) -> Any:
        text = bytes(prompt).decode()
        _, mark, begun = text.partition("<think>")
        return inner((), tuple((mark + begun).encode()) + drawn)

    large.distribution = distribution
    large.reasoning_format = "qwen3"
    return large


async def chat(connect: Connect, large: FakeLargeModel, **body: Any) -> dict[str, Any]:
    client = await connect(fake_engine(large))
    response = await client.post("/v1/chat/completions", json={"model": "plain", "messages": MESSAGES, **body})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def stream(connect: Connect, large: FakeLargeModel, **body: Any) -> list[dict[str, Any]]:
    client = await connect(fake_engine(large))
    asked = {"model": "plain", "messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}, **body}
    response = await client.post("/v1/chat/completions", json=asked)
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize("model", ["plain", "guided"])
@pytest.mark.parametrize("tools", [None, [TOOL, NOW]])
async def test_thoughts_have_a_field_of_their_own(connect: Connect, model: str, tools: list[Any] | None) -> None:
    body = {"model": model} | ({"tools": tools} if tools else {})
    whole = await chat(connect, thinking("Yes."), **body)
    message = whole["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (THOUGHTS, "Yes.")
    assert "tool_calls" not in message, "a call in thoughts is not made"
    thoughts = len(f"<think>\n{THOUGHTS}\n</think>\n\n".encode())
    assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": thoughts}
    assert whole["usage"]["completion_tokens"] == thoughts + len("Yes.") + 1
    *chunks, last = await stream(connect, thinking("Yes."), **body)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == THOUGHTS
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes."
    kinds = [next((key for key in ("reasoning_content", "content") if delta.get(key)), None) for delta in deltas]
    assert kinds == sorted(kinds, key=[None, "reasoning_content", "content"].index) or kinds[-1] is None
    assert last["usage"] == {**whole["usage"], "prompt_tokens_details": last["usage"]["prompt_tokens_details"]}


async def test_tools_are_called_behind_thoughts(connect: Connect) -> None:
    whole = await chat(connect, thinking(f"<tool_call>\n{CALL}\n</tool_call>"), tools=[TOOL, NOW])
    [choice] = whole["choices"]
    assert choice["message"]["reasoning_content"] == THOUGHTS
    assert called(choice["message"]) == [("weather", {"city": "Zürich"})]
    assert choice["finish_reason"] == "tool_calls"


async def test_logprobs_and_token_ids_cover_thoughts_and_answer(connect: Connect) -> None:
    body = {"logprobs": True, "return_token_ids": True}
    [choice] = (await chat(connect, thinking("Yes."), **body))["choices"]
    raw = f"<think>\n{THOUGHTS}\n</think>\n\nYes.".encode()
    assert bytes(choice["token_ids"][:-1]) == raw
    assert bytes(byte for entry in choice["logprobs"]["content"][:-1] for byte in entry["bytes"]) == raw
    chunks = [chunk["choices"][0] for chunk in await stream(connect, thinking("Yes."), **body) if chunk["choices"]]
    assert [token for chunk in chunks for token in chunk.get("token_ids", [])] == choice["token_ids"]


async def test_an_answer_cut_inside_its_thoughts(connect: Connect) -> None:
    [choice] = (await chat(connect, thinking("Yes."), max_tokens=20))["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == ""
    assert choice["message"]["reasoning_content"] == "I could call"


async def test_a_reasoning_model_that_has_not_thought(connect: Connect) -> None:
    large = saying("Yes.")
    large.reasoning_format = "qwen3"
    whole = await chat(connect, large)
    assert whole["choices"][0]["message"]["reasoning_content"] is None
    assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}
    other = await chat(connect, saying("Yes."))
    assert "reasoning_content" not in other["choices"][0]["message"]
    assert "completion_tokens_details" not in other["usage"]


async def test_a_completion_is_one_text(connect: Connect) -> None:
    client = await connect(fake_engine(thinking("Yes.")))
    response = await client.post("/v1/completions", json={"model": "plain", "prompt": "Hi", "max_tokens": 500})
    assert response.json()["choices"][0]["text"].startswith("<think>\nI could")


async def test_thoughts_may_be_searched(connect: Connect) -> None:
    [choice] = (await chat(connect, thinking("Yes."), model="guided", guidance={"thoughts": True}))["choices"]
    message = choice["message"]
    assert (message["reasoning_content"], message["content"]) == (THOUGHTS, "Yes.")


async def test_reasoning_effort_reaches_the_template(connect: Connect) -> None:
    seen: list[dict[str, Any]] = []
    large = saying("Yes.")
    encode = large.encode

    def watching(prompt: Any) -> Any:
        seen.append(dict(prompt.template_variables))
        return encode(prompt)

    large.encode = watching  # type: ignore[method-assign]
    for effort in ("low", "none", None):
        await chat(connect, large, reasoning_effort=effort)
    await chat(connect, large, reasoning_effort="none", chat_template_kwargs={"enable_thinking": True})
    off = {"reasoning_effort": "none", "enable_thinking": False, "thinking": False}
    assert seen == [{"reasoning_effort": "low"}, off, {}, off | {"enable_thinking": True}]
