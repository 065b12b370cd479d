"""From a configuration to the models behind providers; `w2s_core.build.local` collects what starts and stops."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from w2s_core.config import RemoteLargeModelConfig, RemoteModelConfig, RemotePairConfig
from w2s_core.large.capabilities import ask_large
from w2s_core.large.remote import RemoteLargeModel
from w2s_core.remote.discovery import Discovery
from w2s_core.remote.provider import Attempt, Provider, read_api_key
from w2s_core.scorers.pair_model import PairModel
from w2s_core.scorers.remote import RemotePairModel, RemoteScorer, ask_pair
from w2s_core.text.tokenizer import TextCodec
from w2s_core.structured.tool_formats import chosen


class RemoteParts:
    """`codec` loads a tokenizer; `on_attempt` is told of every call. `parts` is what must be started and stopped.

    All raise ConfigurationError.
    """

    def __init__(
        self, codec: Callable[[str], TextCodec], on_attempt: Callable[[Attempt], None] = lambda _: None
    ) -> None:
        self.parts: list[Discovery[Any]] = []
        self._codec = codec
        self._on_attempt = on_attempt

    def large_model(self, name: str, config: RemoteLargeModelConfig) -> RemoteLargeModel:
        key = f"large_models.{name}"
        provider = Provider(name, config, api_key=read_api_key(config, key), on_attempt=self._on_attempt)
        codec = self._codec(config.tokenizer) if config.tokenizer is not None else None
        discovery = Discovery(provider, partial(ask_large, provider, config, codec, key))
        self.parts.append(discovery)
        tool_format = chosen(config.tool_format, codec.chat_template if codec else None)
        return RemoteLargeModel(provider, codec, discovery, tool_format)

    def scorer(self, name: str, config: RemotePairConfig, shares: Callable[[TextCodec], bool]) -> RemoteScorer:
        """`shares`: whether the large models' token ids are those of a tokenizer."""
        tuned, untuned = (
            self._pair_model(f"{name}.{which}", f"pairs.{name}.{which}", model, shares)
            for which, model in (("tuned", config.tuned), ("untuned", config.untuned))
        )
        return RemoteScorer(tuned, untuned, config.prompt_template)

    def _pair_model(
        self, name: str, key: str, config: RemoteModelConfig, shares: Callable[[TextCodec], bool]
    ) -> RemotePairModel:
        provider = Provider(name, config, api_key=read_api_key(config, key), on_attempt=self._on_attempt)
        codec = self._codec(config.tokenizer) if config.tokenizer is not None else None
        discovery = Discovery(provider, partial(ask_pair, provider, config, codec, key))
        self.parts.append(discovery)
        reader = None if codec is None else PairModel(name, codec, shares(codec))
        return RemotePairModel(provider, reader, discovery)
