"""The two dialects of completion APIs: vLLM's, in token ids, and OpenAI's public one, in text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from w2s_core.errors import RequestError, UpstreamError
from w2s_core.interfaces import TokenDecoder
from w2s_core.large.parameters import check_extras, check_public, common_fields, per_call_fields
from w2s_core.large.prompts import decode_prompt, encode_prompt, extend_prompt
from w2s_core.large.text_tokens import (
    TextTokenDecoder,
    bytes_of,
    chunk_size,
    token_bytes_of_choice,
    token_id,
)
from w2s_core.remote.completion import Choice, nats
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Alternatives, ChatPrompt, Hypothesis, Prompt, SamplingParams, TextPrompt, TokenPrompt, Tokens

_MAX_DIGITS = 10  # of a token's id
# vLLM fills fields that a call omits from generation_config.json, which often sets a top_k.
_VLLM_DEFAULTS: dict[str, Any] = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


@dataclass(frozen=True, slots=True)
class DrawnChoice:
    """One choice of a completion: what the model drew.

    `ended`: the model ended the answer, by the token `ending` where the provider returned it, which is not among
    `tokens`. `logprobs` are in nats, the ending token's last. `alternatives` are parallel to `logprobs`, or empty.
    """

    tokens: Tokens
    logprobs: tuple[float, ...]
    ended: bool
    ending: int | None = None
    alternatives: tuple[Alternatives, ...] = ()

    @property
    def advances(self) -> bool:
        """Whether the choice adds anything to its parent: tokens, or an end."""
        return self.ended or bool(self.tokens)

    def __add__(self, other: DrawnChoice) -> DrawnChoice:
        """This choice continued by `other`, which was drawn behind it."""
        return DrawnChoice(
            self.tokens + other.tokens,
            self.logprobs + other.logprobs,
            other.ended,
            other.ending,
            self.alternatives + other.alternatives,
        )


class DialectSession(Protocol):
    """Writes the calls for one prompt and parses their answers."""

    def request_body(self, parent: Hypothesis, length: int) -> dict[str, Any]:
        """Returns the fields of a call that draws successors of `parent`, of at most `length` more tokens."""
        ...

    def parse(self, choice: Choice, length: int, room: int) -> DrawnChoice:
        """Returns the first `length` tokens, or as many more as complete a character.

        `room`: tokens that the answer may still have; the last of them need not complete one. Where no character ends
        at `length` or later, there are fewer tokens, or none. Raises UpstreamError where the provider left out what was
        asked for.
        """
        ...


class Dialect(Protocol):
    """How prompts are encoded for a provider, and what of `SamplingParams` it supports. See `LargeModel`."""

    @property
    def decoder(self) -> TokenDecoder:
        """Decodes the tokens that a session parses."""
        ...

    @property
    def spare_tokens(self) -> int:
        """Tokens to ask for beyond a chunk's length, so that the chunk can end with a whole character."""
        ...

    def check(self, sampling: SamplingParams) -> None: ...
    def encode(self, prompt: Prompt) -> Tokens: ...
    def count_tokens(self, prompt: Tokens) -> int: ...
    def decode_prompt(self, prompt: Prompt) -> Prompt: ...
    def prompt_text(self, prompt: Tokens) -> str: ...
    def extend_prompt(self, prompt: Tokens, answer: Tokens, text: str) -> Tokens: ...
    def open(self, prompt: Tokens, sampling: SamplingParams) -> DialectSession: ...


class TokenIdDialect:
    """vLLM's dialect: token ids both ways, so an answer is continued from exactly the tokens that were drawn."""

    spare_tokens = 0

    def __init__(self, provider_name: str, tokenizer: HFTokenizer) -> None:
        self._provider_name = provider_name
        self._tokenizer = tokenizer

    @property
    def decoder(self) -> HFTokenizer:
        return self._tokenizer

    def check(self, sampling: SamplingParams) -> None:
        check_extras(sampling, self._tokenizer, self._provider_name)

    def encode(self, prompt: Prompt) -> Tokens:
        return encode_prompt(self._tokenizer, prompt)

    def count_tokens(self, prompt: Tokens) -> int:
        return len(prompt)

    def decode_prompt(self, prompt: Prompt) -> Prompt:
        return decode_prompt(self._tokenizer, prompt)

    def prompt_text(self, prompt: Tokens) -> str:
        return self._tokenizer.verbatim.decode(prompt)

    def extend_prompt(self, prompt: Tokens, answer: Tokens, text: str) -> Tokens:
        return extend_prompt(self._tokenizer, prompt, answer, text)

    def open(self, prompt: Tokens, sampling: SamplingParams) -> TokenIdSession:
        return TokenIdSession(self._provider_name, self._tokenizer, prompt, sampling)


