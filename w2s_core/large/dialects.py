"""Two ways to speak to a provider: vLLM's, in token ids, and the public API's, in text alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from w2s_core.errors import RequestError, UpstreamError
from w2s_core.interfaces import TokenDecoder
from w2s_core.large.parameters import asked_of_all, asked_of_one, check_extras, check_public
from w2s_core.large.prompts import encode_prompt
from w2s_core.large.text_tokens import TextTokenTable, bytes_of, token_bytes_of_choice, whole_character_tokens
from w2s_core.remote.completion import Choice, nats
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Alternatives, ChatPrompt, Hypothesis, Prompt, SamplingParams, TextPrompt, TokenPrompt, Tokens

# vLLM takes what a call does not say from the model's generation_config.json, which hides a top_k in many.
_UNSHAPED: dict[str, Any] = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


@dataclass(frozen=True, slots=True)
class DrawnChoice:
    """One choice: new tokens, their log-probabilities in nats (an ending token's behind them, where it was told),
    whether the model ended the answer, and with which token; `alternatives` beside `logprobs`, where asked for."""

    tokens: Tokens
    logprobs: tuple[float, ...]
    ended: bool
    ending: int | None = None
    alternatives: tuple[Alternatives, ...] = ()

    @property
    def usable(self) -> bool:
        """It is further than its parent."""
        return self.ended or bool(self.tokens)


class DialectSession(Protocol):
    """One session's way."""

    @property
    def spare(self) -> int:
        """Tokens to ask for beyond a chunk's length where the last answer held no whole character."""
        ...

    def ask(self, parent: Hypothesis, length: int) -> dict[str, Any]:
        """The fields of a call for successors of `parent`, of at most `length` more tokens."""
        ...

    def read(self, choice: Choice, length: int, *, exact: bool) -> DrawnChoice:
        """At most `length` tokens; unless `exact`, a character's worth more where these hold not one whole.

        Raises UpstreamError for an answer that makes no sense.
        """
        ...


class Dialect(Protocol):
    """What prompts become for a provider, and the wire for one of them."""

    @property
    def decoder(self) -> TokenDecoder:
        """Reads the tokens that a wire returns."""
        ...

    def check(self, sampling: SamplingParams) -> None: ...
    def encode(self, prompt: Prompt) -> Tokens: ...
    def count_tokens(self, prompt: Tokens) -> int: ...
    def decode_prompt(self, prompt: Prompt) -> Prompt: ...
    def wire(self, prompt: Tokens, sampling: SamplingParams) -> DialectSession: ...


class TokenIdDialect:
    """vLLM's: nothing is encoded twice, so what was drawn is what is continued."""

    def __init__(self, who: str, tokenizer: HFTokenizer) -> None:
        self._who = who
        self._tokenizer = tokenizer

    @property
    def decoder(self) -> HFTokenizer:
        return self._tokenizer

    def check(self, sampling: SamplingParams) -> None:
        check_extras(sampling, self._tokenizer, self._who)

    def encode(self, prompt: Prompt) -> Tokens:
        return encode_prompt(self._tokenizer, prompt)

    def count_tokens(self, prompt: Tokens) -> int:
        return len(prompt)

    def decode_prompt(self, prompt: Prompt) -> Prompt:
        return TextPrompt(self._tokenizer.decode(prompt.tokens)) if isinstance(prompt, TokenPrompt) else prompt

    def wire(self, prompt: Tokens, sampling: SamplingParams) -> TokenIdSession:
        return TokenIdSession(self._who, self._tokenizer, prompt, sampling)


class TokenIdSession:
    spare = 0

    def __init__(self, who: str, tokenizer: HFTokenizer, prompt: Tokens, sampling: SamplingParams) -> None:
        self._tokenizer = tokenizer
        self._who = who
        self._prompt = prompt
        self._sampling = sampling
        self._always = _UNSHAPED | asked_of_all(sampling)
        self._always |= {"return_token_ids": True, "logprobs": sampling.logprobs or 0}
        if sampling.logprobs:
            self._always["return_tokens_as_token_ids"] = True

    def ask(self, parent: Hypothesis, length: int) -> dict[str, Any]:
        prompt = [*self._prompt, *parent.tokens]
        return self._always | asked_of_one(self._sampling, parent, length) | {"prompt": prompt, "max_tokens": length}

    def read(self, choice: Choice, length: int, *, exact: bool) -> DrawnChoice:  # noqa: ARG002
        if choice.token_ids is None:
            raise UpstreamError(f"The provider of `{self._who}` sends no token_ids; set flavor to openai.")
        tokens = tuple(choice.token_ids)
        logprobs = tuple(map(nats, choice.logprobs.token_logprobs)) if choice.logprobs else ()
        if len(logprobs) < len(tokens):
            raise UpstreamError(f"The provider of `{self._who}` sends no logprobs with its tokens.")
        ended = choice.finish_reason == "stop" and not isinstance(choice.stop_reason, str)
        ending = None
        if ended and tokens and (tokens[-1] == choice.stop_reason or self._tokenizer.is_special(tokens[-1])):
            tokens, ending = tokens[:-1], tokens[-1]
        if len(tokens) > length:  # more than was asked for
            tokens, ended, ending = tokens[:length], False, None
        size = len(tokens) + ended
        alternatives = _alternatives(choice, _token_id)[:size] if self._sampling.logprobs else ()
        return DrawnChoice(tokens, logprobs[:size], ended, ending, alternatives)


class TextDialect:
    """The public API's. A prompt's "tokens" are the code points of the text that is sent; without a `tokenizer` nobody
    here can count its tokens, read token ids or render a conversation."""

    def __init__(self, who: str, tokenizer: HFTokenizer | None) -> None:
        self._who = who
        self._tokenizer = tokenizer
        self._table = TextTokenTable()

    @property
    def decoder(self) -> TextTokenTable:
        return self._table

    def check(self, sampling: SamplingParams) -> None:
        check_public(sampling, self._who)

    def encode(self, prompt: Prompt) -> Tokens:
        text = self._text(prompt)
        if not text and (self._tokenizer is None or not self._tokenizer.empty_prompt):
            raise RequestError("The prompt must not be empty.", "prompt")
        return tuple(map(ord, text))

    def count_tokens(self, prompt: Tokens) -> int:
        return len(self._tokenizer.encode(_text_of(prompt), special_tokens=True)) if self._tokenizer else 0

    def decode_prompt(self, prompt: Prompt) -> Prompt:
        return TextPrompt(self._text(prompt)) if isinstance(prompt, TokenPrompt) else prompt

    def wire(self, prompt: Tokens, sampling: SamplingParams) -> TextSession:
        return TextSession(self._table, _text_of(prompt), sampling)

    def _text(self, prompt: Prompt) -> str:
        if isinstance(prompt, TextPrompt):
            if not prompt.special_tokens:
                raise RequestError(f"The provider of `{self._who}` adds its own special tokens.", "add_special_tokens")
            return prompt.text
        if self._tokenizer is None:
            field, what = ("messages", "a chat template") if isinstance(prompt, ChatPrompt) else ("prompt", "token ids")
            raise RequestError(f"`{self._who}` is configured without a tokenizer, so it knows no {what[2:]}.", field)
        if isinstance(prompt, ChatPrompt):
            return self._tokenizer.render_chat(prompt)
        return self._tokenizer.decode(encode_prompt(self._tokenizer, prompt))


class TextSession:
    """The public API does not tell a stop string's match from the model's own end, so none is ever sent up: stop
    strings are found here."""

    spare = 3  # a character has at most four bytes, and a token at least one

    def __init__(self, table: TextTokenTable, prompt: str, sampling: SamplingParams) -> None:
        self._table = table
        self._prompt = prompt
        self._sampling = sampling
        self._always = asked_of_all(sampling) | {"logprobs": sampling.logprobs or 1}

    def ask(self, parent: Hypothesis, length: int) -> dict[str, Any]:
        # A hypothesis ends with a whole character, so this is what was drawn, as far as text can say it.
        text = self._prompt + self._table.decode(parent.tokens)
        return self._always | asked_of_one(self._sampling, parent, length) | {"prompt": text, "max_tokens": length}

    def read(self, choice: Choice, length: int, *, exact: bool) -> DrawnChoice:
        told = choice.logprobs
        if told is None or len(told.tokens) != len(told.token_logprobs):
            raise UpstreamError("The provider sends no logprobs with its tokens, which text alone cannot do without.")
        pieces = token_bytes_of_choice(told.tokens, choice.text)
        ended = choice.finish_reason == "stop"
        if ended and pieces and not pieces[-1]:  # EOS, where it is told
            pieces = pieces[:-1]
        kept = len(pieces) if ended else whole_character_tokens(pieces[:length] if exact else pieces, length)
        logprobs = tuple(map(nats, told.token_logprobs))
        alternatives = _alternatives(choice, self._id_of)[: kept + ended] if self._sampling.logprobs else ()
        return DrawnChoice(self._table.intern(pieces[:kept]), logprobs[: kept + ended], ended, None, alternatives)

    def _id_of(self, token: str) -> int:
        return self._table.intern([bytes_of(token)])[0]


def _alternatives(choice: Choice, id_of: Callable[[str], int]) -> tuple[Alternatives, ...]:
    """At each place the likeliest tokens, best first. Raises UpstreamError."""
    told = choice.logprobs.top_logprobs if choice.logprobs else None
    if told is None:
        raise UpstreamError("The provider tells no likely alternatives.")
    ranked = [sorted((place or {}).items(), key=lambda item: -item[1]) for place in told]
    return tuple(tuple((id_of(token), nats(value)) for token, value in place) for place in ranked)


def _token_id(token: str) -> int:
    """Out of vLLM's `token_id:123`."""
    try:
        return int(token.removeprefix("token_id:"))
    except ValueError:
        raise UpstreamError("The provider does not name likely alternatives by their token ids.") from None


def _text_of(prompt: Tokens) -> str:
    return "".join(map(chr, prompt))
