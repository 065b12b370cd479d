"""Messages between the parent and a worker process: small frozen dataclasses with token ids, never tensors.

A job carries everything that it needs (prompt, answers so far, randomness keys), so that any worker can run it. The
jobs of a *session* have one prompt, run on one worker and share KV there. Each job names the answers still needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from w2s_core.pool.specs import ModelInfo
from w2s_core.types import Alternatives, Grammar, PromptLogprobs, StepKind, Tokens


@dataclass(frozen=True, slots=True)
class Row:
    """An answer to continue by up to `length` tokens. `key` seeds its draws (`w2s_core.search.randomness`)."""

    tokens: Tokens
    key: int
    length: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn: `SamplingParams` (see there) with strings turned into token ids of the model.

    At each step the `alternatives` most likely tokens are reported.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: Tokens = ()
    allowed_token_ids: Tokens | None = None
    bad_words: tuple[Tokens, ...] = ()
    alternatives: int = 0
    grammar: Grammar | None = None
    plausibility: float = 0.0  # `Guidance.plausibility`; only rows with experts have one

    @property
    def bans_tokens(self) -> bool:
        """Whether some tokens may be banned, by `bad_words`, `allowed_token_ids` or `min_tokens`."""
        return bool(self.bad_words) or self.allowed_token_ids is not None or self.min_tokens > 0

    @property
    def needs_processor(self) -> bool:
        """Whether a logits processor is needed: something changes the logits before the draw."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty)
        masks = self.bans_tokens or self.min_p > 0 or self.grammar is not None
        return masks or bool(self.logit_bias) or penalties != (0, 0, 1)


@dataclass(frozen=True, slots=True)
class Expert:
    """A model of a pair in a SampleJob (EFT): `weight` times its logits are added to the large model's.

    It reads its own `prompt` and then the answer. Ids from `vocabulary` on are neither read nor changed by it.
    """

    model: str
    prompt: Tokens
    weight: float
    vocabulary: int


@dataclass(frozen=True, slots=True)
class SampleJob:
    """Sample more tokens for each row. An update of a row is sent every `report_every` tokens and when it is done.

    The worker must have the models of the `experts`, too.
    """

    id: int
    session: int
    model: str
    prompt: Tokens
    rows: tuple[Row, ...]
    sampling: Sampling
    report_every: int
    experts: tuple[Expert, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """Compute log p(answer | prompt) of each whole answer, reusing the session's KV and log-probabilities."""

    id: int
    session: int
    model: str
    prompt: Tokens
    answers: tuple[Tokens, ...]


@dataclass(frozen=True, slots=True)
class RewardJob:
    """Compute a reward model's reward of prompt and each whole answer, reusing the session's KV and rewards."""

    id: int
    session: int
    model: str
    prompt: Tokens
    answers: tuple[Tokens, ...]


@dataclass(frozen=True, slots=True)
class PromptJob:
    """Compute the log-probabilities of the prompt's own tokens and the `top` most likely tokens at each position.

    It must be its session's only job.
    """

    id: int
    session: int
    model: str
    prompt: Tokens
    top: int


@dataclass(frozen=True, slots=True)
class StopRows:
    """Stop sampling these rows of a SampleJob."""

    id: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CancelJob:
    """Drop this job: its outcomes are not needed any more."""

    id: int


@dataclass(frozen=True, slots=True)
class CloseSession:
    """Free what this session holds in every model."""

    session: int


@dataclass(frozen=True, slots=True)
class InspectJob:
    """Check the integrity of every KV cache and report a WorkerState."""

    id: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Answered with a Pong between two steps: shows that the worker is alive, however long its jobs are."""


@dataclass(frozen=True, slots=True)
class Pong:
    """Answers a Ping and carries metrics: the fraction of KV slots that sessions hold (of the fullest model), and the
    kind and seconds of each step since the last Pong."""

    kv_usage: float = 0.0
    steps: tuple[tuple[StepKind, float], ...] = ()


TokenJob: TypeAlias = SampleJob | ScoreJob | RewardJob | PromptJob  # has tokens for a model
Job: TypeAlias = TokenJob | InspectJob
WorkerCommand: TypeAlias = Job | StopRows | CancelJob | CloseSession | Ping


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker has loaded its models and takes jobs."""

    models: Mapping[str, ModelInfo]


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The worker could not load its models and ends."""

    message: str
    unsupported: bool = False  # see `UnsupportedModelError`


@dataclass(frozen=True, slots=True)
class RowUpdate:
    """A row's new tokens since its last update.

    `ending` is the token that ended the answer, None if none has. `logprobs` (nats, before temperature) and
    `alternatives`, if the job asked for them, have one entry per token and, after those, one for the ending token.
    """

    row: int
    tokens: Tokens
    logprobs: tuple[float, ...]
    ending: int | None
    done: bool
    alternatives: tuple[Alternatives, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether the model ended the answer."""
        return self.ending is not None


@dataclass(frozen=True, slots=True)
class SampleUpdate:
    """Updates of a SampleJob's rows, sent after every step. `finished` marks the job's last one.

    `unreported`: tokens that have been drawn for the job's other rows and are still to come in an update.
    `cached_tokens`: leading tokens of the prompt whose KV the session found in the worker.
    """

    id: int
    rows: tuple[RowUpdate, ...]
    finished: bool
    unreported: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """log p(answer | prompt) of each answer in nats, and the number of tokens run for it."""

    id: int
    logprobs: tuple[float, ...]
    tokens_run: int


@dataclass(frozen=True, slots=True)
class RewardResult:
    """The reward of each answer, and the number of tokens run for it."""

    id: int
    rewards: tuple[float, ...]
    tokens_run: int


@dataclass(frozen=True, slots=True)
class PromptResult:
    """The result of a PromptJob."""

    id: int
    logprobs: PromptLogprobs


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What a worker holds: KV slots of open sessions and open sessions per model, and running jobs."""

    id: int
    slots_used: Mapping[str, int]
    sessions: Mapping[str, int]
    jobs: int


@dataclass(frozen=True, slots=True)
class JobFailed:
    """The job has failed. `field` names the request's field that is the reason; None if the request is not to blame.

    `message` reaches the client. So of an unexpected error it holds the type alone: the text may name files.
    """

    id: int
    message: str
    field: str | None = None


JobOutcome: TypeAlias = SampleUpdate | ScoreResult | RewardResult | PromptResult | WorkerState | JobFailed
WorkerReport: TypeAlias = Ready | LoadFailed | Pong | JobOutcome
