"""Calls that draw tokens at a provider, and the count of what it has drawn, also for calls that are cancelled.

The provider's own count holds; where it sends none, the tokens that its answer lists are counted. A call for more than
a few tokens is streamed where the provider can, so that its tokens are counted as they arrive. Of a call that is not
streamed nobody knows how far it got: where it is cancelled, all that it asked for is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from w2s_core.errors import RequestError, UpstreamRefusedError
from w2s_core.remote.completion import COMPLETIONS_PATH, Completion, read_completion
from w2s_core.remote.completion_stream import STREAM_FIELDS, CompletionStream
from w2s_core.remote.provider import Provider
from w2s_core.types import Grammar, ProviderUsage

_MAX_UNSTREAMED_TOKENS = 8  # of each choice; fewer are not worth an event for each


class SamplingCalls:
    """The calls of one session.

    `sampled_tokens` are those that the provider has drawn, as far as it is known at any moment. `streams`: the provider
    can stream. `affinity`: as for `Provider.post`.
    """

    def __init__(self, provider: Provider, affinity: int, *, streams: bool, grammar: Grammar | None) -> None:
        self.sampled_tokens = 0
        self.provider_usage = ProviderUsage()
        self.provider_name = provider.name
        self._provider = provider
        self._affinity = affinity
        self._streams = streams
        self._grammar = grammar

    async def __call__(self, body: Mapping[str, Any]) -> Completion:
        """Draws `n` choices of at most `max_tokens` tokens. Raises what `Provider.post` raises, and RequestError."""
        streamed = self._streams and body["max_tokens"] > _MAX_UNSTREAMED_TOKENS
        body = {"model": self._provider.config.model, **body}
        try:
            completion = await (self._stream(body) if streamed else self._post(body))
        except RequestError as error:  # the provider says that the prompt is too long
            error.param = error.param or "prompt"
            raise
        except UpstreamRefusedError as error:
            if self._grammar is None:
                raise
            raise RequestError(str(error), self._grammar.field) from None
        self.provider_usage += replace(completion.provider_usage, completion_tokens=_drawn(completion, body))
        return completion

    async def _post(self, body: Mapping[str, Any]) -> Completion:
        asked = body["n"] * body["max_tokens"]
        answer = await self._provider.post(
            COMPLETIONS_PATH, body, affinity=self._affinity, on_cancelled=lambda: self._count(asked)
        )
        completion = read_completion(answer, self._provider.name)
        self._count(_drawn(completion, body))
        return completion

    async def _stream(self, body: Mapping[str, Any]) -> Completion:
        stream = await self._provider.stream(
            COMPLETIONS_PATH,
            {**body, **STREAM_FIELDS},
            lambda: CompletionStream(self._provider.name, self._count),
            affinity=self._affinity,
            tokens=body["n"] * body["max_tokens"],
        )
        completion = stream.completion()
        self._count(_drawn(completion, body) - stream.tokens)
        return completion

    def _count(self, tokens: int) -> None:
        self.sampled_tokens += tokens


def _drawn(completion: Completion, body: Mapping[str, Any]) -> int:
    """The tokens that were drawn for a call. Of a choice that lists none, all that it was asked for may have been."""
    if completion.usage is not None and completion.usage.completion_tokens is not None:
        return completion.usage.completion_tokens
    counts = [choice.token_count for choice in completion.choices]
    return sum(body["max_tokens"] if count is None else count for count in counts)
