"""Another instance of this server as the provider: remote models answer as local ones do."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.server.conftest import loaded, uvicorn_server
from tests.tiny import EOS, save_tiny
from w2s_core.build.engine import build_engine
from w2s_core.config import (
    EngineConfig,
    LargeModelConfig,
    PairConfig,
    RemoteLargeModelConfig,
    RemoteModelConfig,
    RemotePairConfig,
    ServedModelConfig,
    WorkersConfig,
)
from w2s_core.engine.engine import Engine
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Guidance

pytestmark = pytest.mark.asyncio(loop_scope="session")

WORKERS = WorkersConfig(devices=("cpu",), threads=1, dtype="float32")
NAMES = ("large", "tuned", "untuned")
GUIDED = Guidance("cbs", {"near": 1.0}, beam_width=2, successors=3, chunk_length=4)
HI = [{"role": "user", "content": "Hi there"}]


@pytest.fixture(scope="session", params=[None, "llama"], ids=["bytes", "sentencepiece"])
def folders(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_tiny(root / name, seed=seed, sentencepiece=request.param) for seed, name in enumerate(NAMES)}


@pytest.fixture(scope="session")
def letters(folders: dict[str, Path]) -> dict[str, float]:
    """A bias that leaves whole characters only: random models draw bytes that are no text, which text cannot carry."""
    tokenizer = HFTokenizer(str(folders["large"]))
    allowed = [tokenizer.encode(c, special_tokens=False)[0] for c in "abcdefg hij."]
    return {str(token): 100.0 for token in allowed} | {str(EOS): 97.0}


@asynccontextmanager
async def http_client(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    async with loaded(engine) as app:  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://here", timeout=60) as client:
            yield client


def client_config(url: str, folders: dict[str, Path]) -> EngineConfig:
    def remote(model: str, kind: type[RemoteModelConfig] = RemoteModelConfig, **more: Any) -> Any:
        return kind(base_url=f"{url}/v1", model=model, **{"tokenizer": str(folders[model]), **more})

    large: Mapping[str, LargeModelConfig | RemoteLargeModelConfig] = {
        "local": LargeModelConfig(str(folders["large"])),
        "ids": remote("large", RemoteLargeModelConfig, flavor="vllm"),
        "text": remote("large", RemoteLargeModelConfig, flavor="openai"),
        "bare": remote("large", RemoteLargeModelConfig, flavor="openai", tokenizer=None),
        "found": remote("large", RemoteLargeModelConfig),
    }
    pairs: Mapping[str, PairConfig | RemotePairConfig] = {
        "near": PairConfig(str(folders["tuned"]), str(folders["untuned"])),
        "far": RemotePairConfig(tuned=remote("tuned"), untuned=remote("untuned")),
        "near-quoted": PairConfig(str(folders["tuned"]), str(folders["untuned"]), prompt_template="Q: {prompt}"),
        "far-quoted": RemotePairConfig(
            tuned=remote("tuned", tokenizer=None), untuned=remote("untuned"), prompt_template="Q: {prompt}"
        ),
    }
    served = {name: ServedModelConfig(name) for name in large}
    served |= {f"{name}-guided": ServedModelConfig(name, GUIDED) for name in large}
    return EngineConfig(large, served, pairs, WORKERS)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def client(folders: dict[str, Path]) -> AsyncIterator[httpx.AsyncClient]:
    """Of an instance whose remote models are another instance's."""
    provider = EngineConfig(
        {name: LargeModelConfig(str(folder)) for name, folder in folders.items()},
        {name: ServedModelConfig(name) for name in folders},
        workers=WORKERS,
    )
    async with AsyncExitStack() as stack:
        engine = build_engine(provider)
        behind = await stack.enter_async_context(loaded(engine))  # type: ignore[arg-type]
        behind.router.lifespan_context = _nothing  # type: ignore[attr-defined]  # it has begun
        url, _ = await stack.enter_async_context(uvicorn_server(behind))
        yield await stack.enter_async_context(http_client(build_engine(client_config(url, folders))))


@asynccontextmanager
async def _nothing(_: object) -> AsyncIterator[None]:
    yield


