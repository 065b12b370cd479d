"""Response schemas that the endpoints share.

They are serialized with `exclude_unset`: a field that was not set is left out, one that was set to None is null.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from w2s_core.engine.events import GuidanceReport, RequestFinished, RoundFinished
from w2s_core.search.tree import Fate, RoundCandidate
from w2s_core.types import Candidate, Hypothesis, Method

Node = TypeVar("Node", bound="ResponseModel")


class ResponseModel(BaseModel):
    """Base of all response schemas."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PromptTokensDetails(ResponseModel):
    """`cached_tokens` are those of the prompts that the large model did not have to compute again."""

    cached_tokens: int


class CompletionTokensDetails(ResponseModel):
    """`reasoning_tokens` are those of the answers that belong to thoughts."""

    reasoning_tokens: int


class Usage(ResponseModel):
    """The tokens of the prompts and of the returned answers. The response's `guidance` counts what a search sampled."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int) -> Usage:
        """The usage with its total."""
        total = prompt_tokens + completion_tokens
        return cls(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, total_tokens=total)


class ChoiceGuidance(ResponseModel):
    """The score of a guided choice in nats, and the log-ratio of each pair before weighting."""

    score: float
    scores: dict[str, float]

    @classmethod
    def of(cls, hypothesis: Hypothesis) -> ChoiceGuidance:
        """The scores of a finished hypothesis."""
        return cls(score=hypothesis.score, scores=dict(hypothesis.scores))


class CandidateNode(ResponseModel):
    """A candidate in the search tree. `parent` is the `id` of a candidate of the previous chunk, or null.

    The beam is ordered by `rank`, which is the score unless the request turns on another selection.
    """

    id: int
    parent: int | None
    text: str
    score: float
    rank: float
    scores: dict[str, float]
    finish_reason: str | None
    kept: bool


class RoundCandidateNode(ResponseModel):
    """A candidate in a round that was sent as it ended. `parent` is the `id` of a candidate of the previous round.

    Its text is the first `offset` characters (Unicode code points) of its parent's whole text, and then `text`; a
    candidate without a parent continues the prompt. `fate`: `kept` and `finished` are in the beam, and the finished go
    on no more; `merged` is equal to another candidate of the round; the rest is `pruned`.
    """

    id: int
    parent: int | None
    offset: int
    text: str
    score: float
    rank: float
    scores: dict[str, float]
    finish_reason: str | None
    fate: Fate


class SearchRound(ResponseModel):
    """A round of a search, for `guidance.trace` `stream`: the candidates of chunk number `chunk`, from 1.

    `prompt` is the prompt's number and `choices` are the indices of the choices that the search answers, from 0. The
    first `committed` characters of every candidate in the beam are final. `sampled_tokens` and `scored_tokens` are
    those of the prompt so far, and `seconds` the time since the request's arrival. `truncated` is there, and true, in a
    round without any of these that says that the rounds have grown too large; none follows.
    """

    prompt: int
    choices: list[int]
    chunk: int
    candidates: list[RoundCandidateNode] | None = None
    committed: int | None = None
    sampled_tokens: int | None = None
    scored_tokens: int | None = None
    seconds: float | None = None
    truncated: bool | None = None


class RoundGuidance(ResponseModel):
    """The `guidance` of a chunk that holds a round of the search, and no choices."""

    round: SearchRound

    @classmethod
    def of(cls, event: RoundFinished) -> RoundGuidance:
        """The round of the engine's event."""
        number: dict[str, Any] = {"prompt": event.prompt, "choices": list(event.choices), "chunk": event.chunk}
        if event.truncated:
            return cls(round=SearchRound(**number, truncated=True))
        candidates = [_node(RoundCandidateNode, candidate) for candidate in event.candidates]
        cost = {name: getattr(event, name) for name in ("committed", "sampled_tokens", "scored_tokens", "seconds")}
        return cls(round=SearchRound(**number, candidates=candidates, **cost))


class UpstreamUsage(ResponseModel):
    """The successful calls to remote models, large model and pairs together. Tokens are as the providers count them."""

    calls: int
    prompt_tokens: int
    completion_tokens: int


class GuidanceSummary(ResponseModel):
    """The parameters and the cost of a guided search.

    `sampled_tokens` are the large model's, including pruned ones; `scored_tokens` are the pairs'. `tree` contains, per
    prompt and per chunk, all candidates. `tree_truncated` is there, and true, if later chunks of a prompt are left out.
    """

    method: Method
    beam_width: int
    successors: int
    chunk_length: int
    chunks: int
    sampled_tokens: int
    scored_tokens: int
    upstream: UpstreamUsage | None = None
    tree: list[list[list[CandidateNode]]] | None = None
    tree_truncated: bool | None = None

    @classmethod
    def of(cls, report: GuidanceReport) -> GuidanceSummary:
        """The summary of the engine's report."""
        optional = ("tree", "tree_truncated", "upstream")
        fields = {name: getattr(report, name) for name in cls.model_fields if name not in optional}
        if report.upstream is not None:
            fields["upstream"] = UpstreamUsage(**asdict(report.upstream))
        if report.tree is not None:
            fields["tree"] = [
                [[_node(CandidateNode, candidate) for candidate in chunk] for chunk in prompt] for prompt in report.tree
            ]
        if report.tree_truncated:
            fields["tree_truncated"] = True
        return cls(**fields)


def _node(schema: type[Node], candidate: Candidate | RoundCandidate) -> Node:
    fields = {name: getattr(candidate, name) for name in schema.model_fields}
    return schema(**fields | {"scores": dict(candidate.scores)})


class BaseChoice(ResponseModel):
    """Base of a choice in a response or chunk."""

    index: int
    guidance: ChoiceGuidance | None = None


class ResponseBody(ResponseModel):
    """Base of a response or a chunk of one. `id`, `created` and `model` are the same in all chunks."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None = None
    usage: Usage | None = None
    guidance: GuidanceSummary | RoundGuidance | None = None


class ErrorDetail(ResponseModel):
    """An error, in OpenAI's format. `param` is the path of the request's field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(ResponseModel):
    """The body of every error response."""

    error: ErrorDetail


def usage_of(finished: RequestFinished) -> Usage:
    """The usage of a finished request."""
    usage = Usage.of(finished.prompt_tokens, finished.completion_tokens)
    details: dict[str, Any] = {"prompt_tokens_details": PromptTokensDetails(cached_tokens=finished.cached_tokens)}
    if finished.reasoning_tokens is not None:
        details["completion_tokens_details"] = CompletionTokensDetails(reasoning_tokens=finished.reasoning_tokens)
    return usage.model_copy(update=details)
