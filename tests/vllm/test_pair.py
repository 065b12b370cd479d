"""The demo's pair behind vLLM gives the same scores as in a worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from benchmarks.server_process import Server
from tests.vllm.conftest import LARGE, TUNED, UNTUNED, Front, front, remote
from w2s_core.types import Hypothesis, TextPrompt

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session")]

NATS = 1e-3
ANSWERS = (
    "This movie is wonderful.",
    " a boring, dull film that never ends",
    "",
    "Ünïcödé 🦜 and\nnew lines\t, twice 🦜🦜",
    "word " * 300,
)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def both(pair: tuple[Server, Server], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    """`near`: the pair in a worker; `far`: behind vLLM. `-prompt`: not the answer alone is read."""
    tuned, untuned = pair
    far = {"backend": "remote", "prompt_template": ""}
    pairs = {
        "near": {"tuned": TUNED, "untuned": UNTUNED, "prompt_template": ""},
        "far": far | {"tuned": remote(tuned, TUNED), "untuned": remote(untuned, UNTUNED)},
    }
    pairs |= {f"{name}-prompt": keys | {"prompt_template": "A review. {prompt}"} for name, keys in pairs.items()}
    async with front(
        tmp_path_factory.mktemp("front"),
        large_models={"smollm2": {"model": LARGE}, "small": {"backend": "remote", **remote(untuned, UNTUNED)}},
        pairs=pairs,
        served_models={name: {"large": name} for name in ("smollm2", "small")},
    ) as running:
        yield running


async def scores(both: Front, pair: str, answers: list[Hypothesis]) -> list[float]:
    async with both.engine._planner.scorers[pair].open(TextPrompt("Here is a movie review:")) as scoring:
        return [score.total for score in await scoring.score(answers)]


@pytest.mark.parametrize("template", ["", "-prompt"])
@pytest.mark.parametrize("ended", [False, True])
async def test_scores_are_those_of_the_local_pair(both: Front, template: str, ended: bool) -> None:
    answers = [replace(Hypothesis(), text=text, ended=ended) for text in ANSWERS]
    near, far = [await scores(both, where + template, answers) for where in ("near", "far")]
    assert far == pytest.approx(near, abs=NATS)
    assert len({round(score, 2) for score in near}) >= len(ANSWERS) - 1


async def test_near_and_far_pairs_guide_one_request_together(both: Front) -> None:
    """The same pair twice: both tell the same of the answer, and it is the sum that was searched for."""
    guidance = {"method": "cbs", "pairs": {"near": 1.0, "far": 0.5}, "beam_width": 2, "successors": 2}
    answer = await both.client.completions.create(
        model="smollm2", prompt="This movie is", max_tokens=20, seed=1, extra_body={"guidance": guidance}
    )
    told = answer.choices[0].guidance  # type: ignore[attr-defined]
    assert told["scores"]["far"] == pytest.approx(told["scores"]["near"], abs=NATS)
    assert told["score"] == pytest.approx(1.5 * told["scores"]["near"], abs=2 * NATS)
    assert answer.guidance["upstream"]["calls"] > 0  # type: ignore[attr-defined]


async def test_vllm_adds_no_sampling_of_its_own(both: Front) -> None:
    """The served folder says top_k 1, which would make all samples one. Eight samples of ten tokens that nothing shapes
    are different ones but for a chance far below one in a million."""
    answer = await both.client.completions.create(model="small", prompt="This film", max_tokens=10, n=8, seed=1)
    assert len({choice.text for choice in answer.choices}) == 8
