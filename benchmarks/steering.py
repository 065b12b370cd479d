"""What guidance adds to a step (`make steering`): EFT against its three forwards; selection and its trace to a chunk.

Models are random, of SmolLM2-135M's shape and four layers of it: what they compute costs the same as with trained
weights.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from unittest.mock import patch

import click
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.machine import machine
from benchmarks.prompts import story
from server.api.schemas.responses import RoundGuidance
from w2s_core.engine.events import RoundFinished
from w2s_core.guidance import Guidance
from w2s_core.pool.messages import CloseSession, Expert, Row, SampleJob, Sampling
from w2s_core.search.randomness import copy_key, root_key, successor_key
from w2s_core.search.selection import Selector
from w2s_core.search.tree import MAX_TREE_CHARACTERS, RoundTrace
from w2s_core.types import Hypothesis, Round, Tokens
from w2s_core.worker import model_group
from w2s_core.worker.batch import Batch
from w2s_core.worker.loading import make_runner
from w2s_core.worker.model_runner import ModelRunner, forward_together
from w2s_core.worker.models import WorkerModels

VOCABULARY = 49_152
# (hidden size, layers, heads): SmolLM2-135M's, and a pair an eighth as deep.
LARGE, SMALL = (576, 30, 9), (576, 4, 9)
_CACHE_BYTES = 2 * 10**9
_PROMPT: Tokens = tuple(range(100, 150))
_BRAKES = {"repetition": 1.0, "fluency": 0.2, "early_stopping": True}


class Steps:
    """The models of one worker, and the time of their decode steps."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        sizes = {"large": LARGE, "tuned": SMALL, "untuned": SMALL}
        runners = {name: make_runner(_model(size, device, dtype), device, _CACHE_BYTES) for name, size in sizes.items()}
        self._models = WorkerModels(runners)
        self._ids = itertools.count(1)

    def step_seconds(self, model: str, rows: int, *, tokens: int, start: int = 0, eft: bool = False) -> float:
        """The median seconds of a decode step of `rows` answers that have `start` tokens, of the draw as well."""
        number = next(self._ids)
        experts = tuple(Expert(name, _PROMPT, beta, VOCABULARY) for name, beta in (("tuned", 1.0), ("untuned", -1.0)))
        answers = tuple(Row(tuple(range(start)), copy_key(root_key(1), i), tokens + 2) for i in range(rows))
        job = SampleJob(number, number, model, _PROMPT, answers, Sampling(), 1000, experts if eft else ())
        self._models.handle(job)
        while not any(task.rows[0].logprobs for s in self._models._schedulers.values() for task in s.sample_tasks):
            self._models.step()  # the prompt
        seconds = [self._timed(self._models.step) for _ in range(tokens)]
        self._models.handle(CloseSession(number))
        return median(seconds)

    def forward_seconds(self, model: str, rows: int, *, tokens: int) -> float:
        """The median seconds of the model's forward alone, in the decode steps of `rows` answers."""
        seconds: list[float] = []

        def timed_forward(batches: Sequence[tuple[ModelRunner, Batch]]) -> list[torch.Tensor]:
            logits: list[torch.Tensor] = []
            seconds.append(self._timed(lambda: logits.extend(forward_together(batches))))
            return logits

        with patch.object(model_group, "forward_together", timed_forward):
            self.step_seconds(model, rows, tokens=tokens)
        return median(seconds[-tokens:])

    def _timed(self, call: Callable[[], object]) -> float:
        self._wait()
        start = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _model(size: tuple[int, int, int], device: torch.device, dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    hidden, layers, heads = size
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    return model.to(device=device, dtype=dtype)  # type: ignore[call-arg, no-any-return]


def round_seconds(length: int, w: int = 4, k: int = 4, chunk: int = 5) -> tuple[float, float]:
    """The median seconds, at about `length` tokens of answer, of ranking and selecting a round's candidates, and of
    turning them into the JSON of a streamed trace."""
    words = story().split()
    guidance = Guidance("cbs", {"positive": 1.0}, w, k, chunk, **_BRAKES)  # type: ignore[arg-type]
    selector, trace = Selector(guidance, 2 * length), RoundTrace(max_characters=MAX_TREE_CHARACTERS)
    beam, selecting, tracing = [Hypothesis(key=copy_key(1, i)) for i in range(w)], list[float](), list[float]()
    for round_ in range(length // chunk + 20):
        pool = [_successor(y, i, words, round_ * k + i, chunk) for y in beam for i in range(k)]
        start = time.perf_counter()
        ranked = selector.rank(pool)
        beam = selector.select(ranked, w)
        selected = time.perf_counter()
        candidates = trace.candidates(Round(ranked, beam, proposed=pool))
        event = RoundFinished(0, [0], round_ + 1, candidates, 0, 0, 0, 0.0)
        RoundGuidance.of(event).model_dump_json(exclude_unset=True)
        selecting.append(selected - start)
        tracing.append(time.perf_counter() - selected)
    return median(selecting[-20:]), median(tracing[-20:])


def _successor(y: Hypothesis, index: int, words: list[str], place: int, chunk: int) -> Hypothesis:
    new = [words[(place * 7 + i) % len(words)] for i in range(chunk)]
    return replace(
        Hypothesis(key=successor_key(y.key, y.length, index)),
        tokens=y.tokens + tuple(range(chunk)),
        text=f"{y.text} {' '.join(new)}",
        logprobs=y.logprobs + (-1.5,) * chunk,
        score=y.score + index / 7,
        scores={"positive": y.score + index / 7},
        parent=replace(y, parent=None),
    )


@click.command()
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="bfloat16", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--rows", type=int, multiple=True, default=(1, 4, 16), show_default=True)
@click.option("--tokens", type=int, default=40, show_default=True, help="Decode steps timed.")
@click.option("--repeats", type=int, default=3, show_default=True)
def main(*, device: str, dtype: str, threads: int, rows: tuple[int, ...], tokens: int, repeats: int) -> None:
    """Measure what EFT, selection and a streamed trace cost."""
    torch.set_num_threads(threads)
    steps = Steps(torch.device(device), getattr(torch, dtype))
    name = torch.cuda.get_device_name() if device.startswith("cuda") else machine()["processor"]
    click.echo(f"{name}, {dtype}\n\nEFT, ms per step: (three forwards alone) / (step) = ratio, promised ≥ 0.85")
    for count in rows:
        ratios = []
        for _ in range(repeats):
            alone = sum(steps.forward_seconds(model, count, tokens=tokens) for model in ("large", "tuned", "untuned"))
            step = steps.step_seconds("large", count, tokens=tokens, eft=True)
            ratios.append((alone / step, alone, step))
        ratio, alone, step = sorted(ratios)[len(ratios) // 2]
        click.echo(f"{count:3} rows: {1e3 * alone:7.2f} / {1e3 * step:7.2f} = {ratio:.2f}")
    chunk = 5 * steps.step_seconds("large", 16, tokens=10, start=512)
    click.echo("")
    for what, seconds in zip(("Selection", "Streaming its trace"), round_seconds(512), strict=True):
        click.echo(
            f"{what} (4/4/5, at 512 tokens): {1e3 * seconds:.2f} ms of a chunk's {1e3 * chunk:.1f} ms of sampling, "
            f"{seconds / chunk:.2%}, promised under 2 %"
        )


if __name__ == "__main__":
    main()
