"""A server of answers within the tests' process, and experiments that ask it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from w2s_core.evaluation.client import AnswerClient
from w2s_core.evaluation.experiment import Condition, Experiment
from w2s_core.evaluation.records import AnswerRecord, EvalPrompt, LeftOut

CHAT, COMPLETION = EvalPrompt("c", ("Hello",)), EvalPrompt("t", ("Once",), chat=False)
PLAIN = Condition("plain", "m")
GUIDED = Condition("guided", "m", {"beam_width": 2}, {"max_tokens": 5}, seeds=2)


def chat_answer(text: str, **more: Any) -> dict[str, Any]:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | more.pop("choice", {})
    return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}, **more}


def completion_answer(text: str, tokens: list[str], nats: list[float]) -> dict[str, Any]:
    choice = {"text": text, "finish_reason": "stop", "logprobs": {"tokens": tokens, "token_logprobs": nats}}
    return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": len(tokens)}}


Respond = Callable[[str, Mapping[str, Any]], httpx.Response]


class FakeServer:
    """Answers by `respond` what is posted, and keeps it. It serves `m`."""

    def __init__(self, respond: Respond = lambda _path, body: httpx.Response(200, json=chat_answer("Hi"))) -> None:
        self.respond = respond
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def _handle(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        body = json.loads(request.content)
        self.asked.append((request.url.path, body))
        return self.respond(request.url.path, body)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self._handle), base_url="http://server")

    @property
    def seeds(self) -> list[int]:
        return [body["seed"] for _, body in self.asked]


def experiment(*conditions: Condition, prompts: tuple[EvalPrompt, ...] = (CHAT,), **more: Any) -> Experiment:
    return Experiment(prompts, conditions or (PLAIN,), (conditions or (PLAIN,))[0].name, **more)


async def answer(server: FakeServer, tasks: Experiment, **options: Any) -> AnswerRecord | LeftOut:
    async with server.client() as http:
        return await AnswerClient(http, **options).answer(tasks.tasks[0])
