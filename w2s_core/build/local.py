"""From a configuration to an engine: the only place that knows which implementation stands behind a seam."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from w2s_core.config import (
    EngineConfig,
    LargeModelConfig,
    PairConfig,
    RemoteLargeModelConfig,
    RemotePairConfig,
    WorkersConfig,
)
from w2s_core.demo.models import resolve
from w2s_core.pool.messages import ModelSpec, WorkerSpec
from w2s_core.pool.pool import WorkerPool
from w2s_core.engine.engine import Engine
from w2s_core.errors import ConfigurationError
from w2s_core.structured.grammar_checker import GrammarChecker
from w2s_core.interfaces import LargeModel, Scorer
from w2s_core.large.local import LocalLargeModel
from w2s_core.telemetry.metrics import Metrics
from w2s_core.build.remote import RemoteParts
from w2s_core.scorers.local import LocalScorer
from w2s_core.scorers.pair_model import PairModel
from w2s_core.text.tokenizer import TextCodec
from w2s_core.structured.tool_formats import chosen

if TYPE_CHECKING:
    from w2s_core.remote.provider import Attempt
    from w2s_core.telemetry.tracing import Tracing

_DEMO = "demo:"


def build_engine(config: EngineConfig) -> Engine:
    """Fetches demo models and loads tokenizers (blocking, progress on stderr); weights come when the engine starts.

    Raises ConfigurationError, naming the key.
    """
    _check_names(config)
    large = {name: large for name, large in config.large_models.items() if isinstance(large, LargeModelConfig)}
    pairs = {name: pair for name, pair in config.pairs.items() if isinstance(pair, PairConfig)}
    metrics, tracing = Metrics(), _tracing() if config.traces else None
    pool, codecs = _pool(config.workers, large, pairs, metrics)
    remote = RemoteParts(lambda reference: _codec(codecs, reference), partial(_count, metrics, tracing))
    large_models: dict[str, LargeModel] = {}
    checkers: list[GrammarChecker] = []
    for name, there in config.large_models.items():
        if isinstance(there, RemoteLargeModelConfig):
            large_models[name] = remote.large_model(name, there)
        elif pool is not None:
            source = _source(there.model)
            tool_format = chosen(there.tool_format, codecs[source].chat_template)
            large_models[name] = local = LocalLargeModel(source, codecs[source], pool, tool_format)
            checkers.append(local.checker)
    shares = _sharing(config, codecs)
    scorers: dict[str, Scorer] = {}
    for name, pair in config.pairs.items():
        if isinstance(pair, RemotePairConfig):
            scorers[name] = remote.scorer(name, pair, shares)
        elif pool is not None:
            scorers[name] = _scorer(pair, pool, codecs, shares)
    return Engine(
        large_models,
        scorers,
        config.served,
        limits=config.limits,
        devices=pool,
        providers=[*remote.parts, *checkers],
        metrics=metrics,
        tracing=tracing,
    )


def _tracing() -> Tracing:
    try:
        from w2s_core.telemetry.tracing import otlp_tracing
    except ImportError:
        raise ConfigurationError("server.traces: needs OpenTelemetry: pip install 'w2s-server[otel]'.") from None
    return otlp_tracing()


def _count(metrics: Metrics, tracing: Tracing | None, attempt: Attempt) -> None:
    metrics.remote_attempt(attempt)
    if tracing:
        tracing.remote_attempt(attempt)


def _pool(
    workers: WorkersConfig, large: Mapping[str, LargeModelConfig], pairs: Mapping[str, PairConfig], metrics: Metrics
) -> tuple[WorkerPool | None, dict[str, TextCodec]]:
    """Workers for the local models, if there are any, and their tokenizers by source."""
    if not large and not pairs:
        return None, {}
    devices = _devices() if workers.devices == "auto" else list(workers.devices)
    models = _models(large, pairs, devices)
    pool = WorkerPool(_worker_specs(workers, devices, models), workers.heartbeat_timeout_s, metrics=metrics)
    return pool, {source: TextCodec(source) for source in models}


def _codec(known: dict[str, TextCodec], reference: str) -> TextCodec:
    """Each tokenizer is loaded once."""
    source = _source(reference)
    if source not in known:
        known[source] = TextCodec(source)
    return known[source]


def _sharing(config: EngineConfig, codecs: dict[str, TextCodec]) -> Callable[[TextCodec], bool]:
    """Whether a pair's model may take the large models' token ids as they are: a pair may serve several of them, so
    all must speak token ids, and of its vocabulary."""
    vocabularies: list[Mapping[str, int] | None] = []
    for large in config.large_models.values():
        reference = large.model if isinstance(large, LargeModelConfig) else large.tokenizer
        speaks = isinstance(large, LargeModelConfig) or large.flavor == "vllm"
        vocabularies.append(_codec(codecs, reference).vocabulary if speaks and reference else None)
    return lambda codec: all(vocabulary == codec.vocabulary for vocabulary in vocabularies)


def _check_names(config: EngineConfig) -> None:
    for name, served in config.served_models.items():
        if served.large not in config.large_models:
            raise ConfigurationError(f"served_models.{name}.large: there is no large model `{served.large}`.")
        for pair in served.guidance.pairs if served.guidance else ():
            if pair not in config.pairs:
                raise ConfigurationError(f"served_models.{name}.guidance.pairs: there is no pair `{pair}`.")


def _source(reference: str) -> str:
    """What transformers takes: demo models become folders, other references stay."""
    return str(resolve(reference)) if reference.startswith(_DEMO) else reference


def _models(
    large: Mapping[str, LargeModelConfig], pairs: Mapping[str, PairConfig], devices: Sequence[str]
) -> dict[str, tuple[ModelSpec, set[str]]]:
    """Every model once, by its source, whoever uses it, and the devices that hold it."""
    models: dict[str, tuple[ModelSpec, set[str]]] = {}
    used: list[tuple[str, LargeModelConfig | PairConfig, list[str]]] = [
        (f"large_models.{name}", user, [user.model]) for name, user in large.items()
    ]
    used += [(f"pairs.{name}", pair, [pair.tuned, pair.untuned]) for name, pair in pairs.items()]
    for key, user, references in used:
        homes = set(devices if user.devices is None else user.devices)
        if not homes or not homes <= set(devices):
            raise ConfigurationError(f"{key}.devices: must be some of workers.devices ({', '.join(devices)}).")
        for reference in references:
            source = _source(reference)
            spec, known = models.get(source, (ModelSpec(source, user.trust_remote_code), set()))
            models[source] = (spec, known | homes)
    return models


def _scorer(
    pair: PairConfig, pool: WorkerPool, codecs: Mapping[str, TextCodec], shares: Callable[[TextCodec], bool]
) -> LocalScorer:
    def model(reference: str) -> PairModel:
        source = _source(reference)
        return PairModel(source, codecs[source], shares(codecs[source]))

    return LocalScorer(pool, model(pair.tuned), model(pair.untuned), pair.prompt_template)


def _worker_specs(
    workers: WorkersConfig, devices: Sequence[str], models: Mapping[str, tuple[ModelSpec, set[str]]]
) -> list[WorkerSpec]:
    threads = max(1, (os.cpu_count() or 1) // len(devices)) if workers.threads == "auto" else workers.threads
    cache_bytes = 0 if workers.kv_cache_gb == "auto" else int(workers.kv_cache_gb * 10**9)
    return [
        WorkerSpec(
            device=device,
            dtype=workers.dtype,
            threads=threads,
            kv_cache_bytes=cache_bytes,
            models={source: spec for source, (spec, homes) in models.items() if device in homes},
        )
        for device in devices
    ]


def _devices() -> list[str]:
    """All GPUs, else the CPU. Torch is asked in a process of its own, and only where there may be a GPU."""
    if shutil.which("nvidia-smi") is None:
        return ["cpu"]
    count = "import torch; print(torch.cuda.device_count())"
    answer = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, check=True)
    return [f"cuda:{i}" for i in range(int(answer.stdout))] or ["cpu"]
