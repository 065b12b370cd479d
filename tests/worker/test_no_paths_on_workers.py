"""What reaches a client names no path of the machine: models are called by their names in the configuration."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from transformers import PreTrainedTokenizerFast

from server.app import create_app
from server.engine_host import EngineHost
from tests.adapters import save_adapter
from tests.server.conftest import uvicorn_server
from tests.tiny import save_tiny
from w2s_core.build.engine import build_engine
from w2s_core.config import EngineConfig, LargeModelConfig, PairConfig, ServedModelConfig, WorkersConfig
from w2s_core.errors import ConfigurationError
from w2s_core.types import Guidance

on_module_loop = pytest.mark.asyncio(loop_scope="module")
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "Hi"}]


def without_bos(folder: Path) -> Path:
    """Nor with an EOS, which stands for it in models such as GPT-2."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.bos_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights-of-the-operator")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(root: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A server over absolute folders: a pair of a short context, and one without a BOS."""
    template = "{% if messages[0].content == 'raise' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}"
    large = save_tiny(root / "large", template=template)
    short = save_tiny(root / "short", pairs=True, context_length=16)
    bare = without_bos(save_tiny(root / "bare", pairs=True))
    adapter = save_adapter(root / "adapter", short)
    config = EngineConfig(
        {"large": LargeModelConfig(str(large))},
        {"plain": ServedModelConfig("large")}
        | {
            name: ServedModelConfig("large", Guidance("cbs", {name: 1.0}, 2, 2, 8))
            for name in ("short", "bare", "adapted")
        },
        {name: PairConfig(str(model), str(model)) for name, model in (("short", short), ("bare", bare))}
        | {"adapted": PairConfig(str(adapter), str(short))},
        WorkersConfig(devices=("cpu",), threads=1, dtype="float32"),
    )
    host = EngineHost(lambda: build_engine(config))
    async with uvicorn_server(create_app(host)) as (url, _), httpx.AsyncClient(base_url=url, timeout=120) as connected:
        while (await connected.get("/ready")).status_code != 200:
            pass
        yield connected


ANSWERED: list[tuple[str, dict[str, Any]]] = [
    (COMPLETIONS, {"model": "short", "prompt": "x", "max_tokens": 200, "seed": 1}),
    (COMPLETIONS, {"model": "short", "prompt": "x", "max_tokens": 200, "seed": 1, "stream": True}),
    (CHAT, {"model": "short", "messages": USER, "seed": 1}),
    (COMPLETIONS, {"model": "short", "prompt": "x" * 50, "max_tokens": 1}),
    (COMPLETIONS, {"model": "short", "prompt": "x" * 50, "max_tokens": 0, "echo": True}),
    (COMPLETIONS, {"model": "adapted", "prompt": "x", "max_tokens": 200, "seed": 1}),
    (COMPLETIONS, {"model": "adapted", "prompt": "x" * 50, "max_tokens": 1}),
    (COMPLETIONS, {"model": "bare", "prompt": "", "max_tokens": 1}),
    (COMPLETIONS, {"model": "plain", "prompt": "x" * 600}),
    (COMPLETIONS, {"model": "plain", "prompt": [10**6]}),
    (COMPLETIONS, {"model": "plain", "prompt": "x", "stop_token_ids": [10**6]}),
    (COMPLETIONS, {"model": "plain", "prompt": "x", "guided_regex": "("}),
    (COMPLETIONS, {"model": "plain", "prompt": "x", "guidance": {"pairs": {"nobody": 1.0}}}),
    (COMPLETIONS, {"model": "nobody", "prompt": "x"}),
    (CHAT, {"model": "plain", "messages": [{"role": "user", "content": "raise"}]}),
    (CHAT, {"model": "plain", "messages": USER, "tools": [{"type": "function", "function": {"name": "f"}}]}),
    ("/tokenize", {"model": "plain", "prompt": "x", "return_token_strs": True}),
    ("/detokenize", {"model": "plain", "tokens": [10**6]}),
]


@pytest.mark.parametrize(("path", "body"), ANSWERED)
@on_module_loop
async def test_answers_and_errors(client: httpx.AsyncClient, root: Path, path: str, body: dict[str, Any]) -> None:
    response = await client.post(path, json=body)
    assert str(root.parent) not in response.text + str(response.headers)


@on_module_loop
async def test_a_pair_is_called_by_its_name(client: httpx.AsyncClient) -> None:
    response = await client.post(COMPLETIONS, json={"model": "bare", "prompt": "", "max_tokens": 1})
    assert "the pair's model bare.tuned" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "path", ["/", "/v1/models", "/v1/models/short", "/metrics", "/version", "/openapi.json", "/docs/assets/x"]
)
@on_module_loop
async def test_what_describes_the_server(client: httpx.AsyncClient, root: Path, path: str) -> None:
    assert str(root.parent) not in (await client.get(path)).text


@on_module_loop
async def test_a_worker_that_fails_a_request(client: httpx.AsyncClient, root: Path) -> None:
    """A grammar is the first to need the tokenizer's file, which is gone by now. The log has the path."""
    (root / "large" / "tokenizer.json").rename(root / "moved")
    response = await client.post(COMPLETIONS, json={"model": "plain", "prompt": "x", "guided_choice": ["a"]})
    assert response.status_code == 500
    assert "ConfigurationError" in response.json()["error"]["message"]
    assert str(root.parent) not in response.text
    (root / "moved").rename(root / "large" / "tokenizer.json")


def test_a_pair_that_cannot_be_used_is_named_by_its_key(tmp_path: Path) -> None:
    """To the operator: two pairs may have the same folder."""
    bare = without_bos(save_tiny(tmp_path / "bare", template=None))
    pairs = {"p": PairConfig(str(bare), str(bare), prompt_template="")}
    config = EngineConfig({"large": LargeModelConfig(str(bare))}, {"m": ServedModelConfig("large")}, pairs)
    with pytest.raises(ConfigurationError, match=r"^pairs\.p\.tuned: .*BOS"):
        build_engine(config)
