"""The request fields for log-probabilities: limits, and the engine's request that results."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.api.test_requests import Asker
from tests.server.api.test_requests import ask as ask  # noqa: PLC0414  (a fixture)


@pytest.mark.parametrize(
    ("endpoint", "changes", "param"),
    [
        ("completions", {"logprobs": 21}, "logprobs"),
        ("completions", {"logprobs": -1}, "logprobs"),
        ("completions", {"logprobs": True}, "logprobs"),
        ("completions", {"top_logprobs": 2}, "top_logprobs"),
        ("completions", {"echo": 1}, "echo"),
        ("completions", {"echo": False, "max_tokens": 0}, "max_tokens"),
        ("completions", {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ("chat", {"logprobs": 1}, "logprobs"),
        ("chat", {"top_logprobs": 2}, "top_logprobs"),
        ("chat", {"top_logprobs": 2, "logprobs": False}, "top_logprobs"),
        ("chat", {"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ("chat", {"echo": True}, "echo"),
        ("chat", {"prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
    ],
)
async def test_what_is_out_of_range(ask: Asker, endpoint: str, changes: dict[str, Any], param: str) -> None:
    assert await ask.refused(endpoint, **changes) == param


@pytest.mark.parametrize(
    ("endpoint", "changes", "logprobs", "prompt", "tokens"),
    [
        ("completions", {}, None, (False, None), False),
        ("completions", {"logprobs": 0}, 0, (False, None), True),
        ("completions", {"logprobs": 20}, 20, (False, None), True),
        ("completions", {"echo": True}, None, (True, None), False),
        ("completions", {"echo": True, "logprobs": 2, "max_tokens": 0}, 2, (True, 2), True),
        ("completions", {"echo": True, "logprobs": 2, "prompt_logprobs": 5}, 2, (True, 5), True),
        ("completions", {"prompt_logprobs": 0}, None, (True, 0), False),
        ("completions", {"return_token_ids": True}, None, (True, None), True),
        ("chat", {"logprobs": True}, 0, (False, None), True),
        ("chat", {"logprobs": True, "top_logprobs": 3}, 3, (False, None), True),
        ("chat", {"top_logprobs": 0}, None, (False, None), False),
        ("chat", {"prompt_logprobs": 3}, None, (True, 3), False),
    ],
)
async def test_what_reaches_the_engine(
    ask: Asker, endpoint: str, changes: dict[str, Any], logprobs: Any, prompt: Any, tokens: bool
) -> None:
    request = await ask.asked(endpoint, **changes)
    assert request.sampling.logprobs == logprobs
    assert (request.with_prompt, request.prompt_logprobs) == prompt
    assert request.with_tokens == tokens
