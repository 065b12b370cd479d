"""Builds a pair or a reward model by itself, without a large model: for tools that score texts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from w2s_core.build.local import LocalModels
from w2s_core.build.remote import RemoteModels
from w2s_core.build.tokenizers import TokenizerCache
from w2s_core.config import (
    EngineConfig,
    PairConfig,
    RemotePairConfig,
    RemoteRewardModelConfig,
    RewardModelConfig,
    WorkersConfig,
)
from w2s_core.engine.engine import Component
from w2s_core.interfaces import Scorer
from w2s_core.telemetry.metrics import Metrics
from w2s_core.text.tokenizer import HFTokenizer


def open_pair(
    name: str, pair: PairConfig | RemotePairConfig, workers: WorkersConfig
) -> AbstractAsyncContextManager[Scorer]:
    """The pair's scorer, which scores texts. Its models run while the context is entered.

    Raises ConfigurationError: at once for what the configuration or a tokenizer tells, else when it is entered.
    """
    tokenizers = TokenizerCache()
    local = LocalModels(EngineConfig({}, {}, {name: pair}, workers=workers), tokenizers, Metrics())
    remote = RemoteModels(tokenizers.load)
    if isinstance(pair, RemotePairConfig):
        return _running(remote.scorer(name, pair, _reads_text), local, remote)
    return _running(local.scorer(name, pair, _reads_text), local, remote)


def open_reward_model(
    name: str, model: RewardModelConfig | RemoteRewardModelConfig, workers: WorkersConfig
) -> AbstractAsyncContextManager[Scorer]:
    """A reward model's scorer, as `open_pair` has a pair's."""
    tokenizers = TokenizerCache()
    local = LocalModels(EngineConfig({}, {}, reward_models={name: model}, workers=workers), tokenizers, Metrics())
    remote = RemoteModels(tokenizers.load)
    if isinstance(model, RemoteRewardModelConfig):
        return _running(remote.reward_model(name, model, _reads_text), local, remote)
    return _running(local.reward_model(name, model, _reads_text), local, remote)


@asynccontextmanager
async def _running(scorer: Scorer, local: LocalModels, remote: RemoteModels) -> AsyncIterator[Scorer]:
    components: Sequence[Component] = [*remote.probes, *([local.pool] if local.pool else [])]
    async with AsyncExitStack() as stack:
        for component in components:
            await component.start()
            stack.push_async_callback(component.stop)
        yield scorer


def _reads_text(_tokenizer: HFTokenizer) -> bool:
    """No large model's tokens are scored."""
    return False
