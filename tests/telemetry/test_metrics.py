"""The metrics: names and labels, on which dashboards and alerts depend, and what is counted when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes import EOS, FakeLargeModel, answer, fake_engine, letters
from w2s_core.config import Limits
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import Event, RequestFinished, TextCommitted
from w2s_core.errors import OverloadedError, RequestError, UpstreamError
from w2s_core.remote.provider import Attempt
from w2s_core.telemetry.metrics import Metrics
from w2s_core.telemetry.request_record import RequestRecord
from w2s_core.types import GenerationRequest, Guidance, SamplingParams, TextPrompt

# Names as they are scraped, with their labels; buckets have `le` besides.
NAMES: dict[str, tuple[str, set[str]]] = {
    "w2s_requests_total": ("counter", {"served_model", "method", "finish_reason"}),
    "w2s_request_duration_seconds": ("histogram", set()),
    "w2s_time_to_first_token_seconds": ("histogram", set()),
    "w2s_inter_chunk_latency_seconds": ("histogram", set()),
    "w2s_queue_time_seconds": ("histogram", set()),
    "w2s_requests_running": ("gauge", set()),
    "w2s_requests_waiting": ("gauge", set()),
    "w2s_rows_running": ("gauge", set()),
    "w2s_rows_waiting": ("gauge", set()),
    "w2s_kv_cache_usage_ratio": ("gauge", {"worker"}),
    "w2s_prompt_tokens_total": ("counter", set()),
    "w2s_generated_tokens_total": ("counter", {"kind"}),
    "w2s_scored_tokens_total": ("counter", {"pair"}),
    "w2s_chunks_total": ("counter", set()),
    "w2s_candidates_total": ("counter", {"fate"}),
    "w2s_score_margin_nats": ("histogram", set()),
    "w2s_step_duration_seconds": ("histogram", {"kind"}),
    "w2s_remote_requests_total": ("counter", {"large_model", "status"}),
    "w2s_remote_request_duration_seconds": ("histogram", set()),
    "w2s_worker_restarts_total": ("counter", {"worker"}),
    "w2s_build_info": ("gauge", {"version", "python", "torch", "transformers"}),
}
ASK = GenerationRequest("guided", (TextPrompt("x"),), SamplingParams(max_tokens=12, seed=1))


def values(metrics: Metrics) -> dict[str, float]:
    """Samples as `name` or `name{label=value,…}` without buckets."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def outcomes(engine: Engine) -> dict[str, float]:
    prefix = "w2s_requests_total"
    return {name.removeprefix(prefix): value for name, value in values(engine.metrics).items() if prefix in name}


def test_names_and_labels_are_these() -> None:
    metrics = Metrics()
    metrics.request_ended("m", "cbs", "stop", 1.0)
    metrics.count_scored_tokens("pair", 1)
    metrics.worker_added("0")
    metrics.remote_attempt(Attempt("m", "200", 0.1, 1))
    families = {f.name: f for f in text_string_to_metric_families(metrics.render().decode())}
    ours = {name for name in families if not name.startswith("process_")}
    assert ours == {name.removesuffix("_total") if kind == "counter" else name for name, (kind, _) in NAMES.items()}
    for name, (kind, labels) in NAMES.items():
        family = families[name.removesuffix("_total") if kind == "counter" else name]
        assert family.type == kind
        assert {frozenset(sample.labels) - {"le"} for sample in family.samples} == {frozenset(labels)}


def test_buckets_reach_from_a_millisecond_to_ten_minutes() -> None:
    for family in text_string_to_metric_families(Metrics().render().decode()):
        if family.type == "histogram" and family.name.endswith("_seconds"):
            bounds = [float(sample.labels["le"]) for sample in family.samples if "le" in sample.labels]
            assert (min(bounds), sorted(set(bounds))[-2:]) == (0.001, [600.0, float("inf")])


async def test_a_guided_request_is_counted_as_it_was() -> None:
    engine = fake_engine(FakeLargeModel(letters(eos=0.0)))
    record = RequestRecord()
    events = [event async for event in engine.generate(ASK, record)]
    found, last = values(engine.metrics), events[-1]
    assert isinstance(last, RequestFinished)
    assert last.guidance is not None
    assert found["w2s_requests_total{finish_reason=length,method=cbs,served_model=guided}"] == 1
    assert found["w2s_prompt_tokens_total"] == 1
    assert found["w2s_generated_tokens_total{kind=returned}"] == 12
    assert found["w2s_generated_tokens_total{kind=searched}"] == last.guidance.sampled_tokens == 4 * 2 * 2 * 3
    assert found["w2s_scored_tokens_total{pair=positive}"] == last.guidance.scored_tokens > 0
    assert found["w2s_chunks_total"] == last.guidance.chunks == 4
    assert sum(found[f"w2s_candidates_total{{fate={fate}}}"] for fate in ("kept", "pruned", "merged")) == 4 * 2 * 2
    assert found["w2s_candidates_total{fate=kept}"] == 4 * 2
    assert found["w2s_score_margin_nats_count"] == 4
    for name in ("request_duration", "time_to_first_token", "queue_time"):
        assert found[f"w2s_{name}_seconds_count"] == 1
    texts = sum(isinstance(event, TextCommitted) for event in events)
    assert found["w2s_inter_chunk_latency_seconds_count"] == texts - 1
    for name in ("requests_running", "requests_waiting", "rows_running", "rows_waiting"):
        assert found[f"w2s_{name}"] == 0
    assert (record.outcome, record.rows, record.chunks) == ("length", 4, 4)
    assert (record.prompt_tokens, record.returned_tokens, record.sampled_tokens) == (1, 12, 48)
    assert record.scored_tokens == last.guidance.scored_tokens
    assert record.queue_s is not None
    assert record.first_token_s is not None
    assert 0 <= record.queue_s <= record.first_token_s <= record.total_s


async def test_equal_candidates_are_merged() -> None:
    engine = fake_engine(FakeLargeModel(letters(alphabet="a", eos=0.0)))
    await answer(engine, replace(ASK, sampling=SamplingParams(max_tokens=3)))
    found = values(engine.metrics)
    fates = {fate: found[f"w2s_candidates_total{{fate={fate}}}"] for fate in ("kept", "pruned", "merged")}
    assert fates == {"kept": 1, "pruned": 0, "merged": 3}
    assert found["w2s_score_margin_nats_sum"] == 0


async def test_a_ranking_by_likelihood_has_no_margin_of_a_pair() -> None:
    engine = fake_engine()
    await answer(engine, replace(ASK, model="plain", best_of=4))
    assert values(engine.metrics)["w2s_score_margin_nats_count"] == 0
    assert list(outcomes(engine)) in (
        ["{finish_reason=stop,method=best_of_n,served_model=plain}"],
        ["{finish_reason=length,method=best_of_n,served_model=plain}"],
    )


async def test_several_choices_are_one_request_whose_texts_are_apart() -> None:
    engine = fake_engine(FakeLargeModel(letters(eos=0.0)))
    await answer(engine, replace(ASK, model="plain", n=2, prompts=(TextPrompt("x"), TextPrompt("yz"))))
    found = values(engine.metrics)
    assert found["w2s_requests_total{finish_reason=length,method=none,served_model=plain}"] == 1
    assert found["w2s_queue_time_seconds_count"] == 2, "each prompt waits for itself"
    assert found["w2s_time_to_first_token_seconds_count"] == 1
    assert found["w2s_inter_chunk_latency_seconds_count"] == 4 * 11
    assert found["w2s_prompt_tokens_total"] == 3
    assert found["w2s_generated_tokens_total{kind=returned}"] == 4 * 12


async def test_an_answer_that_ends_by_itself_says_stop() -> None:
    engine = fake_engine(FakeLargeModel(letters(eos=0.9)))
    await answer(engine, replace(ASK, model="plain", sampling=SamplingParams(max_tokens=500)))
    assert outcomes(engine) == {"{finish_reason=stop,method=none,served_model=plain}": 1}


async def test_a_request_with_one_truncated_choice_counts_as_length() -> None:
    """The first prompt's answer reaches max_tokens, and after it the second one's ends by EOS."""
    large = FakeLargeModel(lambda prompt, answer: {97: 1.0} if prompt == (120,) else {EOS: 1.0})
    engine = fake_engine(large, limits=Limits(max_rows=1))
    await answer(engine, replace(ASK, model="plain", prompts=(TextPrompt("x"), TextPrompt("y"))))
    assert outcomes(engine) == {"{finish_reason=length,method=none,served_model=plain}": 1}


async def test_every_drawn_candidate_is_counted_as_kept_pruned_or_merged() -> None:
    """Finished answers draw no successors, so later chunks have fewer candidates."""
    large = FakeLargeModel(letters(eos=0.3))
    engine = fake_engine(large)
    for seed in range(5):
        await answer(engine, replace(ASK, sampling=SamplingParams(max_tokens=12, seed=seed)))
    found = values(engine.metrics)
    fates = {fate: found[f"w2s_candidates_total{{fate={fate}}}"] for fate in ("kept", "pruned", "merged")}
    assert sum(fates.values()) == sum(beams * k for beams, k, _ in large.calls)
    assert {beams for beams, _, _ in large.calls} == {1, 2}
    assert all(fates.values())


