"""The gain from early scoring: one search over a slow provider, with and without scoring successors as they arrive.

The provider is simulated: a call takes a fixed time plus an exponentially distributed one, as on a busy cluster, and
returns random words. The pair is either the demo pair in a local worker, or at the same provider.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import click
import uvicorn
from fastapi import FastAPI

from benchmarks.figures import Spread
from w2s_core.build.engine import build_engine
from w2s_core.config import (
    EngineConfig,
    LargeModelConfig,
    PairConfig,
    RemoteLargeModelConfig,
    RemoteModelConfig,
    RemotePairConfig,
    ServedModelConfig,
)
from w2s_core.demo.models import PREFIX, SMOLLM2, resolve
from w2s_core.engine import prompt_run
from w2s_core.engine.early_scoring import EarlyScoringProposer
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import RequestFinished
from w2s_core.interfaces import Proposer
from w2s_core.types import GenerationRequest, Guidance, SamplingParams, TextPrompt

_CONTEXT = 4096
_WORDS = range(1000, 20000)  # token ids of SmolLM2 that are words or parts of words
_TOKENS, _W, _K, _L = 60, 4, 4, 5


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of a call: `minimum` plus an exponentially distributed time with mean `mean_extra`."""

    minimum: float
    mean_extra: float


def provider(sampling: Latency, scoring: Latency) -> FastAPI:
    """A simulated vLLM server with the endpoints that a search needs."""
    app = FastAPI()
    rng = random.Random(0)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"data": [{"id": "slow", "max_model_len": _CONTEXT}]}

    @app.post("/v1/completions")
    async def completions(body: dict[str, Any]) -> dict[str, Any]:
        prompt: list[int] = body["prompt"] if isinstance(body["prompt"], list) else []
        scores_prompt = "prompt_logprobs" in body
        latency = scoring if scores_prompt else sampling
        await asyncio.sleep(latency.minimum + rng.expovariate(1 / latency.mean_extra))
        size, n = body["max_tokens"], body.get("n", 1)
        choices = [_choice(index, [rng.choice(_WORDS) for _ in range(size)]) for index in range(n)]
        if scores_prompt:
            logprobs = [None, *({str(token): {"logprob": -rng.random()}} for token in prompt[1:])]
            choices = [choice | {"prompt_logprobs": logprobs} for choice in choices]
        return {"choices": choices, "usage": {"prompt_tokens": len(prompt), "completion_tokens": n * size}}

    return app


def _choice(index: int, tokens: Sequence[int]) -> dict[str, Any]:
    logprobs = {"tokens": [str(token) for token in tokens], "token_logprobs": [-1.0] * len(tokens)}
    return {"index": index, "text": "", "finish_reason": "length", "token_ids": tokens, "logprobs": logprobs}


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """Serves the app on a free port of 127.0.0.1 and yields its base_url."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        server.should_exit = True
        await task


def config_of(url: str, *, remote_pair: bool) -> EngineConfig:
    tokenizer = PREFIX + SMOLLM2
    model = RemoteModelConfig(base_url=url, model="slow", tokenizer=tokenizer)
    pair: PairConfig | RemotePairConfig = (
        RemotePairConfig(tuned=model, untuned=model, prompt_template="{prompt}")
        if remote_pair
        else PairConfig(tuned=f"{PREFIX}reviews-positive", untuned=f"{PREFIX}reviews", prompt_template="")
    )
    large: LargeModelConfig | RemoteLargeModelConfig = RemoteLargeModelConfig(
        base_url=url, model="slow", tokenizer=tokenizer, context_length=_CONTEXT
    )
    guidance = Guidance("cbs", {"pair": 1.0}, _W, _K, _L)
    return EngineConfig({"large": large}, {"guided": ServedModelConfig("large", guidance)}, {"pair": pair})


class SequentialProposer:
    """Replaces EarlyScoringProposer: waits for all beams before any is scored."""

    def __init__(self, proposals: Proposer, _scoring: object) -> None:
        self.propose = proposals.propose


async def seconds(engine: Engine, seed: int) -> float:
    """The seconds that one request takes."""
    request = GenerationRequest("guided", (TextPrompt("Say it."),), SamplingParams(max_tokens=_TOKENS, seed=seed))
    start = time.perf_counter()
    events: AsyncGenerator[Any] = engine.generate(request)
    async for event in events:
        if isinstance(event, RequestFinished):
            assert event.completion_tokens == _TOKENS
    return time.perf_counter() - start


async def compare(repeats: int, sampling: Latency, scoring: Latency, *, remote_pair: bool) -> tuple[Spread, ...]:
    """Seconds with early and with sequential scoring, and their ratio, repeat by repeat."""
    proposers: dict[str, type] = {"early": EarlyScoringProposer, "in turn": SequentialProposer}
    durations: dict[str, list[float]] = {name: [] for name in proposers}
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(served(provider(sampling, scoring)))
        engine = await stack.enter_async_context(build_engine(config_of(url, remote_pair=remote_pair)))
        for repeat in range(-1, repeats):
            for name, proposer in proposers.items():
                with patch.object(prompt_run, "EarlyScoringProposer", proposer):
                    durations[name].append(await seconds(engine, repeat))
    early, in_turn = durations["early"][1:], durations["in turn"][1:]  # the first ones are for warm-up
    return Spread.of(early), Spread.of(in_turn), Spread.of([a / b for a, b in zip(early, in_turn, strict=True)])


@click.command()
@click.option("--repeats", default=7, type=click.IntRange(1))
@click.option("--draw-ms", default=(60.0, 60.0), nargs=2, help="Latency of a sampling call: minimum, mean above it.")
@click.option(
    "--read-ms", default=(20.0, 20.0), nargs=2, help="Latency of a call of the remote pair: minimum, mean above it."
)
def main(repeats: int, draw_ms: tuple[float, float], read_ms: tuple[float, float]) -> None:
    """Compare early with sequential scoring: prints seconds per answer and their ratio."""
    resolve(PREFIX + SMOLLM2)
    sampling, scoring = (Latency(minimum / 1000, mean / 1000) for minimum, mean in (draw_ms, read_ms))
    click.echo(f"W={_W} K={_K} L={_L} T={_TOKENS}, {repeats} repeats, median (min .. max)\n")
    click.echo("| pair | early, s | in turn, s | early ÷ in turn |\n|---|---|---|---|")
    for remote_pair in (False, True):
        row = asyncio.run(compare(repeats, sampling, scoring, remote_pair=remote_pair))
        click.echo(f"| {'remote' if remote_pair else 'local, demo'} | {' | '.join(map(str, row))} |")


if __name__ == "__main__":
    main()