class TokenIdSession:
    """Calls in vLLM's dialect: `prompt` is token ids, and `return_token_ids` brings them back."""

    def __init__(self, provider_name: str, tokenizer: HFTokenizer, prompt: Tokens, sampling: SamplingParams) -> None:
        self._tokenizer = tokenizer
        self._provider_name = provider_name
        self._prompt = prompt
        self._sampling = sampling
        self._common = _VLLM_DEFAULTS | common_fields(sampling)
        self._common |= {"return_token_ids": True, "logprobs": sampling.logprobs or 0}
        if sampling.logprobs:
            self._common["return_tokens_as_token_ids"] = True

    def request_body(self, parent: Hypothesis, length: int) -> dict[str, Any]:
        per_call = per_call_fields(self._sampling, parent, length)
        return self._common | per_call | {"prompt": [*self._prompt, *parent.tokens], "max_tokens": length}

    def parse(self, choice: Choice, length: int, room: int) -> DrawnChoice:  # noqa: ARG002
        if choice.token_ids is None:
            raise UpstreamError(f"The provider of `{self._provider_name}` returns no token_ids; set flavor to openai.")
        tokens = tuple(choice.token_ids)
        if any(not 0 <= token < self._tokenizer.size for token in tokens):
            raise UpstreamError(f"The provider of `{self._provider_name}` drew a token that `tokenizer` does not have.")
        logprobs = _values(choice, len(tokens))
        ended = choice.finish_reason == "stop" and not isinstance(choice.stop_reason, str)
        ending = None
        if ended and tokens and (tokens[-1] == choice.stop_reason or self._tokenizer.is_special(tokens[-1])):
            tokens, ending = tokens[:-1], tokens[-1]
        if len(tokens) > length:  # more than it was asked for
            tokens, ended, ending = tokens[:length], False, None
        size = len(tokens) + ended
        alternatives = _alternatives(choice, _parse_token_id)[:size] if self._sampling.logprobs else ()
        return DrawnChoice(tokens, logprobs[:size], ended, ending, alternatives)


class TextDialect:
    """OpenAI's public dialect: text both ways.

    A prompt's "tokens" are the code points of the text that is sent. Without a `tokenizer` prompts cannot be counted,
    and token ids and conversations are refused.
    """

    spare_tokens = 3  # a character has at most four bytes, and a token at least one

    def __init__(self, provider_name: str, tokenizer: HFTokenizer | None) -> None:
        self._provider_name = provider_name
        self._tokenizer = tokenizer
        self._decoder = TextTokenDecoder()

    @property
    def decoder(self) -> TextTokenDecoder:
        return self._decoder

    def check(self, sampling: SamplingParams) -> None:
        check_public(sampling, self._provider_name)

    def encode(self, prompt: Prompt) -> Tokens:
        text = self._text_to_send(prompt)
        if not text and (self._tokenizer is None or not self._tokenizer.empty_prompt):
            raise RequestError("The prompt must not be empty.", "prompt")
        return tuple(map(ord, text))

    def count_tokens(self, prompt: Tokens) -> int:
        return len(self._tokenizer.encode(_from_code_points(prompt), special_tokens=True)) if self._tokenizer else 0

    def decode_prompt(self, prompt: Prompt) -> Prompt:
        return TextPrompt(self._text_to_send(prompt)) if isinstance(prompt, TokenPrompt) else prompt

    def prompt_text(self, prompt: Tokens) -> str:
        return _from_code_points(prompt)

    def extend_prompt(self, prompt: Tokens, answer: Tokens, text: str) -> Tokens:
        return prompt + tuple(map(ord, self._decoder.decode(answer) + text))

    def open(self, prompt: Tokens, sampling: SamplingParams) -> TextSession:
        return TextSession(self._decoder, _from_code_points(prompt), sampling)

    def _text_to_send(self, prompt: Prompt) -> str:
        if isinstance(prompt, TextPrompt):
            if not prompt.special_tokens:
                raise RequestError(
                    f"The provider of `{self._provider_name}` always adds special tokens.", "add_special_tokens"
                )
            return prompt.text
        if self._tokenizer is None:
            field, feature = (
                ("messages", "conversations") if isinstance(prompt, ChatPrompt) else ("prompt", "token ids")
            )
            raise RequestError(
                f"`{self._provider_name}` is configured without a tokenizer, which {feature} need.", field
            )
        if isinstance(prompt, ChatPrompt):
            return self._tokenizer.render_chat(prompt)
        return self._tokenizer.decode(encode_prompt(self._tokenizer, prompt))


