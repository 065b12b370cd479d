"""Asking a server for answers: what is sent, what is read, and what is tried again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.evaluation.fake_server import (
    CHAT,
    COMPLETION,
    GUIDED,
    PLAIN,
    FakeServer,
    answer,
    chat_answer,
    completion_answer,
    experiment,
)
from w2s_core.errors import ConfigurationError, W2SError
from w2s_core.evaluation.client import AnswerClient
from w2s_core.evaluation.experiment import Condition, grid
from w2s_core.evaluation.records import AnswerRecord, EvalPrompt, LeftOut
from w2s_core.evaluation.run import Evaluation, Judgements, run


async def test_a_chat_is_asked_as_openai_wants_it() -> None:
    server = FakeServer()
    condition = Condition("g", "m", {"beam_width": 2}, {"max_tokens": 5, "temperature": 0.5})
    await answer(server, experiment(condition), system="Be brief.")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    body = {"model": "m", "messages": messages, "max_tokens": 5, "temperature": 0.5, "guidance": {"beam_width": 2}}
    assert server.asked == [("/v1/chat/completions", body | {"logprobs": True, "seed": 0})]


async def test_a_plain_request_has_no_field_that_openai_does_not_know() -> None:
    server = FakeServer()
    await answer(server, experiment(Condition("p", "m", sampling={"logprobs": False})))
    assert set(server.asked[0][1]) == {"model", "messages", "seed"}


async def test_a_prompts_own_system_message_stays_alone() -> None:
    server = FakeServer()
    prompt = EvalPrompt("c", ("Hello",), history=({"role": "system", "content": "Rhyme."},))
    await answer(server, experiment(prompts=(prompt,)), system="Be brief.")
    assert [m["content"] for m in server.asked[0][1]["messages"]] == ["Rhyme.", "Hello"]


async def test_the_second_turn_follows_the_models_own_answer() -> None:
    server = FakeServer(lambda _, body: httpx.Response(200, json=chat_answer(f"answer {len(body['messages'])}")))
    record = await answer(server, experiment(prompts=(EvalPrompt("mt", ("First?", "Second?")),)))
    assert [m["content"] for m in server.asked[1][1]["messages"]] == ["First?", "answer 1", "Second?"]
    assert isinstance(record, AnswerRecord)
    assert record.texts == ("answer 1", "answer 3")
    assert (record.prompt_tokens, record.completion_tokens, record.sampled_tokens) == (6, 4, 4)


async def test_a_search_tells_what_it_sampled() -> None:
    server = FakeServer(lambda *_: httpx.Response(200, json=chat_answer("Hi", guidance={"sampled_tokens": 80})))
    record = await answer(server, experiment(GUIDED))
    assert isinstance(record, AnswerRecord)
    assert (record.completion_tokens, record.sampled_tokens, record.logprob) == (2, 80, None)


@pytest.mark.parametrize(
    ("text", "tokens", "expected"),
    [
        ("a b", ["a", " b"], -2.0),
        ("a b", ["a", " b", "<eos>"], -2.0),
        ("a b", ["a", " b", ""], -2.0),
        ("aé", ["a", r"bytes:\xc3", r"bytes:\xa9"], -3.0),
        ("aé", ["a", r"bytes:\xc3", r"bytes:\xa9", "<eos>"], -3.0),
        ("", ["<eos>"], None),
    ],
)
async def test_the_token_that_ended_the_answer_is_no_part_of_its_likelihood(
    text: str, tokens: list[str], expected: float | None
) -> None:
    nats = [-1.0, -3.0, -5.0, -20.0][: len(tokens)]
    server = FakeServer(lambda *_: httpx.Response(200, json=completion_answer(text, tokens, nats)))
    record = await answer(server, experiment(prompts=(COMPLETION,)))
    assert isinstance(record, AnswerRecord)
    assert record.logprob == expected
    content = [{"token": t, "bytes": None if "<" in t else list(t.encode()), "logprob": -1.0} for t in ("Hi", "<eos>")]
    server = FakeServer(
        lambda *_: httpx.Response(200, json=chat_answer("Hi", choice={"logprobs": {"content": content}}))
    )
    record = await answer(server, experiment())
    assert isinstance(record, AnswerRecord)
    assert record.logprob == -1.0


async def test_seeds_are_the_same_for_all_conditions_and_differ_between_prompts(tmp_path: Path) -> None:
    server = FakeServer(lambda path, _: httpx.Response(200, json=chat_answer("Hi")))
    prompts = (CHAT, EvalPrompt("d", ("Bye",)))
    await run(experiment(GUIDED, Condition("q", "m", seeds=2), prompts=prompts), tmp_path, server.client(), 1)
    assert server.seeds == [0, 0, 1_000_003, 1_000_003, 1, 1, 1_000_004, 1_000_004]


async def test_a_busy_server_is_asked_again_when_it_says() -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    def busy_twice(*_: Any) -> httpx.Response:
        if len(server.asked) == 1:
            return httpx.Response(429, headers={"retry-after": "120"}, json={})
        if len(server.asked) == 2:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json=chat_answer("Hi"))

    server = FakeServer(busy_twice)
    record = await answer(server, experiment(), sleep=sleep)
    assert isinstance(record, AnswerRecord)
    assert waits[0] == 120
    assert 0 <= waits[1] <= 60


async def test_a_server_that_keeps_failing_is_given_up() -> None:
    async def sleep(seconds: float) -> None:
        pass

    server = FakeServer(lambda *_: httpx.Response(503, json={"error": {"message": "Loading."}}))
    with pytest.raises(W2SError, match=r"^condition `plain`, prompt `c`: Loading\. \(503\)$"):
        await answer(server, experiment(), sleep=sleep)
    assert len(server.asked) == 10


async def test_a_refusal_names_condition_and_prompt_and_keeps_the_rest(tmp_path: Path) -> None:
    def refuse_second(_: str, body: Mapping[str, Any]) -> httpx.Response:
        if body["messages"][0]["content"] == "bad":
            return httpx.Response(400, json={"error": {"message": "`guidance`: no."}})
        return httpx.Response(200, json=chat_answer("Hi"))

    server = FakeServer(refuse_second)
    tasks = experiment(prompts=(CHAT, EvalPrompt("b", ("bad",)), EvalPrompt("d", ("later",))))
    with pytest.raises(ConfigurationError) as caught:
        await run(tasks, tmp_path, server.client(), 1)
    assert str(caught.value) == (
        "condition `plain`, prompt `b`: `guidance`: no. (400) 1 of 3 answers are in "
        f"{tmp_path}; the same command goes on from there."
    )
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 1
    with pytest.raises(ConfigurationError, match=r"^condition `plain`, prompt `b`: `guidance`: no\. \(400\)$"):
        await run(experiment(prompts=(EvalPrompt("b", ("bad",)),)), tmp_path / "none", server.client(), 1)
    assert not (tmp_path / "none").exists(), "there is nothing to go on from"


async def test_a_prompt_that_does_not_fit_is_left_out_and_not_asked_again(tmp_path: Path) -> None:
    message = "This model's maximum context length is 8 tokens."

    def too_long(_: str, body: Mapping[str, Any]) -> httpx.Response:
        if body["messages"][0]["content"] == "long":
            return httpx.Response(400, json={"error": {"message": message, "code": 400}})
        return httpx.Response(200, json=chat_answer("Hi"))

    server = FakeServer(too_long)
    tasks = experiment(prompts=(EvalPrompt("l", ("long",)), CHAT))
    results = await run(tasks, tmp_path, server.client(), 2)
    assert results.left_out == [LeftOut("l", "plain", 0, message)]
    assert "1 answers to 1 prompts are left out" in results.as_text()
    assert results.summaries[0].answers == 1
    await run(tasks, tmp_path, server.client(), 2)
    assert len(server.asked) == 2


async def test_a_model_that_is_not_served_is_found_before_anything_is_asked(tmp_path: Path) -> None:
    server = FakeServer()
    with pytest.raises(ConfigurationError, match=r"^conditions\.x\.model: the server has no `y` \(it serves: m\)\.$"):
        await run(experiment(Condition("x", "y")), tmp_path, server.client(), 1)
    assert not server.asked


async def test_a_server_that_loads_is_waited_for_and_one_that_lists_nothing_is_taken() -> None:
    responses = [httpx.Response(503, headers={"retry-after": "5"}, json={}), httpx.Response(404, json={})]
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    transport = httpx.MockTransport(lambda _: responses.pop(0))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
        await AnswerClient(http, sleep=sleep).check(experiment())
    assert len(waits) == 1
    assert not responses


async def test_judges_get_the_answers_and_their_findings_are_published(tmp_path: Path) -> None:
    seen: list[Evaluation] = []

    async def judge(evaluation: Evaluation) -> Judgements:
        seen.append(evaluation)
        return Judgements({"won": 0.5}, "guided wins half")

    results = await run(experiment(PLAIN, GUIDED), tmp_path, FakeServer().client(), 2, judge)
    (evaluation,) = seen
    assert [a.key for a in evaluation.answers] == [("plain", "c", 0), ("guided", "c", 0), ("guided", "c", 1)]
    assert evaluation.folder == tmp_path
    assert [s.condition for s in evaluation.summaries] == ["plain", "guided"]
    assert results.as_text().endswith("guided wins half")
    assert json.loads((tmp_path / "results.json").read_text())["judgements"] == {"won": 0.5}


def test_a_grid_is_the_product_of_its_lists() -> None:
    guidance = {"pairs": {"positive": [0.5, 1]}, "chunk_length": 5, "beam_width": [2, 4]}
    assert list(grid("CBS", guidance)) == [
        (f"CBS pairs.positive={p}, beam_width={w}", {"pairs": {"positive": p}, "chunk_length": 5, "beam_width": w})
        for p in (0.5, 1)
        for w in (2, 4)
    ]
    assert list(grid("CBS", {"beam_width": 2})) == [("CBS", {"beam_width": 2})]


def test_a_condition_costs_its_rows() -> None:
    plain, search, best = (
        Condition("", "m", guidance, {"max_tokens": 10}).cost
        for guidance in (None, {"beam_width": 2}, {"method": "best_of_n", "successors": 16})
    )
    assert (plain, search, best) == (50, 120, 200)
    assert Condition("", "m", {"beam_width": "x"}).cost > 0, "the server says what is wrong with it"
