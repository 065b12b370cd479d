"""The settings of the experiment and the conditions (methods) that it compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias

from w2s_core.config import (
    EngineConfig,
    LargeModelConfig,
    PairConfig,
    RemoteLargeModelConfig,
    ServedModelConfig,
    WorkersConfig,
)
from w2s_core.evaluation.experiment import Condition, Experiment
from w2s_core.evaluation.prompts import DEVELOPMENT, OPENERS, PREFIX
from w2s_core.evaluation.records import EvalPrompt
from w2s_core.types import Guidance

Dtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]

LARGE, WEAK, PAIR = "large", "weak", "positive"
_SETUP = ("large", "tuned", "untuned", "large_at", "prompt_template", "dtype")  # settings of the models
DEMO_TEMPLATE = ""  # the demo's value, chosen on the development openers


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings: `prompts` openers × `seeds` answers of each length in `max_tokens`, `concurrency` requests at once.

    The ablation has the first length; `ablation_seeds` 0 leaves it out. `development` uses the development openers.
    `large_at` is (base_url, model name) of a completion API that serves `large`; None runs it in a local worker.
    """

    prompts: int = 50
    seeds: int = 2
    ablation_seeds: int = 1
    max_tokens: tuple[int, ...] = (40, 160)
    temperature: float = 0.7
    top_k: int = 50
    concurrency: int = 4
    dtype: Dtype = "auto"
    prompt_template: str = DEMO_TEMPLATE
    development: bool = False
    large: str = "demo:smollm2-135m-instruct"
    tuned: str = "demo:reviews-positive"
    untuned: str = "demo:reviews-negative"
    large_at: tuple[str, str] | None = None

    @property
    def openers(self) -> tuple[str, ...]:
        return (DEVELOPMENT if self.development else OPENERS)[: self.prompts]


@dataclass(frozen=True, slots=True)
class MethodAtLength:
    """A method and the maximum tokens of its answers: the sentiment experiment has a condition for each."""

    name: str
    model: str
    guidance: Guidance | None
    seeds: int
    max_tokens: int

    @property
    def label(self) -> str:
        """The condition's name, which says the length as well."""
        return f"{self.name}, {self.max_tokens} tokens"

    def condition(self, settings: Settings) -> Condition:
        """The condition. The weak model's own log-probabilities are not asked for: the large model's are wanted."""
        sampling = {"max_tokens": self.max_tokens, "temperature": settings.temperature, "top_k": settings.top_k}
        if self.model == WEAK:
            sampling["logprobs"] = False
        guidance = None if self.guidance is None else _changed_options(self.guidance)
        return Condition(self.label, self.model, guidance, sampling, self.seeds)


def _changed_options(guidance: Guidance) -> dict[str, Any]:
    """The guidance of a request: what differs from the defaults."""
    default = Guidance()
    values = {f.name: getattr(guidance, f.name) for f in fields(Guidance)}
    return {key: value for key, value in values.items() if value != getattr(default, key)}


BASE, WEAK_ALONE, BEST_OF, CBS = "Base", "Weak", "best-of-16", "CBS 4/4/5"
_PAIRS = {PAIR: 0.4}  # as the demo has it
_BRAKES: Mapping[str, Any] = {"repetition": 1.0, "fluency": 0.3, "early_stopping": True}  # chosen in development
_LIGHT_BRAKES = {**_BRAKES, "fluency": 0.1}
_SHAPES = ((1, 16), (2, 8), (4, 4), (8, 2), (16, 1))  # W × K at the cost of 16 rows
ABLATION = tuple(f"{w}×{k}" for w, k in _SHAPES)


def _cbs(w: int, k: int, **options: Any) -> Guidance:
    return Guidance("cbs", _PAIRS, beam_width=w, successors=k, chunk_length=5, **options)


def _best_of(n: int, **options: Any) -> Guidance:
    return Guidance("best_of_n", _PAIRS, successors=n, **options)


# As published; with brakes; cheaper.
GUIDED: Mapping[str, Guidance] = {
    BEST_OF: _best_of(16),
    CBS: _cbs(4, 4),
    f"{CBS}, brakes": _cbs(4, 4, **_BRAKES),
    "CBS 2/4/5, brakes": _cbs(2, 4, **_BRAKES),
    "CBS 2/4/5, light brakes": _cbs(2, 4, **_LIGHT_BRAKES),
    "CBS 1/8/5, brakes": _cbs(1, 8, **_BRAKES),
    "CBS 1/8/5, light brakes": _cbs(1, 8, **_LIGHT_BRAKES),
    f"{BEST_OF}, early rejection": _best_of(16, chunk_length=10, early_rejection=0.25, **_BRAKES),
}
MAIN = (BASE, WEAK_ALONE, *GUIDED)


def methods(settings: Settings) -> list[MethodAtLength]:
    """The methods at each length, then the W×K shapes of the ablation, except 4×4, which is CBS itself."""
    found: list[MethodAtLength] = []
    for length in settings.max_tokens:
        found += [MethodAtLength(BASE, LARGE, None, settings.seeds, length)]
        found += [MethodAtLength(WEAK_ALONE, WEAK, None, settings.seeds, length)]
        found += [MethodAtLength(name, LARGE, guidance, settings.seeds, length) for name, guidance in GUIDED.items()]
    if settings.ablation_seeds:
        found += [
            MethodAtLength(name, LARGE, _cbs(w, k), settings.ablation_seeds, settings.max_tokens[0])
            for name, (w, k) in zip(ABLATION, _SHAPES, strict=True)
            if (w, k) != (4, 4)
        ]
    return found


def experiment(settings: Settings) -> Experiment:
    """The openers as prompts, whose ids they are, and every method at every length as a condition."""
    prompts = [EvalPrompt(opener, (PREFIX + opener,), chat=False, answer_prefix=opener) for opener in settings.openers]
    every = [method.condition(settings) for method in methods(settings)]
    setup = {key: value for key, value in asdict(settings).items() if key in _SETUP}
    return Experiment(prompts, every, every[0].name, setup=setup)


def engine_config(settings: Settings) -> EngineConfig:
    """Serves the demo's large model and pair, and the tuned small model as a large model of its own."""
    return EngineConfig(
        large_models={LARGE: _large(settings), WEAK: LargeModelConfig(settings.tuned)},
        served_models={LARGE: ServedModelConfig(LARGE), WEAK: ServedModelConfig(WEAK)},
        pairs={PAIR: PairConfig(settings.tuned, settings.untuned, prompt_template=settings.prompt_template)},
        # A provider on the same processor competes for cores, and the small models need one thread only.
        workers=WorkersConfig(dtype=settings.dtype, threads=1 if settings.large_at else "auto"),
    )


def _large(settings: Settings) -> LargeModelConfig | RemoteLargeModelConfig:
    if settings.large_at is None:
        return LargeModelConfig(settings.large)
    url, name = settings.large_at
    return RemoteLargeModelConfig(base_url=url, model=name, tokenizer=settings.large)
