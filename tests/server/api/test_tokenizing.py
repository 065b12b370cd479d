"""`/tokenize` and `/detokenize` in vLLM's format: their counts equal a generation request's prompt tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.settings.config import ServerConfig
from tests.fakes import FakeLargeModel, fake_engine
from tests.server.conftest import Connect
from tests.tiny import BOS, EOS, byte_tokenizer
from w2s_core.text.tokenizer import HFTokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{{ mood }}{% endif %}"
)
MESSAGES = [{"role": "user", "content": "Hé"}]


@pytest.fixture
async def client(connect: Connect, tmp_path: Path) -> httpx.AsyncClient:
    byte_tokenizer(TEMPLATE).save_pretrained(tmp_path)
    return await connect(fake_engine(FakeLargeModel(tokenizer=HFTokenizer(str(tmp_path)))))


async def post(client: httpx.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def refused(client: httpx.AsyncClient, path: str, **body: Any) -> tuple[int, str | None]:
    content = json.dumps(body)  # in ASCII: half a surrogate pair can be sent
    response = await client.post(path, content=content, headers={"content-type": "application/json"})
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    return response.status_code, error["param"]


async def text_of(client: httpx.AsyncClient, **body: Any) -> str:
    tokens = (await post(client, "/tokenize", model="plain", **body))["tokens"]
    return str((await post(client, "/detokenize", model="plain", tokens=tokens))["prompt"])


async def test_a_prompt(client: httpx.AsyncClient) -> None:
    found = await post(client, "/tokenize", model="guided", prompt="ab", return_token_strs=True)
    ids = found["tokens"]
    assert found == {"count": 2, "max_model_len": 1000, "tokens": ids, "token_strs": ["a", "b"]}
    assert (await post(client, "/tokenize", prompt="ab"))["token_strs"] is None
    assert await post(client, "/detokenize", tokens=ids) == {"prompt": "ab"}


async def test_nothing_is_no_tokens(client: httpx.AsyncClient) -> None:
    assert (await post(client, "/tokenize", prompt="", return_token_strs=True)) == {
        "count": 0,
        "max_model_len": 1000,
        "tokens": [],
        "token_strs": [],
    }
    assert await post(client, "/detokenize", tokens=[]) == {"prompt": ""}


async def test_special_tokens_show(client: httpx.AsyncClient) -> None:
    assert await post(client, "/detokenize", tokens=[BOS, EOS]) == {"prompt": "<bos><eos>"}
    assert (await post(client, "/tokenize", prompt="<eos>"))["tokens"] == [EOS]


async def test_a_conversation(client: httpx.AsyncClient) -> None:
    assert await text_of(client, messages=MESSAGES) == "<user>Hé\n<assistant>"
    assert await text_of(client, messages=MESSAGES, add_generation_prompt=False) == "<user>Hé\n"
    assert await text_of(client, messages=MESSAGES, chat_template_kwargs={"mood": "!"}) == "<user>Hé\n<assistant>!"
    assert await text_of(client, messages=MESSAGES, continue_final_message=True) == "<user>Hé"


@pytest.mark.parametrize(
    ("path", "body", "refusal"),
    [
        ("/tokenize", {}, (400, "prompt")),
        ("/tokenize", {"prompt": ["a"]}, (400, "prompt")),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, (400, "add_generation_prompt")),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, (400, "prompt")),
        ("/tokenize", {"messages": []}, (400, "messages")),
        ("/tokenize", {"messages": [{"role": "user"}]}, (400, "messages.0.content")),
        (
            "/tokenize",
            {"messages": MESSAGES, "continue_final_message": True, "add_generation_prompt": True},
            (400, "continue_final_message"),
        ),
        ("/tokenize", {"prompt": "a", "model": "nobody"}, (404, "model")),
        ("/tokenize", {"prompt": "a", "model": ""}, (400, "model")),
        ("/tokenize", {"prompt": "\ud800"}, (400, "prompt")),
        ("/detokenize", {}, (400, "tokens")),
        ("/detokenize", {"tokens": [1, 300]}, (400, "tokens.1")),
        ("/detokenize", {"tokens": [-1]}, (400, "tokens.0")),
        ("/detokenize", {"tokens": ["1"]}, (400, "tokens.0")),
        ("/detokenize", {"tokens": [1], "model": "nobody"}, (404, "model")),
    ],
)
async def test_what_is_refused(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], refusal: tuple[int, str]
) -> None:
    assert await refused(client, path, **body) == refusal


async def test_a_model_whose_tokenizer_only_its_provider_has(connect: Connect) -> None:
    client = await connect(fake_engine(FakeLargeModel(tokenizer=None)))
    assert await refused(client, "/tokenize", prompt="a") == (400, "model")
    assert await refused(client, "/detokenize", tokens=[1]) == (400, "model")


async def test_a_key_is_asked_for_and_the_version_is_not_secret(connect: Connect) -> None:
    client = await connect(fake_engine(), ServerConfig(api_keys=("sesame",)))
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
        assert (await client.post(path, json=body)).status_code == 401
        assert (await client.post(path, json=body, headers={"authorization": "Bearer sesame"})).status_code == 200
    assert (await client.get("/version")).json()["version"]
