"""An echoed prompt of token ids shows the special tokens where the request asks for them, as a prompt of text does."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes import EOS, fake_engine
from tests.server.conftest import Connect

TOKENS = [EOS, ord("h"), ord("i"), EOS]


async def echoed(connect: Connect, prompt: Any, **fields: Any) -> Any:
    client = await connect(fake_engine())
    body = {"model": "plain", "prompt": prompt, "echo": True, "max_tokens": 0, **fields}
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    [choice] = response.json()["choices"]
    return choice


@pytest.mark.parametrize(("skip", "text"), [(False, "<eos>hi<eos>"), (True, "hi"), (None, "hi")])
async def test_special_tokens_of_a_prompt_show_where_they_are_asked_for(
    connect: Connect, skip: bool | None, text: str
) -> None:
    assert (await echoed(connect, TOKENS, skip_special_tokens=skip))["text"] == text


async def test_offsets_count_the_names_that_are_shown(connect: Connect) -> None:
    shown = (await echoed(connect, TOKENS, skip_special_tokens=False, logprobs=0))["logprobs"]
    assert shown["tokens"] == ["<eos>", "h", "i", "<eos>"]
    assert shown["text_offset"] == [0, 5, 6, 7]
    hidden = (await echoed(connect, TOKENS, logprobs=0))["logprobs"]
    assert hidden["text_offset"] == [0, 0, 1, 2]


async def test_a_truncated_prompt_shows_them_too(connect: Connect) -> None:
    choice = await echoed(connect, TOKENS, skip_special_tokens=False, truncate_prompt_tokens=2)
    assert choice["text"] == "i<eos>"
