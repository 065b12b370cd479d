"""The request log: one line per request, its fields, and what it must never contain."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from server.logs.format import HumanFormatter, json_formatter
from server.settings.config import ServerConfig
from tests.fakes import FakeLargeModel, fake_engine, letters
from tests.server.conftest import Connect, Serve
from tests.server.fake_engine import FakeEngine
from w2s_core.config import Limits

PATH = "/v1/completions"
BODY = {"model": "guided", "prompt": "secret words", "max_tokens": 6, "seed": 1}
FIELDS = [
    "message",
    "request_id",
    "status",
    "served_model",
    "method",
    "outcome",
    "rows",
    "chunks",
    "prompt_tokens",
    "returned_tokens",
    "sampled_tokens",
    "scored_tokens",
    "queue_s",
    "first_token_s",
    "total_s",
]


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "w2s.request")


def lines(caplog: pytest.LogCaptureFixture) -> list[Mapping[str, Any]]:
    return [record.msg for record in caplog.records if record.name == "w2s.request"]  # type: ignore[misc]


def engine(**options: Any) -> Any:
    return fake_engine(FakeLargeModel(letters(eos=0.0), **options))


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_is_one_line(connect: Connect, caplog: pytest.LogCaptureFixture, stream: bool) -> None:
    client = await connect(engine())
    headers = {"x-request-id": "mine-1", "authorization": "Bearer sk-secret"}
    response = await client.post(PATH + "?key=sk-secret", json=BODY | {"stream": stream}, headers=headers)
    assert response.status_code == 200
    [line] = lines(caplog)
    assert list(line) == FIELDS
    assert line["message"] == "POST /v1/completions"
    assert (line["request_id"], line["status"], line["outcome"]) == ("mine-1", 200, "length")
    assert (line["served_model"], line["method"], line["rows"], line["chunks"]) == ("guided", "cbs", 4, 2)
    assert (line["prompt_tokens"], line["returned_tokens"], line["sampled_tokens"]) == (12, 6, 24)
    assert line["scored_tokens"] > 0
    assert 0 <= line["queue_s"] <= line["first_token_s"] <= line["total_s"]
    assert "secret" not in str(line)


async def test_prompts_and_answers_only_when_asked_for(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    client = await connect(engine(), ServerConfig(log_prompts=True))
    choices = (await client.post(PATH, json=BODY)).json()["choices"]
    [line] = lines(caplog)
    assert line["prompts"] == [{"text": "secret words", "special_tokens": True}]
    assert line["answers"] == [choice["text"] for choice in choices]


async def test_refusals_are_lines_too(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    client = await connect(engine(), ServerConfig(api_keys=("sk-1",), max_body_bytes=500))
    key = {"authorization": "Bearer sk-1"}
    await client.post(PATH, json=BODY)
    await client.post(PATH, json=BODY | {"model": "who?"}, headers=key)
    await client.post(PATH, json=BODY | {"n": 9}, headers=key)
    await client.post(PATH, json=BODY | {"prompt": "x" * 999}, headers=key)
    await client.get("/nowhere")
    found = lines(caplog)
    assert [line["status"] for line in found] == [401, 404, 400, 413, 404]
    assert [line.get("outcome") for line in found] == [None, None, "invalid", None, None]
    assert all(line["request_id"].startswith("req_") for line in found)


async def test_a_bug_of_ours_is_a_line_with_its_status(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    client = await connect(FakeEngine([ValueError("a bug")]))  # type: ignore[list-item]
    assert (await client.post(PATH, json=BODY | {"model": "plain"})).status_code == 500
    assert [line["status"] for line in lines(caplog)] == [500]


async def test_probes_and_scrapes_do_not_flood_it(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    client = await connect()
    for path in ("/health", "/ready", "/metrics", "/playground/main.js"):
        await client.get(path)
    assert lines(caplog) == []
    caplog.set_level(logging.DEBUG, "w2s.request")
    await client.get("/health")
    assert [line["message"] for line in lines(caplog)] == ["GET /health"]


async def test_a_file_that_the_page_lacks_is_a_line(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    client = await connect()
    for path in ("/playground", "/playground/dom.js", "/playground/gone.js", "/playground/"):
        await client.get(path)
    found = [(line["message"], line["status"]) for line in lines(caplog)]
    assert found == [("GET /playground", 200), ("GET /playground/gone.js", 404), ("GET /playground/", 307)]


async def test_a_client_that_left_is_a_line(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    reached = asyncio.Event()

    async def gate() -> None:
        reached.set()
        await asyncio.Event().wait()

    async with httpx.AsyncClient(base_url=await serve(engine(gate=gate))) as client:
        asking = asyncio.create_task(client.post(PATH, json=BODY))
        await reached.wait()
        asking.cancel()
        await asyncio.wait([asking])
        while not lines(caplog):
            await asyncio.sleep(0.001)
    [line] = lines(caplog)
    assert (line["status"], line["outcome"], line["first_token_s"]) == (499, "cancelled", None)


async def test_a_late_failure_is_told_though_its_status_was_200(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0

    async def gate() -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            await asyncio.Event().wait()

    slow = fake_engine(FakeLargeModel(letters(eos=0.0), gate=gate), limits=Limits(request_timeout_s=0.2))
    client = await connect(slow)
    await client.post(PATH, json=BODY | {"model": "plain", "stream": True})
    assert [(line["status"], line["outcome"]) for line in lines(caplog)] == [(200, "timeout")]


def formatted(formatter: logging.Formatter, message: object) -> str:
    return formatter.format(logging.LogRecord("w2s.request", logging.INFO, __file__, 1, message, (), None))


def test_a_line_for_people_cannot_be_forged() -> None:
    fields = {"message": "GET /x\n2026 INFO all is well", "request_id": "a", "status": 404, "queue_s": None, "m": "a b"}
    line = formatted(HumanFormatter(), fields)
    assert line.endswith(r' INFO w2s.request: GET /x\n2026 INFO all is well request_id=a status=404 m="a b"')
    assert "\n" not in line
    assert formatted(HumanFormatter(), "as it is").endswith(" INFO w2s.request: as it is")


def test_json_is_one_object_a_line() -> None:
    found = json.loads(formatted(json_formatter(), {"message": "GET /x\ny", "status": 404}))
    assert found.pop("time").endswith("+00:00")
    assert found == {"level": "INFO", "logger": "w2s.request", "message": "GET /x\ny", "status": 404}
    assert json.loads(formatted(json_formatter(), "text"))["message"] == "text"
