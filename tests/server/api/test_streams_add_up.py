"""A stream adds up to the response that is not streamed, for every option, and no chunk splits a character."""

from __future__ import annotations

import json
from typing import Any

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import FakeLargeModel, fake_engine
from tests.server.api.test_logprobs import CHAT, COMPLETIONS, KEYS, byte_by_byte
from tests.server.conftest import loaded

STOPS = st.lists(st.text("a €", min_size=1, max_size=3), max_size=3)
SHARED: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["plain", "guided"]),
    "seed": st.integers(0, 10**6),
    "max_tokens": st.integers(1, 25),
    "n": st.integers(1, 2),
    "stop": STOPS,
    "include_stop_str_in_output": st.booleans(),
    "return_token_ids": st.booleans(),
}
COMPLETION = st.fixed_dictionaries(
    {**SHARED, "prompt": st.sampled_from(["é!", ["a", "€"]]), "echo": st.booleans(), "logprobs": st.none() | st.just(2)}
)
CONVERSATION = st.fixed_dictionaries({**SHARED, "logprobs": st.booleans()}).map(
    lambda body: {**body, "messages": [{"role": "user", "content": "x"}]}
)
ASKED = st.tuples(st.just(COMPLETIONS), COMPLETION) | st.tuples(st.just(CHAT), CONVERSATION)


def text_of(choice: dict[str, Any]) -> str:
    """The text of a choice or of a chunk's part of one."""
    said = choice.get("message", choice.get("delta"))
    return str(choice["text"] if said is None else said.get("content") or "")


def told_of(choice: dict[str, Any]) -> list[Any]:
    """The log-probability entries of a choice, one per token."""
    told = choice["logprobs"] or {}
    if "content" in told:
        return list(told["content"])
    return list(zip(*(told[key] for key in KEYS), strict=True)) if told else []


def check_places(text: str, choice: dict[str, Any]) -> None:
    """Each whole token is in the text at its offset; if all tokens are whole, they make up the text."""
    tokens = choice["logprobs"]["tokens"]
    for token, offset in zip(tokens, choice["logprobs"]["text_offset"], strict=True):
        if not token.startswith(("bytes:", "<eos>")) and offset < len(text):
            assert token.startswith(text[offset : offset + len(token)])


@settings(max_examples=120, deadline=None)
@given(asked=ASKED)
async def test_a_stream_adds_up_to_the_whole(asked: tuple[str, dict[str, Any]]) -> None:
    path, body = asked
    async with loaded(fake_engine(FakeLargeModel(byte_by_byte))) as app:  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            whole = await client.post(path, json=body)
            streamed = await client.post(path, json={**body, "stream": True})
    assert whole.status_code == streamed.status_code == 200, whole.text + streamed.text
    *frames, done, nothing = streamed.text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    parts = [choice for frame in frames for choice in json.loads(frame.removeprefix("data: "))["choices"]]
    for choice in whole.json()["choices"]:
        own = [part for part in parts if part["index"] == choice["index"]]
        texts = [text_of(part) for part in own]
        assert "".join(texts) == text_of(choice)
        assert [part["finish_reason"] for part in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
        assert [entry for part in own for entry in told_of(part)] == told_of(choice)
        assert [token for part in own for token in part.get("token_ids", [])] == choice.get("token_ids", [])
        assert own[-1].get("guidance") == choice.get("guidance")
        for before, text in zip(texts, texts[1:], strict=False):
            assert not (before.endswith("\ufffd") or text.startswith("\ufffd")) or "\ufffd" in text_of(choice)
        if path == COMPLETIONS and choice["logprobs"]:
            check_places(text_of(choice), choice)
