"""Models with SentencePiece-like tokenizers through the whole server: texts, streams, grammars and scores."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM

from server.app import create_app
from server.engine_host import EngineHost
from tests.server.conftest import uvicorn_server
from tests.tiny import EOS, save_tiny, sentencepiece_tokenizer
from w2s_core.build.engine import build_engine
from w2s_core.config import EngineConfig, LargeModelConfig, PairConfig, ServedModelConfig, WorkersConfig
from w2s_core.engine.engine import Engine
from w2s_core.text.tokenizer import HFTokenizer

pytestmark = pytest.mark.asyncio(loop_scope="module")

KINDS = ("llama", "gemma", "metaspace")
VOCABULARY = sentencepiece_tokenizer("llama").get_vocab()
A = VOCABULARY["\u2581a"]
GUIDED = {"pairs": {"same": 1.0}, "beam_width": 2, "successors": 2, "chunk_length": 3}
FOREIGN = {**GUIDED, "pairs": {"bytes": 1.0, "other": 1.0}}
ONE = {**GUIDED, "beam_width": 1, "successors": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sentencepiece")
    models = {kind: save_tiny(root / kind, sentencepiece=kind) for kind in KINDS}
    for name, seed in (("tuned", 1), ("untuned", 2)):
        models[name] = save_tiny(root / name, seed=seed, sentencepiece="llama")
        models[f"bytes-{name}"] = save_tiny(root / f"bytes-{name}", seed=seed)
        models[f"other-{name}"] = other = save_tiny(root / f"other-{name}", seed=seed, sentencepiece="llama")
        tokenizer = sentencepiece_tokenizer("llama")
        tokenizer.add_tokens(["<other>"])  # another vocabulary, so that answers are encoded again
        tokenizer.save_pretrained(other)
    return models


def pair_of(folders: dict[str, Path], name: str) -> PairConfig:
    return PairConfig(str(folders[name + "tuned"]), str(folders[name + "untuned"]), prompt_template="{prompt}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(folders: dict[str, Path]) -> AsyncIterator[httpx.AsyncClient]:
    config = EngineConfig(
        large_models={kind: LargeModelConfig(str(folders[kind])) for kind in KINDS},
        pairs={"same": pair_of(folders, ""), **{name: pair_of(folders, f"{name}-") for name in ("bytes", "other")}},
        served_models={kind: ServedModelConfig(kind) for kind in KINDS},
        workers=WorkersConfig(devices=("cpu",), threads=1, dtype="float32"),
    )
    ready: asyncio.Future[Engine] = asyncio.get_running_loop().create_future()
    host = EngineHost(lambda: build_engine(config), ready.set_result, ready.set_exception)
    async with uvicorn_server(create_app(host)) as (url, _):
        await ready
        async with httpx.AsyncClient(base_url=url, timeout=120) as connected:
            yield connected


async def choice(client: httpx.AsyncClient, kind: str, **body: Any) -> dict[str, Any]:
    """The only choice, after checking that the stream gives the same text."""
    body = {"model": kind, "prompt": "the cat", "seed": 1, **body}
    whole = await client.post("/v1/completions", json=body)
    assert whole.status_code == 200, whole.text
    [found] = whole.json()["choices"]
    streamed = await client.post("/v1/completions", json={**body, "stream": True})
    frames = [json.loads(frame.removeprefix("data: ")) for frame in streamed.text.split("\n\n")[:-2]]
    assert "".join(c["text"] for frame in frames for c in frame["choices"]) == found["text"]
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("guidance", [None, GUIDED, FOREIGN])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_space_between_prompt_and_answer_is_kept(
    client: httpx.AsyncClient, kind: str, guidance: dict[str, Any] | None
) -> None:
    body = {"logit_bias": {A: 100}, "max_tokens": 3, "guidance": guidance, "logprobs": 1}
    assert (await choice(client, kind, **body))["text"] == " a a a"
    echoed = await choice(client, kind, **body, echo=True)
    assert echoed["text"] == "the cat a a a"
    logprobs = echoed["logprobs"]
    assert "".join(logprobs["tokens"]).removeprefix(" ") == "the cat a a a"
    assert logprobs["text_offset"][-3:] == [7, 9, 11]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_character_that_is_whole_is_kept_however_chunks_end(
    client: httpx.AsyncClient, kind: str, length: int
) -> None:
    body = {"prompt": "ab", "guided_choice": ["🙂🙂"], "max_tokens": 6}
    for guidance in (GUIDED, FOREIGN, ONE):
        found = await choice(client, kind, **body, guidance={**guidance, "chunk_length": length})
        assert (found["text"], found["finish_reason"]) == ("🙂", "length")
    assert (await choice(client, kind, **body))["text"] == "🙂"


@pytest.mark.parametrize("kind", KINDS)
async def test_an_answers_text_does_not_depend_on_its_chunks(client: httpx.AsyncClient, kind: str) -> None:
    """One beam and one successor is plain sampling, whatever the random model says."""
    for seed in range(4):
        body = {"max_tokens": 40, "seed": seed, "stop": ["th", "z"], "prompt": "a cat"}
        plain = (await choice(client, kind, **body))["text"]
        for length in (1, 3, 7):
            guided = await choice(client, kind, **body, guidance={**ONE, "chunk_length": length})
            assert guided["text"] == plain


@pytest.mark.parametrize("pair", ["bytes", "other"])
async def test_a_pair_scores_the_answer_as_it_stands_behind_the_prompt(
    client: httpx.AsyncClient, folders: dict[str, Path], pair: str
) -> None:
    """By transformers alone, which encodes prompt and answer as one text."""
    found = await choice(
        client, "llama", guided_regex="( the cat)+\\.", max_tokens=12, guidance={**GUIDED, "pairs": {pair: 1.0}}
    )
    assert found["text"].startswith(" the cat")
    names = (f"{pair}-tuned", f"{pair}-untuned")
    ended = found["finish_reason"] == "stop"
    tuned, untuned = (logprob(folders[name], "the cat", found["text"], ended=ended) for name in names)
    assert found["guidance"]["score"] == pytest.approx(tuned - untuned, abs=1e-3)


def logprob(folder: Path, prompt: str, answer: str, *, ended: bool) -> float:
    tokenizer = HFTokenizer(str(folder))
    before, whole = (tokenizer.encode(text, special_tokens=True) for text in (prompt, prompt + answer))
    assert whole[: len(before)] == before
    tokens = whole + ((EOS,) if ended else ())
    with torch.inference_mode():
        logits = (
            AutoModelForCausalLM.from_pretrained(folder)(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
        )
    return sum(logits[i - 1, tokens[i]].item() for i in range(len(before), len(tokens)))