class TextSession:
    """Calls in OpenAI's public dialect: `prompt` is text, and tokens come from `logprobs.tokens`.

    Stop strings are never sent, because the public API does not tell a stop string's match from the model's own end;
    `SuccessorBuilder` finds them.
    """

    def __init__(self, decoder: TextTokenDecoder, prompt: str, sampling: SamplingParams) -> None:
        self._decoder = decoder
        self._prompt = prompt
        self._sampling = sampling
        self._common = common_fields(sampling) | {"logprobs": sampling.logprobs or 1}

    def request_body(self, parent: Hypothesis, length: int) -> dict[str, Any]:
        # A hypothesis ends with a whole character, so its text is all that was drawn, as far as text can say it.
        text = self._prompt + self._decoder.decode(parent.tokens)
        return self._common | per_call_fields(self._sampling, parent, length) | {"prompt": text, "max_tokens": length}

    def parse(self, choice: Choice, length: int, room: int) -> DrawnChoice:
        if choice.logprobs is None:
            raise UpstreamError("The provider returns no logprobs, which flavor openai needs.")
        logprobs = _values(choice, len(choice.logprobs.tokens))
        if choice.text and not logprobs:
            raise UpstreamError("The provider returns no logprobs with its tokens.")
        tokens = token_bytes_of_choice(choice.logprobs.tokens, choice.text)
        ended = choice.finish_reason == "stop"
        if ended and tokens and not tokens[-1]:  # EOS, where the provider returns it
            tokens = tokens[:-1]
        kept, ended = chunk_size(tokens, length, room, ended=ended)
        size = kept + ended
        alternatives = _alternatives(choice, _id_of_text)[:size] if self._sampling.logprobs else ()
        return DrawnChoice(tuple(map(token_id, tokens[:kept])), logprobs[:size], ended, None, alternatives)


def _values(choice: Choice, count: int) -> tuple[float, ...]:
    """The log-probabilities of a choice's `count` tokens. Raises UpstreamError unless there is one for each."""
    values = choice.logprobs.token_logprobs if choice.logprobs else []
    told = tuple(nats(value) for value in values if value is not None)
    if not len(told) == len(values) == count:
        raise UpstreamError("The provider returns no logprobs with its tokens.")
    return told


def _alternatives(choice: Choice, token_id: Callable[[str], int]) -> tuple[Alternatives, ...]:
    """The top log-probabilities of each token, best first. Raises UpstreamError where the provider left some out."""
    assert choice.logprobs is not None
    top_logprobs = choice.logprobs.top_logprobs
    if top_logprobs is None or len(top_logprobs) != len(choice.logprobs.token_logprobs):
        raise UpstreamError("The provider returns no top_logprobs.")
    ranked = [sorted((entry or {}).items(), key=lambda item: -item[1]) for entry in top_logprobs]
    return tuple(tuple((token_id(token), nats(value)) for token, value in entry) for entry in ranked)


def _parse_token_id(token: str) -> int:
    """Reads vLLM's `token_id:123` (`return_tokens_as_token_ids`)."""
    number = token.removeprefix("token_id:")
    if not (number.isascii() and number.isdecimal() and len(number) < _MAX_DIGITS):
        raise UpstreamError("The provider does not name the tokens of top_logprobs by their ids.")
    return int(number)


def _id_of_text(token: str) -> int:
    return token_id(bytes_of(token))


def _from_code_points(prompt: Tokens) -> str:
    return "".join(map(chr, prompt))
