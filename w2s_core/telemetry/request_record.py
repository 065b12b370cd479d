"""What is known of a request when it is over. Imports little: the HTTP side makes it, the engine writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from w2s_core.telemetry.metrics import RequestOutcome
from w2s_core.types import Method, Prompt


@dataclass(slots=True)
class RequestRecord:
    """What a caller of the engine may have told to it about its request; the engine writes it.

    Times in seconds since the request came; None: that never happened. `queue_s` is the time until its first prompt
    began. Tokens are the large model's, `sampled_tokens` with those that were pruned. `outcome`: see `metrics`.
    The maker may set `caller`, headers that name the caller's own trace, and `keeps_texts`: only then does it hold
    prompts and whole answers.
    """

    served_model: str | None = None
    method: Method = "none"
    rows: int = 0
    chunks: int = 0
    prompt_tokens: int = 0
    returned_tokens: int = 0
    sampled_tokens: int = 0
    scored_tokens: int = 0
    queue_s: float | None = None
    first_token_s: float | None = None
    total_s: float = 0.0
    outcome: RequestOutcome | None = None
    trace_id: str | None = None
    caller: Mapping[str, str] = field(default_factory=dict)
    keeps_texts: bool = False
    prompts: Sequence[Prompt] = ()
    answers: list[str] = field(default_factory=list)
