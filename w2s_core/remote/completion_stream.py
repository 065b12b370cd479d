"""A streamed completion: counts its tokens as they arrive, and merges its events into one completion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from w2s_core.remote.completion import Choice, Completion, TokenCounts, read_completion, read_event

#: The fields that ask for a stream, with the prompt's and the completion's tokens in its last event.
STREAM_FIELDS: Mapping[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
_LISTS = ("tokens", "token_logprobs", "top_logprobs")  # of `Logprobs`, in parallel
_ENDS = ("finish_reason", "stop_reason")


class CompletionStream:
    """Merges the events of one streamed response. `on_tokens` gets the number of tokens that each event brings."""

    def __init__(self, provider_name: str, on_tokens: Callable[[int], None] = lambda _: None) -> None:
        self.events = 0
        self.tokens = 0
        self._provider_name = provider_name
        self._on_tokens = on_tokens
        self._choices: dict[int, _MergedChoice] = {}
        self._usage: TokenCounts | None = None

    def feed(self, event: Mapping[str, Any]) -> None:
        """Takes the next event. Raises UpstreamError, which names the invalid field, where it is malformed."""
        read = read_event(event, self._provider_name)
        self.events += 1
        self._usage = read.usage or self._usage
        count = sum(self._choices.setdefault(delta.index, _MergedChoice()).add(delta) for delta in read.choices)
        self.tokens += count
        self._on_tokens(count)

    def completion(self) -> Completion:
        """What the unstreamed response would be, but for text offsets. Raises UpstreamError without any choice."""
        choices = [merged.fields(index) for index, merged in self._choices.items()]
        return read_completion({"choices": choices, "usage": self._usage}, self._provider_name)


class _MergedChoice:
    """What has arrived of one choice."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._logprobs: dict[str, list[Any]] = {}
        self._token_ids: list[int] | None = None
        self._ends: dict[str, Any] = {}  # finish_reason and stop_reason

    def add(self, delta: Choice) -> int:
        """Appends a delta and returns the number of its tokens."""
        self._text.append(delta.text)
        self._ends |= {key: value for key in _ENDS if (value := getattr(delta, key)) is not None}
        for key in _LISTS if delta.logprobs is not None else ():
            if (values := getattr(delta.logprobs, key)) is not None:
                self._logprobs.setdefault(key, []).extend(values)
        if delta.token_ids is not None:
            self._token_ids = self._token_ids or []
            self._token_ids += delta.token_ids
        return delta.token_count or 0

    def fields(self, index: int) -> dict[str, Any]:
        """The fields of the whole choice."""
        return {
            "index": index,
            "text": "".join(self._text),
            "token_ids": self._token_ids,
            "logprobs": self._logprobs,
            **self._ends,
        }
