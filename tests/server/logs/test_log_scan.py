"""A server's whole output at level debug contains no API key, no prompt and no answer, however requests end."""

from __future__ import annotations

import json
import logging
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.conftest import Listener
from tests.replica import SOON, Replica, replica

KEY, OTHER, WRONG = "sk-scanned-for-1", "sk-scanned-for-2", "sk-scanned-for-3"
PROMPT = "Zanzibar"  # no letter of the fake model's alphabet stands beside another of these
BODY = {"model": "guided", "prompt": PROMPT, "max_tokens": 6, "seed": 1}
CHAT = {"model": "plain", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3}
COMPLETIONS, CONVERSATIONS = "/v1/completions", "/v1/chat/completions"


def representative_requests(running: Replica) -> list[int]:
    """The statuses of requests that end in every way a client can cause."""
    with httpx.Client(base_url=running.url, timeout=SOON, headers={"authorization": f"Bearer {KEY}"}) as client:
        answers = [
            client.post(COMPLETIONS, json=BODY),
            client.post(COMPLETIONS, json=BODY | {"stream": True}),
            client.post(CONVERSATIONS, json=CHAT | {"stream": True}),
            client.post(COMPLETIONS, json=BODY | {"echo": True, "logprobs": 2, "model": "plain"}),
            client.post("/tokenize", json={"model": "plain", "prompt": PROMPT}),
            client.post(COMPLETIONS, json=BODY, headers={"authorization": f"Bearer {WRONG}"}),
            client.post(COMPLETIONS, json=BODY, headers={"authorization": WRONG}),
            client.post(f"{COMPLETIONS}?key={KEY}&prompt={PROMPT}", json=BODY | {"temperature": PROMPT}),
            client.post(COMPLETIONS, json=BODY | {PROMPT: KEY}),
            client.post(COMPLETIONS, json=BODY | {"model": PROMPT}),
            client.post(COMPLETIONS, json=BODY | {"prompt": PROMPT * 1000}),
            client.post(COMPLETIONS, json=BODY | {"n": 50}),
            client.post(COMPLETIONS, content=f'{{"prompt": "{PROMPT}'.encode()),
            client.post(CONVERSATIONS, json={**CHAT, "messages": [{"role": "tool", "content": PROMPT}]}),
            client.post(COMPLETIONS, content=PROMPT.encode() * 1000),
            client.get("/v1/models", headers={f"x-{KEY}": PROMPT * 3000}),
            client.get("/nowhere", headers={"cookie": KEY}),
        ]
    parts = urlsplit(running.url)
    with socket.create_connection((parts.hostname, parts.port), SOON) as raw:
        raw.sendall(f"{KEY} {PROMPT}\r\n{KEY}\r\n\r\n".encode())
        answers_raw = raw.recv(1000)
    return [*(answer.status_code for answer in answers), int(answers_raw.split()[1])]


STATUSES = [200] * 5 + [401] * 2 + [400, 400, 404, 413, 400, 400, 400, 413, 431, 404, 400]


@pytest.mark.parametrize("form", ["human", "json"])
def test_no_key_and_no_prompt_in_a_whole_servers_output(tmp_path: Path, form: str) -> None:
    (tmp_path / "keys.yaml").write_text(f"alice: {KEY}\n")
    with replica(
        SERVER__LOG_LEVEL="debug",
        SERVER__LOG_FORMAT=form,
        SERVER__MAX_BODY_BYTES="4000",
        SERVER__API_KEYS=OTHER,
        SERVER__API_KEYS_FILE=str(tmp_path / "keys.yaml"),
    ) as running:
        running.run_free()
        assert representative_requests(running) == STATUSES
        output = "".join(running.seen)
    assert output.count("alice") > 10, "the keys' names are there"
    assert not [line for line in output.splitlines() if "sk-scanned-for" in line or PROMPT in line]


def test_prompts_and_answers_are_there_when_asked_for(tmp_path: Path) -> None:
    with replica(SERVER__LOG_PROMPTS="true", SERVER__LOG_FORMAT="json", SERVER__API_KEYS=KEY) as running:
        running.run_free()
        headers = {"authorization": f"Bearer {KEY}"}
        answer = httpx.post(running.url + COMPLETIONS, json=BODY, headers=headers, timeout=SOON).json()
        line: dict[str, Any] = json.loads(running.until("POST /v1/completions"))
    assert line["prompts"][0]["text"] == PROMPT
    assert line["answers"] == [choice["text"] for choice in answer["choices"]]
    assert KEY not in "".join(running.seen)


def test_the_listener_of_all_tests_hears(_no_key_is_logged: Listener) -> None:  # noqa: PT019
    logging.getLogger("some.library").warning("header: %s", f"Bearer {KEY}")
    try:
        assert _no_key_is_logged.shown == [f"header: Bearer {KEY}"]
    finally:
        _no_key_is_logged.shown.clear()
