"""What a load benchmark measures: one level of load, and sweeps of levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.memory import Held
from benchmarks.settings import Workload


@dataclass(frozen=True, slots=True)
class Level:
    """What `streams` clients at once got: speeds in committed tokens per second, times in seconds.

    `first_*`: from the request to the first text; `gap_*`: between pieces of text. `peak_bytes`: of the server and its
    worker since they started.
    """

    load: Workload
    tokens: int
    seconds: float
    speed: float
    first_p50: float
    first_p99: float
    gap_p50: float
    gap_p99: float
    ended: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Sweeps:
    """Levels by what is varied. `concurrency` has guided and plain ones; the others are single guided requests.

    What was not asked for, or for what no time was left, is empty or short.
    """

    concurrency: Sequence[Level]
    length: Sequence[Level] = ()
    rows: Sequence[Level] = ()
    chunks: Sequence[Level] = ()
    memory: Sequence[Held] = ()
