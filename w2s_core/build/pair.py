"""Builds a pair by itself, without a large model: for tools that score texts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from w2s_core.build.local import LocalModels
from w2s_core.build.remote import RemoteModels
from w2s_core.build.tokenizers import TokenizerCache
from w2s_core.config import EngineConfig, PairConfig, RemotePairConfig, WorkersConfig
from w2s_core.engine.engine import Component
from w2s_core.interfaces import Scorer
from w2s_core.telemetry.metrics import Metrics
from w2s_core.text.tokenizer import HFTokenizer


@asynccontextmanager
async def open_pair(name: str, pair: PairConfig | RemotePairConfig, workers: WorkersConfig) -> AsyncIterator[Scorer]:
    """Starts the pair's models and yields its scorer, which scores texts; leaving the context stops them.

    Raises ConfigurationError.
    """
    tokenizers = TokenizerCache()
    local = LocalModels(EngineConfig({}, {}, {name: pair}, workers=workers), tokenizers, Metrics())
    remote = RemoteModels(tokenizers.load)
    scorer: Scorer
    if isinstance(pair, RemotePairConfig):
        scorer = remote.scorer(name, pair, _reads_text)
    else:
        scorer = local.scorer(name, pair, _reads_text)
    async with AsyncExitStack() as stack:
        components: list[Component] = [*remote.probes]
        for component in [*components, *([local.pool] if local.pool else [])]:
            await component.start()
            stack.push_async_callback(component.stop)
        yield scorer


def _reads_text(_tokenizer: HFTokenizer) -> bool:
    """No large model's tokens are scored."""
    return False
