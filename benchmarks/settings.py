"""Workloads, settings and models of the benchmarks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from w2s_core.config import (
    EngineConfig,
    LargeModelConfig,
    PairConfig,
    RemoteLargeModelConfig,
    ServedModelConfig,
    WorkersConfig,
)
from w2s_core.demo.models import PREFIX, SMOLLM2, resolve
from w2s_core.types import Guidance

Dtype: TypeAlias = Literal["float32", "bfloat16"]
LARGE, DEMO, EQUAL = "large", "demo", "equal"


@dataclass(frozen=True, slots=True)
class Workload:
    """`streams` concurrent requests, each with a prompt of `prompt` tokens and an answer of `tokens` tokens.

    They are guided by `pair` with W = `w`, K = `k`, L = `length`. If `pair` is None, each asks for W·K plain samples.
    """

    prompt: int
    tokens: int
    pair: str | None
    w: int = 4
    k: int = 4
    length: int = 5
    streams: int = 1

    @property
    def rows(self) -> int:
        return self.w * self.k

    def at_most(self, tokens: int) -> Workload:
        """The same workload with shorter answers, to warm up."""
        return replace(self, tokens=min(self.tokens, tokens))


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a benchmark run.

    `attempts`: how often a trial is made at most, while other processes disturb it. After `minutes` no repeat but the
    first starts. `shrink` divides the tokens of every answer (quick runs). `vllm`: path of the command, None without.
    `device` and `cuda_graphs`: of the worker.
    """

    dtype: Dtype = "float32"
    threads: int = 2
    repeats: int = 3
    attempts: int = 1
    minutes: float = 20.0
    shrink: int = 1
    vllm: str | None = None
    large: str = PREFIX + SMOLLM2
    tuned: str = PREFIX + "reviews-positive"
    untuned: str = PREFIX + "reviews-negative"
    device: str = "cpu"
    cuda_graphs: bool = False

    def tokens(self, full: int) -> int:
        """The tokens of an answer that has `full` tokens in a full run."""
        return max(2, full // self.shrink)


@dataclass(frozen=True, slots=True)
class Models:
    """Model folders that every system loads: the large model, and pairs (tuned, untuned, prompt template) by name."""

    large: str
    pairs: Mapping[str, tuple[str, str, str | None]]

    def engine_config(self, settings: Settings, remote: RemoteLargeModelConfig | None = None) -> EngineConfig:
        """Serves `large` without guidance and every pair's name with it. `remote` replaces the local large model."""
        served = {LARGE: ServedModelConfig(LARGE)}
        served |= {name: ServedModelConfig(LARGE, Guidance("cbs", {name: 1.0})) for name in self.pairs}
        return EngineConfig(
            large_models={LARGE: remote or LargeModelConfig(self.large, generation_config="ignore")},
            served_models=served,
            pairs={name: PairConfig(t, u, prompt_template=template) for name, (t, u, template) in self.pairs.items()},
            workers=WorkersConfig(
                devices=(settings.device,),
                dtype=settings.dtype,
                threads=settings.threads,
                cuda_graphs=settings.cuda_graphs,
            ),
        )


def prepare(settings: Settings, folder: Path, *, equal: bool) -> Models:
    """Prepares the models in `folder`.

    The large model gets a configuration without EOS, so that all answers have the same length. With `equal`, its
    weights are copied twice, as a pair of the large model's size. They must be copies, not links, because a worker
    loads each folder once and one model in two roles would do half the work.
    """
    source = _folder(settings.large)
    large = _without_eos(source, folder / LARGE)
    pairs: dict[str, tuple[str, str, str | None]] = {
        DEMO: (str(_folder(settings.tuned)), str(_folder(settings.untuned)), "")
    }
    if equal:
        copies = [str(shutil.copytree(source, folder / name)) for name in ("tuned", "untuned")]
        pairs[EQUAL] = (copies[0], copies[1], "{prompt}")
    return Models(str(large), pairs)


def _folder(reference: str) -> Path:
    return resolve(reference) if reference.startswith(PREFIX) else Path(reference)


def _without_eos(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.resolve().iterdir():
        if path.name not in ("config.json", "generation_config.json"):
            (target / path.name).symlink_to(path)
            continue
        content = json.loads(path.read_text(encoding="utf-8")) | {"eos_token_id": None}
        (target / path.name).write_text(json.dumps(content), encoding="utf-8")
    return target
