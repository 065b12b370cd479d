"""The `llm` command, as its users run it, with a served model in `extra-openai-models.yaml`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clients.conftest import CONTEXT, KEY

pytestmark = pytest.mark.asyncio(loop_scope="session")

MODELS: list[dict[str, Any]] = [
    {"model_id": "w2s", "model_name": "plain", "supports_schema": True, "supports_tools": True},
    {"model_id": "w2s-guided", "model_name": "cbs", "supports_schema": True},
    {"model_id": "w2s-whole", "model_name": "plain", "can_stream": False},
    {"model_id": "w2s-text", "model_name": "plain", "completion": True},
]


@pytest.fixture
def home(url: str, tmp_path: Path) -> Path:
    models = [model | {"api_base": url, "api_key_name": "w2s"} for model in MODELS]
    (tmp_path / "extra-openai-models.yaml").write_text(yaml.safe_dump(models))
    (tmp_path / "keys.json").write_text(json.dumps({"w2s": KEY}))
    return tmp_path


async def llm(home: Path, *arguments: str, fails: bool = False) -> str:
    """What `llm` writes to stdout, or to stderr if it `fails`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "llm", *arguments,
        env=os.environ | {"LLM_USER_PATH": str(home)},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert bool(process.returncode) == fails, err.decode()
    return (err if fails else out).decode()


PROMPT = ["Hi €", "-o", "temperature", "0", "-o", "max_tokens", "30"]


async def test_a_prompt_says_the_same_streamed_and_not(home: Path) -> None:
    streamed = await llm(home, "-m", "w2s", *PROMPT)
    assert streamed.strip()
    assert await llm(home, "-m", "w2s", "--no-stream", *PROMPT) == streamed
    assert await llm(home, "-m", "w2s-whole", *PROMPT) == streamed
    assert await llm(home, "-m", "w2s", "-s", "Be brief.", *PROMPT) != streamed


async def test_a_guided_model(home: Path) -> None:
    assert (await llm(home, "-m", "w2s-guided", *PROMPT)).strip()


async def test_a_schema_is_followed(home: Path) -> None:
    wanted = json.dumps(
        {
            "type": "object",
            "properties": {"ok": {"type": "boolean"}, "size": {"enum": [1, 2]}},
            "required": ["ok", "size"],
            "additionalProperties": False,
        }
    )
    limit = ["-o", "max_tokens", "400", "-o", "seed", "1"]
    for stream in ([], ["--no-stream"]):
        answer = json.loads(await llm(home, "-m", "w2s-guided", *stream, "--schema", wanted, "Go", *limit))
        assert set(answer) == {"ok", "size"}
        assert (type(answer["ok"]), type(answer["size"])) == (bool, int)


async def test_a_conversation_goes_on(home: Path) -> None:
    await llm(home, "-m", "w2s", *PROMPT)
    assert (await llm(home, "-c", "And then?", "-o", "max_tokens", "5")).strip()
    [_, second] = json.loads(await llm(home, "logs", "--json", "-n", "2"))
    assert second["input_tokens"] > len("And then?")


async def test_tools_are_offered(home: Path) -> None:
    """A random model calls no tool; the request with tools is answered all the same."""
    function = 'def weather(city: str) -> str:\n    "Tells the weather."\n    return "sun"\n'
    assert (await llm(home, "-m", "w2s", "--functions", function, *PROMPT)).strip()


async def test_legacy_completions(home: Path) -> None:
    assert (await llm(home, "-m", "w2s-text", *PROMPT)).strip()


async def test_an_error_is_told(home: Path) -> None:
    said = await llm(home, "-m", "w2s", "x" * CONTEXT, fails=True)
    assert f"This model's maximum context length is {CONTEXT} tokens" in said
