"""The provider of a managed vLLM's model: its calls wait while vLLM is started again."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any, TypeVar

from w2s_core.config import ManagedLargeModelConfig, RemoteLargeModelConfig
from w2s_core.managed.server import ManagedVLLM
from w2s_core.remote.provider import Call, Provider

T = TypeVar("T")


class ManagedProvider(Provider):
    """Calls the vLLM of `server`. `keywords`: as for `Provider`.

    A call that was cut off by vLLM's death is made again when vLLM is back, and the time between is not counted in its
    `call_timeout_s`.
    """

    def __init__(self, server: ManagedVLLM, config: RemoteLargeModelConfig, **keywords: Any) -> None:
        super().__init__(server.name, config, api_key=server.api_key, **keywords)
        self._server = server

    async def start(self) -> None:
        """Starts after `server`, whose address it takes."""
        self._configure(replace(self.config, base_url=f"{self._server.url}/v1"))
        await super().start()

    @property
    def available(self) -> bool:
        return self._server.ready and super().available

    async def _attempt(self, call: Call[T]) -> T:
        begun = self._clock()
        await self._server.wait_until_up(verify=call.attempts > 0)
        call.deadline += self._clock() - begun
        return await super()._attempt(call)


def remote_config(server: ManagedVLLM, config: ManagedLargeModelConfig, tokenizer: str) -> RemoteLargeModelConfig:
    """The model as one at a provider, whose address is known when `server` is started.

    It has no circuit breaker: a vLLM that fails is started again, and calls wait.
    """
    return RemoteLargeModelConfig(
        base_url=f"{server.url}/v1",
        model=server.name,
        flavor="vllm",
        tokenizer=tokenizer,
        context_length=config.max_model_len,
        call_timeout_s=config.call_timeout_s,
        max_concurrency=config.max_concurrency,
        breaker_failures=sys.maxsize,
        tool_format=config.tool_format,
        reasoning_format=config.reasoning_format,
    )
