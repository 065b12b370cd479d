"""Prometheus metrics: every counter, gauge and histogram. Each is explained in docs/operations.md.

This is the only module that imports prometheus_client. Each engine has a registry of its own, so that one process can
run several. Label values are names from the configuration, worker numbers and constants of this package, never
anything that a client sent.
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

# How a request ended. "stop": every choice ended by itself; "length": at least one was truncated; the others say why
# there is no complete answer. "invalid", "overloaded" and "unavailable" were refused before they started.
RequestOutcome: TypeAlias = Literal[
    "stop", "length", "invalid", "overloaded", "unavailable", "upstream", "timeout", "cancelled", "error"
]
REFUSED: frozenset[RequestOutcome] = frozenset({"invalid", "overloaded", "unavailable"})


class RowCounts(Protocol):
    """The rows of an admission queue that run and that wait."""

    @property
    def rows_running(self) -> int: ...
    @property
    def rows_waiting(self) -> int: ...


class Metrics:
    """The metrics of one engine. Every method is called in the event loop, when the event has just happened."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # else the library adds a `_created` gauge to every counter; the switch is global
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Info("w2s_build", "Versions of the server and its main libraries.", registry=self.registry).info(_versions())
        self._define_requests()
        self._define_search()
        self._define_workers_and_providers()

    def _define_requests(self) -> None:
        labels = ["served_model", "method", "finish_reason"]
        self._requests = Counter(
            "w2s_requests_total", "Requests that have ended, by outcome.", labels, registry=self.registry
        )
        self._durations = self._seconds("w2s_request_duration", "Time from a request's arrival to its end.")
        self._first_tokens = self._seconds(
            "w2s_time_to_first_token", "Time from a request's arrival to its first text."
        )
        self._chunk_gaps = self._seconds("w2s_inter_chunk_latency", "Time between two texts sent for one choice.")
        self._queue_times = self._seconds("w2s_queue_time", "Time from a prompt's arrival until its rows were granted.")
        self._running = self._gauge("w2s_requests_running", "Requests with at least one admitted prompt.")
        self._waiting = self._gauge("w2s_requests_waiting", "Requests with no admitted prompt yet.")
        self._rows_running = self._gauge("w2s_rows_running", "Rows (sequences sampled at once) in use.")
        self._rows_waiting = self._gauge("w2s_rows_waiting", "Rows that queued prompts will need.")
        self._prompt_tokens = self._counter("w2s_prompt_tokens_total", "Tokens of prompts that were answered.")

    def _define_search(self) -> None:
        self._generated = self._counter("w2s_generated_tokens_total", "Tokens sampled from large models.", "kind")
        self._scored = self._counter("w2s_scored_tokens_total", "Tokens run through a pair or reward model.", "pair")
        self._chunks = self._counter("w2s_chunks_total", "Chunks that searches have sampled and ranked.")
        self._candidates = self._counter("w2s_candidates_total", "Candidates of chunks, by fate.", "fate")
        self._margins = Histogram(
            "w2s_score_margin_nats",
            "Best minus worst score among a chunk's candidates.",
            buckets=_NATS,
            registry=self.registry,
        )
        for kind in ("returned", "searched"):
            self._generated.labels(kind)
        for fate in ("kept", "pruned", "merged"):
            self._candidates.labels(fate)

    def _define_workers_and_providers(self) -> None:
        self._kv_usage = Gauge(
            "w2s_kv_cache_usage_ratio",
            "Share of the KV cache that searches hold, in the fullest of a worker's models.",
            ["worker"],
            registry=self.registry,
        )
        self._steps = self._seconds(
            "w2s_step_duration", "Time of one step: a forward pass and the work around it.", "kind"
        )
        for kind in ("decode", "prefill", "score"):
            self._steps.labels(kind)
        labels = ["large_model", "status"]
        self._remote = Counter("w2s_remote_requests_total", "Calls to providers.", labels, registry=self.registry)
        self._remote_durations = self._seconds(
            "w2s_remote_request_duration", "Time of one call to a provider; each retry counts by itself."
        )
        self._restarts = self._counter("w2s_worker_restarts_total", "Restarts of workers and managed vLLMs.", "worker")

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(name, help_text, labels, registry=self.registry)

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(name, help_text, registry=self.registry)

    def _seconds(self, name: str, help_text: str, *labels: str) -> Histogram:
        return Histogram(name, help_text, labels, unit="seconds", buckets=_SECONDS, registry=self.registry)

    def render(self) -> bytes:
        """All metrics in the Prometheus text format (`CONTENT_TYPE`)."""
        return generate_latest(self.registry)

    # Requests.

    def watch_admission(self, admission: RowCounts) -> None:
        """Reads the row gauges from the admission queue at every scrape."""
        self._rows_running.set_function(lambda: admission.rows_running)
        self._rows_waiting.set_function(lambda: admission.rows_waiting)

    def request_arrived(self) -> None:
        self._waiting.inc()

    def prompt_admitted(self, *, first: bool, queue_s: float) -> None:
        """A prompt was admitted, after `queue_s` seconds. `first`: it is the first one of its request."""
        self._queue_times.observe(queue_s)
        if first:
            self._waiting.dec()
            self._running.inc()

    def request_left(self, *, admitted: bool) -> None:
        """A request is over. `admitted`: at least one of its prompts had been."""
        (self._running if admitted else self._waiting).dec()

    def request_ended(self, served_model: str, method: Method, outcome: RequestOutcome, seconds: float) -> None:
        """A request to a served model is over, `seconds` after its arrival."""
        self._requests.labels(served_model, method, outcome).inc()
        if outcome not in REFUSED:
            self._durations.observe(seconds)

    def first_text_sent(self, seconds: float) -> None:
        """A request's first text was sent, `seconds` after its arrival."""
        self._first_tokens.observe(seconds)

    def next_text_sent(self, seconds: float) -> None:
        """More text of a choice was sent, `seconds` after its previous text."""
        self._chunk_gaps.observe(seconds)

    def count_tokens(self, *, prompt: int, returned: int, searched: int) -> None:
        """The large model's tokens of a request that is over. `searched` are all sampled ones, pruned ones included."""
        self._prompt_tokens.inc(prompt)
        self._generated.labels("returned").inc(returned)
        self._generated.labels("searched").inc(searched)

    # The search.

    def count_round(self, round_: Round, *, pair_scored: bool) -> None:
        """A search has ranked a round's candidates.

        `pair_scored`: the scores come from a pair, so that the margin between them has a meaning.
        """
        beam = {id(y) for y in round_.beam}
        kept = sum(id(y) in beam for y in round_.candidates)
        self._chunks.inc()
        self._candidates.labels("kept").inc(kept)
        self._candidates.labels("pruned").inc(len(round_.candidates) - kept)
        self._candidates.labels("merged").inc(len(round_.proposed) - len(round_.candidates))
        if pair_scored and round_.candidates:
            scores = [y.score for y in round_.candidates]
            margin = max(scores) - min(scores)
            if math.isfinite(margin):
                self._margins.observe(margin)

    def count_scored_tokens(self, pair: str, tokens: int) -> None:
        """A scoring session has ended; `tokens` were run through both models of the pair together."""
        self._scored.labels(pair).inc(tokens)

    # Workers and providers.

    def worker_added(self, worker: str) -> None:
        """A worker has been configured: its series start at 0."""
        self._kv_usage.labels(worker).set(0)
        self._restarts.labels(worker)

    def worker_restarted(self, worker: str) -> None:
        """A worker process has been replaced; its KV cache is empty."""
        self._kv_usage.labels(worker).set(0)
        self._restarts.labels(worker).inc()

    def vllm_added(self, large_model: str) -> None:
        """A managed vLLM has been configured: its series starts at 0."""
        self._restarts.labels(f"vllm:{large_model}")

    def vllm_restarted(self, large_model: str) -> None:
        """The managed vLLM of a large model is started again."""
        self._restarts.labels(f"vllm:{large_model}").inc()

    def worker_reported(self, worker: str, kv_usage: float, steps: Iterable[tuple[StepKind, float]]) -> None:
        """A worker's heartbeat. `kv_usage` is a ratio; `steps` are (kind, seconds) since its last report."""
        self._kv_usage.labels(worker).set(kv_usage)
        for kind, seconds in steps:
            self._steps.labels(kind).observe(seconds)

    def remote_attempt(self, attempt: Attempt) -> None:
        """One call to a provider has ended. Models of a remote pair are labelled `NAME.tuned` and `NAME.untuned`."""
        self._remote.labels(attempt.provider, attempt.status).inc()
        self._remote_durations.observe(attempt.seconds)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for label, package in (("version", "w2s-server"), ("torch", "torch"), ("transformers", "transformers")):
        try:
            versions[label] = version(package)
        except PackageNotFoundError:  # run from a source folder that is not installed
            versions[label] = "unknown"
    return versions
