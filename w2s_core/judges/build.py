"""Makes judges of their configuration, and checks what can be checked before anything is judged."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import asdict

from w2s_core.build.pair import open_pair, open_reward_model
from w2s_core.build.python_scorers import import_callable
from w2s_core.config import PairConfig, RemotePairConfig, WorkersConfig
from w2s_core.errors import ConfigurationError
from w2s_core.interfaces import Scorer
from w2s_core.judges.config import JudgeConfig, LLMJudgeConfig, PythonJudgeConfig
from w2s_core.judges.judge import Judge, JudgeFunction
from w2s_core.judges.llm_judge import open_llm_judge
from w2s_core.judges.python_judge import python_judge
from w2s_core.judges.scorer_judge import scorer_judge
from w2s_core.remote.http_client import read_api_key


def make_judge(name: str, config: JudgeConfig, workers: WorkersConfig) -> Judge:
    """The judge that `judges.NAME` configures. `workers` run local models. Raises ConfigurationError, with the key."""
    return Judge(name, isinstance(config, LLMJudgeConfig), _options(config), _context(name, config, workers))


def _options(config: JudgeConfig) -> str:
    return json.dumps([type(config).__name__, asdict(config)], sort_keys=True)


def _context(name: str, config: JudgeConfig, workers: WorkersConfig) -> AbstractAsyncContextManager[JudgeFunction]:
    key = f"judges.{name}"
    if isinstance(config, PythonJudgeConfig):
        key = f"{key}.python"
        return nullcontext(python_judge(key, import_callable(key, config.python, "function")))
    if isinstance(config, LLMJudgeConfig):
        key = f"{key}.llm"
        return open_llm_judge(key, config, read_api_key(config.provider.api_key_env, f"{key}.api_key_env"))
    if isinstance(config, PairConfig | RemotePairConfig):
        return _scoring(f"{key}.pair", f"pairs.{name}", lambda: open_pair(name, config, workers))
    return _scoring(f"{key}.reward_model", f"reward_models.{name}", lambda: open_reward_model(name, config, workers))


def _scoring(
    key: str, served: str, make: Callable[[], AbstractAsyncContextManager[Scorer]]
) -> AbstractAsyncContextManager[JudgeFunction]:
    """A scorer as a judge. Its errors have the judge's `key` in place of `served`, a model's in a configuration."""

    def named(error: ConfigurationError) -> ConfigurationError:
        message = str(error)
        return ConfigurationError(message.replace(served, key) if served in message else f"{key}: {message}")

    @asynccontextmanager
    async def running(context: AbstractAsyncContextManager[Scorer]) -> AsyncIterator[JudgeFunction]:
        async with AsyncExitStack() as stack:
            try:
                scorer = await stack.enter_async_context(context)
            except ConfigurationError as error:
                raise named(error) from None
            yield scorer_judge(key, scorer)

    try:
        return running(make())
    except ConfigurationError as error:
        raise named(error) from None
