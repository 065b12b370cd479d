"""One model of a pair, as text sees it: what it is shown of the prompt, and the answers in its own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from w2s_core.errors import ConfigurationError, ContextLengthError, PairContextLengthError, RequestError
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import ChatPrompt, Hypothesis, Prompt, TextPrompt, TokenPrompt, Tokens

_PROMPT = "{prompt}"


@dataclass(frozen=True, slots=True)
class PairModel:
    """A model's name and its tokenizer. `shares_tokens`: its vocabulary is the large model's, id for id, so that
    answers need no translation."""

    name: str
    tokenizer: HFTokenizer
    shares_tokens: bool

    def check_template(self, template: str | None) -> None:
        """Raises ConfigurationError when the model cannot do with this template (see `PairConfig.prompt_template`)."""
        if template is None and not self.tokenizer.chat_template.exists:
            raise ConfigurationError(
                f"{self.name}: its tokenizer has no chat template, so the pair needs a prompt_template."
            )
        if template == "" and not self.tokenizer.start:
            raise ConfigurationError(f"{self.name}: it has no BOS, so it cannot score behind an empty prompt.")

    def prompt(self, prompt: Prompt, template: str | None) -> Tokens:
        """What this model sees before the answer."""
        if template is None and isinstance(prompt, ChatPrompt):
            tools = prompt.tools if self.tokenizer.chat_template.knows_tools else ()
            return self.tokenizer.encode_chat(replace(prompt, special_tokens=False, tools=tools))
        prompt, mark = self.tokenizer.cut(prompt) if isinstance(prompt, ChatPrompt) else (prompt, None)
        return (
            self.tokenizer.encode_cut(pair_prompt_text(prompt, template), mark, special_tokens=True)
            or self.tokenizer.start
        )

    def room(self, prompt: Prompt, template: str | None, limit: int, max_tokens: int) -> int:
        """Tokens of answer that fit behind the prompt, where the vocabulary is shared; elsewhere only the text tells.

        Raises RequestError when not one does.
        """
        used = len(self.prompt(prompt, template))
        field = "messages" if isinstance(prompt, ChatPrompt) else "prompt"
        if not used:
            raise RequestError(f"{self.name} has no BOS, so it cannot score behind an empty prompt.", field)
        if used >= limit:
            raise ContextLengthError(limit, used, 1, field)
        return min(max_tokens, limit - used) if self.shares_tokens else max_tokens

    def answers(self, candidates: Sequence[Hypothesis], texts: Sequence[Tokens]) -> list[Tokens]:
        """Each answer in this model's tokens, its EOS behind those that the large model ended. `texts`: the answers'
        text, encoded.

        The large model's own tokens serve where it has the same; but a stop string may have cut one of them in two, and
        then only the text tells what the answer is.
        """
        eos = () if self.tokenizer.eos is None else (self.tokenizer.eos,)
        return [
            (y.tokens if self.shares_tokens and (y.ended or not y.finished) else text) + (eos if y.ended else ())
            for y, text in zip(candidates, texts, strict=True)
        ]

    def check_length(self, prompt: Tokens, answers: Sequence[Tokens], limit: int) -> None:
        """Raises PairContextLengthError where an answer has become longer than this model can read."""
        longest = max(map(len, answers), default=0)
        if len(prompt) + longest > limit:
            raise PairContextLengthError(self.name, limit, len(prompt), longest)


def pair_prompt_text(prompt: Prompt, template: str | None) -> str:
    """What a pair sees of a prompt as text: the raw prompt, or the template around it or the last user message."""
    assert not isinstance(prompt, TokenPrompt)  # `LargeModel.text_of` has decoded those
    if template is None:
        assert isinstance(prompt, TextPrompt)
        return prompt.text
    raw = _last_user_message(prompt) if isinstance(prompt, ChatPrompt) else prompt.text
    return template.replace(_PROMPT, raw)


def _last_user_message(prompt: ChatPrompt) -> str:
    for message in reversed(prompt.messages):
        if message["role"] == "user" and "content" in message:
            content = message["content"]
            return content if isinstance(content, str) else "".join(part["text"] for part in content)
    return ""
