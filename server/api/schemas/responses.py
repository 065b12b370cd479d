"""What all answers share. Sent with `exclude_unset`: a field that is not set is left out, one set to None is null."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, ConfigDict

from w2s_core.engine.events import GuidanceReport, RequestFinished
from w2s_core.types import Hypothesis, Method


class Sent(BaseModel):
    """Something that we send."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Usage(Sent):
    """Tokens of the prompts, and tokens returned; what a search cost beyond them is in `guidance`."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int) -> Usage:
        total = prompt_tokens + completion_tokens
        return cls(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, total_tokens=total)


class ChoiceGuidance(Sent):
    """Of a guided choice: its score in nats, and each pair's log-ratio before weighting."""

    score: float
    scores: dict[str, float]

    @classmethod
    def of(cls, hypothesis: Hypothesis) -> ChoiceGuidance:
        return cls(score=hypothesis.score, scores=dict(hypothesis.scores))


class CandidateNode(Sent):
    """A node of the search tree; `parent` is the `id` of a candidate of the chunk before."""

    id: int
    parent: int | None
    text: str
    score: float
    scores: dict[str, float]
    finish_reason: str | None
    kept: bool


class UpstreamUsage(Sent):
    """What providers were asked for, large model and pairs together; tokens as they count them."""

    calls: int
    prompt_tokens: int
    completion_tokens: int


class GuidanceSummary(Sent):
    """Of a guided answer: what was done and what it cost. `tree`: per prompt, per chunk, every candidate."""

    method: Method
    beam_width: int
    successors: int
    chunk_length: int
    chunks: int
    sampled_tokens: int
    scored_tokens: int
    upstream: UpstreamUsage | None = None
    tree: list[list[list[CandidateNode]]] | None = None

    @classmethod
    def of(cls, report: GuidanceReport) -> GuidanceSummary:
        fields = {name: getattr(report, name) for name in cls.model_fields if name not in ("tree", "upstream")}
        if report.upstream is not None:
            fields["upstream"] = UpstreamUsage(**asdict(report.upstream))
        if report.tree is not None:
            fields["tree"] = [[[_node(node) for node in chunk] for chunk in prompt] for prompt in report.tree]
        return cls(**fields)


def _node(candidate: Any) -> CandidateNode:
    fields = {name: getattr(candidate, name) for name in CandidateNode.model_fields}
    return CandidateNode(**fields | {"scores": dict(candidate.scores)})


class AnswerChoice(Sent):
    index: int
    guidance: ChoiceGuidance | None = None


class Answer(Sent):
    """An answer or a chunk of one: `id`, `created` and `model` are the same in all chunks."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None = None
    usage: Usage | None = None
    guidance: GuidanceSummary | None = None


class ErrorDetail(Sent):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(Sent):
    error: ErrorDetail


class Model(Sent):
    """A served model; `max_model_len` (vLLM's) is its context in tokens, prompt and answer together;
    null while the provider behind it has not been reached."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "w2s"
    max_model_len: int | None


class ModelList(Sent):
    object: str = "list"
    data: list[Model]


def usage_of(finished: RequestFinished) -> Usage:
    return Usage.of(finished.prompt_tokens, finished.completion_tokens)
