"""Builds remote models: large models, pairs and reward models that run at a provider."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from w2s_core.config import (
    ProviderConfig,
    RemoteLargeModelConfig,
    RemoteModelConfig,
    RemotePairConfig,
    RemoteRewardModelConfig,
)
from w2s_core.errors import ConfigurationError
from w2s_core.large.capabilities import probe_large_model
from w2s_core.large.remote import RemoteLargeModel
from w2s_core.remote.capability_probe import PROBE_TEXT, CapabilityProbe
from w2s_core.remote.classification import probe_classifier
from w2s_core.remote.http_client import read_api_key
from w2s_core.remote.provider import Attempt, Provider
from w2s_core.scorers.pair_model import PairModel
from w2s_core.scorers.remote import RemotePairModel, RemoteScorer, probe_pair_model
from w2s_core.scorers.remote_reward_model import RemoteRewardModel
from w2s_core.structured.tool_formats import resolve_tool_format
from w2s_core.text.reasoning import resolve_reasoning_format
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import SamplingParams


class RemoteModels:
    """Builds large models, pairs and reward models that run at providers. Raises ConfigurationError.

    `load_tokenizer` loads a tokenizer by reference; `on_attempt` is called after every call to a provider. `probes`
    must be started and stopped with the engine.
    """

    def __init__(
        self, load_tokenizer: Callable[[str], HFTokenizer], on_attempt: Callable[[Attempt], None] = lambda _: None
    ) -> None:
        self.probes: list[CapabilityProbe[Any]] = []
        self._load_tokenizer = load_tokenizer
        self.on_attempt = on_attempt
        self._keys: dict[str, str] = {}  # by the providers' names

    def large_model(
        self,
        name: str,
        config: RemoteLargeModelConfig,
        provider: Provider | None = None,
        default_sampling: SamplingParams | None = None,
    ) -> RemoteLargeModel:
        """`provider`: that of a managed vLLM, None for one of `config`. `default_sampling`: as of `LargeModel`."""
        key = f"large_models.{name}"
        self._reserve_label(name, key)
        managed = provider is not None
        provider = provider or self._provider(name, key, config)
        tokenizer = self._load_tokenizer(config.tokenizer) if config.tokenizer is not None else None
        probe = CapabilityProbe(provider, partial(probe_large_model, provider, config, tokenizer, key, managed=managed))
        self.probes.append(probe)
        template = tokenizer.chat_template if tokenizer else None
        tool_format = resolve_tool_format(config.tool_format, template)
        reasoning_format = resolve_reasoning_format(config.reasoning_format, template)
        return RemoteLargeModel(
            provider, tokenizer, probe, tool_format, reasoning_format, default_sampling=default_sampling
        )

    def scorer(self, name: str, config: RemotePairConfig, shares_tokens: Callable[[HFTokenizer], bool]) -> RemoteScorer:
        """`shares_tokens(tokenizer)`: whether the large models use the same token ids as this tokenizer."""

        def model(role: str, model: RemoteModelConfig) -> RemotePairModel:
            return self._pair_model(f"{name}.{role}", f"pairs.{name}.{role}", model, shares_tokens)

        tuned, untuned = model("tuned", config.tuned), model("untuned", config.untuned) if config.untuned else None
        return RemoteScorer(tuned, untuned, config.prompt_template)

    def reward_model(
        self, name: str, config: RemoteRewardModelConfig, shares_tokens: Callable[[HFTokenizer], bool]
    ) -> RemoteRewardModel:
        """`shares_tokens`: as for `scorer`."""
        key = f"reward_models.{name}"
        # vLLM's endpoints for scores stand beside /v1.
        beside = replace(config, base_url=tuple(url.removesuffix("/v1") for url in config.base_urls))
        provider = self._provider(name, key, beside)
        tokenizer = self._load_tokenizer(config.tokenizer) if config.tokenizer is not None else None
        tokens = None if tokenizer is None else tokenizer.encode(PROBE_TEXT, special_tokens=True)
        probe = CapabilityProbe(
            provider, partial(probe_classifier, provider, config.endpoint, config.label, tokens, key)
        )
        self.probes.append(probe)
        encoder = None
        if tokenizer is not None:
            encoder = PairModel(name, tokenizer, shares_tokens(tokenizer), section="reward_models")
        return RemoteRewardModel(provider, encoder, probe, config.prompt_template)

    def _reserve_label(self, name: str, key: str) -> None:
        """Refuses a provider of the model at `key` if another one has its label in metrics and traces, `name`."""
        if (other := self._keys.setdefault(name, key)) != key:
            raise ConfigurationError(
                f"{key}: metrics would count its calls with those of {other}, as `{name}`; rename one of them."
            )

    def _provider(self, name: str, key: str, config: ProviderConfig) -> Provider:
        """The provider of the model at `key`, called `name`."""
        self._reserve_label(name, key)
        return Provider(
            name, config, api_key=read_api_key(config.api_key_env, f"{key}.api_key_env"), on_attempt=self.on_attempt
        )

    def _pair_model(
        self, name: str, key: str, config: RemoteModelConfig, shares_tokens: Callable[[HFTokenizer], bool]
    ) -> RemotePairModel:
        provider = self._provider(name, key, config)
        tokenizer = self._load_tokenizer(config.tokenizer) if config.tokenizer is not None else None
        probe = CapabilityProbe(provider, partial(probe_pair_model, provider, config, tokenizer, key))
        self.probes.append(probe)
        reader = None if tokenizer is None else PairModel(name, tokenizer, shares_tokens(tokenizer))
        return RemotePairModel(provider, reader, probe)
