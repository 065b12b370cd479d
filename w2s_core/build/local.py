"""Builds local models: the worker pool, and the large models, pairs and reward models that run on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from w2s_core.build.devices import check_choice, worker_devices
from w2s_core.build.generation_config import read_generation_config
from w2s_core.build.model_sources import check_references
from w2s_core.build.tokenizers import TokenizerCache
from w2s_core.config import (
    EngineConfig,
    LargeModelConfig,
    ModelReference,
    PairConfig,
    QuantizationName,
    RemotePairConfig,
    RewardModelConfig,
    WorkersConfig,
)
from w2s_core.errors import ConfigurationError
from w2s_core.large.local import LocalLargeModel
from w2s_core.pool.pool import WorkerPool
from w2s_core.pool.specs import AdapterSpec, ModelSpec, RewardHead, WorkerSpec
from w2s_core.scorers.local import LocalScorer
from w2s_core.scorers.pair_model import PairModel
from w2s_core.scorers.proxy_tuning import LocalProxyTuner, ProxyPair, proxy_pair
from w2s_core.scorers.reward_model import RewardModelScorer
from w2s_core.structured.grammar_checker import GrammarChecker
from w2s_core.structured.tool_formats import resolve_tool_format
from w2s_core.telemetry.metrics import Metrics
from w2s_core.text.reasoning import resolve_reasoning_format
from w2s_core.text.tokenizer import HFTokenizer

_Entry: TypeAlias = LargeModelConfig | PairConfig | RewardModelConfig


class LocalModels:
    """Builds the large models, pairs and reward models that run in the worker pool. Raises ConfigurationError.

    `pool` is None if no model is local. `checkers` must be started and stopped with the engine.
    """

    def __init__(self, config: EngineConfig, tokenizers: TokenizerCache, metrics: Metrics) -> None:
        check_references(config)  # before anything is fetched
        large = {name: model for name, model in config.large_models.items() if isinstance(model, LargeModelConfig)}
        pairs = {name: pair for name, pair in config.pairs.items() if isinstance(pair, PairConfig)}
        rewards = {name: model for name, model in config.reward_models.items() if isinstance(model, RewardModelConfig)}
        names = _PoolNames(tokenizers, config.workers.quantization)
        local = large or pairs or rewards
        sections: Mapping[str, Mapping[str, _Entry]] = {
            "large_models": large,
            "pairs": pairs,
            "reward_models": rewards,
        }
        devices = worker_devices(
            config.workers.devices,
            {f"{key}.{name}.devices": section[name].devices for key, section in sections.items() for name in section},
        )
        self._models = _device_assignment(large, pairs, rewards, devices, names) if local else {}
        self.pool = _pool(config.workers, devices, self._models, metrics) if self._models else None
        self.checkers: list[GrammarChecker] = []
        self._tokenizers = tokenizers
        self._names = names

    def large_model(self, config: LargeModelConfig) -> LocalLargeModel:
        assert self.pool is not None
        tokenizer = self._tokenizers.of_model(config.model)
        tool_format = resolve_tool_format(config.tool_format, tokenizer.chat_template)
        reasoning_format = resolve_reasoning_format(config.reasoning_format, tokenizer.chat_template)
        source = self._tokenizers.source(config.model)
        defaults = read_generation_config(source.model) if config.generation_config == "auto" else None
        model = LocalLargeModel(
            self._names.of(config, config.model),
            tokenizer,
            self.pool,
            tool_format,
            defaults,
            reasoning_format=reasoning_format,
        )
        self.checkers.append(model.checker)
        return model

    def scorer(self, name: str, config: PairConfig, shares_tokens: Callable[[HFTokenizer], bool]) -> LocalScorer:
        """`shares_tokens(tokenizer)`: whether the large models use the same token ids as this tokenizer."""
        assert self.pool is not None
        return LocalScorer(self.pool, *self._pair_models(name, config, shares_tokens), config.prompt_template)

    def reward_model(
        self, name: str, config: RewardModelConfig, shares_tokens: Callable[[HFTokenizer], bool]
    ) -> RewardModelScorer:
        """`shares_tokens`: as for `scorer`."""
        assert self.pool is not None
        tokenizer = self._tokenizers.of_model(config.model)
        pool_name = self._names.of(config, config.model)
        model = PairModel(name, tokenizer, shares_tokens(tokenizer), pool_name, section="reward_models")
        return RewardModelScorer(self.pool, model, config.prompt_template)

    def proxy_tuner(
        self, large: LocalLargeModel, config: LargeModelConfig, pairs: Mapping[str, PairConfig | RemotePairConfig]
    ) -> LocalProxyTuner:
        """Steers a large model that `large_model` has built with those of `pairs` that can."""
        assert self.pool is not None
        usable = {
            name: "it runs at a provider, and EFT needs its logits."
            if isinstance(pair, RemotePairConfig)
            else proxy_pair(self._proxy_pair(name, config, pair), large.tokenizer)
            for name, pair in pairs.items()
        }
        return LocalProxyTuner(large, self.pool, usable)

    def _proxy_pair(self, name: str, large: LargeModelConfig, pair: PairConfig) -> ProxyPair:
        roles = [self._names.of(pair, model) for model in (pair.tuned, pair.untuned) if model is not None]
        devices = [self._models[model][1] for model in (self._names.of(large, large.model), *roles)]
        tuned, untuned = self._pair_models(name, pair, lambda _: True)
        return ProxyPair(tuned, untuned, pair.prompt_template, frozenset(set.intersection(*devices)))

    def _pair_models(
        self, name: str, config: PairConfig, shares_tokens: Callable[[HFTokenizer], bool]
    ) -> tuple[PairModel, PairModel | None]:
        """The pair's tuned and untuned model."""

        def model(role: str, reference: ModelReference) -> PairModel:
            tokenizer = self._tokenizers.of_model(reference)
            return PairModel(f"{name}.{role}", tokenizer, shares_tokens(tokenizer), self._names.of(config, reference))

        return model("tuned", config.tuned), model("untuned", config.untuned) if config.untuned is not None else None


