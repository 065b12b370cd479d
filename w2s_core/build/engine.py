"""Composition root: `build_engine` chooses the implementation behind each interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from w2s_core.build.local import LocalModels
from w2s_core.build.managed import ManagedModels
from w2s_core.build.python_scorers import load_python_scorer
from w2s_core.build.remote import RemoteModels
from w2s_core.build.tokenizers import TokenizerCache
from w2s_core.config import (
    EngineConfig,
    LargeModelConfig,
    ManagedLargeModelConfig,
    RemoteLargeModelConfig,
    RemotePairConfig,
    RemoteRewardModelConfig,
)
from w2s_core.engine.engine import Engine
from w2s_core.errors import ConfigurationError
from w2s_core.guidance import SCORER_KEYS
from w2s_core.interfaces import LargeModel, Scorer
from w2s_core.scorers.proxy_tuning import LocalProxyTuner
from w2s_core.telemetry.metrics import Metrics
from w2s_core.text.tokenizer import HFTokenizer

if TYPE_CHECKING:
    from w2s_core.remote.provider import Attempt
    from w2s_core.telemetry.tracing import Tracing


def build_engine(config: EngineConfig) -> Engine:
    """Builds an engine from its configuration. Model weights are loaded when the engine starts.

    It blocks while it fetches demo models, with progress on stderr, and loads tokenizers. Raises ConfigurationError,
    naming the key.
    """
    _check_names(config)
    metrics, tracing = Metrics(), _tracing() if config.traces else None
    tokenizers = TokenizerCache()
    local = LocalModels(config, tokenizers, metrics)
    remote = RemoteModels(tokenizers.load, partial(_on_attempt, metrics, tracing))
    managed = ManagedModels(remote, tokenizers, config.workers.heartbeat_timeout_s, metrics)
    large_models: dict[str, LargeModel] = {}
    tuners: dict[str, LocalProxyTuner] = {}
    for name, large in config.large_models.items():
        if isinstance(large, RemoteLargeModelConfig):
            large_models[name] = remote.large_model(name, large)
        elif isinstance(large, ManagedLargeModelConfig):
            large_models[name] = managed.large_model(name, large)
        else:
            large_models[name] = model = local.large_model(large)
            tuners[name] = local.proxy_tuner(model, large, config.pairs)
    scorers = _scorers(config, local, remote, _shares_tokens(config, tokenizers))
    return Engine(
        large_models,
        scorers,
        config.served_models,
        tuners=tuners,
        scorer_keys={name: key for key, name in _scorer_names(config)},
        limits=config.limits,
        worker_pool=local.pool,
        components=[*managed.servers, *remote.probes, *local.checkers],
        metrics=metrics,
        tracing=tracing,
    )


def _scorers(
    config: EngineConfig, local: LocalModels, remote: RemoteModels, shares_tokens: Callable[[HFTokenizer], bool]
) -> dict[str, Scorer]:
    """The pairs, reward models and scorers in Python by name."""
    scorers: dict[str, Scorer] = {}
    for name, pair in config.pairs.items():
        if isinstance(pair, RemotePairConfig):
            scorers[name] = remote.scorer(name, pair, shares_tokens)
        else:
            scorers[name] = local.scorer(name, pair, shares_tokens)
    for name, model in config.reward_models.items():
        if isinstance(model, RemoteRewardModelConfig):
            scorers[name] = remote.reward_model(name, model, shares_tokens)
        else:
            scorers[name] = local.reward_model(name, model, shares_tokens)
    return scorers | {name: load_python_scorer(name, scorer) for name, scorer in config.scorers.items()}


def _tracing() -> Tracing:
    try:
        from w2s_core.telemetry.tracing import otlp_tracing
    except ImportError:
        raise ConfigurationError(
            "server.traces: needs OpenTelemetry. Install it with: pip install 'w2s-server[otel]'."
        ) from None
    return otlp_tracing()


def _on_attempt(metrics: Metrics, tracing: Tracing | None, attempt: Attempt) -> None:
    metrics.remote_attempt(attempt)
    if tracing:
        tracing.remote_attempt(attempt)


def _shares_tokens(config: EngineConfig, tokenizers: TokenizerCache) -> Callable[[HFTokenizer], bool]:
    """A predicate on a pair's tokenizer: whether the pair can score the large models' token ids without retokenizing.

    A pair may guide several large models, so all of them must use token ids of the same vocabulary as the pair's.
    """
    vocabularies: list[Mapping[str, int] | None] = []
    for large in config.large_models.values():
        if isinstance(large, LargeModelConfig | ManagedLargeModelConfig):
            vocabularies.append(tokenizers.of_model(large.model).vocabulary)
        else:
            own = large.tokenizer if large.flavor == "vllm" else None  # else it reads text, not token ids
            vocabularies.append(tokenizers.load(own).vocabulary if own is not None else None)
    return lambda tokenizer: all(vocabulary == tokenizer.vocabulary for vocabulary in vocabularies)


def _scorer_names(config: EngineConfig) -> list[tuple[str, str]]:
    """(section, name) of everything that scores."""
    return [(key, name) for key in SCORER_KEYS for name in getattr(config, key)]


def _check_names(config: EngineConfig) -> None:
    sections: dict[str, str] = {}
    for key, name in _scorer_names(config):
        if sections.setdefault(name, key) != key:
            raise ConfigurationError(f"{key}.{name}: `{name}` is already a name in {sections[name]}.")
    for name, model in config.reward_models.items():
        if isinstance(model.label, bool):
            raise ConfigurationError(
                f"reward_models.{name}.label: is a boolean; put quotes around a name such as yes, no, true or false."
            )
    for name, served in config.served_models.items():
        if served.large not in config.large_models:
            raise ConfigurationError(f"served_models.{name}.large: there is no large model `{served.large}`.")
        for key, scorer, _ in served.guidance.named_weights() if served.guidance else ():
            if scorer not in getattr(config, key):
                kind = key.replace("_", " ").removesuffix("s")
                raise ConfigurationError(f"served_models.{name}.guidance.{key}: there is no {kind} `{scorer}`.")
