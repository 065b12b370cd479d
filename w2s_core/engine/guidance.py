"""Resolves and checks the guidance of a request. The HTTP layer merges its keys into the served model's default before
(`server.api.schemas.guidance.merge_guidance`)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from w2s_core.errors import RequestError
from w2s_core.types import GenerationRequest, Guidance


def resolve_guidance(request: GenerationRequest, default: Guidance | None, pairs: Collection[str]) -> Guidance | None:
    """The guidance that a request is searched with, or None for plain sampling.

    The request's own guidance replaces the served model's `default` as a whole. `best_of` above 1 (OpenAI) becomes
    method "best_of_n" with that many successors. `pairs` are the names of the configured pairs. Raises RequestError,
    naming the field.
    """
    guidance = request.guidance or default
    if guidance is not None and guidance.method == "none":
        guidance = None
    if guidance is not None and guidance.method == "cbs" and not guidance.pairs:
        raise RequestError(
            'guidance.method cbs needs at least one pair. Name one, for example {"pairs": {"NAME": 1.0}}.',
            "guidance.pairs",
        )
    if request.best_of is not None and request.best_of < request.n:
        raise RequestError(f"best_of ({request.best_of}) must be at least n ({request.n}).", "best_of")
    if request.best_of is not None and request.best_of > 1:
        guidance = replace(guidance or Guidance(), method="best_of_n", successors=request.best_of)
    if guidance is not None:
        _check_guidance(guidance, request, pairs)
    return guidance


def _check_guidance(guidance: Guidance, request: GenerationRequest, pairs: Collection[str]) -> None:
    for pair in guidance.pairs:
        if pair not in pairs:
            names = ", ".join(sorted(pairs)) or "none"
            raise RequestError(f"There is no pair `{pair}`. Configured pairs: {names}.", f"guidance.pairs.{pair}")
    for key, problem in guidance.problems():
        raise RequestError(f"`guidance.{key}`: {problem}.", f"guidance.{key}")
    bound = "beam_width" if guidance.method == "cbs" else "successors"
    if request.n > getattr(guidance, bound):
        raise RequestError(f"n ({request.n}) exceeds guidance.{bound} ({getattr(guidance, bound)}).", "n")
