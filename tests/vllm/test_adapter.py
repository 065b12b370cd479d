"""A LoRA adapter behind vLLM, where it is one more model name: the scores of the same adapter in a worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from benchmarks.vllm_process import CONTEXT_LENGTH, vllm_process
from tests.adapters import save_adapter
from tests.vllm.conftest import LARGE, UNTUNED, Front, front, remote
from tests.vllm.test_pair import ANSWERS, NATS, scores
from w2s_core.demo.models import resolve
from w2s_core.errors import PairContextLengthError
from w2s_core.types import Hypothesis

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session")]

NAME = "polite"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def both(program: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    """`near`: an adapter and its base in a worker; `far`: behind one vLLM."""
    folder = tmp_path_factory.mktemp("adapter")
    adapter = save_adapter(folder / "adapter", resolve(UNTUNED), seed=1, rank=8)
    options = ["--enforce-eager", "--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"{NAME}={adapter}"]
    # vLLM 0.32 on CPUs applies an adapter to every request that shares a step with one for it.
    options += ["--max-num-seqs", "1"]
    near = {"tuned": {"model": UNTUNED, "adapter": str(adapter)}, "untuned": UNTUNED, "prompt_template": ""}
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            vllm_process(program, str(resolve(UNTUNED)), folder / "log", kv_gib=1, options=options)
        )
        far = {"tuned": remote(server, UNTUNED, model=NAME), "untuned": remote(server, UNTUNED)}
        running = front(
            folder,
            large_models={"smollm2": {"model": LARGE}},
            pairs={"near": near, "far": {"backend": "remote", "prompt_template": "", **far}},
            served_models={"smollm2": {"large": "smollm2"}},
        )
        yield await stack.enter_async_context(running)


@pytest.mark.parametrize("ended", [False, True])
async def test_scores_are_those_of_the_adapter_in_a_worker(both: Front, ended: bool) -> None:
    answers = [Hypothesis(text=text, ended=ended) for text in ANSWERS]
    near, far = [await scores(both, where, answers) for where in ("near", "far")]
    assert far == pytest.approx(near, abs=NATS)
    assert max(map(abs, near)) > 1


async def test_an_adapters_context_is_its_bases(both: Front) -> None:
    """vLLM lists none for the adapter, only the base as its parent."""
    with pytest.raises(PairContextLengthError, match=f"{CONTEXT_LENGTH} tokens of far.tuned"):
        await scores(both, "far", [Hypothesis(text="word " * 2 * CONTEXT_LENGTH)])
