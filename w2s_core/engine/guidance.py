"""Resolves and checks the guidance of a request. The HTTP layer merges its keys into the served model's default before
(`server.api.schemas.guidance.merge_guidance`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TypeGuard

from w2s_core.errors import RequestError
from w2s_core.types import GenerationRequest, Guidance


def resolve_guidance(
    request: GenerationRequest,
    default: Guidance | None,
    scorers: Collection[str],
    scorer_keys: Mapping[str, str] | None = None,
) -> Guidance | None:
    """The guidance that a request is searched with, or None for plain sampling.

    The request's own guidance replaces the served model's `default` as a whole. `best_of` above 1 (OpenAI) becomes
    method "best_of_n" with that many successors, which are drawn by EFT if that was the method. `scorers` are the names
    of all that may score, and `scorer_keys` their keys in `Guidance`: `pairs`, where it does not say otherwise. Raises
    RequestError, naming the field.
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
        _check_names(guidance, scorers, scorer_keys or {})
        _check_guidance(guidance, request)
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
    if steering and not guidance.pairs:
        asked = f"{steering} eft needs at least one pair"
    elif guidance.method == "cbs" and not guidance.weights:
        asked = "guidance.method cbs needs at least one pair, or another scorer"
    else:
        return
    raise RequestError(f'{asked}. Name one, for example {{"pairs": {{"NAME": 1.0}}}}.', "guidance.pairs")


def _check_names(guidance: Guidance, scorers: Collection[str], scorer_keys: Mapping[str, str]) -> None:
    for key, name, _ in guidance.named_weights():
        configured = {scorer for scorer in scorers if scorer_keys.get(scorer, "pairs") == key}
        if name not in configured:
            names = ", ".join(sorted(configured)) or "none"
            kind = key.replace("_", " ")
            raise RequestError(
                f"There is no {kind.removesuffix('s')} `{name}`. Configured {kind}: {names}.", f"guidance.{key}.{name}"
            )


def _check_guidance(guidance: Guidance, request: GenerationRequest) -> None:
    only_scored = request.sampling.max_tokens == 0
    for key, problem in [*guidance.problems(), *([] if only_scored else guidance.unused())]:
        raise RequestError(f"`guidance.{key}`: {problem}.", f"guidance.{key}")
    if not searches(guidance):
        return
    bound = "beam_width" if guidance.method == "cbs" else "successors"
    if request.n > getattr(guidance, bound):
        raise RequestError(f"n ({request.n}) exceeds guidance.{bound} ({getattr(guidance, bound)}).", "n")