class _PoolNames:
    """Names of models in the pool: their sources, with what an entry of the configuration makes of them."""

    def __init__(self, tokenizers: TokenizerCache, quantization: QuantizationName) -> None:
        """`quantization`: of the models whose entry names none."""
        self.tokenizers = tokenizers
        self._quantization = quantization

    def quantization(self, entry: _Entry) -> QuantizationName:
        return entry.quantization or self._quantization

    def of(self, entry: _Entry, reference: ModelReference) -> str:
        """The name of a model of this entry. Raises ConfigurationError where its source is none."""
        uses = []
        if isinstance(entry, RewardModelConfig):  # its folder may also be loaded with logits, or for another label
            uses.append("reward" if entry.label is None else f"reward, {entry.label!r}")
        if (quantization := self.quantization(entry)) != self._quantization:
            uses.append(f"quantization: {quantization}")
        return self.tokenizers.source(reference).pool_name + "".join(f" ({use})" for use in uses)


def _pool(
    workers: WorkersConfig,
    devices: Sequence[str],
    models: Mapping[str, tuple[ModelSpec, set[str]]],
    metrics: Metrics,
) -> WorkerPool:
    return WorkerPool(_worker_specs(workers, devices, models), workers.heartbeat_timeout_s, metrics=metrics)


def _device_assignment(
    large: Mapping[str, LargeModelConfig],
    pairs: Mapping[str, PairConfig],
    reward_models: Mapping[str, RewardModelConfig],
    devices: Sequence[str],
    names: _PoolNames,
) -> dict[str, tuple[ModelSpec, set[str]]]:
    """Every model by its name in the pool, once however many entries use it, with the set of devices that load it."""
    models: dict[str, tuple[ModelSpec, set[str]]] = {}
    entries: list[tuple[str, _Entry, dict[str, ModelReference]]] = [
        (f"large_models.{name}", config, {"model": config.model}) for name, config in large.items()
    ]
    for name, pair in pairs.items():
        untuned: dict[str, ModelReference] = {} if pair.untuned is None else {"untuned": pair.untuned}
        entries.append((f"pairs.{name}", pair, {"tuned": pair.tuned, **untuned}))
    entries += [(f"reward_models.{name}", model, {"model": model.model}) for name, model in reward_models.items()]
    for key, entry, references in entries:
        chosen = set(devices if entry.devices is None else entry.devices)
        check_choice(f"{key}.devices", sorted(chosen), devices)
        for role, reference in references.items():
            try:
                spec = _model_spec(f"{key}.{role}", reference, entry, names)
                models.setdefault(names.of(entry, reference), (spec, set()))[1].update(chosen)
            except ConfigurationError as error:
                raise ConfigurationError(f"{key}.{role}: {error}") from None
    return models


def _model_spec(key: str, reference: ModelReference, entry: _Entry, names: _PoolNames) -> ModelSpec:
    """The model to load. `key` is its place in the configuration."""
    source, tokenizer = names.tokenizers.source(reference), names.tokenizers.of_model(reference)
    reward = None
    if isinstance(entry, RewardModelConfig):
        if source.adapter is not None:
            raise ConfigurationError(f"{reference} is an adapter. Merge it into its base; reward models take none.")
        reward = RewardHead(key.removesuffix(".model"), entry.label)
    return ModelSpec(
        source.model,
        entry.trust_remote_code,
        tokenizer.size,
        tokenizer.eos,
        reward=reward,
        adapter=None if source.adapter is None else AdapterSpec(key, source.adapter),
        quantization=names.quantization(entry),
        key=key,
    )


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
            models={name: spec for name, (spec, chosen) in models.items() if device in chosen},
            cuda_graphs=workers.cuda_graphs,
        )
        for device in devices
    ]