async def ask(client: httpx.AsyncClient, model: str, **body: Any) -> dict[str, Any]:
    kind = "chat/completions" if "messages" in body else "completions"
    if "messages" not in body:
        body = {"prompt": "Once upon a time", **body}
    response = await client.post(f"/v1/{kind}", json={"model": model, "max_tokens": 24, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def ask_streamed(client: httpx.AsyncClient, model: str, **body: Any) -> list[str]:
    """The pieces of text as they come."""
    whole = {"model": model, "prompt": "Once upon a time", "max_tokens": 24, "stream": True, **body}
    async with client.stream("POST", "/v1/completions", json=whole) as response:
        lines = [line.removeprefix("data: ") async for line in response.aiter_lines() if line.startswith("data: {")]
    return [text for line in lines for choice in json.loads(line)["choices"] if (text := choice["text"])]


@pytest.mark.parametrize("length", [1, 5, 40])
async def test_greedy_by_ids_is_local_token_for_token(client: httpx.AsyncClient, length: int) -> None:
    asked = {"temperature": 0, "max_tokens": 40, "return_token_ids": True, "logprobs": 0}
    guided = {"guidance": {"beam_width": 2, "successors": 2, "chunk_length": length}}
    local = (await ask(client, "local", **asked))["choices"][0]
    for model, more in (("ids", {}), ("found", {}), ("ids-guided", guided)):
        remote = (await ask(client, model, **asked, **more))["choices"][0]
        assert remote["token_ids"] == local["token_ids"]
        assert remote["text"] == local["text"]
        assert remote["logprobs"]["token_logprobs"] == pytest.approx(local["logprobs"]["token_logprobs"], abs=1e-3)
    assert len(local["token_ids"]) > 10


@pytest.mark.parametrize("model", ["text", "bare", "text-guided", "bare-guided"])
async def test_greedy_by_text_is_local_too(client: httpx.AsyncClient, model: str, letters: dict[str, float]) -> None:
    asked = {"temperature": 0, "max_tokens": 30, "logit_bias": letters}
    local, remote = await ask(client, "local", **asked), await ask(client, model, **asked)
    assert remote["choices"][0]["text"] == local["choices"][0]["text"]
    assert remote["usage"] == local["usage"]


@pytest.mark.parametrize("model", ["ids-guided", "text-guided", "bare-guided", "found-guided"])
async def test_guided_streamed_and_not(client: httpx.AsyncClient, model: str, letters: dict[str, float]) -> None:
    asked = {"seed": 4, "logit_bias": {k: v for k, v in letters.items() if k != str(EOS)}, "max_tokens": 32}
    whole = await ask(client, model, **asked)
    pieces = await ask_streamed(client, model, **asked)
    assert "".join(pieces) == whole["choices"][0]["text"]
    assert len(pieces) > 1
    # By text alone, three tokens more are drawn for each of eight chunks but the last.
    drawn = 6 * (32 if model.startswith(("ids", "found")) else 32 + 7 * 3)
    assert whole["guidance"]["upstream"]["completion_tokens"] == whole["guidance"]["sampled_tokens"] == drawn
    other = await ask(client, model, **{**asked, "seed": 5})
    assert other["choices"][0]["text"] != whole["choices"][0]["text"]


@pytest.mark.parametrize("model", ["ids", "text", "found"])
async def test_chat_is_rendered_here(client: httpx.AsyncClient, model: str, letters: dict[str, float]) -> None:
    asked = {"messages": HI, "temperature": 0, "logit_bias": letters}
    local = await ask(client, "local", **asked)
    for name in (model, f"{model}-guided"):
        remote = await ask(client, name, **asked)
        assert remote["choices"][0]["message"]["content"] == local["choices"][0]["message"]["content"]
        for usage in (remote["usage"], local["usage"]):
            usage.pop("prompt_tokens_details", None)  # the provider's cache is not ours
        assert remote["usage"] == local["usage"]


@pytest.mark.parametrize("model", ["ids", "text", "bare"])
async def test_plain_text_comes_as_it_is_drawn(
    client: httpx.AsyncClient, model: str, letters: dict[str, float]
) -> None:
    asked = {"temperature": 0, "logit_bias": letters}
    local = (await ask(client, "local", **asked))["choices"][0]["text"]
    pieces = await ask_streamed(client, model, **asked)
    assert "".join(pieces) == local
    assert len(pieces) > 1


@pytest.mark.parametrize("prompt", ["Once upon a time", "é☃ "])
@pytest.mark.parametrize("seed", range(3))
async def test_a_remote_pair_scores_as_the_local_one(
    client: httpx.AsyncClient, prompt: str, seed: int, letters: dict[str, float]
) -> None:
    """Local and remote in one request, over a local large model and a remote one; ended answers and half ones."""
    weights = {"near": 0.5, "far": 0.5, "near-quoted": 0.25, "far-quoted": 0.25}
    guidance = {"method": "best_of_n", "pairs": weights, "successors": 8}
    for model in ("local", "ids"):
        answer = await ask(
            client, model, prompt=prompt, seed=seed, n=8, guidance=guidance, logit_bias=letters, max_tokens=20
        )
        assert len({choice["guidance"]["score"] for choice in answer["choices"]}) > 4
        for choice in answer["choices"]:
            scores = choice["guidance"]["scores"]
            assert scores["far"] == pytest.approx(scores["near"], abs=1e-3)
            if choice["finish_reason"] == "length":  # of an end that text alone cannot say, see `TextLogprobs`
                assert scores["far-quoted"] == pytest.approx(scores["near-quoted"], abs=1e-3)
        assert answer["guidance"]["upstream"]["calls"] > 8
