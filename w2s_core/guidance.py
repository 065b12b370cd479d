"""How a request is searched: the method, the pairs, W, K and L, and how the beam is selected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Method: TypeAlias = Literal["cbs", "best_of_n", "eft", "none"]
Select: TypeAlias = Literal["top"] | Mapping[Literal["softmax", "pessimistic"], float]
Combine: TypeAlias = Literal["sum", "min", "robust"]
Schedule: TypeAlias = Literal["constant"] | Mapping[Literal["decay"], float]
Trace: TypeAlias = bool | Literal["stream"]
SCORER_KEYS = ("pairs", "reward_models", "scorers")
MAX_LENGTH_PENALTY = 4
MAX_EARLY_REJECTION = 0.99
MAX_WEIGHT = 1_000_000  # of either sign; far above any useful one, and so small that a sum of scores is finite
INT32_MAX = 2**31 - 1
_RANGES = {
    "repetition": (0, MAX_WEIGHT),
    "fluency": (0, MAX_WEIGHT),
    "length_penalty": (-MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY),
    "plausibility": (0, 1),
    "early_rejection": (0, MAX_EARLY_REJECTION),
}


@dataclass(frozen=True, slots=True)
class Guidance:
    """How a request is searched (Zhou et al. 2024, arXiv:2405.19262, section 4).

    `pairs`, `reward_models` and `scorers` (in Python) map their names to weights w_j, and the weighted sum is the
    score. After each chunk of at most `chunk_length` (L) tokens `beam_width` (W) hypotheses are kept, and each gets
    `successors` (K) continuations. Method "best_of_n" draws `successors` whole answers. "eft" is proxy tuning, per
    token and without a search: the pairs change the logits of every draw. With `proposal` "eft" a search draws its
    candidates so. Then only tokens at least `plausibility` times as likely as the large model's likeliest are drawn.
    `trace` asks for the search tree; "stream" has every round sent as it ends, and no tree at the end.

    `max_sampled_tokens` bounds what the large model draws for one request, pruned tokens included: answers end early,
    with finish reason "length", where it could be exceeded. None means the server's own bound. `thoughts`: a reasoning
    model's thoughts are searched and scored together with its answer; otherwise they are sampled once, unscored.

    The rest is selection (`w2s_core.search.selection`), and off by default. The rank of an answer is its score, minus
    `repetition` nats for each repeated word trigram, plus `fluency` times log π_base of the answer, all divided by its
    number of tokens to the power of `length_penalty`. `select` says how W are chosen by rank: "top", {"softmax": τ} or
    {"pessimistic": β}. `combine` says how several scores become one: "sum", "min" or "robust". With `early_stopping`
    the search ends when its best hypothesis is finished. `schedule` {"decay": ρ} gives the chunk i about ρ^i times as
    many successors as the first, under the same total. `early_rejection` is for "best_of_n": after each `chunk_length`
    tokens this fraction of the unfinished answers, those that rank lowest, is given up.
    """

    method: Method = "cbs"
    pairs: Mapping[str, float] = field(default_factory=dict)
    beam_width: int = 4
    successors: int = 4
    chunk_length: int = 5
    trace: Trace = False
    max_sampled_tokens: int | None = None
    thoughts: bool = False
    reward_models: Mapping[str, float] = field(default_factory=dict)
    scorers: Mapping[str, float] = field(default_factory=dict)
    proposal: Literal["base", "eft"] = "base"
    plausibility: float = 0.0
    repetition: float = 0.0
    length_penalty: float = 0.0
    fluency: float = 0.0
    early_stopping: bool = False
    select: Select = "top"
    combine: Combine = "sum"
    schedule: Schedule = "constant"
    early_rejection: float = 0.0

    @property
    def rows(self) -> int:
        """Sequences that the large model samples at once: W·K."""
        return self.beam_width * self.successors

    @property
    def chunked(self) -> bool:
        """Whether candidates compete after every chunk, and not only as whole answers."""
        return self.method == "cbs" or (self.method == "best_of_n" and self.early_rejection > 0)

    @property
    def weights(self) -> Mapping[str, float]:
        """The weights of everything that scores, by name, pairs first."""
        return {name: weight for _, name, weight in self.named_weights()}

    def named_weights(self) -> Iterator[tuple[str, str, float]]:
        """Yields (key, name, weight) of everything that scores; the key is also the configuration's section."""
        for key in SCORER_KEYS:
            for name, weight in getattr(self, key).items():
                yield key, name, weight

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yields (key, what is wrong with its value) for every value out of range; a weight's key is `pairs.NAME`."""
        for key, name, weight in self.named_weights():
            if not abs(weight) <= MAX_WEIGHT:  # nor is NaN
                yield f"{key}.{name}", f"must be at most {MAX_WEIGHT:,}, of either sign"
        for key in ("beam_width", "successors", "chunk_length"):
            if not 1 <= getattr(self, key) <= INT32_MAX:
                yield key, f"must be between 1 and {INT32_MAX:,}"
        if self.max_sampled_tokens is not None and not 1 <= self.max_sampled_tokens <= INT32_MAX:
            yield "max_sampled_tokens", f"must be between 1 and {INT32_MAX:,}"
        for key, (low, high) in _RANGES.items():
            if not low <= getattr(self, key) <= high:
                yield key, f"must be between {low:,} and {high:,}"
        if not isinstance(self.select, str) and not _has_one_value(self.select, MAX_WEIGHT):
            yield "select", 'must be "top", {"softmax": TEMPERATURE} or {"pessimistic": BETA}, the number above 0'
        if not isinstance(self.schedule, str) and not _has_one_value(self.schedule, 1):
            yield "schedule", 'must be "constant" or {"decay": FACTOR}, the factor above 0 and at most 1'

    def unused(self) -> Iterator[tuple[str, str]]:
        """Yields (key, what is wrong with its value) for every key that says something which the method does not use.

        A text that is only scored is scored by all of `weights`, whatever the method.
        """
        if self.method == "eft":
            for key in ("reward_models", "scorers"):
                if getattr(self, key):
                    yield key, "must be empty with method eft, which adds the logits of pairs and scores nothing"
        if self.method in ("cbs", "eft") and self.early_rejection:
            yield "early_rejection", f"must be 0 with method {self.method}: it is for best_of_n alone"


def _has_one_value(option: Mapping[Any, float], limit: float) -> bool:
    return len(option) == 1 and all(0 < value <= limit for value in option.values())
