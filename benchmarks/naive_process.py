"""Runs the naive search and `transformers.generate` in a child process that speaks JSON lines over stdin and stdout.

It runs under the same conditions as the engine's workers: the same threads, precision and environment. While another
system is measured it waits in `readline` and uses no CPU.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.figures import Trial
from benchmarks.settings import Models, Settings, Workload
from w2s_core.pool.process import (
    WORKER_ENVIRONMENT,  # among others how threads wait, which must be the same for all systems
)
from w2s_core.types import Tokens

_QUIET = {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
_LINE_LIMIT = 2**20


class NaiveProcess:
    """The parent's side of the child process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def search(self, load: Workload, prompts: Sequence[Tokens], seed: int) -> Trial:
        """Runs the published search for one prompt after another."""
        return await self._call("search", load, prompts, seed)

    async def generate(self, load: Workload, prompts: Sequence[Tokens], seed: int) -> Trial:
        """Runs `transformers.generate` with W·K rows per prompt, without scoring; the trial's tokens are one row's."""
        return await self._call("generate", load, prompts, seed)

    async def _call(self, kind: str, load: Workload, prompts: Sequence[Tokens], seed: int) -> Trial:
        fields = {name: getattr(load, name) for name in ("pair", "tokens", "w", "k", "length")}
        return Trial(**await self.send({"kind": kind, "prompts": prompts, "seed": seed, **fields}))

    async def send(self, message: Any) -> Any:
        """Sends one message and returns the reply."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        answer = await self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the naive process exited; see stderr for the reason")
        return json.loads(answer)


@asynccontextmanager
async def naive_process(models: Models, settings: Settings) -> AsyncIterator[NaiveProcess]:
    """Starts the process and loads the models; leaving the context kills it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.naive_process",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=WORKER_ENVIRONMENT | _QUIET | os.environ,
        limit=_LINE_LIMIT,
        start_new_session=True,
    )
    try:
        naive = NaiveProcess(process)
        spec = {"large": models.large, "pairs": models.pairs, "dtype": settings.dtype, "threads": settings.threads}
        await naive.send(spec)
        yield naive
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def main() -> None:
    """The child process: reads the models' specification, then serves one message per line."""
    import torch

    from benchmarks.naive import Model, Pair

    spec = json.loads(sys.stdin.readline())
    torch.set_num_threads(spec["threads"])
    large = Model(spec["large"], spec["dtype"])
    pairs = {
        name: Pair(Model(tuned, spec["dtype"]), Model(untuned, spec["dtype"]), template)
        for name, (tuned, untuned, template) in spec["pairs"].items()
    }
    _reply({"ready": True})
    while line := sys.stdin.readline():
        message = json.loads(line)
        torch.manual_seed(message["seed"])
        _reply(_search(large, pairs, message) if message["kind"] == "search" else _generate(large, message))


def _reply(message: Any) -> None:
    print(json.dumps(message), flush=True)


def _search(large: Any, pairs: Any, message: Any) -> dict[str, Any]:
    from benchmarks.naive import NaiveSearch

    shape = {name: message[name] for name in ("w", "k", "length")}
    phases: dict[str, float] = {}
    tokens = ended = 0
    start = time.perf_counter()
    for number, prompt in enumerate(message["prompts"]):
        search = NaiveSearch(large, pairs[message["pair"]], **shape)
        best = search.run(tuple(prompt), message["tokens"], seed=message["seed"] + number)
        tokens += len(best.tokens)
        ended += best.ended
        for name, seconds in search.timer.seconds.items():
            phases[name] = phases.get(name, 0.0) + seconds
    return {"tokens": tokens, "seconds": time.perf_counter() - start, "ended": ended, "phases": phases}


def _generate(large: Any, message: Any) -> dict[str, Any]:
    import torch

    tokens = 0
    start = time.perf_counter()
    for prompt in message["prompts"]:
        inputs = torch.tensor([prompt])
        sequences = large.lm.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=message["w"] * message["k"],
            max_new_tokens=message["tokens"],
            pad_token_id=0,
        )
        tokens += sequences.shape[1] - inputs.shape[1]
    return {"tokens": tokens, "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    main()
