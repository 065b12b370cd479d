"""A provider of a tiny reward model in vLLM's dialect, on a real socket: `/classify` and `/pooling` beside `/v1`."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from transformers import AutoModelForSequenceClassification

from tests.server.conftest import uvicorn_server
from w2s_core.text.tokenizer import HFTokenizer

MODEL = "far-rewards"


class FakeClassifier:
    """Answers with the raw outputs of the classifier in `folder`.

    `missing` are endpoints that it does not have. `activates`: it returns probabilities, whatever is asked for. With
    `per_token`, `/pooling` returns the outputs of every token. `failures` are statuses of the next calls. `spoil` may
    change an answer. `gate` is awaited before every answer. `calls` are (endpoint, body), `headers` those of the last.
    """

    def __init__(self, folder: Path, *, context_length: int = 200) -> None:
        self.tokenizer = HFTokenizer(str(folder))
        self.missing: set[str] = set()
        self.activates = self.per_token = False
        self.lists_context = True
        self.context_length = context_length
        self.failures: deque[int] = deque()
        self.spoil: Callable[[dict[str, Any]], object] = lambda answer: None
        self.gate: Callable[[], Awaitable[object]] | None = None
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.headers: dict[str, str] = {}
        self.open_calls = 0
        self._model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        """Yields the URL, without /v1."""
        async with uvicorn_server(self._application(), 0) as (url, _):
            yield url

    def _application(self) -> FastAPI:
        app = FastAPI()

        @app.get("/v1/models")
        async def models() -> Any:
            length = {"max_model_len": self.context_length} if self.lists_context else {}
            return {"data": [{"id": MODEL, **length}]}

        @app.post("/{endpoint}")
        async def answer(endpoint: str, request: Request) -> Any:
            body, self.headers = await request.json(), dict(request.headers)
            answering = asyncio.ensure_future(self._answer(endpoint, body))
            self.open_calls += 1
            try:
                while not answering.done() and not await request.is_disconnected():
                    await asyncio.wait([answering], timeout=0.01)
                if not answering.done():
                    answering.cancel()
                    return None
                return await answering
            finally:
                self.open_calls -= 1
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.gather(answering, return_exceptions=True)

        return app

    async def _answer(self, endpoint: str, body: dict[str, Any]) -> Any:
        self.calls.append((endpoint, body))
        if endpoint not in {"classify", "pooling"} - self.missing or body["model"] != MODEL:
            return _error(404, "Not Found")
        if self.failures:
            return _error(self.failures.popleft(), "It failed.")
        inputs = [each if isinstance(each, list) else self._encode(each) for each in body["input"]]
        if (longest := max(map(len, inputs))) > self.context_length:
            length = f"This model's maximum context length is {self.context_length} tokens. However, you requested "
            return _error(400, f"{length}{longest} tokens in the input for classification.")
        if self.gate is not None:
            await self.gate()
        items = [self._item(endpoint, i, tokens, body) for i, tokens in enumerate(inputs)]
        usage = {"prompt_tokens": sum(map(len, inputs)), "total_tokens": sum(map(len, inputs)), "completion_tokens": 0}
        answer = {"id": "x", "object": "list", "created": 1, "model": MODEL, "data": items, "usage": usage}
        self.spoil(answer)
        return answer

    def _encode(self, text: str) -> Sequence[int]:
        return self.tokenizer.encode(text, special_tokens=True)

    def _item(self, endpoint: str, index: int, tokens: Sequence[int], body: dict[str, Any]) -> dict[str, Any]:
        outputs = self.outputs(tokens)
        if self.activates or body.get("use_activation", True):
            outputs = outputs.softmax(-1) if outputs.shape[-1] > 1 else outputs.sigmoid()
        last = outputs[-1].tolist()
        if endpoint == "classify":
            label = self._model.config.id2label[int(outputs[-1].argmax())]
            return {"index": index, "label": label, "probs": last, "num_classes": len(last)}
        return {"index": index, "object": "pooling", "data": outputs.tolist() if self.per_token else last}

    def outputs(self, tokens: Sequence[int]) -> torch.Tensor:
        """The raw outputs (tokens, outputs) after each token."""
        with torch.inference_mode():
            hidden = self._model.base_model(input_ids=torch.tensor([list(tokens)]))[0]
            outputs: torch.Tensor = self._model.score(hidden)[0]
        return outputs


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "x", "param": None, "code": status}}, status)
