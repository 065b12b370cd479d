"""Graceful shutdown: on SIGTERM not ready at once, running requests finish, waiting ones get 503, exit code 0."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.replica import SOON, Replica, eventually, replica, status_of

BODY = {"model": "plain", "prompt": "x", "max_tokens": 3, "seed": 0}


def ask(url: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json=BODY | fields, timeout=SOON)


@contextmanager
def streaming(running: Replica, **fields: Any) -> Iterator[Iterator[str]]:
    """The events of a stream whose first one has arrived."""
    body = BODY | {"stream": True} | fields
    running.allow(1)  # the headers come with the first event
    with httpx.stream("POST", f"{running.url}/v1/completions", json=body, timeout=SOON) as response:
        events = (line.removeprefix("data: ") for line in response.iter_lines() if line)
        assert json.loads(next(events))["choices"][0]["text"]
        yield events


def test_running_answers_finish_waiting_ones_are_refused_and_newcomers_too() -> None:
    with replica(WORKERS__MAX_ROWS="1") as running, ThreadPoolExecutor() as threads:
        with streaming(running) as events:
            waiting = [threads.submit(ask, running.url, stream=stream) for stream in (True, False)]
            running.until("rows waiting: 2")
            running.send(signal.SIGTERM)
            for answer in waiting:
                assert_refused(answer.result(SOON))
            assert_refused(httpx.get(f"{running.url}/ready"))
            assert_refused(ask(running.url))
            assert_refused(httpx.get(f"{running.url}/v1/models"))
            assert status_of(f"{running.url}/health") == 200, "alive as long as it answers"
            assert running.process.poll() is None
            running.allow(2)
            rest = list(events)
        assert len(rest) == 4, "two more tokens, the end, [DONE]"
        assert json.loads(rest[-2])["choices"][0]["finish_reason"] == "length"
        assert rest[-1] == "[DONE]"
        assert running.left() == 0


def assert_refused(response: httpx.Response) -> None:
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert response.headers["connection"] == "close", "nobody shall be here for the next request"
    assert response.json()["error"]["code"] == "service_unavailable"


def test_a_request_that_has_begun_may_wait_for_its_other_prompts() -> None:
    with replica(WORKERS__MAX_ROWS="1") as running:
        with streaming(running, prompt=["x", "y"]) as events:
            running.send(signal.SIGTERM)
            eventually(lambda: status_of(f"{running.url}/ready") == 503)
            running.allow(5)
            ends = [json.loads(event)["choices"][0] for event in events if event != "[DONE]"]
        assert {end["index"] for end in ends if end["finish_reason"] == "length"} == {0, 1}
        assert running.left() == 0


def test_nothing_running_is_nothing_to_wait_for() -> None:
    with replica(SERVER__DRAIN_TIMEOUT_S="600") as running:
        running.send(signal.SIGTERM)
        assert running.left() == 0


@pytest.mark.parametrize(("patience", "signals"), [("0.1", 1), ("600", 2)])
def test_what_runs_is_cut_off_with_an_error_when_time_is_up_or_at_a_second_signal(patience: str, signals: int) -> None:
    with replica(SERVER__DRAIN_TIMEOUT_S=patience) as running:
        with streaming(running) as events:
            running.send(signal.SIGTERM)
            if signals == 2:
                eventually(lambda: status_of(f"{running.url}/ready") == 503)
                running.send(signal.SIGTERM)
            error, done = events
        assert json.loads(error)["error"]["code"] == "service_unavailable"
        assert done == "[DONE]"
        assert running.left() == 0
