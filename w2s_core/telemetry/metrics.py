"""Every counter, gauge and histogram, and the only importer of prometheus_client. docs/operations.md explains each.

Each engine counts in a registry of its own, so that several live in one process. Label values are names of the
configuration, numbers of workers and words of this package, never anything that a client sent.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

if TYPE_CHECKING:
    from w2s_core.remote.provider import Attempt
    from w2s_core.types import Method, Round, StepKind

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_NATS = (0.01, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)

# How a request ended. `stop`: every choice by itself; `length`: at least one was cut; the others: why there is no
# answer. `invalid`, `overloaded` and `unavailable` were refused before they began.
RequestOutcome: TypeAlias = Literal[
    "stop", "length", "invalid", "overloaded", "unavailable", "upstream", "timeout", "cancelled", "error"
]
REFUSED: frozenset[RequestOutcome] = frozenset({"invalid", "overloaded", "unavailable"})


class RowCounts(Protocol):
    """Rows of an admission queue, running and waiting."""

    @property
    def rows_running(self) -> int: ...
    @property
    def rows_waiting(self) -> int: ...


class Metrics:
    """What one engine counts. Every method is called in the event loop, for something that has just happened."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library would add a gauge to every counter; it knows no narrower switch
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Info("w2s_build", "Versions of what serves.", registry=self.registry).info(_versions())
        self._define_requests()
        self._define_search()
        self._define_parts()

    def _define_requests(self) -> None:
        labels = ["served_model", "method", "finish_reason"]
        self._requests = Counter("w2s_requests_total", "Requests by how they ended.", labels, registry=self.registry)
        self._durations = self._seconds("w2s_request_duration", "A request from its arrival to its end.")
        self._first_tokens = self._seconds("w2s_time_to_first_token", "From a request's arrival to its first text.")
        self._chunk_gaps = self._seconds("w2s_inter_chunk_latency", "Between two pieces of text of one choice.")
        self._queue_times = self._seconds("w2s_queue_time", "From a prompt's arrival until its rows were free.")
        self._running = self._gauge("w2s_requests_running", "Requests of which at least one prompt is being answered.")
        self._waiting = self._gauge("w2s_requests_waiting", "Requests that wait for rows.")
        self._rows_running = self._gauge("w2s_rows_running", "Rows, sequences sampled at once, in use.")
        self._rows_waiting = self._gauge("w2s_rows_waiting", "Rows that waiting prompts will take.")
        self._prompt_tokens = self._counter("w2s_prompt_tokens_total", "Tokens of the prompts that were answered.")

    def _define_search(self) -> None:
        self._generated = self._counter("w2s_generated_tokens_total", "Tokens drawn from large models.", "kind")
        self._scored = self._counter("w2s_scored_tokens_total", "Tokens run through a pair's models.", "pair")
        self._chunks = self._counter("w2s_chunks_total", "Chunks that searches have drawn and ranked.")
        self._candidates = self._counter("w2s_candidates_total", "What became of a chunk's candidates.", "fate")
        self._margins = Histogram(
            "w2s_score_margin_nats", "Best minus worst score of a chunk.", buckets=_NATS, registry=self.registry
        )
        for kind in ("returned", "searched"):
            self._generated.labels(kind)
        for fate in ("kept", "pruned", "merged"):
            self._candidates.labels(fate)

    def _define_parts(self) -> None:
        self._kv_usage = Gauge(
            "w2s_kv_cache_usage_ratio",
            "KV that searches hold, of what there is; of a worker's models, the fullest.",
            ["worker"],
            registry=self.registry,
        )
        self._steps = self._seconds("w2s_step_duration", "One forward pass and what it takes around it.", "kind")
        for kind in ("decode", "prefill", "score"):
            self._steps.labels(kind)
        labels = ["large_model", "status"]
        self._remote = Counter("w2s_remote_requests_total", "Calls of providers.", labels, registry=self.registry)
        self._remote_durations = self._seconds("w2s_remote_request_duration", "One call of a provider, retries apart.")
        self._restarts = self._counter("w2s_worker_restarts_total", "Starts of a worker after its first.", "worker")

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(name, meaning, registry=self.registry)

    def _seconds(self, name: str, meaning: str, *labels: str) -> Histogram:
        return Histogram(name, meaning, labels, unit="seconds", buckets=_SECONDS, registry=self.registry)

    def render(self) -> bytes:
        """Everything in Prometheus' text format, of `CONTENT_TYPE`."""
        return generate_latest(self.registry)

    # Requests.

    def watch_admission(self, admission: RowCounts) -> None:
        """Reads the row gauges from the admission queue at every scrape."""
        self._rows_running.set_function(lambda: admission.rows_running)
        self._rows_waiting.set_function(lambda: admission.rows_waiting)

    def request_arrived(self) -> None:
        self._waiting.inc()

    def prompt_admitted(self, *, first: bool, queue_s: float) -> None:
        """One of a request's prompts begins; `first` of them?"""
        self._queue_times.observe(queue_s)
        if first:
            self._waiting.dec()
            self._running.inc()

    def request_left(self, *, admitted: bool) -> None:
        """A request that has arrived is over."""
        (self._running if admitted else self._waiting).dec()

    def request_ended(self, served_model: str, method: Method, outcome: RequestOutcome, seconds: float) -> None:
        self._requests.labels(served_model, method, outcome).inc()
        if outcome not in REFUSED:
            self._durations.observe(seconds)

    def first_text_sent(self, seconds: float) -> None:
        self._first_tokens.observe(seconds)

    def next_text_sent(self, seconds: float) -> None:
        self._chunk_gaps.observe(seconds)

    def count_tokens(self, *, prompt: int, returned: int, searched: int) -> None:
        """What a request was in tokens of the large model."""
        self._prompt_tokens.inc(prompt)
        self._generated.labels("returned").inc(returned)
        self._generated.labels("searched").inc(searched)

    # The search.

    def count_chunk(self, chunk: Round, *, proposed: int, pair_scored: bool) -> None:
        """`proposed` candidates were sampled, copies included; `pair_scored` when their scores are a pair's."""
        beam = {id(y) for y in chunk.beam}
        kept = sum(id(y) in beam for y in chunk.candidates)
        self._chunks.inc()
        self._candidates.labels("kept").inc(kept)
        self._candidates.labels("pruned").inc(len(chunk.candidates) - kept)
        self._candidates.labels("merged").inc(proposed - len(chunk.candidates))
        if pair_scored:
            scores = [y.score for y in chunk.candidates]
            margin = max(scores) - min(scores)
            if math.isfinite(margin):
                self._margins.observe(margin)

    def count_scored_tokens(self, pair: str, tokens: int) -> None:
        self._scored.labels(pair).inc(tokens)

    # Where models run.

    def worker_added(self, worker: str) -> None:
        """A worker that there is from now on: its figures begin at 0."""
        self._kv_usage.labels(worker).set(0)
        self._restarts.labels(worker)

    def worker_restarted(self, worker: str) -> None:
        self._kv_usage.labels(worker).set(0)
        self._restarts.labels(worker).inc()

    def worker_reported(self, worker: str, kv_usage: float, steps: Iterable[tuple[StepKind, float]]) -> None:
        """`steps` since its last report, in seconds."""
        self._kv_usage.labels(worker).set(kv_usage)
        for kind, seconds in steps:
            self._steps.labels(kind).observe(seconds)

    def remote_attempt(self, attempt: Attempt) -> None:
        """One call of a provider. Those of a remote pair's models go by the pair's name: `NAME.tuned`."""
        self._remote.labels(attempt.provider, attempt.status).inc()
        self._remote_durations.observe(attempt.seconds)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for label, package in (("version", "w2s-server"), ("torch", "torch"), ("transformers", "transformers")):
        try:
            versions[label] = version(package)
        except PackageNotFoundError:  # run from a folder that nobody installed
            versions[label] = "unknown"
    return versions
