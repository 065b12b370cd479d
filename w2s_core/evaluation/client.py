"""Asks a server for the answers: OpenAI's chat and completion endpoints, with `guidance` where a condition has any."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

from w2s_core.errors import ConfigurationError, W2SError
from w2s_core.evaluation.experiment import Condition, Experiment, Task
from w2s_core.evaluation.records import AnswerRecord, EvalPrompt, LeftOut
from w2s_core.evaluation.retrying_client import RetryingClient, Sleep, TooLongError, refusal
from w2s_core.guidance import SCORER_KEYS

CompletionPrompt = Callable[[EvalPrompt], str | Sequence[int]]
OWN_FIELDS = ("model", "messages", "prompt", "guidance", "seed", "n", "stream")
"""Fields of a request that are no sampling parameters: the experiment itself sets them."""
_BYTE = re.compile(r"\\x([0-9a-f]{2})")  # of a token that is a part of a character, in the format of completions


class NotServedError(ConfigurationError):
    """The server has no such model, pair, reward model or scorer as a condition names."""


class AnswerClient:
    """Asks for answers through `http`, a client with the server as its base URL.

    `system` is the system message of chats that have none of their own. `completion_prompts` make a condition's prompts
    of texts to complete, where it does not read them as they are.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        system: str | None = None,
        completion_prompts: Mapping[str, CompletionPrompt] | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._url = http.base_url
        self._client = RetryingClient(http, sleep)
        self._system = system
        self._completion_prompts = completion_prompts or {}

    async def check(self, experiment: Experiment) -> None:
        """Raises ConfigurationError unless the server answers and serves what every condition names.

        A server that is still loading is waited for; one that lists no models is taken as it is.
        """
        response = await self._client.get("/v1/models")
        if response.status_code == httpx.codes.NOT_FOUND:
            return
        if response.status_code != httpx.codes.OK:
            raise ConfigurationError(f"the server at {self._url} refuses: {refusal(response)}")
        try:
            served = {str(model["id"]): model.get("available_scorers") for model in response.json()["data"]}
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ConfigurationError(f"the server at {self._url} does not speak OpenAI's API.") from None
        for condition in experiment.conditions:
            if condition.model not in served:
                raise NotServedError(
                    f"conditions.{condition.name}.model: the server has no `{condition.model}` "
                    f"(it serves: {', '.join(served)})."
                )
            _check_scorers(condition, served[condition.model])

    async def answer(self, task: Task) -> AnswerRecord | LeftOut:
        """Asks for all turns, each after the model's own answers to those before.

        Raises ConfigurationError where the server refuses a request, and W2SError where it keeps failing.
        """
        answers: list[_Turn] = []
        try:
            for _ in task.prompt.turns:
                said = [answer.text for answer in answers]
                path, body = self._request(task.prompt, task.condition, said)
                answers.append(await self._post(path, {**body, "seed": task.request_seed}))
        except TooLongError as error:
            return LeftOut(task.prompt.id, task.condition.name, task.seed, str(error))
        except W2SError as error:
            where = f"condition `{task.condition.name}`, prompt `{task.prompt.id}`"
            raise type(error)(f"{where}: {error}") from None
        return _record(task, answers)

    def _request(self, prompt: EvalPrompt, condition: Condition, said: Sequence[str]) -> tuple[str, dict[str, Any]]:
        """The endpoint and the request for the turn after the answers `said`, without a seed."""
        body: dict[str, Any] = {"model": condition.model, **condition.sampling}
        if condition.guidance is not None:
            body["guidance"] = condition.guidance
        logprobs = body.pop("logprobs", True)
        if not prompt.chat:
            make_prompt = self._completion_prompts.get(condition.name)
            body["prompt"] = make_prompt(prompt) if make_prompt else prompt.turns[0]
            return "/v1/completions", body | ({"logprobs": 0} if logprobs else {})
        messages = prompt.messages(said, self._system)
        return "/v1/chat/completions", body | {"messages": messages} | ({"logprobs": True} if logprobs else {})

    async def _post(self, path: str, body: Mapping[str, Any]) -> _Turn:
        try:
            return _Turn(*await self._client.post(path, body))
        except (KeyError, IndexError, TypeError, ValueError):
            raise W2SError("the server's response is not one of OpenAI's API.") from None


def _check_scorers(condition: Condition, available: Any) -> None:
    """Raises NotServedError for a name that is not among the `available` scorers, where the server lists them."""
    for key in SCORER_KEYS:
        wanted = (condition.guidance or {}).get(key)
        names = available.get(key) if isinstance(available, dict) else None
        if isinstance(wanted, dict) and isinstance(names, list) and (missing := wanted.keys() - {*names}):
            raise NotServedError(
                f"conditions.{condition.name}.guidance.{key}: the server has no `{min(missing)}` "
                f"(it has: {', '.join(map(str, names)) or 'none'})."
            )


class _Turn:
    """What a response tells of the answer to one turn. Raises KeyError and the like for one that is not OpenAI's."""

    def __init__(self, response: Any, seconds: float) -> None:
        self.seconds = seconds
        choice, usage = response["choices"][0], response["usage"]
        text: str = choice["text"] if "text" in choice else choice["message"]["content"] or ""
        self.text = text.encode(errors="replace").decode()  # half a surrogate pair cannot be written to a file
        self.finish_reason: str = choice["finish_reason"]
        self.prompt_tokens: int = usage["prompt_tokens"]
        self.completion_tokens: int = usage["completion_tokens"]
        search = response.get("guidance") or {}
        self.sampled_tokens: int = search.get("sampled_tokens", self.completion_tokens)
        tokens = _tokens(choice.get("logprobs") or {})
        if self.finish_reason == "stop" and tokens and not _is_text(tokens[-1][0], self.text):
            del tokens[-1]  # it ended the answer; one that was cut off has none
        self.logprobs = [nats for _, nats in tokens]


def _tokens(logprobs: Mapping[str, Any]) -> list[tuple[bytes, float]]:
    """The tokens' bytes and log-probabilities, from the format of either endpoint; none if there are none."""
    if logprobs.get("content") is not None:
        return [(bytes(token["bytes"] or ()), token["logprob"]) for token in logprobs["content"]]
    return [
        (bytes.fromhex("".join(_BYTE.findall(token))) if token.startswith("bytes:") else token.encode(), nats)
        for token, nats in zip(logprobs.get("tokens", ()), logprobs.get("token_logprobs", ()), strict=True)
    ]


def _is_text(token: bytes, text: str) -> bool:
    return bool(token) and text.encode().endswith(token)


def _record(task: Task, turns: Sequence[_Turn]) -> AnswerRecord:
    logprobs = [value for turn in turns for value in turn.logprobs]
    return AnswerRecord(
        prompt=task.prompt.id,
        condition=task.condition.name,
        seed=task.seed,
        texts=tuple(turn.text for turn in turns),
        finish_reasons=tuple(turn.finish_reason for turn in turns),
        prompt_tokens=sum(turn.prompt_tokens for turn in turns),
        completion_tokens=sum(turn.completion_tokens for turn in turns),
        sampled_tokens=sum(turn.sampled_tokens for turn in turns),
        seconds=sum(turn.seconds for turn in turns),
        logprob=sum(logprobs) / len(logprobs) if logprobs else None,
    )
