"""Plans the thoughts of a reasoning model: how an answer begins, and whether its thoughts are searched."""

from __future__ import annotations

from dataclasses import dataclass, replace

from w2s_core.errors import RequestError
from w2s_core.interfaces import LargeModel
from w2s_core.text.reasoning import REASONING_FORMATS, ReasoningFormat, ReasoningState
from w2s_core.types import ChatPrompt, GenerationRequest, Guidance, Prompt, SamplingParams, Tokens

_THOUGHT_KEYS = frozenset({"reasoning_content", "reasoning"})  # of a message


@dataclass(frozen=True, slots=True)
class ThoughtPlan:
    """How the answers to a prompt begin: in `state` of `format`.

    `thinker` samples the thoughts: the large model, not steered by any pair. `searched`: thoughts and answer are
    searched together. Otherwise the thoughts are sampled once and the answer behind them may have `answer_budget`
    tokens, because the pair reads it alone.
    """

    thinker: LargeModel
    format: ReasoningFormat
    state: ReasoningState
    searched: bool
    answer_budget: int


def plan_thoughts(
    request: GenerationRequest,
    prompt: Prompt,
    tokens: Tokens,
    large: LargeModel,
    guidance: Guidance | None,
    *,
    answer_budget: int,
) -> ThoughtPlan | None:
    """The plan for a prompt, which is encoded as `tokens`; None if its answers have no thoughts apart.

    That is so unless a chat template opens the answer: what continues a text is text. Raises RequestError for a search
    of thoughts whose answers follow a grammar.
    """
    if large.reasoning_format is None or not isinstance(prompt, ChatPrompt) or not prompt.opens_answer:
        return None
    reasoning_format = REASONING_FORMATS[large.reasoning_format]
    state = reasoning_format.state_behind(large.prompt_text(tokens))
    searched = guidance is not None and guidance.thoughts and state is not ReasoningState.ANSWER
    if searched and request.sampling.grammar is not None:
        raise RequestError(
            f"Thoughts cannot be searched together with an answer that follows `{request.sampling.grammar.field}`.",
            "guidance.thoughts",
        )
    return ThoughtPlan(large, reasoning_format, state, searched, answer_budget)


def without_thoughts(prompt: Prompt) -> Prompt:
    """The conversation without the thoughts of earlier turns."""
    if not isinstance(prompt, ChatPrompt):
        return prompt
    messages = [
        {key: value for key, value in message.items() if key not in _THOUGHT_KEYS} for message in prompt.messages
    ]
    return replace(prompt, messages=tuple(messages))


def searched_sampling(sampling: SamplingParams, large: LargeModel, plan: ThoughtPlan) -> SamplingParams:
    """The sampling of thoughts and answer together: stop strings hold behind the thoughts, whose end must be text."""
    tokenizer, closing = large.tokenizer, plan.format.closing
    opening = plan.format.opening if plan.state is ReasoningState.START else ""
    special = tokenizer is not None and closing not in tokenizer.decode(tokenizer.encode(closing, special_tokens=False))
    return replace(
        sampling, stop_behind=(opening, closing), skip_special_tokens=sampling.skip_special_tokens and not special
    )
