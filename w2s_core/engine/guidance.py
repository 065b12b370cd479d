"""Resolves and checks the guidance of a request. The HTTP layer merges its keys into the served model's default before
(`server.api.schemas.guidance.merge_guidance`)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TypeGuard

from w2s_core.errors import RequestError
from w2s_core.types import GenerationRequest, Guidance


def resolve_guidance(request: GenerationRequest, default: Guidance | None, pairs: Collection[str]) -> Guidance | None:
    """The guidance that a request is searched with, or None for plain sampling.

    The request's own guidance replaces the served model's `default` as a whole. `best_of` above 1 (OpenAI) becomes
    method "best_of_n" with that many successors, which are drawn by EFT if that was the method. `pairs` are the names
    of the configured pairs. Raises RequestError, naming the field.
    """
    guidance = request.guidance or default
    if guidance is not None and guidance.method == "none":
        guidance = None
    if guidance is not None:
        _check_has_pairs(guidance)
    if request.best_of is not None and request.best_of < request.n:
        raise RequestError(f"best_of ({request.best_of}) must be at least n ({request.n}).", "best_of")
    if request.best_of is not None and request.best_of > 1:
        guidance = guidance or Guidance()
        proposal = "eft" if guidance.method == "eft" else guidance.proposal
        guidance = replace(guidance, method="best_of_n", successors=request.best_of, proposal=proposal)
    if guidance is not None:
        _check_guidance(guidance, request, pairs)
    return guidance


def searches(guidance: Guidance | None) -> TypeGuard[Guidance]:
    """Whether candidates are scored and selected, rather than plain choices drawn, with or without EFT."""
    return guidance is not None and guidance.method != "eft"


def steering_field(guidance: Guidance | None) -> str | None:
    """The field that asks for pairs to change the draws of every token (EFT); None if they do not."""
    if guidance is None:
        return None
    if guidance.method == "eft":
        return "guidance.method"
    return "guidance.proposal" if guidance.proposal == "eft" else None


def _check_has_pairs(guidance: Guidance) -> None:
    steering = steering_field(guidance)
    if not guidance.pairs and (steering or guidance.method == "cbs"):
        asked = f"{steering} eft" if steering else "guidance.method cbs"
        raise RequestError(
            f'{asked} needs at least one pair. Name one, for example {{"pairs": {{"NAME": 1.0}}}}.', "guidance.pairs"
        )


def _check_guidance(guidance: Guidance, request: GenerationRequest, pairs: Collection[str]) -> None:
    for pair in guidance.pairs:
        if pair not in pairs:
            names = ", ".join(sorted(pairs)) or "none"
            raise RequestError(f"There is no pair `{pair}`. Configured pairs: {names}.", f"guidance.pairs.{pair}")
    for key, problem in guidance.problems():
        raise RequestError(f"`guidance.{key}`: {problem}.", f"guidance.{key}")
    if not searches(guidance):
        return
    bound = "beam_width" if guidance.method == "cbs" else "successors"
    if request.n > getattr(guidance, bound):
        raise RequestError(f"n ({request.n}) exceeds guidance.{bound} ({getattr(guidance, bound)}).", "n")
