"""Builds large models that run in a managed vLLM."""

from __future__ import annotations

from w2s_core.build.generation_config import read_generation_config
from w2s_core.build.remote import RemoteModels
from w2s_core.build.tokenizers import TokenizerCache
from w2s_core.config import ManagedLargeModelConfig
from w2s_core.errors import ConfigurationError
from w2s_core.large.remote import RemoteLargeModel
from w2s_core.managed.command import find_program
from w2s_core.managed.provider import ManagedProvider, remote_config
from w2s_core.managed.server import ManagedVLLM
from w2s_core.telemetry.metrics import Metrics


class ManagedModels:
    """Builds large models in vLLMs that this server runs. Raises ConfigurationError.

    `servers` must be started and stopped with the engine, and started before the probes of `remote`.
    """

    def __init__(
        self, remote: RemoteModels, tokenizers: TokenizerCache, heartbeat_timeout_s: float, metrics: Metrics
    ) -> None:
        self.servers: list[ManagedVLLM] = []
        self._remote = remote
        self._tokenizers = tokenizers
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._metrics = metrics

    def large_model(self, name: str, config: ManagedLargeModelConfig) -> RemoteLargeModel:
        key = f"large_models.{name}"
        if problems := list(config.problems()):
            raise ConfigurationError(f"{key}: {'; '.join(problems)}")
        program, source = find_program(name, config), self._tokenizers.source(config.model)
        if source.adapter is not None:
            raise ConfigurationError(f"{key}.model: {config.model} is an adapter. Merge it into its base.")
        server = ManagedVLLM(
            name, config, program, source.model, heartbeat_timeout_s=self._heartbeat_timeout_s, metrics=self._metrics
        )
        self.servers.append(server)
        at_provider = remote_config(server, config, source.model)
        provider = ManagedProvider(server, at_provider, on_attempt=self._remote.on_attempt)
        defaults = read_generation_config(source.model) if config.generation_config == "auto" else None
        return self._remote.large_model(name, at_provider, provider, defaults)
