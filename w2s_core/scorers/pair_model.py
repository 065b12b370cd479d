"""A model that scores, on the side of its tokenizer: encodes the prompt and the answers as this model reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from w2s_core.errors import ConfigurationError, ContextLengthError, PairContextLengthError, RequestError
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import ChatPrompt, Hypothesis, Prompt, Score, TextPrompt, TokenPrompt, Tokens

_PLACEHOLDER = "{prompt}"


@dataclass(frozen=True, slots=True)
class PairModel:
    """One model of a pair, or a reward model: its name and its tokenizer.

    `name` is what messages call it, PAIR.tuned, PAIR.untuned or, with `section` "reward_models", its name: clients must
    see no folder of the machine. `source` is
    its name in the worker pool if that is another one. `shares_tokens`: its vocabulary is the large model's, id for id,
    so that answers need no retokenization. `template` of the methods is `PairConfig.prompt_template`.
    """

    name: str
    tokenizer: HFTokenizer
    shares_tokens: bool
    source: str | None = None
    section: Literal["pairs", "reward_models"] = "pairs"

    @property
    def _kind(self) -> str:
        return "pair" if self.section == "pairs" else "reward model"

    @property
    def pool_name(self) -> str:
        """Its name in the worker pool, if it runs there."""
        return self.source or self.name

    def check_template(self, template: str | None) -> None:
        """Raises ConfigurationError where the model cannot use this template."""
        key = f"{self.section}.{self.name}"
        if template is None and not self.tokenizer.chat_template.exists:
            raise ConfigurationError(
                f"{key}: its tokenizer has no chat template; set the {self._kind}'s prompt_template."
            )
        if template == "" and not self.tokenizer.empty_prompt:
            raise ConfigurationError(
                f"{key}: its tokenizer has no BOS, which an empty prompt_template needs; set another one."
            )

    def prompt(self, prompt: Prompt, template: str | None) -> Tokens:
        """Token ids of what this model reads before the answer."""
        if template is None and isinstance(prompt, ChatPrompt):
            tools = prompt.tools if self.tokenizer.chat_template.supports_tools else ()
            return self.tokenizer.encode_chat(replace(prompt, special_tokens=False, tools=tools))
        prompt, separator = (
            self.tokenizer.escape_special_tokens(prompt) if isinstance(prompt, ChatPrompt) else (prompt, None)
        )
        text = pair_prompt_text(prompt, template)
        return self.tokenizer.encode_escaped(text, separator, special_tokens=True) or self.tokenizer.empty_prompt

    def max_answer_tokens(
        self, prompt: Prompt, template: str | None, limit: int, max_tokens: int, vocabulary: int | None = None
    ) -> int:
        """Tokens of answer, at most `max_tokens`, that fit after the prompt in a context of `limit` tokens.

        `vocabulary`: ids below it can be read by the model; None where only a provider knows.

        Where the vocabulary is not shared, that depends on the text: then `max_tokens` is returned, and `check_length`
        decides later. Raises RequestError where no token fits.
        """
        tokens = self.prompt(prompt, template)
        prompt_tokens = len(tokens)
        field = "messages" if isinstance(prompt, ChatPrompt) else "prompt"
        if not prompt_tokens:
            whose = "the pair's model" if self.section == "pairs" else "the reward model"
            raise RequestError(f"The prompt must not be empty, because {whose} {self.name} has no BOS.", field)
        if vocabulary is not None and max(tokens) >= vocabulary:
            [name] = self.tokenizer.convert_ids_to_tokens([max(tokens)])
            raise RequestError(
                f"The {self._kind} cannot read `{name}`: its tokenizer has this token, its embedding has not.", field
            )
        if prompt_tokens >= limit:
            raise ContextLengthError(limit, prompt_tokens, 1, field)
        return min(max_tokens, limit - prompt_tokens) if self.shares_tokens else max_tokens

    def answers(self, candidates: Sequence[Hypothesis], encoded: Sequence[Tokens]) -> list[Tokens]:
        """Each answer in this model's tokens, with its EOS where the large model ended the answer.

        `encoded` is the answers' text in this model's tokens. With a shared vocabulary the large model's own tokens are
        used instead, except for answers that were cut short: there a stop string may have split a token.
        """
        eos = () if self.tokenizer.eos is None else (self.tokenizer.eos,)
        return [
            (y.tokens if self.shares_tokens and (y.ended or not y.finished) else tokens) + (eos if y.ended else ())
            for y, tokens in zip(candidates, encoded, strict=True)
        ]

    def check_length(
        self, prompt: Tokens, candidates: Sequence[Hypothesis], answers: Sequence[Tokens], limit: int
    ) -> None:
        """Raises PairContextLengthError where prompt and answer exceed the model's context of `limit` tokens.

        `answers` are the `candidates` in this model's tokens.
        """
        if len(prompt) + max(map(len, answers), default=0) > limit:
            by_length = sorted(zip(map(len, answers), candidates, strict=True), key=lambda item: item[0])
            lengths = {(y.text, y.ended): length for length, y in by_length}  # the longest, if tokens differ
            raise PairContextLengthError(self.name, limit, len(prompt), lengths, self._kind)


def log_ratios(logprobs: Sequence[Sequence[float]]) -> list[Score]:
    """The scores of the answers, whose log-probabilities are those of π_tuned and, if the pair has it, of π_untuned."""
    tuned, *rest = logprobs
    untuned = rest[0] if rest else [0.0] * len(tuned)
    return [Score(t - u) for t, u in zip(tuned, untuned, strict=True)]


def pair_prompt_text(prompt: Prompt, template: str | None) -> str:
    """The prompt as text for a pair: the raw prompt, or the template around it or around the last user message."""
    assert not isinstance(prompt, TokenPrompt)  # `LargeModel.decode_prompt` has decoded those
    if template is None:
        assert isinstance(prompt, TextPrompt)
        return prompt.text
    raw = _last_user_message(prompt) if isinstance(prompt, ChatPrompt) else prompt.text
    return template.replace(_PLACEHOLDER, raw)


def _last_user_message(prompt: ChatPrompt) -> str:
    for message in reversed(prompt.messages):
        if message["role"] == "user" and "content" in message:
            content = message["content"]
            return content if isinstance(content, str) else "".join(part["text"] for part in content)
    return ""
