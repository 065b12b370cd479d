"""The compared systems. Each has processes of its own, which are idle while another system is measured."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from benchmarks import client
from benchmarks.bare_client import bare_search
from benchmarks.figures import Trial
from benchmarks.naive_process import NaiveProcess, naive_process
from benchmarks.prompts import excerpt
from benchmarks.scoring_cost import ScoringCost, scoring_cost
from benchmarks.server_process import Server, server_process
from benchmarks.settings import LARGE, Models, Settings, Workload
from benchmarks.vllm_process import CONTEXT_LENGTH, MODEL, vllm_process
from w2s_core.build.engine import build_engine
from w2s_core.config import EngineConfig, RemoteLargeModelConfig
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import RequestFinished
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import GenerationRequest, Guidance, SamplingParams, TokenPrompt, Tokens

System: TypeAlias = Literal[
    "engine", "int8", "http", "naive", "generate", "scoring", "vllm", "vllm bfloat16", "bare client", "remote"
]
VLLM_SYSTEMS: frozenset[System] = frozenset(("vllm", "vllm bfloat16", "bare client", "remote"))
_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Systems:
    """The running systems; those that are not needed are None."""

    tokenizer: HFTokenizer
    engine: Engine | None
    int8: Engine | None
    remote: Engine | None
    naive: NaiveProcess | None
    server: Server | None
    scoring: ScoringCost | None
    vllm: Server | None
    vllm_bfloat16: Server | None

    async def measure(self, system: System, load: Workload, seed: int) -> Trial:
        """Measures one trial. Prompts and seeds depend on `seed` alone, so that all systems get the same ones."""
        prompts = [excerpt(self.tokenizer, load.prompt, seed + i) for i in range(load.streams)]
        match system:
            case "engine" | "int8" | "remote":
                engine = {"engine": self.engine, "int8": self.int8, "remote": self.remote}[system]
                assert engine is not None
                return await through_engine(engine, load, prompts, seed)
            case "http":
                assert self.server is not None
                return await through_http(self.server.url, LARGE, load, prompts, seed)
            case "vllm" | "vllm bfloat16" | "bare client":
                server = self.vllm_bfloat16 if system == "vllm bfloat16" else self.vllm
                assert server is not None
                through = bare_search if system == "bare client" else through_vllm
                return await through(server.url, load, prompts, seed)
            case "scoring":
                assert self.scoring is not None
                return await self.scoring.measure(load, seed)
            case "naive":
                assert self.naive is not None
                return await self.naive.search(load, prompts, seed)
            case "generate":
                assert self.naive is not None
                return await self.naive.generate(load, prompts, seed)


@asynccontextmanager
async def open_systems(settings: Settings, models: Models, needed: Collection[System]) -> AsyncIterator[Systems]:
    """Starts the needed systems; leaving the context stops their processes."""
    config, plain = (m.engine_config(settings) for m in (models, replace(models, pairs={})))
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        vllm = await enter(_vllm(models, settings)) if VLLM_SYSTEMS & set(needed) - {"vllm bfloat16"} else None
        fast = replace(settings, dtype="bfloat16")
        yield Systems(
            tokenizer=HFTokenizer(models.large),
            engine=await enter(build_engine(config)) if "engine" in needed else None,
            int8=await enter(build_engine(_quantized(config))) if "int8" in needed else None,
            remote=await enter(_remote(models, settings, vllm)) if vllm and "remote" in needed else None,
            naive=await enter(naive_process(models, settings)) if {"naive", "generate"} & set(needed) else None,
            server=await enter(server_process(plain)) if "http" in needed else None,
            scoring=await enter(scoring_cost(models, settings)) if "scoring" in needed else None,
            vllm=vllm,
            vllm_bfloat16=await enter(_vllm(models, fast)) if "vllm bfloat16" in needed else None,
        )


def _quantized(config: EngineConfig) -> EngineConfig:
    return replace(config, workers=replace(config.workers, quantization="int8"))


@asynccontextmanager
async def _vllm(models: Models, settings: Settings) -> AsyncIterator[Server]:
    assert settings.vllm is not None
    with tempfile.TemporaryDirectory(prefix="w2s-bench-") as folder:
        log = Path(folder) / "vllm.log"
        options: dict[str, Any] = {"dtype": settings.dtype, "threads": settings.threads}
        options["options"] = ["--generation-config", "vllm"]  # both sides sample alike, whatever the model's file says
        async with vllm_process(settings.vllm, models.large, log, **options) as server:
            yield server


def _remote(models: Models, settings: Settings, vllm: Server) -> Engine:
    """An engine with the large model at vLLM and the pairs in one local thread, because vLLM keeps its cores busy."""
    large = RemoteLargeModelConfig(
        base_url=f"{vllm.url}/v1", model=MODEL, flavor="vllm", tokenizer=models.large, context_length=CONTEXT_LENGTH
    )
    return build_engine(models.engine_config(replace(settings, threads=1), large))


def requests_of(load: Workload, prompts: Sequence[Tokens], seed: int) -> list[GenerationRequest]:
    """The requests of a workload: one guided answer, or W·K plain samples, per prompt."""
    guided = load.pair is not None
    guidance = Guidance("cbs", {load.pair: 1.0}, load.w, load.k, load.length) if load.pair is not None else None
    return [
        GenerationRequest(
            load.pair or LARGE,
            (TokenPrompt(prompt),),
            SamplingParams(max_tokens=load.tokens, seed=seed + i, ignore_eos=True),
            guidance,
            n=1 if guided else load.rows,
        )
        for i, prompt in enumerate(prompts)
    ]


async def through_engine(engine: Engine, load: Workload, prompts: Sequence[Tokens], seed: int) -> Trial:
    """Measures the engine in this process, as a library."""

    async def completion_tokens(request: GenerationRequest) -> int:
        async for event in engine.generate(request):
            if isinstance(event, RequestFinished):
                return event.completion_tokens
        raise AssertionError("a request always ends with RequestFinished")

    start = time.perf_counter()
    counts = await asyncio.gather(*(completion_tokens(request) for request in requests_of(load, prompts, seed)))
    return _trial(load, sum(counts), time.perf_counter() - start)


async def through_http(url: str, model: str, load: Workload, prompts: Sequence[Tokens], seed: int) -> Trial:
    """Measures a server through HTTP, with streaming, each request on a connection of its own."""
    n = {} if load.pair is not None else {"n": load.rows}
    bodies = [client.body(model, prompt, load.tokens, seed + i, **n) for i, prompt in enumerate(prompts)]
    start = time.perf_counter()
    streams = await client.streams(url, bodies, _TIMEOUT_S)
    return _trial(load, sum(stream.tokens for stream in streams), time.perf_counter() - start)


async def through_vllm(url: str, load: Workload, prompts: Sequence[Tokens], seed: int) -> Trial:
    """Measures plain samples of vLLM, with streaming, with which vLLM is fastest."""
    fields = {"n": load.rows, "ignore_eos": True, "temperature": 1.0}
    bodies = [client.body(MODEL, prompt, load.tokens, seed + i, **fields) for i, prompt in enumerate(prompts)]
    start = time.perf_counter()
    streams = await client.streams(url, bodies, _TIMEOUT_S)
    return _trial(load, sum(stream.tokens for stream in streams), time.perf_counter() - start)


def _trial(load: Workload, tokens: int, seconds: float) -> Trial:
    """The trial. Of plain samples one row's share counts, as a guided request of as many rows commits one answer."""
    share = 1 if load.pair is not None else load.rows
    budget = load.tokens * load.streams * share
    return Trial(tokens / share, seconds, ended=int(tokens < budget))
