"""The cost of a guided answer by where its models run: computes the tables of docs/placement.md.

Run `python -m benchmarks.placement`. Nothing is measured. Counts of round trips and tokens follow from the algorithm
and are exact. Seconds follow from the constants below, which are assumptions; replace them by your own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.report import markdown

# Assumptions about machines. Memory-bound work reads weights at `bytes_per_s`, compute-bound work runs at `flops`.


@dataclass(frozen=True)
class Machine:
    """A machine with the memory bandwidth and operations per second (`flops`) that it reaches in practice."""

    name: str
    bytes_per_s: float
    flops: float


DEVICE = Machine("one H100-class device", 3.35e12 * 0.6, 1e15 * 0.4)
CORES = Machine("8 processor cores", 100e9, 0.5e12)
BYTES = 2  # per parameter, bfloat16


@dataclass(frozen=True)
class LargeModel:
    """A model with tensor parallelism over `devices`, each of which reads its share of the weights per step."""

    name: str
    parameters: float
    devices: int

    @property
    def step_s(self) -> float:
        """Seconds of one decode step; for few rows this is the time to read the weights once."""
        return self.parameters * BYTES / (DEVICE.bytes_per_s * self.devices)


@dataclass(frozen=True)
class Location:
    """Where the large model runs. `round_trip_s`: the cost of a call beyond its tokens (network, queue, prefix)."""

    name: str
    round_trip_s: float


@dataclass(frozen=True)
class Search:
    """A guided request with W = `w`, K = `k`, L = `length`; `prompt` and `answer` in tokens of the large model."""

    w: int
    k: int
    length: int
    prompt: int = 500
    answer: int = 256

    @property
    def rounds(self) -> int:
        """The number of chunks, which are sequential because each needs the scores of the one before."""
        return math.ceil(self.answer / self.length)

    @property
    def calls(self) -> int:
        """The number of calls to a remote large model: one per beam and chunk, concurrent within a chunk."""
        return self.w * self.rounds

    @property
    def sampled(self) -> int:
        """Tokens that the large model samples, pruned ones included; a provider bills them as completion tokens."""
        return self.w * self.k * self.answer

    @property
    def sent(self) -> int:
        """Prompt tokens of all calls: x and y', for each beam and chunk."""
        answers = self.length * self.rounds * (self.rounds - 1) // 2
        return self.w * (self.rounds * self.prompt + answers)

    @property
    def computed(self) -> int:
        """The part of `sent` that misses a provider's prefix cache: the prompt once, and each survivor's last chunk."""
        return self.prompt + self.w * self.length * (self.rounds - 1)


SEARCHES = (Search(4, 4, 5), Search(2, 4, 20), Search(2, 4, 40), Search(1, 16, 256))
LARGE_MODELS = (
    LargeModel("8 B", 8e9, 1),
    LargeModel("70 B", 70e9, 4),
    LargeModel("405 B", 405e9, 16),
)
LOCAL = Location("local", 0.0)
LOCATIONS = (
    LOCAL,
    Location("vLLM, same rack", 0.015),
    Location("hosted API", 0.300),
)
PAIRS = {"100 M": 0.1e9, "1 B": 1e9, "3 B": 3e9, "8 B": 8e9}


def overhead(search: Search, large: LargeModel, location: Location, score_s: float = 0.0) -> float:
    """The slow-down of a guided answer: 1 + (round trip + scoring) / (L · step)."""
    return 1 + (location.round_trip_s + score_s) / (search.length * large.step_s)


def shortest_chunk(large: LargeModel, location: Location, share: float, score_s: float = 0.0) -> int:
    """The smallest L at which round trips and scoring take at most `share` of the sampling time."""
    return max(1, math.ceil((location.round_trip_s + score_s) / (share * large.step_s)))


def score_s(parameters: float, search: Search, machine: Machine) -> float:
    """Seconds to score one chunk of every candidate: weights are read once, 2 operations per parameter and token."""
    tokens = search.w * search.k * search.length
    return 2 * max(parameters * BYTES / machine.bytes_per_s, 2 * parameters * tokens / machine.flops)


def counts() -> str:
    """The table of round trips and tokens, which are exact and the same for every model size and location."""
    head = (
        "W/K/L",
        "round trips",
        "calls",
        "completion tokens bought",
        "÷ returned",
        "prompt tokens sent",
        "computed",
    )
    rows = [
        (
            f"{s.w}/{s.k}/{s.length}",
            f"{s.rounds}",
            f"{s.calls}",
            f"{s.sampled:,}",
            f"{s.sampled / s.answer:.0f}",
            f"{s.sent:,}",
            f"{s.computed:,}",
        )
        for s in SEARCHES
    ]
    return markdown([head, *rows])


def seconds() -> str:
    """The table of an answer's seconds, plain and guided, without scoring."""
    search_5, search_20 = SEARCHES[0], SEARCHES[1]
    head = ("large model", "where", "ms a step", "plain, s", "4/4/5, s", "2/4/20, s", "L for ≤ 25 % more")
    rows = []
    for large in LARGE_MODELS:
        for location in LOCATIONS:
            if location is LOCAL and large.devices > 1:  # a worker has no tensor parallelism
                continue
            plain = search_5.answer * large.step_s
            rows.append(
                (
                    f"{large.name} on {large.devices}",
                    location.name,
                    f"{large.step_s * 1000:.1f}",
                    f"{plain + location.round_trip_s:.1f}",
                    f"{plain * overhead(search_5, large, location):.1f}",
                    f"{plain * overhead(search_20, large, location):.1f}",
                    f"{shortest_chunk(large, location, 0.25)}",
                )
            )
    return markdown([head, *rows])


def pairs() -> str:
    """The table of the time to score one chunk, and its share of the time to sample it."""
    search = SEARCHES[1]
    head = ("pair, each", *(f"{m.name}, ms" for m in (DEVICE, CORES)), *(f"÷ chunk of {m.name}" for m in LARGE_MODELS))
    rows = []
    for name, parameters in PAIRS.items():
        on_device, on_cores = (score_s(parameters, search, machine) for machine in (DEVICE, CORES))
        shares = [on_device / (search.length * large.step_s) for large in LARGE_MODELS]
        rows.append((name, f"{on_device * 1000:.1f}", f"{on_cores * 1000:,.0f}", *(f"{s:.1%}" for s in shares)))
    return markdown([head, *rows])


def report() -> str:
    """The three tables of docs/placement.md."""
    return "\n\n".join((counts(), seconds(), pairs()))


if __name__ == "__main__":
    print(report())
