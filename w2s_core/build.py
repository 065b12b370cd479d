"""From a configuration to an engine: the only place that knows which implementation stands behind a seam."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

from w2s_core.config import EngineConfig, PairConfig, WorkersConfig
from w2s_core.demo.models import resolve
from w2s_core.device.jobs import ModelSpec, WorkerSpec
from w2s_core.device.pool import WorkerPool
from w2s_core.engine import Engine
from w2s_core.errors import ConfigurationError
from w2s_core.large.local import LocalLargeModel
from w2s_core.scorers.local import LocalModel, LocalScorer
from w2s_core.text import TextCodec

_DEMO = "demo:"


def build_engine(config: EngineConfig) -> Engine:
    """Fetches demo models and loads tokenizers (blocking, progress on stderr); weights come when the engine starts.

    Raises ConfigurationError, naming the key.
    """
    _check_names(config)
    models = _models(config)
    codecs = {source: TextCodec(source) for source in models}
    pool = WorkerPool(_worker_specs(config.workers, models))
    sources = {name: _source(large.model) for name, large in config.large_models.items()}
    large_models = {name: LocalLargeModel(source, codecs[source], pool) for name, source in sources.items()}
    return Engine(
        large_models,
        {name: _scorer(pair, pool, codecs, sources) for name, pair in config.pairs.items()},
        {name: (served.large, served.guidance) for name, served in config.served_models.items()},
        limits=config.limits,
        devices=pool,
    )


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


def _models(config: EngineConfig) -> dict[str, ModelSpec]:
    """Every model once, by its source, whoever uses it."""
    wanted = [(large.model, large.trust_remote_code) for large in config.large_models.values()]
    for pair in config.pairs.values():
        wanted += [(pair.tuned, pair.trust_remote_code), (pair.untuned, pair.trust_remote_code)]
    return {(source := _source(reference)): ModelSpec(source, trust) for reference, trust in wanted}


def _scorer(
    pair: PairConfig, pool: WorkerPool, codecs: Mapping[str, TextCodec], large: Mapping[str, str]
) -> LocalScorer:
    # A pair may serve several large models; ids pass straight through only where all of them share its vocabulary.
    def model(reference: str) -> LocalModel:
        source = _source(reference)
        vocabulary = codecs[source].vocabulary
        shares = all(codecs[other].vocabulary == vocabulary for other in large.values())
        return LocalModel(source, codecs[source], shares)

    return LocalScorer(pool, model(pair.tuned), model(pair.untuned), pair.prompt_template)


def _worker_specs(workers: WorkersConfig, models: Mapping[str, ModelSpec]) -> list[WorkerSpec]:
    devices = _devices() if workers.devices == "auto" else list(workers.devices)
    threads = max(1, (os.cpu_count() or 1) // len(devices)) if workers.threads == "auto" else workers.threads
    cache_bytes = 0 if workers.kv_cache_gb == "auto" else int(workers.kv_cache_gb * 10**9)
    return [WorkerSpec(device, workers.dtype, threads, cache_bytes, dict(models)) for device in devices]


def _devices() -> list[str]:
    """All GPUs, else the CPU. Torch is asked in a process of its own, and only where there may be a GPU."""
    if shutil.which("nvidia-smi") is None:
        return ["cpu"]
    count = "import torch; print(torch.cuda.device_count())"
    answer = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, check=True)
    return [f"cuda:{i}" for i in range(int(answer.stdout))] or ["cpu"]
