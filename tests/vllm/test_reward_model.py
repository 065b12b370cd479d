"""A reward model behind vLLM gives the same rewards as in a worker, at both endpoints, for token ids and for text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.server_process import Server
from benchmarks.vllm_process import MODEL, vllm_process
from tests.vllm.conftest import LARGE, UNTUNED, Front, front
from tests.vllm.test_pair import ANSWERS, scores
from w2s_core.demo.models import resolve
from w2s_core.types import Hypothesis

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session")]

KINDS = {"one": 1, "three": 3}  # a classifier's name and number of outputs
REWARD = 1e-3


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of the demo's small models with heads of random weights."""
    root, source = tmp_path_factory.mktemp("classifiers"), str(resolve(UNTUNED))
    for name, outputs in KINDS.items():
        torch.manual_seed(outputs)
        model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=outputs, dtype=torch.float32)
        model.score.weight.data.normal_(0, 0.1)
        model.save_pretrained(root / name)
        AutoTokenizer.from_pretrained(source).save_pretrained(root / name)
    return {name: root / name for name in KINDS}


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=KINDS)
async def both(
    program: str,
    classifiers: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> AsyncIterator[Front]:
    """`near`: a classifier in a worker; the others: behind vLLM, by endpoint and by what is sent."""
    folder, root = str(classifiers[request.param]), tmp_path_factory.mktemp("front")
    label = {"label": 2} if KINDS[request.param] > 1 else {}
    async with vllm_process(program, folder, root / "log", kv_gib=1, options=["--enforce-eager"]) as server:
        near = {"model": folder, "prompt_template": "A review. {prompt}", **label}
        models: dict[str, Any] = {"near": near}
        for endpoint in ("auto", "classify", "pooling"):
            for sent, tokenizer in (("ids", folder), ("text", None)):
                models[f"{endpoint}-{sent}"] = _far(server, near, endpoint=endpoint, tokenizer=tokenizer)
        async with front(
            root,
            large_models={"smollm2": {"model": LARGE}},
            reward_models=models,
            served_models={"smollm2": {"large": "smollm2"}},
        ) as running:
            yield running


def _far(server: Server, near: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return near | {"backend": "remote", "base_url": f"{server.url}/v1", "model": MODEL} | keys


@pytest.mark.parametrize("endpoint", ["auto", "classify", "pooling"])
@pytest.mark.parametrize(("sent", "ended"), [("ids", False), ("ids", True), ("text", False)])
async def test_rewards_are_those_of_the_local_model(both: Front, endpoint: str, sent: str, ended: bool) -> None:
    answers = [replace(Hypothesis(), text=text, ended=ended) for text in ANSWERS]
    near, far = [await scores(both, name, answers) for name in ("near", f"{endpoint}-{sent}")]
    assert far == pytest.approx(near, abs=REWARD)
    assert len({round(score, 2) for score in near}) >= len(ANSWERS) - 1


async def test_near_and_far_pick_the_same(both: Front) -> None:
    texts = []
    for name in ("near", "auto-ids"):
        guidance = {"reward_models": {name: 1.0}, "beam_width": 2, "successors": 3, "chunk_length": 6}
        answer = await both.client.completions.create(
            model="smollm2", prompt="The film", max_tokens=24, seed=4, extra_body={"guidance": guidance}
        )
        texts.append(answer.choices[0].text)
    assert texts[0] == texts[1]
