"""From a configuration to an engine: the only place that knows which implementation stands behind a seam."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence

from w2s_core.config import EngineConfig, LargeModelConfig, PairConfig, WorkersConfig
from w2s_core.demo.models import resolve
from w2s_core.device.jobs import ModelSpec, WorkerSpec
from w2s_core.device.pool import WorkerPool
from w2s_core.engine import Engine
from w2s_core.errors import ConfigurationError
from w2s_core.large.local import LocalLargeModel
from w2s_core.scorers.local import LocalScorer
from w2s_core.scorers.pair_model import PairModel
from w2s_core.text import TextCodec

_DEMO = "demo:"


def build_engine(config: EngineConfig) -> Engine:
    """Fetches demo models and loads tokenizers (blocking, progress on stderr); weights come when the engine starts.

    Raises ConfigurationError, naming the key.
    """
    _check_names(config)
    devices = _devices() if config.workers.devices == "auto" else list(config.workers.devices)
    models = _models(config, devices)
    codecs = {source: TextCodec(source) for source in models}
    pool = WorkerPool(_worker_specs(config.workers, devices, models), config.workers.heartbeat_timeout_s)
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


def _models(config: EngineConfig, devices: Sequence[str]) -> dict[str, tuple[ModelSpec, set[str]]]:
    """Every model once, by its source, whoever uses it, and the devices that hold it."""
    models: dict[str, tuple[ModelSpec, set[str]]] = {}
    used: list[tuple[str, LargeModelConfig | PairConfig, list[str]]] = [
        (f"large_models.{name}", large, [large.model]) for name, large in config.large_models.items()
    ]
    used += [(f"pairs.{name}", pair, [pair.tuned, pair.untuned]) for name, pair in config.pairs.items()]
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
    pair: PairConfig, pool: WorkerPool, codecs: Mapping[str, TextCodec], large: Mapping[str, str]
) -> LocalScorer:
    # A pair may serve several large models; ids pass straight through only where all of them share its vocabulary.
    def model(reference: str) -> PairModel:
        source = _source(reference)
        vocabulary = codecs[source].vocabulary
        shares = all(codecs[other].vocabulary == vocabulary for other in large.values())
        return PairModel(source, codecs[source], shares)

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
