"""The nouns of the search, all frozen: a hypothesis is never edited, a successor is a new one.

Scores and log-probabilities are in nats, lengths in tokens of the model that is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Method: TypeAlias = Literal["cbs", "best_of_n", "none"]
FinishReason: TypeAlias = Literal["stop", "length"]
StepKind: TypeAlias = Literal["decode", "prefill", "score"]  # of a model's forward pass
Tokens: TypeAlias = tuple[int, ...]
GrammarKind: TypeAlias = Literal["json", "json_object", "regex", "choice", "grammar", "compiled"]
Alternatives: TypeAlias = tuple[tuple[int, float], ...]  # the likeliest tokens at one place and their nats, best first


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a whole answer must be.

    `source`, by `kind`: a JSON schema; nothing (any JSON object); a regular expression; a JSON list of strings; a Lark
    or GBNF grammar; "compiled": what `LargeModel.check_grammar` made of one of them. `field` of the request asked.
    """

    kind: GrammarKind
    source: str
    field: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Shapes the large model's sampling only, never the pair's scores. Defaults are OpenAI's.

    `max_tokens` None means "what fits the context"; `temperature` 0 is greedy; `top_k` 0 keeps every token;
    `stop` are strings that end an answer where they begin; `seed` None draws a fresh one. `logprobs` asks for that many
    `Hypothesis.alternatives` at each place; None and 0 ask for none.

    Penalties and biases are in logits, before temperature; log-probabilities are reported as if there were none.
    `presence_penalty` is taken once from every token that the answer has already, `frequency_penalty` for each time
    that it has it (OpenAI). `repetition_penalty` divides positive logits of tokens in prompt and answer, and multiplies
    negative ones (CTRL, Keskar et al. 2019, as in transformers). `logit_bias`: token ids, each with what is added to
    its logit. `min_p` drops tokens less likely than that part of the likeliest one, after temperature and before top_k
    and top_p (vLLM).

    Until `min_tokens` are drawn no EOS, `stop_token_ids` or stop string ends the answer; with `ignore_eos` an EOS never
    does. Only `allowed_token_ids` may be drawn (None: all), and never the last token that completes one of `bad_words`.

    With a `grammar` only tokens are drawn that it can go on from, and EOS and `stop_token_ids` where it is complete.
    Stop strings, and stop tokens that are text of the grammar, end an answer anywhere. Where masks and `min_tokens`
    leave no token, they are lifted.

    `include_stop_str_in_output` keeps what ended an answer in its text; special tokens show there only where
    `skip_special_tokens` is false.
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


@dataclass(frozen=True, slots=True)
class Guidance:
    """How a request is searched (Zhou et al. 2024, section 4).

    `pairs` maps a pair's name to its weight w_j; `beam_width` W hypotheses are kept after each chunk of at most
    `chunk_length` L tokens; each gets `successors` K continuations. "best_of_n" draws `successors` whole answers.
    `max_sampled_tokens` bounds what the large model draws for one request, pruned tokens included: answers end early,
    with "length", where it could be exceeded; None = the server's own bound.
    """

    method: Method = "cbs"
    pairs: Mapping[str, float] = field(default_factory=dict)
    beam_width: int = 4
    successors: int = 4
    chunk_length: int = 5
    trace: bool = False
    max_sampled_tokens: int | None = None

    @property
    def rows(self) -> int:
        """Sequences of the large model that are sampled at once: W·K."""
        return self.beam_width * self.successors


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A raw prompt; with `special_tokens` the model's tokenizer adds its own (BOS)."""

    text: str
    special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """A prompt given as token ids of the large model, used as they are."""

    tokens: Tokens


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation: messages as the chat templates take them, for example {"role": "user", "content": "Hi"}.

    `special_tokens` has the tokenizer add its own (BOS) to those that the template writes. Behind the messages the
    template opens an assistant's turn if `opens_answer`; with `continues` the last message is left open instead.
    `tools` are function schemas as OpenAI writes them; `template_variables` are the template's own, by name.
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
    """One token as it stands in a text. `text` is None where it holds a part of a character, and `bytes`, in UTF-8, are
    None where it is a special token, whose text is only its name."""

    text: str | None
    bytes: bytes | None


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """y', an answer so far.

    `tokens` are the large model's, without the token that ended the answer; `text` is their decoding without a
    half character at its end, cut where a stop string began; `key` is its lineage (see `w2s_core.search.randomness`).
    `ended` is true only when the large model itself ended the answer, so that the pair scores its EOS;
    `finish_reason` is None while the hypothesis may still grow. `logprobs` are log π_base of each token before
    temperature, the ending token's behind them; `alternatives` stand beside them where `SamplingParams.logprobs` asked.
    `ending` is the token that ended it, if `ended`. `score` is the weighted sum of `scores`, each pair's log-ratio.
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

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def length(self) -> int:
        """Tokens that the large model drew for it, the ending one included."""
        return len(self.tokens) + self.ended


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Of each token of a prompt but the first, which nothing stands before: its log-probability in nats, its rank (1 =
    the likeliest), and the likeliest tokens in its place."""

    logprobs: tuple[float, ...]
    ranks: tuple[int, ...]
    alternatives: tuple[Alternatives, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """What guides the search: `total` = Σ w_j · pairs[j], and each pair's own log-ratio."""

    total: float
    pairs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Round:
    """One chunk of the search: every distinct candidate with its score, and the beam that was kept of them."""

    candidates: Sequence[Hypothesis]
    beam: Sequence[Hypothesis]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One call of the API. `guidance` None takes the served model's own; `best_of` is OpenAI's field.

    Each of `prompts` gets `n` choices, indexed `i + prompt_index * n`. Of a prompt longer than `truncate_prompt_tokens`
    tokens only its last ones are used; -1 means as many as fit the context beside the answer, None all.

    `with_tokens` puts tokens beside committed text, `with_prompt` a PromptRead before it. `prompt_logprobs` asks for
    the log-probabilities in that, with so many alternatives at each place. `token_ids`: tokens are wanted for
    their ids, which not every provider tells.

    With `max_tokens` 0 and pairs, the prompts' texts are scored as answers; `score_prefix` is what each of them begins
    with that is not: the pairs' prompt x, else empty.
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


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node of the search tree. `parent` is the `id` of a candidate of the previous chunk, or None at the root."""

    id: int
    parent: int | None
    text: str
    score: float
    scores: Mapping[str, float]
    finish_reason: FinishReason | None
    kept: bool


@dataclass(frozen=True, slots=True)
class ProviderUsage:
    """What providers were asked for: successful calls, and tokens as they count them."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: ProviderUsage) -> ProviderUsage:
        return ProviderUsage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )
