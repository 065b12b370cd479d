"""The record of one request: its outcome, times and token counts, for the request log and the trace.

It imports little, because the server creates it and the engine fills it in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from w2s_core.telemetry.metrics import RequestOutcome
from w2s_core.types import Method, Prompt


@dataclass(slots=True)
class RequestRecord:
    """What happened to one request. A caller of `Engine.generate` may pass one in; the engine fills it in.

    Times are in seconds since the request arrived, None for what never happened. `queue_s` is the time until its first
    prompt was admitted. Tokens are those of the large model, except `scored_tokens`, which are the pairs';
    `sampled_tokens` includes pruned ones. `outcome`: see `metrics.RequestOutcome`.

    The caller may set `caller`, the headers that carry its own trace context, and `keeps_texts`, without which the
    record holds neither prompts nor answers.
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
