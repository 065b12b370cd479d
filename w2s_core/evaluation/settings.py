"""The settings of the experiment and the conditions (methods) that it compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from w2s_core.config import (
    EngineConfig,
    LargeModelConfig,
    PairConfig,
    RemoteLargeModelConfig,
    ServedModelConfig,
    WorkersConfig,
)
from w2s_core.evaluation.prompts import DEVELOPMENT, OPENERS
from w2s_core.types import Guidance

Dtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]

LARGE, WEAK, PAIR = "large", "weak", "positive"
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
    untuned: str = "demo:reviews"
    large_at: tuple[str, str] | None = None

    @property
    def openers(self) -> tuple[str, ...]:
        return (DEVELOPMENT if self.development else OPENERS)[: self.prompts]


@dataclass(frozen=True, slots=True)
class Condition:
    """An experimental condition: the large model, the guidance, seeds per prompt, and maximum tokens per answer."""

    name: str
    model: str
    guidance: Guidance | None
    seeds: int
    max_tokens: int

    @property
    def rows(self) -> int:
        """Sequences that are sampled at once for one answer."""
        if self.guidance is None:
            return 1
        return self.guidance.successors if self.guidance.method == "best_of_n" else self.guidance.rows


BASE, WEAK_ALONE, BEST_OF, CBS = "Base", "Weak", "best-of-16", "CBS 4/4/5"
_PAIRS = {PAIR: 1.0}
_BRAKES: Mapping[str, Any] = {"repetition": 1.0, "fluency": 0.2, "early_stopping": True}  # chosen in development
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


def conditions(settings: Settings) -> list[Condition]:
    """The methods at each length, then the W×K shapes of the ablation, except 4×4, which is CBS itself."""
    found: list[Condition] = []
    for length in settings.max_tokens:
        found += [Condition(BASE, LARGE, None, settings.seeds, length)]
        found += [Condition(WEAK_ALONE, WEAK, None, settings.seeds, length)]
        found += [Condition(name, LARGE, guidance, settings.seeds, length) for name, guidance in GUIDED.items()]
    if settings.ablation_seeds:
        found += [
            Condition(name, LARGE, _cbs(w, k), settings.ablation_seeds, settings.max_tokens[0])
            for name, (w, k) in zip(ABLATION, _SHAPES, strict=True)
            if (w, k) != (4, 4)
        ]
    return found


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
