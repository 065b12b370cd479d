"""What a request asks for, checked against what is served, before anything runs: one Plan per prompt."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

from w2s_core.errors import ContextLengthError, RequestError, UnavailableError, UnknownModelError
from w2s_core.interfaces import LargeModel, Scorer
from w2s_core.scorers.combined import CombinedScorer
from w2s_core.scorers.likelihood import LikelihoodScorer
from w2s_core.types import (
    ChatPrompt,
    GenerationRequest,
    Guidance,
    Method,
    Prompt,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
    Tokens,
)

_SEED_BITS = 63


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A name of the API: the large model behind it and the guidance that it brings, if any.

    `context_length` is None while the large model's provider has not been reached.
    """

    name: str
    context_length: int | None
    guidance: Guidance | None


@dataclass(frozen=True, slots=True)
class Plan:
    """One prompt's work. `guidance` None = `n` plain samples; `copies` of the empty answer start the search.

    `budget` is the number of tokens of π_base that an answer may have; `ranked` whether a pair does the ranking.
    `scored`: nothing is sampled, this text is scored behind `pair_prompt`.
    """

    large: LargeModel
    scorer: Scorer | None
    prompt: Tokens
    pair_prompt: Prompt
    sampling: SamplingParams
    guidance: Guidance | None
    seed: int
    budget: int
    n: int
    keep: int
    copies: int
    ranked: bool
    with_tokens: bool
    with_prompt: bool
    prompt_logprobs: int | None
    scored: str | None

    @property
    def rows(self) -> int:
        """Sequences that the large model samples at once; one where it samples none."""
        if self.scored is not None:
            return 1
        return self.n if self.guidance is None else self.copies * self.guidance.successors


