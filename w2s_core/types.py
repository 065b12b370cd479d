"""The data types that all packages share: requests, prompts, sampling parameters, hypotheses, scores.

All are frozen: a hypothesis is never edited, and a successor is a new one. Scores and log-probabilities are in nats.
Lengths are in tokens of the large model unless another is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from w2s_core.guidance import Guidance as Guidance  # noqa: PLC0414  (requests have one)
from w2s_core.guidance import Method as Method  # noqa: PLC0414

FinishReason: TypeAlias = Literal["stop", "length"]
StepKind: TypeAlias = Literal["decode", "prefill", "score"]  # of a model's forward pass
Tokens: TypeAlias = tuple[int, ...]
GrammarKind: TypeAlias = Literal["json", "json_object", "regex", "choice", "grammar", "compiled"]
MIN_LOGPROB = -9999.0  # nats; stands for −∞, which JSON cannot express, as at OpenAI and vLLM
# Top log-probabilities at one position: (token, nats), best first.
Alternatives: TypeAlias = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar that the whole answer must match.

    `source` by `kind`: "json", a JSON schema; "json_object", empty (any JSON object); "regex", a regular expression;
    "choice", a JSON list of strings; "grammar", a Lark or GBNF grammar; "compiled", what `LargeModel.check_grammar`
    made of one of them. `field` is the request's field that it came from, for error messages.
    """

    kind: GrammarKind
    source: str
    field: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the large model samples. The pair's scores do not depend on it. Names and defaults are OpenAI's and vLLM's.

    Length: `max_tokens` None means as many as fit the context. `stop` strings end an answer where they begin;
    `include_stop_str_in_output` keeps them, and an ending token's text, in the answer. Until `min_tokens` tokens are
    drawn no EOS, `stop_token_ids` or stop string ends the answer; with `ignore_eos` an EOS never does.

    Distribution: `temperature` 0 is greedy; `top_k` 0 keeps every token; `min_p` drops tokens less likely than that
    fraction of the most likely one's probability, after temperature and before top_k and top_p (vLLM). `seed` None
    draws a fresh one.

    Penalties and biases change the logits before temperature; reported log-probabilities do not include them.
    `presence_penalty` is subtracted once from every token that the answer holds already, `frequency_penalty` once for
    each occurrence (OpenAI). `repetition_penalty` divides positive and multiplies negative logits of tokens in prompt
    and answer (CTRL, Keskar et al. 2019, as in transformers). `logit_bias` holds (token id, value added to its logit).

    Masks: only `allowed_token_ids` may be drawn (None: all), and never the last token that completes one of
    `bad_words`. With a `grammar` only tokens that continue it may be drawn, and EOS and `stop_token_ids` only where it
    is complete; stop strings, and stop tokens that are text of the grammar, still end an answer anywhere. Where masks
    and `min_tokens` leave no token, they are lifted.

    Output: special tokens appear in the text only where `skip_special_tokens` is false. `logprobs` is the number of
    `Hypothesis.alternatives` at each position; None and 0 ask for none. `stop_behind` are the markers of a
    reasoning model's thoughts: in an answer that begins with the first, stop strings count only behind the second.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: Tokens = ()
    allowed_token_ids: Tokens | None = None
    bad_words: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    grammar: Grammar | None = None
    stop_behind: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A raw text prompt. `special_tokens`: the model's tokenizer adds its own (BOS)."""

    text: str
    special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """A prompt as token ids of the large model, used as they are."""

    tokens: Tokens


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation, in the form that chat templates take: messages like {"role": "user", "content": "Hi"}.

    `special_tokens`: the tokenizer adds its own (BOS) to those that the template writes. `opens_answer`: the template
    opens an assistant's turn after the messages (`add_generation_prompt`). `continues`: the last message is left open
    instead (`continue_final_message`). `tools` are function schemas in OpenAI's form. `template_variables` are passed
    to the template by name (`chat_template_kwargs`).
    """

    messages: tuple[Mapping[str, Any], ...]
    special_tokens: bool = False
    opens_answer: bool = True
    continues: bool = False
    tools: tuple[Mapping[str, Any], ...] = ()
    template_variables: Mapping[str, Any] = field(default_factory=dict)


Prompt: TypeAlias = TextPrompt | TokenPrompt | ChatPrompt


@dataclass(frozen=True, slots=True)
class TokenText:
    """Text and UTF-8 bytes of one token.

    `text` is None where the token holds only part of a character. `bytes` is None where it is a special token, whose
    `text` is its name.
    """

    text: str | None
    bytes: bytes | None


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """y', an answer so far.

    `tokens` are the large model's, without the token that ended the answer. `text` is their decoding, without an
    incomplete character at its end, and cut where a stop string began. `key` identifies its lineage for random draws
    (`w2s_core.search.randomness`).

    `ended` is true only when the large model itself ended the answer, with the token `ending` where that is known; then
    the pair scores its EOS. `finish_reason` is None while the hypothesis may still grow.

    `logprobs` are log π_base of each token before temperature, the ending token's last. `alternatives` are parallel to
    them where `SamplingParams.logprobs` asked for any, else empty. `score` is the weighted sum of `scores`, each pair's
    log-ratio. `rank` is what the beam is ordered by: the score, unless `Guidance` turns on another selection.

    `parent` is the hypothesis that it continues. That one has no parent: a chain back to the prompt would hold the text
    of every chunk, the square of the answer's length.

    `scored_as` is the same answer without what only `SamplingParams.include_stop_str_in_output` and
    `skip_special_tokens` add to its tokens and text; None where that is nothing. See `as_scored`.
    """

    tokens: Tokens = ()
    text: str = ""
    key: int = 0
    ended: bool = False
    finish_reason: FinishReason | None = None
    logprobs: tuple[float, ...] = ()
    score: float = 0.0
    scores: Mapping[str, float] = field(default_factory=dict)
    parent: Hypothesis | None = field(default=None, repr=False, compare=False)
    ending: int | None = None
    alternatives: tuple[Alternatives, ...] = ()
    scored_as: Hypothesis | None = field(default=None, repr=False, compare=False)
    rank: float = 0.0

    @property
    def as_scored(self) -> Hypothesis:
        """What scorers see: the answer itself, whatever the request shows of it."""
        return self.scored_as or self

    @property
    def finished(self) -> bool:
        """Whether it has a finish reason, and does not grow any more."""
        return self.finish_reason is not None

    @property
    def length(self) -> int:
        """Tokens that the large model drew for it, the ending token included."""
        return len(self.tokens) + self.ended


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log-probabilities of a prompt's own tokens, in nats, except for the first, which has no context.

    `ranks`: 1 is the most likely token at that position. `alternatives`: the top log-probabilities there.
    """

    logprobs: tuple[float, ...]
    ranks: tuple[int, ...]
    alternatives: tuple[Alternatives, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """A hypothesis' score: `total` = Σ w_j · pairs[j], and each pair's own log-ratio in nats, or a scorer's score."""

    total: float
    pairs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Round:
    """One chunk of the search: every distinct candidate with its score, and the beam that was kept, best first.

    `proposed` are the candidates, not yet scored, before equal ones were merged. `carried` are the finished hypotheses
    of earlier rounds that competed with the candidates.
    """

    candidates: Sequence[Hypothesis]
    beam: Sequence[Hypothesis]
    proposed: Sequence[Hypothesis]
    carried: Sequence[Hypothesis] = ()


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One API call, for the engine. `guidance` None takes the served model's own; `best_of` is OpenAI's field.

    Without `sampling.max_tokens` an answer has as many tokens as fit, at most `default_max_tokens` if that is given.
    Each of `prompts` gets `n` choices, indexed `i + prompt_index * n`. Of a prompt longer than `truncate_prompt_tokens`
    only the last tokens are used; -1 means as many as fit the context with the answer, None all.

    `with_tokens` adds tokens to the committed text, and `with_prompt` a PromptRead event before it. `prompt_logprobs`
    asks for log-probabilities in that event, with so many alternatives at each position. `needs_token_ids` is true
    where the client wants token ids, which not every provider returns.

    With `max_tokens` 0 and pairs, the prompts' texts are scored as answers. Each of them begins with `score_prefix`,
    which is the pairs' prompt x and is not scored itself; None or "" scores the whole text.
    """

    model: str
    prompts: tuple[Prompt, ...]
    sampling: SamplingParams = SamplingParams()
    guidance: Guidance | None = None
    n: int = 1
    best_of: int | None = None
    truncate_prompt_tokens: int | None = None
    with_tokens: bool = False
    with_prompt: bool = False
    prompt_logprobs: int | None = None
    needs_token_ids: bool = False
    score_prefix: str | None = None
    default_max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node of the search tree. `parent` is the `id` of a candidate of the previous chunk, or None in the first."""

    id: int
    parent: int | None
    text: str
    score: float
    rank: float
    scores: Mapping[str, float]
    finish_reason: FinishReason | None
    kept: bool


@dataclass(frozen=True, slots=True)
class ProviderUsage:
    """What providers delivered: successful calls, and tokens as the providers count them."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: ProviderUsage) -> ProviderUsage:
        return ProviderUsage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )
