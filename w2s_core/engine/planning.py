"""Request planning: validates a request against the served models and makes one `Plan` per prompt."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from w2s_core.config import ServedModelConfig
from w2s_core.engine.guidance import resolve_guidance, searches, steering_field
from w2s_core.engine.request_prompts import decode_request_prompt, encode_request_prompt, split_scored_text
from w2s_core.engine.thoughts import ThoughtPlan, plan_thoughts
from w2s_core.engine.token_budget import (
    cap_to_sampled_tokens,
    check_min_tokens,
    context_budget,
)
from w2s_core.errors import RequestError, UnavailableError, UnknownModelError
from w2s_core.interfaces import LargeModel, ProxyTuner, Scorer
from w2s_core.scorers.combined import CombinedScorer
from w2s_core.scorers.likelihood import LikelihoodScorer
from w2s_core.search.selection import successors_by_round
from w2s_core.search.tree import MAX_TREE_CHARACTERS
from w2s_core.types import (
    GenerationRequest,
    Guidance,
    Method,
    Prompt,
    SamplingParams,
    Tokens,
)

_SEED_BITS = 63


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model name of the API with its large model's context length, and the guidance and sampling of its requests.

    `context_length` is in tokens; None until the large model's provider has been reached. `guidance` and `sampling`
    hold as far as a request does not say otherwise.
    """

    name: str
    context_length: int | None
    guidance: Guidance | None
    sampling: SamplingParams


class Mode(Enum):
    """What a plan does: sample plain choices, search for guided ones, or score a given text."""

    SAMPLE = auto()
    SEARCH = auto()
    SCORE = auto()


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is needed to answer one prompt with `n` choices.

    `prompt` is for the large model, `pair_prompt` for the pairs. `guidance` and `scorer` are None for plain sampling,
    and `scorer` for EFT, where `large` is the steered model.
    A search starts from `initial_hypotheses` copies of the empty answer and keeps `beam_width` hypotheses after each
    chunk. `budget` is the number of large-model tokens that an answer may have. `pair_scored`: scores come from a pair,
    not from the large model's likelihood. `text_to_score` is None unless nothing is sampled and this text is scored.
    `tree_characters` is the room for the prompt's search tree, or for its rounds where these are streamed
    (`streams_rounds`), 0 if no trace is asked for. `thoughts`: None unless the
    answers of a reasoning model may begin with thoughts.
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
    beam_width: int
    initial_hypotheses: int
    pair_scored: bool
    with_tokens: bool
    with_prompt: bool
    prompt_logprobs: int | None
    text_to_score: str | None
    tree_characters: int
    thoughts: ThoughtPlan | None = None

    @property
    def mode(self) -> Mode:
        if self.text_to_score is not None:
            return Mode.SCORE
        return Mode.SEARCH if searches(self.guidance) else Mode.SAMPLE

    @property
    def streams_rounds(self) -> bool:
        """Whether the rounds of the search are sent as they end, and no tree at the end."""
        return self.guidance is not None and self.guidance.trace == "stream"

    @property
    def rows(self) -> int:
        """Rows to reserve: sequences that the large model samples at once, or 1 if it samples none."""
        if self.mode is Mode.SCORE:
            return 1
        if not searches(self.guidance):
            return self.n
        schedule = successors_by_round(self.guidance, self.budget)
        return self.initial_hypotheses * (max(schedule) if schedule else self.guidance.successors)


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans requests to the served models.

    `served` are the served models by API name. `tuners` steer the draws of large models, by the names of these; one
    that has no tuner cannot be steered. `max_sampled_tokens` bounds what the large model samples for one
    request, None = no bound. `scorer_keys` are the keys of `Guidance` under which each of `scorers` is named: those of
    pairs, which are the default, of reward models and of scorers in Python.
    """

    large_models: Mapping[str, LargeModel]
    scorers: Mapping[str, Scorer]
    served: Mapping[str, ServedModelConfig]
    max_rows_per_request: int
    max_sampled_tokens: int | None = None
    tuners: Mapping[str, ProxyTuner] = field(default_factory=dict)
    scorer_keys: Mapping[str, str] = field(default_factory=dict)

    @property
    def served_models(self) -> dict[str, ServedModel]:
        """The served models by API name."""
        return {name: self._served_model(name, config) for name, config in self.served.items()}

    def _served_model(self, name: str, config: ServedModelConfig) -> ServedModel:
        large = self.large_models[config.large]
        sampling = replace(large.default_sampling, **config.sampling)
        return ServedModel(name, _context_length(large), config.guidance, sampling)

    def large_model(self, name: str) -> LargeModel:
        """The large model behind an API name. Raises UnknownModelError."""
        if name not in self.served:
            raise UnknownModelError(name)
        return self.large_models[self.served[name].large]

    def labels(self, request: GenerationRequest) -> tuple[str | None, Method]:
        """The (served model, method) that a request asks for, for metrics. The model is None if it is not served."""
        if request.model not in self.served:
            return None, "none"
        guidance = request.guidance or self.served[request.model].guidance
        return request.model, guidance.method if guidance else "none"

    async def with_checked_grammar(self, request: GenerationRequest) -> GenerationRequest:
        """The request with its grammar checked and compiled, as `plan` needs it. Raises RequestError."""
        sampling = request.sampling
        if sampling.grammar is None:
            return request
        if sampling.ignore_eos:
            raise RequestError(
                f"ignore_eos cannot be combined with {sampling.grammar.field}, which ends answers with an EOS token.",
                "ignore_eos",
            )
        grammar = await self.large_model(request.model).check_grammar(sampling.grammar)
        return replace(request, sampling=replace(sampling, grammar=grammar))

    def plan(self, request: GenerationRequest) -> list[Plan]:
        """One plan per prompt. Raises RequestError, naming the field at fault."""
        large = self.large_model(request.model)
        guidance = resolve_guidance(request, self.served[request.model].guidance, self.scorers, self.scorer_keys)
        grammar = request.sampling.grammar
        if grammar and guidance and guidance.chunked and not large.supports_chunked_grammar:
            raise RequestError(
                "This model's provider applies a grammar to whole answers only: use guidance.method best_of_n, without "
                "early_rejection, or none.",
                grammar.field,
            )
        large.check(request.sampling)
        return [self._plan_prompt(request, prompt, large, guidance) for prompt in request.prompts]

    def _plan_prompt(
        self, request: GenerationRequest, prompt: Prompt, large: LargeModel, guidance: Guidance | None
    ) -> Plan:
        prompt, tokens = encode_request_prompt(request, prompt, large)
        pair_prompt, text_to_score = split_scored_text(request, decode_request_prompt(request, prompt, large), guidance)
        scorer = self._scorer(guidance, text_to_score)
        budget = context_budget(request, prompt, tokens, large)
        steering = guidance if text_to_score is None else None
        steered, answer_budget = self._steered(request, large, steering, pair_prompt, budget)
        answer_budget = scorer.check(pair_prompt, answer_budget) if scorer else answer_budget
        thoughts = plan_thoughts(request, prompt, tokens, large, guidance, answer_budget=answer_budget)
        budget = answer_budget if thoughts is None or thoughts.searched else budget
        budget = cap_to_sampled_tokens(request, guidance, budget, self.max_sampled_tokens, large)
        check_min_tokens(request, budget)
        is_beam = guidance is not None and guidance.method == "cbs"
        if guidance is not None and not is_beam:
            guidance = _from_one_start(guidance, request.n, budget)
        plan = Plan(
            large=steered,
            scorer=scorer,
            prompt=tokens,
            pair_prompt=pair_prompt,
            sampling=replace(request.sampling, max_tokens=budget),
            guidance=guidance,
            seed=_seed(request.sampling),
            budget=budget,
            n=request.n,
            beam_width=guidance.beam_width if guidance else request.n,
            initial_hypotheses=guidance.beam_width if guidance and is_beam else 1,
            pair_scored=scorer is not None and guidance is not None and bool(guidance.weights),
            with_tokens=request.with_tokens,
            with_prompt=request.with_prompt,
            prompt_logprobs=request.prompt_logprobs,
            text_to_score=text_to_score,
            tree_characters=MAX_TREE_CHARACTERS // len(request.prompts) if guidance and guidance.trace else 0,
            thoughts=thoughts,
        )
        self._check_rows(plan, request)
        return plan

    def _steered(
        self, request: GenerationRequest, large: LargeModel, guidance: Guidance | None, pair_prompt: Prompt, budget: int
    ) -> tuple[LargeModel, int]:
        """The large model, steered by pairs if the guidance asks for EFT, and the tokens that its answer may have."""
        field = steering_field(guidance)
        if guidance is None or field is None:
            return large, budget
        tuner = self.tuners.get(self.served[request.model].large)
        if tuner is None:
            raise RequestError("EFT changes logits, and this model's are at a provider: it must run here.", field)
        return tuner.tune(guidance, pair_prompt, budget, field)

    def _scorer(self, guidance: Guidance | None, text_to_score: str | None) -> Scorer | None:
        if guidance is None or not (searches(guidance) or text_to_score is not None):
            return None
        return CombinedScorer(self.scorers, guidance.weights) if guidance.weights else LikelihoodScorer()

    def _check_rows(self, plan: Plan, request: GenerationRequest) -> None:
        if plan.rows > (limit := self.max_rows_per_request):
            raise RequestError(
                f"This request samples {plan.rows} sequences at once; at most {limit} are allowed.",
                _field_of_rows(request, plan.guidance, limit),
            )


def _seed(sampling: SamplingParams) -> int:
    return secrets.randbits(_SEED_BITS) if sampling.seed is None else sampling.seed


def _from_one_start(guidance: Guidance, n: int, budget: int) -> Guidance:
    """Best of n as a search: of its candidates, which start alike, the n best are kept in the end. They grow in one
    chunk as long as the answer, unless some are to be rejected before."""
    successors = guidance.successors if searches(guidance) else 1
    length = guidance.chunk_length if guidance.chunked else budget
    return replace(guidance, beam_width=n, successors=successors, chunk_length=length)


def _field_of_rows(request: GenerationRequest, guidance: Guidance | None, limit: int) -> str:
    """The field that makes a request sample more than `limit` sequences at once."""
    if not searches(guidance):
        return "n"
    if request.best_of is not None and request.best_of > 1:
        return "best_of"
    if guidance.schedule != "constant" and guidance.rows <= limit:
        return "guidance.schedule"
    for name in ("successors", "beam_width"):
        if getattr(guidance, name) > limit:
            return f"guidance.{name}"
    return "guidance"  # their product


def _context_length(large: LargeModel) -> int | None:
    try:
        return large.context_length
    except UnavailableError:
        return None