@dataclass(frozen=True, slots=True)
class Planner:
    """The names that can be asked for. `served` maps an API name to its large model's name and default guidance."""

    large_models: Mapping[str, LargeModel]
    scorers: Mapping[str, Scorer]
    served: Mapping[str, tuple[str, Guidance | None]]
    max_rows_per_request: int
    max_sampled_tokens: int | None = None

    @property
    def served_models(self) -> dict[str, ServedModel]:
        """By API name."""
        return {
            name: ServedModel(name, _context_length(self.large_models[large]), guidance)
            for name, (large, guidance) in self.served.items()
        }

    def large_model(self, name: str) -> LargeModel:
        """Behind an API name. Raises UnknownModelError."""
        if name not in self.served:
            raise UnknownModelError(name)
        return self.large_models[self.served[name][0]]

    async def with_checked_grammar(self, request: GenerationRequest) -> GenerationRequest:
        """The same, its grammar as `plan` takes it. Raises RequestError, naming the field at fault."""
        sampling = request.sampling
        if sampling.grammar is None:
            return request
        if sampling.ignore_eos:
            raise RequestError(f"Not with {sampling.grammar.field}: that ends an answer by an EOS.", "ignore_eos")
        grammar = await self.large_model(request.model).check_grammar(sampling.grammar)
        return replace(request, sampling=replace(sampling, grammar=grammar))

    def plan(self, request: GenerationRequest) -> list[Plan]:
        """One plan per prompt. Raises RequestError, naming the field at fault."""
        large, default = self.large_model(request.model), self.served[request.model][1]
        guidance = self._guidance(request, default)
        grammar = request.sampling.grammar
        if grammar and guidance and guidance.method == "cbs" and not large.supports_chunked_grammar:
            raise RequestError(
                "This model's provider follows it in whole answers only: use guidance of method best_of_n, or none.",
                grammar.field,
            )
        large.check(request.sampling)
        return [self._plan(request, prompt, large, guidance) for prompt in request.prompts]

    def labels(self, request: GenerationRequest) -> tuple[str | None, Method]:
        """The served model and the method that a request asks for, whether or not it can be served."""
        if request.model not in self.served:
            return None, "none"
        guidance = request.guidance or self.served[request.model][1]
        return request.model, guidance.method if guidance else "none"

    def _guidance(self, request: GenerationRequest, default: Guidance | None) -> Guidance | None:
        guidance = request.guidance or default
        if guidance is not None and guidance.method == "none":
            guidance = None
        if request.best_of is not None and request.best_of < request.n:
            raise RequestError(f"best_of ({request.best_of}) must be at least n ({request.n}).", "best_of")
        if request.best_of is not None and request.best_of > 1:
            ranked = replace(
                guidance or Guidance(),
                method="best_of_n",
                beam_width=request.n,
                successors=request.best_of,
                chunk_length=0,
            )
            return self._check(ranked, request)
        return guidance and self._check(guidance, request)

    def _check(self, guidance: Guidance, request: GenerationRequest) -> Guidance:
        for pair in guidance.pairs:
            if pair not in self.scorers:
                known = ", ".join(sorted(self.scorers)) or "none"
                raise RequestError(f"There is no pair `{pair}`; the pairs are: {known}.", f"guidance.pairs.{pair}")
        if guidance.method == "cbs" and not guidance.pairs:
            raise RequestError("Guidance by chunk-level beam search needs at least one pair.", "guidance.pairs")
        bound = "beam_width" if guidance.method == "cbs" else "successors"
        if request.n > getattr(guidance, bound):
            raise RequestError(f"n ({request.n}) exceeds guidance.{bound} ({getattr(guidance, bound)}).", "n")
        return guidance

    def _plan(self, request: GenerationRequest, prompt: Prompt, large: LargeModel, guidance: Guidance | None) -> Plan:
        tokens = large.encode(prompt)
        if request.needs_token_ids and not large.exposes_token_ids:
            raise RequestError("Only its provider knows this model's token ids.", "return_token_ids")
        used = _truncated(request, tokens, large)
        if used < len(tokens):
            tokens = tokens[-used:]
            # A conversation is the pair's own to render: what the large model does not see of it, the pair may.
            prompt = prompt if isinstance(prompt, ChatPrompt) else TokenPrompt(tokens)
        pair_prompt, scored = _given(request, large.decode_prompt(prompt), guidance)
        budget = self._budget(request, prompt, tokens, large)
        scorer: Scorer | None = None
        if guidance is not None:
            scorer = CombinedScorer(self.scorers, guidance.pairs) if guidance.pairs else LikelihoodScorer()
            budget = self._scorable(request, scorer.check(pair_prompt, budget), budget)
        budget = self._affordable(request, guidance, budget)
        if request.sampling.min_tokens > budget:
            raise RequestError(
                f"min_tokens ({request.sampling.min_tokens}) exceeds the {budget} tokens that the answer may have.",
                "min_tokens",
            )
        cbs = guidance is not None and guidance.method == "cbs"
        if guidance is not None and not cbs:  # a chunk as long as the answer
            guidance = replace(guidance, beam_width=request.n, chunk_length=budget)
        seed = request.sampling.seed
        plan = Plan(
            large=large,
            scorer=scorer,
            prompt=tokens,
            pair_prompt=pair_prompt,
            sampling=request.sampling,
            guidance=guidance,
            seed=secrets.randbits(_SEED_BITS) if seed is None else seed,
            budget=budget,
            n=request.n,
            keep=guidance.beam_width if guidance else request.n,
            copies=guidance.beam_width if guidance and cbs else 1,
            ranked=guidance is not None and bool(guidance.pairs),
            with_tokens=request.with_tokens,
            with_prompt=request.with_prompt,
            prompt_logprobs=request.prompt_logprobs,
            scored=scored,
        )
        self._check_rows(plan, request)
        return plan

    def _budget(self, request: GenerationRequest, prompt: Prompt, tokens: Tokens, large: LargeModel) -> int:
        room = large.context_length - large.count_tokens(tokens)
        wanted = request.sampling.max_tokens
        if room < (1 if wanted is None else wanted):
            field = "messages" if isinstance(prompt, ChatPrompt) else "prompt"
            raise ContextLengthError(
                large.context_length, large.count_tokens(tokens), 1 if wanted is None else wanted, field
            )
        return room if wanted is None else wanted

    def _affordable(self, request: GenerationRequest, guidance: Guidance | None, budget: int) -> int:
        """Tokens of answer so short that the request cannot draw more than it may, whatever is pruned."""
        asked = guidance.max_sampled_tokens if guidance else None
        bounds = [bound for bound in (asked, self.max_sampled_tokens) if bound is not None]
        if not bounds or not budget:
            return budget
        drawn_at_once = request.n if guidance is None else guidance.successors
        if guidance is not None and guidance.method == "cbs":
            drawn_at_once = guidance.rows
        sequences = drawn_at_once * len(request.prompts)
        affordable = min(bounds) // sequences
        if affordable < 1:
            raise RequestError(
                f"This request samples {sequences} sequences and may draw {min(bounds)} tokens in all: not one token "
                "of answer.",
                "n" if guidance is None else "guidance.max_sampled_tokens",
            )
        return min(budget, affordable)

    @staticmethod
    def _scorable(request: GenerationRequest, scorable: int, budget: int) -> int:
        if request.sampling.max_tokens is not None and scorable < budget:
            raise RequestError(f"The pair's context has room for {scorable} tokens of answer.", "max_tokens")
        return min(scorable, budget)

    def _check_rows(self, plan: Plan, request: GenerationRequest) -> None:
        if plan.rows > self.max_rows_per_request:
            if plan.guidance is None:
                field = "n"
            elif request.best_of is not None and request.best_of > 1:
                field = "best_of"
            else:
                field = "guidance"
            raise RequestError(
                f"This request samples {plan.rows} sequences at once; at most {self.max_rows_per_request} are allowed.",
                field,
            )


def _context_length(large: LargeModel) -> int | None:
    try:
        return large.context_length
    except UnavailableError:
        return None


def _given(request: GenerationRequest, prompt: Prompt, guidance: Guidance | None) -> tuple[Prompt, str | None]:
    """What the pairs see as x, and the text that they score as y where none is to be sampled."""
    only_scored = request.sampling.max_tokens == 0 and guidance is not None and bool(guidance.pairs)
    behind = request.score_prefix
    if not only_scored or not isinstance(prompt, TextPrompt):
        if behind is not None:
            raise RequestError("Only for texts that pairs score: with echo, and max_tokens 0.", "guidance.prompt")
        return prompt, None
    if not prompt.text.startswith(behind or ""):
        raise RequestError("Every prompt must begin with it.", "guidance.prompt")
    x = behind or ""
    return replace(prompt, text=x), prompt.text[len(x) :]


def _truncated(request: GenerationRequest, tokens: Tokens, large: LargeModel) -> int:
    """How many of the prompt's tokens, its last ones, are used."""
    most = request.truncate_prompt_tokens
    if most is None:
        return len(tokens)
    if large.count_tokens(tokens) != len(tokens):
        raise RequestError("Only its provider can count this model's tokens.", "truncate_prompt_tokens")
    if most > large.context_length:
        raise RequestError(
            f"truncate_prompt_tokens ({most}) exceeds the model's context of {large.context_length} tokens.",
            "truncate_prompt_tokens",
        )
    if most < 0:
        most = max(1, large.context_length - (request.sampling.max_tokens or 1))
    return min(most, len(tokens))
