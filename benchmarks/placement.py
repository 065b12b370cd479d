"""What a guided answer costs by where its models live: `python -m benchmarks.placement`, for docs/placement.md.

Nothing here is measured. Counts (round trips, tokens) follow from the algorithm and are exact; seconds follow from the
constants below, which are assumptions: replace them by your own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.report import markdown

# Assumptions about machines. Memory-bound work reads weights at `bytes_per_s`, compute-bound work runs at `flops`.


@dataclass(frozen=True)
class Machine:
    """`bytes_per_s` and `flops` (operations per second) as reached in practice, not as advertised."""

    name: str
    bytes_per_s: float
    flops: float


DEVICE = Machine("one H100-class device", 3.35e12 * 0.6, 1e15 * 0.4)
CORES = Machine("8 processor cores", 100e9, 0.5e12)
BYTES = 2  # of a parameter, bfloat16


@dataclass(frozen=True)
class LargeModel:
    """`parameters`, spread over `devices` in tensor parallel; each device reads its share of the weights per step."""

    name: str
    parameters: float
    devices: int

    @property
    def step_s(self) -> float:
        """One decode step of all rows: as long as rows are few, the time to read the weights once."""
        return self.parameters * BYTES / (DEVICE.bytes_per_s * self.devices)


@dataclass(frozen=True)
class Place:
    """`round_trip_s`: what one call costs beyond its tokens: network, queue, scheduling, reading the prefix again."""

    name: str
    round_trip_s: float


@dataclass(frozen=True)
class Search:
    """A guided request: `w`, `k`, `length` as SPEC names them; `prompt` and `answer` in tokens of the large model."""

    w: int
    k: int
    length: int
    prompt: int = 500
    answer: int = 256

    @property
    def rounds(self) -> int:
        """Chunks, one after the other: each needs the scores of the one before."""
        return math.ceil(self.answer / self.length)

    @property
    def calls(self) -> int:
        """To a remote large model: one a beam and chunk, those of a chunk at once."""
        return self.w * self.rounds

    @property
    def sampled(self) -> int:
        """Tokens drawn by the large model, pruned ones included: what is paid for as completion tokens."""
        return self.w * self.k * self.answer

    @property
    def sent(self) -> int:
        """Prompt tokens that the calls carry: x and y', for each beam and chunk."""
        past = self.length * self.rounds * (self.rounds - 1) // 2
        return self.w * (self.rounds * self.prompt + past)

    @property
    def read_anew(self) -> int:
        """Of these, what a provider with a prefix cache has to compute: the prompt once, each survivor's last chunk."""
        return self.prompt + self.w * self.length * (self.rounds - 1)


SEARCHES = (Search(4, 4, 5), Search(2, 4, 20), Search(2, 4, 40), Search(1, 16, 256))
LARGE_MODELS = (
    LargeModel("8 B", 8e9, 1),
    LargeModel("70 B", 70e9, 4),
    LargeModel("405 B", 405e9, 16),
)
LOCAL = Place("local", 0.0)
PLACES = (
    LOCAL,
    Place("vLLM, same rack", 0.015),
    Place("hosted API", 0.300),
)
PAIRS = {"100 M": 0.1e9, "1 B": 1e9, "3 B": 3e9, "8 B": 8e9}


def overhead(search: Search, large: LargeModel, place: Place, score_s: float = 0.0) -> float:
    """Guided seconds per plain second: 1 + (round trip + scoring) / (L · step)."""
    return 1 + (place.round_trip_s + score_s) / (search.length * large.step_s)


def shortest_chunk(large: LargeModel, place: Place, share: float, score_s: float = 0.0) -> int:
    """The least L at which round trips and scoring take no more than `share` of the time that sampling takes."""
    return max(1, math.ceil((place.round_trip_s + score_s) / (share * large.step_s)))


def score_s(parameters: float, search: Search, machine: Machine) -> float:
    """Both models of a pair read one chunk of every candidate: weights once, 2 operations a parameter and token."""
    tokens = search.w * search.k * search.length
    return 2 * max(parameters * BYTES / machine.bytes_per_s, 2 * parameters * tokens / machine.flops)


def counts() -> str:
    """Round trips and tokens: exact, the same for every size and place."""
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
            f"{s.read_anew:,}",
        )
        for s in SEARCHES
    ]
    return markdown([head, *rows])


def seconds() -> str:
    """How long an answer takes, plain and guided, with scoring left out."""
    search_5, search_20 = SEARCHES[0], SEARCHES[1]
    head = ("large model", "where", "ms a step", "plain, s", "4/4/5, s", "2/4/20, s", "L for ≤ 25 % more")
    rows = []
    for large in LARGE_MODELS:
        for place in PLACES:
            if place is LOCAL and large.devices > 1:  # a worker holds the whole model on one device
                continue
            plain = search_5.answer * large.step_s
            rows.append(
                (
                    f"{large.name} on {large.devices}",
                    place.name,
                    f"{large.step_s * 1000:.1f}",
                    f"{plain + place.round_trip_s:.1f}",
                    f"{plain * overhead(search_5, large, place):.1f}",
                    f"{plain * overhead(search_20, large, place):.1f}",
                    f"{shortest_chunk(large, place, 0.25)}",
                )
            )
    return markdown([head, *rows])


def pairs() -> str:
    """What scoring one chunk takes, and which share of the time to sample it."""
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
