"""Results of the load benchmarks: one level of load, and sweeps over levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.memory import KVUsage
from benchmarks.settings import Workload


@dataclass(frozen=True, slots=True)
class LoadLevel:
    """The measurement of one workload: `speed` in committed tokens per second, times in seconds.

    `first_*`: from the request to the first text; `gap_*`: between consecutive texts. `ended`: answers that stopped
    before their budget. `peak_bytes`: resident memory of the server and its worker since they started.
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
    """Levels by the varied parameter. `concurrency` has guided and plain levels, the others single guided requests.

    A sweep that was not requested, or ran out of time, is empty or incomplete.
    """

    concurrency: Sequence[LoadLevel]
    length: Sequence[LoadLevel] = ()
    rows: Sequence[LoadLevel] = ()
    chunks: Sequence[LoadLevel] = ()
    memory: Sequence[KVUsage] = ()
