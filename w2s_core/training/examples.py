"""Training examples: answers as token rows, in just the tokens in which a served pair reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from w2s_core.data_sets import DataError
from w2s_core.errors import RequestError
from w2s_core.pairs.preferences import Answer
from w2s_core.scorers.pair_model import PairModel
from w2s_core.text.retokenizer import Retokenizer
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import ChatPrompt, Hypothesis, TextPrompt, Tokens


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and an answer as token ids; the answer ends with EOS where the tokenizer has one."""

    answer: Answer
    prompt_ids: Tokens
    answer_ids: Tokens

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


def template_for(answers: Sequence[Answer], tokenizer: HFTokenizer) -> str | None:
    """The `prompt_template` that fits the data: "" without prompts, "{prompt}" for texts, None for conversations.

    Raises DataError where the data has both, or the tokenizer no chat template that conversations need.
    """
    chats = [isinstance(answer.prompt, ChatPrompt) for answer in answers]
    if not any(chats):
        return "" if all(answer.prompt == TextPrompt("") for answer in answers) else "{prompt}"
    if not all(chats):
        other = answers[chats.index(not chats[0])]
        raise DataError(f"{other.place}: prompt: is a text in some records and a list of messages in others.")
    if not tokenizer.chat_template.exists:
        raise DataError(
            f"{answers[0].place}: prompt: is a list of messages, and the base model has no chat template; "
            "set --prompt-template."
        )
    return None


def encode_examples(
    answers: Sequence[Answer], tokenizer: HFTokenizer, template: str | None, max_length: int
) -> list[Example]:
    """The answers in tokens. Raises DataError for a prompt that cannot be read, and where one is too long."""
    model = PairModel("base", tokenizer, shares_tokens=False)
    model.check_template(template)
    examples = [_encode(model, answer, template) for answer in answers]
    too_long = [example for example in examples if example.length > max_length]
    if too_long:
        first = too_long[0]
        raise DataError(
            f"{first.answer.place}: prompt and answer have {first.length} tokens, and only {max_length} are allowed "
            f"({len(too_long)} of {len(examples)} answers are too long). Leave them out, or raise --max-length if the "
            "base model's context allows it."
        )
    return examples


def _encode(model: PairModel, answer: Answer, template: str | None) -> Example:
    try:
        prompt = model.prompt(answer.prompt, template)
    except RequestError as error:
        raise DataError(f"{answer.place}: prompt: {error}") from None
    hypothesis = Hypothesis(text=answer.text, ended=True)
    encoded = Retokenizer(model.tokenizer, prompt).encode([hypothesis])
    return Example(answer, prompt, model.answers([hypothesis], encoded)[0])