async def test_refusals_have_their_own_words_and_no_duration() -> None:
    engine = fake_engine(limits=Limits(max_rows=1, max_queued_rows=0))
    with pytest.raises(RequestError):
        await answer(engine, replace(ASK, n=3))
    large = FakeLargeModel(gate=asyncio.Event().wait)
    engine = fake_engine(large, limits=Limits(max_rows=1, max_queued_rows=0))
    async with aclosing(engine.generate(replace(ASK, model="plain"))) as first:
        waiting = asyncio.ensure_future(anext(first))
        await reached(large)
        with pytest.raises(OverloadedError):
            await answer(engine, replace(ASK, model="plain"))
        found = values(engine.metrics)
        assert found["w2s_requests_total{finish_reason=overloaded,method=none,served_model=plain}"] == 1
        assert found["w2s_requests_running"] == found["w2s_rows_running"] == 1
        assert found["w2s_request_duration_seconds_count"] == 0
        waiting.cancel()
        await asyncio.wait([waiting])
    assert outcomes(engine)["{finish_reason=cancelled,method=none,served_model=plain}"] == 1
    assert values(engine.metrics)["w2s_requests_running"] == 0


async def reached(large: FakeLargeModel) -> None:
    while not large.open_sessions:
        await asyncio.sleep(0)


async def test_an_invalid_request_is_counted_under_its_model() -> None:
    engine = fake_engine()
    with pytest.raises(RequestError):
        await answer(engine, replace(ASK, n=3))
    assert outcomes(engine) == {"{finish_reason=invalid,method=cbs,served_model=guided}": 1}


async def test_a_model_that_nobody_serves_never_becomes_a_label() -> None:
    engine, record = fake_engine(), RequestRecord()
    with pytest.raises(RequestError):
        _ = [event async for event in engine.generate(replace(ASK, model="x-secret"), record)]
    assert "x-secret" not in engine.metrics.render().decode()
    assert not outcomes(engine), "nor does any word stand for it"
    assert (record.outcome, record.served_model) == ("invalid", None)
    assert values(engine.metrics)["w2s_requests_waiting"] == 0


async def test_waiting_is_seen_and_the_time_of_it() -> None:
    gate = asyncio.Event()
    large = FakeLargeModel(letters(eos=0.0), gate=gate.wait)
    engine = fake_engine(large, limits=Limits(max_rows=4))
    records = [RequestRecord(), RequestRecord()]
    running = asyncio.gather(*(drain(engine.generate(ASK, record)) for record in records))
    await reached(large)
    await asyncio.sleep(0)
    found = values(engine.metrics)
    assert (found["w2s_requests_running"], found["w2s_requests_waiting"]) == (1, 1)
    assert (found["w2s_rows_running"], found["w2s_rows_waiting"]) == (4, 4)
    gate.set()
    await running
    assert (records[0].queue_s or 0) < (records[1].queue_s or 0)
    assert values(engine.metrics)["w2s_queue_time_seconds_count"] == 2


async def drain(events: AsyncIterator[Event]) -> None:
    async for _ in events:
        pass


@pytest.mark.parametrize(
    ("error", "outcome"), [(UpstreamError("gone"), "upstream"), (ValueError("a bug"), "error")], ids=["upstream", "bug"]
)
async def test_failures_say_whose_they_are(error: Exception, outcome: str) -> None:
    async def gate() -> None:
        raise error

    engine = fake_engine(FakeLargeModel(gate=gate))
    with pytest.raises(type(error)):
        await answer(engine, ASK)
    assert outcomes(engine) == {f"{{finish_reason={outcome},method=cbs,served_model=guided}}": 1}


async def test_a_deadline_is_a_timeout() -> None:
    engine = fake_engine(FakeLargeModel(gate=asyncio.Event().wait), limits=Limits(request_timeout_s=0.01))
    with pytest.raises(Exception, match="did not finish"):
        await answer(engine, ASK)
    assert outcomes(engine) == {"{finish_reason=timeout,method=cbs,served_model=guided}": 1}
    assert values(engine.metrics)["w2s_request_duration_seconds_count"] == 1


async def test_what_a_cancelled_search_has_cost_is_counted() -> None:
    engine = fake_engine(FakeLargeModel(letters(eos=0.0)))
    async with aclosing(engine.generate(replace(ASK, sampling=SamplingParams(max_tokens=900)))) as events:
        async for _ in events:
            break
    found = values(engine.metrics)
    assert found["w2s_requests_total{finish_reason=cancelled,method=cbs,served_model=guided}"] == 1
    assert found["w2s_generated_tokens_total{kind=searched}"] > 0
    assert found["w2s_scored_tokens_total{pair=positive}"] > 0


async def test_who_leaves_after_the_last_event_has_had_the_answer() -> None:
    engine = fake_engine(FakeLargeModel(letters(eos=0.0)))
    async with aclosing(engine.generate(ASK)) as events:
        async for event in events:
            if isinstance(event, RequestFinished):
                break
    assert list(outcomes(engine)) == ["{finish_reason=length,method=cbs,served_model=guided}"]


async def test_engines_of_one_process_count_apart() -> None:
    first, second = fake_engine(), fake_engine()
    await answer(first, replace(ASK, guidance=Guidance("cbs", {"polite": 1.0}, 2, 2, 3)))
    assert values(first.metrics)["w2s_scored_tokens_total{pair=polite}"] > 0
    assert not outcomes(second)
