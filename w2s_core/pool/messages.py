"""What crosses the border to a worker process: small frozen dataclasses with token ids, never tensors.

A job carries everything that it needs (prompt, answers so far, keys), so that any worker can do it. A *session* is one
prompt's view of one model: its jobs share KV, and every job names the answers that still matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from w2s_core.types import Alternatives, Grammar, PromptLogprobs, StepKind, Tokens


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to load: what transformers takes (folder or hub id)."""

    source: str
    trust_remote_code: bool


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One worker process: device, models by name, CPU threads (0 = all cores), KV bytes per model (0 = auto)."""

    device: str
    dtype: str
    threads: int
    kv_cache_bytes: int
    models: Mapping[str, ModelSpec]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a worker learned by loading: tokens of context, logits of a token, ids that end a text, KV slots (tokens) at
    its disposal."""

    context_length: int
    vocabulary: int
    eos: frozenset[int]
    kv_slots: int
    kv_bytes_per_token: int
    dtype: str

    @property
    def longest(self) -> int:
        """Tokens of a prompt and one answer together that the model can read and the cache can hold."""
        return min(self.context_length, self.kv_slots)


@dataclass(frozen=True, slots=True)
class Row:
    """An answer to continue by up to `length` tokens: its tokens so far and the key of its noise."""

    tokens: Tokens
    key: int
    length: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn: `SamplingParams`, where each is explained, in the model's own token ids. At each step
    the `alternatives` likeliest tokens are told."""

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

    @property
    def forbids(self) -> bool:
        """Whether there are tokens that may not be drawn, whatever the answer."""
        return bool(self.bad_words) or self.allowed_token_ids is not None or self.min_tokens > 0

    @property
    def adjusts(self) -> bool:
        """Whether logits change before a token is drawn from them."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty)
        masks = self.forbids or self.min_p > 0 or self.grammar is not None
        return masks or bool(self.logit_bias) or penalties != (0, 0, 1)


@dataclass(frozen=True, slots=True)
class SampleJob:
    """Draw more tokens for each row. News of a row is sent every `report_every` tokens and when it is done."""

    id: int
    session: int
    model: str
    prompt: Tokens
    rows: tuple[Row, ...]
    sampling: Sampling
    report_every: int


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """Sum the log-probabilities of each whole answer behind the prompt, reusing what the session knows."""

    id: int
    session: int
    model: str
    prompt: Tokens
    answers: tuple[Tokens, ...]


@dataclass(frozen=True, slots=True)
class PromptJob:
    """The prompt's own log-probabilities, with the `top` likeliest tokens at each place. Its session's only job."""

    id: int
    session: int
    model: str
    prompt: Tokens
    top: int


@dataclass(frozen=True, slots=True)
class StopRows:
    """These rows of a SampleJob need no more tokens."""

    id: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CancelJob:
    """Nobody waits for this job any more."""

    id: int


@dataclass(frozen=True, slots=True)
class CloseSession:
    """Free what this session holds in every model."""

    session: int


@dataclass(frozen=True, slots=True)
class InspectJob:
    """Ask for a WorkerState; checks the integrity of every KV cache on the way."""

    id: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Answered with a Pong between two turns: the worker is alive, however long its job is."""


@dataclass(frozen=True, slots=True)
class Pong:
    """A sign of life, and how the worker is: which part of its KV sessions hold (in the fullest model), and the kinds
    and seconds of its steps since the last Pong."""

    kv_usage: float = 0.0
    steps: tuple[tuple[StepKind, float], ...] = ()


Job: TypeAlias = SampleJob | ScoreJob | PromptJob | InspectJob
WorkerCommand: TypeAlias = Job | StopRows | CancelJob | CloseSession | Ping


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker has loaded its models."""

    models: Mapping[str, ModelInfo]


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The worker cannot load its models and ends."""

    message: str


@dataclass(frozen=True, slots=True)
class RowUpdate:
    """New tokens of one row since the last news. `ending` is the token that ended the answer, None while none did;
    `logprobs` (nats, before temperature) are the tokens' and, behind them, the ending one's;
    `alternatives` stand beside them if the job asked for any."""

    row: int
    tokens: Tokens
    logprobs: tuple[float, ...]
    ending: int | None
    done: bool
    alternatives: tuple[Alternatives, ...] = ()

    @property
    def ended(self) -> bool:
        return self.ending is not None


@dataclass(frozen=True, slots=True)
class SampleUpdate:
    """`finished`: this was the job's last news."""

    id: int
    rows: tuple[RowUpdate, ...]
    finished: bool


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """log p(answer | prompt) of each answer in nats, and how many tokens had to be run for it."""

    id: int
    logprobs: tuple[float, ...]
    tokens_run: int


@dataclass(frozen=True, slots=True)
class PromptResult:
    """What a PromptJob asked for."""

    id: int
    found: PromptLogprobs


@dataclass(frozen=True, slots=True)
class WorkerState:
    """`slots_used` and `sessions` per model, and live jobs."""

    id: int
    slots_used: Mapping[str, int]
    sessions: Mapping[str, int]
    jobs: int


@dataclass(frozen=True, slots=True)
class JobFailed:
    """The job is over. `field` of the request is named where that cannot be honoured."""

    id: int
    message: str
    field: str | None = None


JobOutcome: TypeAlias = SampleUpdate | ScoreResult | PromptResult | WorkerState | JobFailed
WorkerReport: TypeAlias = Ready | LoadFailed | Pong | JobOutcome
