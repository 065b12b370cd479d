"""Ways to have a text's own log-probabilities from a completion API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from w2s_core.errors import ConfigurationError, UpstreamContextLengthError, UpstreamError, UpstreamRefusedError
from w2s_core.remote.completion import Choice, Completion, nats, read_completion
from w2s_core.remote.provider import Provider
from w2s_core.types import Tokens

PATH = "/completions"
PROBE = "The quick brown fox"


class LogprobMethod(Protocol):
    """`fields` of the call, and what its answer says; both raise nothing but UpstreamError."""

    @property
    def fields(self) -> dict[str, Any]: ...

    def of_tokens(self, choice: Choice, prompt: Tokens, answer: Tokens) -> float:
        """log p(answer | prompt) in nats, where token ids were sent: prompt, then answer."""
        ...

    def of_text(self, choice: Choice, answer: str, prompt_tokens: int | None) -> float:
        """As `of_tokens`, where text was sent, which ends with `answer`; `prompt_tokens`: all that the provider read.

        Only tokens that begin in the answer count. A token that holds the end of the prompt and the beginning of the
        answer therefore counts for neither model: both see the same text, but may cut it at different places.
        """
        ...


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """vLLM's own field: by token id."""

    @property
    def fields(self) -> dict[str, Any]:
        return {"prompt_logprobs": 0, "max_tokens": 1}

    def of_tokens(self, choice: Choice, prompt: Tokens, answer: Tokens) -> float:
        told = choice.prompt_logprobs
        if told is None or len(told) != len(prompt) + len(answer):
            raise _nothing_told()
        return sum(_by_id(entry, token) for entry, token in zip(told[len(prompt) :], answer, strict=True))

    def of_text(self, choice: Choice, answer: str, prompt_tokens: int | None) -> float:  # noqa: ARG002
        raise _nothing_told()  # it does not say which text a token is


@dataclass(frozen=True, slots=True)
class Echo:
    """OpenAI's: the prompt is repeated, with log-probabilities. Some providers must draw a token at least."""

    max_tokens: int

    @property
    def fields(self) -> dict[str, Any]:
        return {"echo": True, "logprobs": 1, "max_tokens": self.max_tokens}

    def of_tokens(self, choice: Choice, prompt: Tokens, answer: Tokens) -> float:
        told = choice.logprobs.token_logprobs if choice.logprobs else []
        if not len(prompt) + len(answer) <= len(told) <= len(prompt) + len(answer) + self.max_tokens:
            raise _nothing_told()
        return sum(map(nats, told[len(prompt) : len(prompt) + len(answer)]))

    def of_text(self, choice: Choice, answer: str, prompt_tokens: int | None) -> float:
        told = choice.logprobs
        if told is None or not told.tokens or len(told.tokens) != len(told.token_logprobs):
            raise _nothing_told()
        read = len(told.tokens) if prompt_tokens is None or self.max_tokens == 0 else prompt_tokens
        offsets = told.text_offset or _offsets(told.tokens)
        if not 0 < read <= len(told.tokens) == len(offsets):
            raise _nothing_told()
        # Counted from the end: at the beginning a BOS may or may not be part of the text.
        end = offsets[read] if read < len(offsets) else max(offsets[-1] + _length(told.tokens[-1]), len(choice.text))
        begin = end - len(answer)
        return sum(nats(told.token_logprobs[i]) for i in range(read) if begin <= offsets[i] < end)


LOGPROB_METHODS: Sequence[LogprobMethod] = (PromptLogprobs(), Echo(0), Echo(1))


async def probe_logprob_method(provider: Provider, tokens: Tokens | None, key: str) -> LogprobMethod:
    """The first one that works; `tokens` are ids to try it with, None where only text can be sent.

    Raises ConfigurationError where none does, and what `Provider.post` raises.
    """
    for way in LOGPROB_METHODS:
        try:
            if tokens is None:
                completion = await ask(provider, way, PROBE)
                way.of_text(completion.choices[0], PROBE[4:], _read(completion))
            else:
                completion = await ask(provider, way, list(tokens))
                way.of_tokens(completion.choices[0], tokens[:1], tokens[1:])
        except (UpstreamRefusedError, _NothingToldError):
            continue
        return way
    raise ConfigurationError(f"{key}: the provider tells no log-probabilities of prompts, so it cannot score answers.")


async def ask(provider: Provider, way: LogprobMethod, text: str | list[int], affinity: int | None = None) -> Completion:
    """Raises what `Provider.post` raises."""
    body = {"model": provider.config.model, "prompt": text, "temperature": 0, **way.fields}
    try:
        answer = await provider.post(PATH, body, affinity=affinity)
    except UpstreamContextLengthError as error:
        error.param = "max_tokens"
        raise
    return read_completion(answer, provider.name)


def _read(completion: Completion) -> int | None:
    return completion.usage.prompt_tokens if completion.usage else None


class _NothingToldError(UpstreamError):
    """An answer without what was asked for."""


def _nothing_told() -> UpstreamError:
    return _NothingToldError("The provider sends no log-probabilities of its prompt.")


def _by_id(entry: Any, token: int) -> float:
    if entry is None or str(token) not in entry:
        raise _nothing_told()
    return nats(entry[str(token)].logprob)


def _length(token: str) -> int:
    """In characters; of OpenAI's way to write the last bytes of a character, one."""
    return 1 if token.startswith("bytes:\\x") else len(token)


def _offsets(tokens: Sequence[str]) -> list[int]:
    offsets = [0]
    for token in tokens:
        offsets.append(offsets[-1] + len(token))
    return offsets[:-1]
