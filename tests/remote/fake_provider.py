"""A provider with a known distribution, called without a socket: in vLLM's dialect, or in OpenAI's public one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

from w2s_core.config import RemoteLargeModelConfig
from w2s_core.errors import UnavailableError, UpstreamRefusedError
from w2s_core.search.randomness import root_key, uniform
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Tokens

MODEL = "remote-model"
PUBLIC = {"model", "prompt", "max_tokens", "temperature", "top_p", "n", "seed", "logprobs", "echo", "logit_bias"}
PUBLIC |= {"stream", "stream_options"}
Distribution = Callable[[Tokens], Mapping[int, float]]


def words(
    tokenizer: HFTokenizer,
    texts: Sequence[str] = ("a", "b", " ", "é", "☃"),
    eos: float = 0.1,
    turn: Callable[[Tokens], int] = len,
) -> Distribution:
    """Any of these characters next, or EOS; a character that has begun is completed. `turn` of all that came before
    decides how they are liked."""
    encoded = [tokenizer.encode(text, special_tokens=False) for text in texts]
    assert tokenizer.eos is not None
    end = tokenizer.eos

    def after(context: Tokens) -> Mapping[int, float]:
        for tokens in encoded:
            for size in range(1, len(tokens)):
                if context[-size:] == tokens[:size]:
                    return {tokens[size]: 1.0}
        # Not equal, so that a wrong log-probability shows; and another order every time, so that greedy wanders.
        weights = [1 + (turn(context) + i) % len(encoded) for i in range(len(encoded))]
        table = {t[0]: (1 - eos) * w / sum(weights) for t, w in zip(encoded, weights, strict=True)}
        return table | ({end: eos} if eos else {})

    return after


class FakeProvider:
    """Looks like `Provider`. `flavor` "openai" refuses fields that the public API has not. `calls` are the bodies.

    `down` makes it refuse everything; `spoil(answer)` may change an answer; `fewer` leaves out that many choices of the
    first call; `lists_context` tells max_model_len; without `streams` a stream is refused. `gate` is awaited before
    every answer, and `event_gate` before every event of a stream.
    """

    def __init__(
        self,
        tokenizer: HFTokenizer,
        distribution: Distribution | None = None,
        *,
        flavor: str = "vllm",
        lists_context: bool = True,
        streams: bool = True,
    ) -> None:
        self.name = "far"
        self.config = RemoteLargeModelConfig(base_url="http://far/v1", model=MODEL)
        self.tokenizer = tokenizer
        self.distribution = distribution or words(tokenizer)
        self.flavor = flavor
        self.lists_context = lists_context
        self.streams = streams
        self.down = False
        self.running = False
        self.fewer = 0
        self.spoil: Callable[[dict[str, Any]], object] = lambda answer: None
        self.gate: Callable[[], Any] | None = None
        self.event_gate: Callable[[], Any] | None = None
        self.open_calls = 0
        self.calls: list[dict[str, Any]] = []

    @property
    def available(self) -> bool:
        return not self.down

    async def start(self) -> None:
        self.running = True

    async def stop(self) -> None:
        self.running = False

    async def get(self, path: str) -> dict[str, Any]:
        assert path == "/models"
        self._check_up()
        length = {"max_model_len": 500} if self.lists_context else {}
        return {"data": [{"id": MODEL, **length}]}

    async def post(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        affinity: int | None = None,
        on_cancelled: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        assert path == "/completions"
        assert body["model"] == MODEL
        self._check_up()
        if self.flavor == "openai" and (unknown := set(body) - PUBLIC):
            raise UpstreamRefusedError(f"Unknown fields: {unknown}")
        if body.get("stream") and not self.streams:
            raise UpstreamRefusedError("Streaming is not supported.")
        self.calls.append(dict(body))
        with self._open_call(on_cancelled):
            if self.gate:
                await self.gate()
        answer = self._answer(body)
        self.spoil(answer)
        return answer

    async def stream(
        self,
        path: str,
        body: Mapping[str, Any],
        reader: Callable[[], Any],
        *,
        affinity: int | None = None,
        tokens: int = 0,
    ) -> Any:
        answer, stream = await self.post(path, body, affinity=affinity), reader()
        for event in events_of(answer):
            with self._open_call():
                if self.event_gate:
                    await self.event_gate()
            stream.feed(event)
        return stream

    @contextmanager
    def _open_call(self, on_cancelled: Callable[[], None] = lambda: None) -> Iterator[None]:
        self.open_calls += 1
        try:
            yield
        except asyncio.CancelledError:
            on_cancelled()
            raise
        finally:
            self.open_calls -= 1

    def draw(self, context: Tokens, *, seed: int, length: int, greedy: bool = False) -> tuple[Tokens, list[float]]:
        """What one choice is, EOS included."""
        key, drawn, logprobs = root_key(seed), [], []
        for position in range(length):
            table = self.distribution((*context, *drawn))
            token = max(table, key=lambda t: table[t]) if greedy else _pick(table, uniform(key, position))
            drawn.append(token)
            logprobs.append(math.log(table[token]))
            if token == self.tokenizer.eos:
                break
        return tuple(drawn), logprobs

    def logprobs_of(self, tokens: Tokens) -> list[float | None]:
        """Of each token behind those before it; −inf, as JSON can say it, where it is impossible."""
        told: list[float | None] = [None]
        for i in range(1, len(tokens)):
            probability = self.distribution(tokens[:i]).get(tokens[i], 0.0)
            told.append(math.log(probability) if probability else -9999.0)
        return told

    def _answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        text = isinstance(body["prompt"], str)
        prompt = self.tokenizer.encode(body["prompt"], special_tokens=True) if text else tuple(body["prompt"])
        n = body.get("n", 1) - self.fewer
        self.fewer = 0
        choices = [self._choice(body, prompt, i) for i in range(n)]
        sampled = sum(choice.pop("_drawn") for choice in choices)
        return {"choices": choices, "usage": {"prompt_tokens": len(prompt), "completion_tokens": sampled}}

    def _choice(self, body: Mapping[str, Any], prompt: Tokens, index: int) -> dict[str, Any]:
        drawn, logprobs = self.draw(
            prompt, seed=body.get("seed", 0) + index, length=body["max_tokens"], greedy=body.get("temperature") == 0
        )
        ended = drawn[-1:] == (self.tokenizer.eos,)
        shown = drawn[:-1] if ended and self.flavor == "openai" else drawn
        text = self.tokenizer.decode(drawn)
        told: list[float | None] = [*logprobs[: len(shown)]]
        if body.get("echo"):
            text, told, shown = self.tokenizer.decode(prompt) + text, self.logprobs_of(prompt) + told, prompt + shown
        choice: dict[str, Any] = {"index": index, "text": text, "finish_reason": "stop" if ended else "length"}
        names = [self._name(token) for token in shown]
        offsets = [len(self.tokenizer.decode(shown[:i]).rstrip("\ufffd")) for i in range(len(shown))]
        choice["logprobs"] = {"tokens": names, "token_logprobs": told, "text_offset": offsets}
        if body.get("return_token_ids"):
            choice |= {"token_ids": list(drawn), "prompt_token_ids": list(prompt)}
        if body.get("prompt_logprobs") is not None:
            values = zip(prompt, self.logprobs_of(prompt), strict=True)
            choice["prompt_logprobs"] = [None if v is None else {str(t): {"logprob": v, "rank": 1}} for t, v in values]
        return choice | {"_drawn": len(drawn)}

    def _name(self, token: int) -> str:
        piece = self.tokenizer.token_text(token)
        if piece.text is not None or piece.bytes is None:
            return piece.text or ""
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece.bytes)

    def _check_up(self) -> None:
        if self.down:
            raise UnavailableError("The provider is down.", 3)


def events_of(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The events that stream this answer: the choices in turn, a token in each, and the usage."""
    streams = [_deltas(choice) for choice in answer["choices"]]
    deltas = [delta for turn in zip_longest(*streams) for delta in turn if delta is not None]
    return [*({"choices": [delta]} for delta in deltas), {"choices": [], "usage": answer.get("usage")}]


def _deltas(choice: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """At least one. A character's text comes with its last token."""
    logprobs = choice["logprobs"]
    ids, names, index = choice.get("token_ids"), logprobs["tokens"], choice["index"]
    count, offsets, sent = max(1, len(names if ids is None else ids)), logprobs.get("text_offset", ()), 0
    for i in range(count):
        last = i == count - 1
        end = len(choice["text"]) if last else (*offsets, *[len(choice["text"])] * count)[i + 1]
        delta = {"index": index, "text": choice["text"][sent:end], "finish_reason": None}
        sent = end
        delta["logprobs"] = {key: values[i : i + 1] for key, values in logprobs.items()}
        delta |= {} if ids is None else {"token_ids": ids[i : i + 1]}
        yield delta | {key: choice[key] for key in ("finish_reason", "stop_reason") if last and key in choice}


def _pick(table: Mapping[int, float], u: float) -> int:
    total = 0.0
    for token, probability in table.items():
        total += probability
        if u < total:
            return token
    return list(table)[-1]
