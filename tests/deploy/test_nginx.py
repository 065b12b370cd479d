"""The load balancer: a real nginx with deploy/nginx.conf in front of stub servers and replicas."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from deploy.local import TEMPLATE, nginx_command, render, upstream
from server.settings.config import ServerConfig
from tests.deploy.conftest import Balance, free_port
from tests.deploy.stub import Stub
from tests.replica import SOON, Replica, eventually, replica, status_of

BODY = {"model": "plain", "prompt": "x", "max_tokens": 3, "seed": 0}
Two = tuple[Replica, Replica]


def ask(url: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json=BODY | fields, timeout=SOON)


@contextmanager
def streaming(url: str) -> Iterator[Iterator[str]]:
    """The events of a stream that has begun; the model must be allowed its first token."""
    with httpx.stream("POST", f"{url}/v1/completions", json=BODY | {"stream": True}, timeout=SOON) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = (line.removeprefix("data: ") for line in response.iter_lines() if line)
        assert json.loads(next(events))["choices"][0]["text"]
        yield events


def test_the_configuration_is_one(nginx: str, tmp_path: Path) -> None:
    def check(config: str) -> subprocess.CompletedProcess[str]:
        command = [*nginx_command(nginx, tmp_path, config), "-t"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    config = render(tmp_path, f"127.0.0.1:{free_port()}", upstream(["127.0.0.1:1", "127.0.0.1:2"]))
    assert check(config).returncode == 0, check(config).stderr
    assert "warn" not in check(config).stderr
    assert check(config.replace("least_conn", "most_conn")).returncode != 0, "nginx does look"


def test_its_limits_are_the_servers() -> None:
    text = TEMPLATE.read_text()
    server = ServerConfig()

    def seconds(name: str) -> float:
        return float(re.search(rf"^\s*{name} (\d+)s;", text, re.M)[1])

    assert f"client_max_body_size {server.max_body_bytes // 2**20}m;" in text
    assert seconds("proxy_next_upstream_timeout") == server.request_timeout_s
    assert seconds("proxy_read_timeout") > server.request_timeout_s, "the server's own 504 comes first, and only once"
    assert seconds("keepalive_timeout") < uvicorn.Config("").timeout_keep_alive, "the upstream's, which stands first"


def test_a_stream_is_not_held_back(pair_of_replicas: Two, balance: Balance) -> None:
    for running in pair_of_replicas:
        running.allow(1)
    with streaming(balance(*(running.url for running in pair_of_replicas))) as events:
        for running in pair_of_replicas:  # only now can the rest be drawn
            running.run_free()
        rest = list(events)
    assert len(rest) == 4
    assert rest[-1] == "[DONE]"


def test_the_callers_request_id_is_passed_on_and_a_missing_or_odd_one_made(
    stubs: tuple[Stub, Stub], balance: Balance
) -> None:
    url = balance(stubs[0].url)
    for given in ("mine-1", "", "not sane {}"):
        httpx.get(f"{url}/x", headers={"x-request-id": given} if given else {})
    passed = [headers["x-request-id"] for headers in stubs[0].headers]
    assert passed[0] == "mine-1"
    assert all(re.fullmatch(r"req_[0-9a-f]{32}", made) for made in passed[1:])
    assert len(set(passed)) == 3


def test_a_replica_answers_under_the_id_that_nginx_passed(pair_of_replicas: Two, balance: Balance) -> None:
    url = balance(pair_of_replicas[0].url)
    assert httpx.get(f"{url}/health", headers={"x-request-id": "mine-2"}).headers["x-request-id"] == "mine-2"
    assert httpx.get(f"{url}/health").headers["x-request-id"].startswith("req_")


def test_every_request_leaves_a_line_and_no_probe_does(
    stubs: tuple[Stub, Stub], balance: Balance, tmp_path: Path
) -> None:
    url = balance(stubs[0].url)
    for path in ("/health", "/v1/x?key=secret", "/ready"):
        httpx.get(f"{url}{path}", headers={"x-request-id": f"mine{path[:3]}"})
    lines = [json.loads(line) for line in (tmp_path / "requests.log").read_text().splitlines()]
    [line] = [line for line in lines if line["request_id"].startswith("mine")]
    assert (line["path"], line["status"], line["replica_statuses"]) == ("/v1/x", 200, "200")
    assert line["replicas"] in stubs[0].url


def test_connections_are_kept(stubs: tuple[Stub, Stub], balance: Balance) -> None:
    url = balance(stubs[0].url)
    with httpx.Client() as client:
        for _ in range(20):
            assert client.post(f"{url}/v1/x", content=b"{}").text == "mine\n"
    assert stubs[0].connections == 1
    assert "connection" not in stubs[0].headers[0], "nobody asks the replica to close"


def test_what_nginx_says_itself_looks_like_the_servers(stubs: tuple[Stub, Stub], balance: Balance) -> None:
    url = balance(stubs[0].url)
    too_large = httpx.post(f"{url}/v1/completions", content=b"x" * (5 * 2**20), headers={"x-request-id": "mine"})
    assert too_large.status_code == 413
    assert too_large.json()["error"]["code"] == "request_too_large"
    assert too_large.headers["x-request-id"] == "mine"
    hidden = httpx.get(f"{url}/metrics")
    assert (hidden.status_code, hidden.json()["error"]["code"]) == (404, "not_found")
    assert not stubs[0].headers, "none of them reached the replica"


# When a replica cannot answer


def test_without_any_replica_it_is_503_in_the_servers_shape(balance: Balance) -> None:
    response = httpx.post(f"{balance('http://127.0.0.1:9', 'http://127.0.0.1:9')}/v1/completions", content=b"{}")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "5"
    assert response.headers["content-type"] == "application/json"
    assert response.json()["error"]["code"] == "service_unavailable"


def test_an_overloaded_replica_is_believed(stubs: tuple[Stub, Stub], balance: Balance) -> None:
    url = balance(*(one.url for one in stubs))
    for one in stubs:
        one.statuses["/busy"] = 429
    response = httpx.post(f"{url}/busy")
    assert (response.status_code, response.headers["retry-after"], response.text) == (429, "7", "mine\n")
    assert sum(len(one.headers) for one in stubs) == 1, "asked once"


def test_503_of_all_is_passed_on_and_makes_nobody_unreachable(stubs: tuple[Stub, Stub], balance: Balance) -> None:
    """A provider that is down makes every replica say 503 for its model; the other models must not suffer."""
    url = balance(*(one.url for one in stubs))
    for one in stubs:
        one.statuses["/down"] = 503
    for _ in range(4):
        response = httpx.post(f"{url}/down")
        assert (response.status_code, response.headers["retry-after"], response.text) == (503, "7", "mine\n")
        assert httpx.post(f"{url}/up").status_code == 200


def test_requests_go_to_the_other_one_when_one_is_dead(pair_of_replicas: Two, balance: Balance) -> None:
    one, other = pair_of_replicas
    url = balance(one.url, other.url)
    one.process.kill()
    one.left()
    other.run_free()
    assert [ask(url).status_code for _ in range(10)] == [200] * 10


def test_requests_go_to_the_other_one_while_one_drains(pair_of_replicas: Two, balance: Balance) -> None:
    one, other = pair_of_replicas
    url = balance(one.url, other.url)
    one.allow(1)
    with streaming(one.url) as events:
        one.send(signal.SIGTERM)
        eventually(lambda: status_of(f"{one.url}/ready") == 503)
        other.run_free()
        assert [ask(url).status_code for _ in range(10)] == [200] * 10
        one.run_free()
        assert list(events)[-1] == "[DONE]"
    assert one.left() == 0
    assert ask(url).status_code == 200


def test_what_waits_at_a_draining_replica_is_answered_by_the_other(pair_of_replicas: Two, balance: Balance) -> None:
    url = balance(*(running.url for running in pair_of_replicas))
    for running in pair_of_replicas:
        running.allow(1)
    with ThreadPoolExecutor() as threads, streaming(pair_of_replicas[0].url) as first:
        with streaming(pair_of_replicas[1].url) as second:
            waiting = threads.submit(ask, url)
            leaving, staying = asked(pair_of_replicas, waiting=1)
            leaving.send(signal.SIGTERM)
            staying.until("rows waiting: 1")
            for running in pair_of_replicas:
                running.run_free()
            assert list(second)[-1] == "[DONE]"
        assert list(first)[-1] == "[DONE]"
        assert waiting.result(SOON).status_code == 200
    assert leaving.left() == 0


def asked(two: Two, *, waiting: int) -> Two:
    """The replica that was asked, once that many rows wait there, and the other one."""
    found: list[Replica] = []

    def look() -> bool:
        for running in two:
            while not running.lines.empty():
                if f"rows waiting: {waiting}" in (running.lines.get() or ""):
                    found.append(running)
        return bool(found)

    eventually(look)
    return (found[0], two[1 - two.index(found[0])])


def test_an_answer_that_had_not_begun_survives_the_death_of_its_replica(
    pair_of_replicas: Two, balance: Balance
) -> None:
    url = balance(*(running.url for running in pair_of_replicas))
    with ThreadPoolExecutor() as threads:
        asking = threads.submit(ask, url)
        dying, staying = asked(pair_of_replicas, waiting=0)
        dying.process.kill()
        staying.run_free()
        assert asking.result(SOON).status_code == 200


def test_none_is_lost_when_one_dies_while_the_other_is_left_alone_for_a_failure(
    stubs: tuple[Stub, Stub], balance: Balance
) -> None:
    ill = stubs[0]
    ill.statuses["/health"] = 503
    with replica() as dying, ThreadPoolExecutor(8) as threads:
        url = balance(ill.url, dying.url)
        while not ill.headers:
            assert status_of(f"{url}/health") == 200
        asking = [threads.submit(ask, url) for _ in range(8)]
        for _ in asking:
            dying.until("rows waiting")
        dying.process.kill()
        assert [response.result(SOON).text for response in asking] == ["mine\n"] * 8


def test_an_answer_that_had_begun_is_not_begun_again(pair_of_replicas: Two, balance: Balance) -> None:
    url = balance(*(running.url for running in pair_of_replicas))
    for running in pair_of_replicas:
        running.allow(1)
    with streaming(url) as events:
        dying, staying = asked(pair_of_replicas, waiting=0)
        dying.process.kill()
        with pytest.raises(httpx.RemoteProtocolError):
            list(events)
    assert status_of(f"{staying.url}/health") == 200
    assert not any("rows waiting" in (line or "") for line in staying.lines.queue), "nobody asked it"
