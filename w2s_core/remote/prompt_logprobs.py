"""Log-probabilities of a given text from a completion API: vLLM's `prompt_logprobs`, or OpenAI's `echo`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from w2s_core.errors import ConfigurationError, UpstreamContextLengthError, UpstreamError, UpstreamRefusedError
from w2s_core.remote.capability_probe import PROBE_TEXT
from w2s_core.remote.completion import COMPLETIONS_PATH, Choice, Completion, nats, read_completion
from w2s_core.remote.provider import Provider
from w2s_core.types import Tokens

_PROBE_PROMPT_LENGTH = 4  # characters of PROBE_TEXT that stand for the prompt; the rest is the answer


class LogprobMethod(Protocol):
    """A way to ask for a prompt's log-probabilities. The methods raise no errors but UpstreamError."""

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the call that ask for them."""
        ...

    def sum_of_tokens(self, choice: Choice, prompt: Tokens, answer: Tokens) -> float:
        """log p(answer | prompt) in nats, where the token ids prompt + answer were sent."""
        ...

    def sum_of_text(self, choice: Choice, answer: str, prompt_tokens: int | None) -> float:
        """log p(answer | prompt) in nats, where a text was sent that ends with `answer`.

        `prompt_tokens`: the number of tokens that the provider read, None where it does not say. Only tokens that begin
        within the answer count. One that spans the end of the prompt and the beginning of the answer counts for neither
        model of a pair, because the two may split the same text at different places.
        """
        ...


@dataclass(frozen=True, slots=True)
class PromptLogprobsMethod:
    """vLLM's `prompt_logprobs`, keyed by token id. It cannot score text, because it does not say where a token stands.

    https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
    """

    @property
    def fields(self) -> dict[str, Any]:
        return {"prompt_logprobs": 0, "max_tokens": 1}

    def sum_of_tokens(self, choice: Choice, prompt: Tokens, answer: Tokens) -> float:
        entries = choice.prompt_logprobs
        if entries is None or len(entries) != len(prompt) + len(answer):
            raise _no_logprobs()
        return sum(_logprob_of(entry, token) for entry, token in zip(entries[len(prompt) :], answer, strict=True))

    def sum_of_text(self, choice: Choice, answer: str, prompt_tokens: int | None) -> float:  # noqa: ARG002
        raise _no_logprobs()


@dataclass(frozen=True, slots=True)
class EchoMethod:
    """OpenAI's `echo` with `logprobs`: the completion begins with the prompt. Some providers require `max_tokens` 1.

    https://platform.openai.com/docs/api-reference/completions/create
    """

    max_tokens: int

    @property
    def fields(self) -> dict[str, Any]:
        return {"echo": True, "logprobs": 1, "max_tokens": self.max_tokens}

    def sum_of_tokens(self, choice: Choice, prompt: Tokens, answer: Tokens) -> float:
        values = choice.logprobs.token_logprobs if choice.logprobs else []
        if not len(prompt) + len(answer) <= len(values) <= len(prompt) + len(answer) + self.max_tokens:
            raise _no_logprobs()
        return sum(_value(values, i) for i in range(len(prompt), len(prompt) + len(answer)))

    def sum_of_text(self, choice: Choice, answer: str, prompt_tokens: int | None) -> float:
        logprobs = choice.logprobs
        if logprobs is None or not logprobs.tokens or len(logprobs.tokens) != len(logprobs.token_logprobs):
            raise _no_logprobs()
        tokens = logprobs.tokens
        echoed = len(tokens) if prompt_tokens is None or self.max_tokens == 0 else prompt_tokens
        offsets = logprobs.text_offset or _offsets(tokens)
        if not 0 < echoed <= len(tokens) == len(offsets):
            raise _no_logprobs()
        # Counted from the end, because a BOS at the beginning may or may not be part of the text.
        end = offsets[echoed] if echoed < len(offsets) else max(offsets[-1] + _length(tokens[-1]), len(choice.text))
        begin = end - len(answer)
        return sum(_value(logprobs.token_logprobs, i) for i in range(echoed) if begin <= offsets[i] < end)


LOGPROB_METHODS: Sequence[LogprobMethod] = (PromptLogprobsMethod(), EchoMethod(0), EchoMethod(1))


async def probe_logprob_method(provider: Provider, tokens: Tokens | None, key: str) -> LogprobMethod:
    """Returns the first method that works at this provider.

    `tokens`: token ids to try it with, None where only text can be sent. Raises ConfigurationError, which names `key`,
    where none works, and what `Provider.post` raises.
    """
    for method in LOGPROB_METHODS:
        try:
            if tokens is None:
                completion = await request_logprobs(provider, method, PROBE_TEXT)
                answer = PROBE_TEXT[_PROBE_PROMPT_LENGTH:]
                method.sum_of_text(completion.choices[0], answer, completion.prompt_tokens)
            else:
                completion = await request_logprobs(provider, method, list(tokens))
                method.sum_of_tokens(completion.choices[0], tokens[:1], tokens[1:])
        except (UpstreamRefusedError, _NoLogprobsError):
            continue
        return method
    raise ConfigurationError(
        f"{key}: the provider returns no log-probabilities of prompts, which scoring needs; it supports neither "
        "prompt_logprobs nor echo with logprobs."
    )


async def request_logprobs(
    provider: Provider, method: LogprobMethod, prompt: str | list[int], affinity: int | None = None
) -> Completion:
    """Asks for the log-probabilities of `prompt`, text or token ids. Raises what `Provider.post` raises."""
    body = {"model": provider.config.model, "prompt": prompt, "temperature": 0, **method.fields}
    try:
        answer = await provider.post(COMPLETIONS_PATH, body, affinity=affinity)
    except UpstreamContextLengthError as error:
        error.param = "max_tokens"
        raise
    return read_completion(answer, provider.name)


class _NoLogprobsError(UpstreamError):
    """A response without the log-probabilities that were asked for."""


def _no_logprobs() -> UpstreamError:
    return _NoLogprobsError("The provider returns no log-probabilities of its prompt.")


def _value(values: Sequence[float | None], position: int) -> float:
    """The log-probability of an echoed token in nats; 0 for the first, which has no context and therefore none."""
    value = values[position]
    if value is None and position > 0:
        raise _no_logprobs()
    return nats(value or 0.0)


def _logprob_of(entry: Any, token: int) -> float:
    if entry is None or str(token) not in entry:
        raise _no_logprobs()
    return nats(entry[str(token)].logprob)


def _length(token: str) -> int:
    """Characters of a token; 1 for OpenAI's `bytes:\\xe2`, the last bytes of a character."""
    return 1 if token.startswith("bytes:\\x") else len(token)


def _offsets(tokens: Sequence[str]) -> list[int]:
    offsets = [0]
    for token in tokens:
        offsets.append(offsets[-1] + len(token))
    return offsets[:-1]
