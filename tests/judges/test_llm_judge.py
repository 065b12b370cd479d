"""The LLM judge: both orders, ties, verdicts that cannot be read, and what it is asked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.judges.answers import case, record
from w2s_core.errors import ConfigurationError, W2SError
from w2s_core.evaluation.records import EvalPrompt
from w2s_core.evaluation.retrying_client import RetryingClient
from w2s_core.judges.config import LLMJudgeConfig
from w2s_core.judges.judge import Case, Opinion
from w2s_core.judges.llm_judge import LLMJudge

CONFIG = LLMJudgeConfig(base_url="http://judge/v1", model="j")


def shown(question: str) -> tuple[str, str]:
    """The two answers in a question that was made of our prompt."""
    a, b = re.findall(r"<answer_[ab]>\n(.*?)\n</answer_[ab]>", question, re.DOTALL)
    return a, b


def prefers(choose: Callable[[str, str], str]) -> Callable[[dict[str, Any]], str]:
    """A judge by the two answers, in the order in which it reads them."""
    return lambda body: f"I think so. [[{choose(*shown(body['messages'][0]['content']))}]]"


class FakeAPI:
    """Answers chats by `judge`, with a text or a response, and keeps what was asked."""

    def __init__(self, judge: Callable[[dict[str, Any]], str | httpx.Response]) -> None:
        self.judge = judge
        self.asked: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.url == "http://judge/v1/chat/completions"
        self.asked.append(json.loads(request.content))
        said = self.judge(self.asked[-1])
        if isinstance(said, httpx.Response):
            return said
        return chat(said)


def chat(content: object) -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"message": {"content": content}}]})


async def judged(api: FakeAPI, which: Case, config: LLMJudgeConfig = CONFIG) -> Opinion:
    async def sleep(_seconds: float) -> None:
        pass

    async with httpx.AsyncClient(transport=httpx.MockTransport(api), base_url=config.base_url) as http:
        return await LLMJudge(config, RetryingClient(http, sleep))(which)


@pytest.mark.parametrize(("answer", "rival", "value"), [("good", "bad", 1.0), ("bad", "good", 0.0), ("x", "y", 0.5)])
async def test_the_better_answer_wins_in_both_orders(answer: str, rival: str, value: float) -> None:
    api = FakeAPI(prefers(lambda a, b: "A" if a == "good" else "B" if b == "good" else "C"))
    assert (await judged(api, case(answer, rival))).value == value
    questions = [shown(body["messages"][0]["content"]) for body in api.asked]
    assert questions == [(answer, rival), (rival, answer)]


@pytest.mark.parametrize("position", ["A", "B"])
async def test_a_judge_that_prefers_a_position_makes_a_tie(position: str) -> None:
    opinion = await judged(FakeAPI(lambda _: f"[[{position}]]"), case("one", "other"))
    assert opinion == Opinion(0.5, said=(f"[[{position}]]",) * 2)


async def test_a_win_in_one_order_alone_is_a_tie() -> None:
    api = FakeAPI(prefers(lambda a, _: "A" if a == "good" else "C"))
    assert (await judged(api, case("good", "bad"))).value == 0.5


async def test_content_in_parts_is_read_as_one_text() -> None:
    parts = [{"type": "text", "text": "Both are"}, {"type": "text", "text": " good. [[C]]"}]
    opinion = await judged(FakeAPI(lambda _: chat(parts)), case("one", "other"))
    assert opinion == Opinion(0.5, said=("Both are good. [[C]]",) * 2)
    with pytest.raises(ConfigurationError, match="not one of OpenAI's API"):
        await judged(
            FakeAPI(lambda _: httpx.Response(200, json={"choices": [{"message": {"content": [7]}}]})), case("a", "b")
        )


async def test_the_last_verdict_counts() -> None:
    api = FakeAPI(prefers(lambda a, _: f"C]] is a tie, [[{'A' if a == 'good' else 'B'}"))
    assert (await judged(api, case("good", "bad"))).value == 1.0


async def test_what_cannot_be_read_is_asked_once_more_with_another_seed() -> None:
    verdict = prefers(lambda a, _: "A" if a == "good" else "B")
    api = FakeAPI(lambda body: verdict(body) if body["seed"] else "Hm. [[D]]")
    opinion = await judged(api, case("good", "bad"))
    assert opinion == Opinion(1.0, said=("I think so. [[A]]", "I think so. [[B]]"))
    assert sorted(body["seed"] for body in api.asked) == [0, 0, 1, 1]


async def test_no_verdict_in_one_order_is_none_at_all() -> None:
    api = FakeAPI(prefers(lambda a, _: "A" if a == "good" else "?"))
    opinion = await judged(api, case("good", "bad"))
    assert (opinion.value, opinion.reason) == (None, "the judge gave no verdict")
    assert len(api.asked) == 3


async def test_equal_answers_tie_without_being_asked_about() -> None:
    api = FakeAPI(lambda _: "[[A]]")
    assert (await judged(api, case("same", "same"))).value == 0.5
    assert not api.asked


async def test_failures_that_pass_are_tried_again() -> None:
    responses = iter([httpx.Response(429, headers={"retry-after": "1"}), httpx.Response(502)])
    api = FakeAPI(lambda _: next(responses, None) or "[[C]]")
    assert (await judged(api, case("one", "other"))).value == 0.5
    assert len(api.asked) == 4


async def test_failures_that_stay_end_it() -> None:
    with pytest.raises(W2SError, match=r"\(500\)"):
        await judged(FakeAPI(lambda _: httpx.Response(500)), case("one", "other"))
    with pytest.raises(ConfigurationError, match=r"bad key \(401\)"):
        await judged(FakeAPI(lambda _: httpx.Response(401, json={"error": {"message": "bad key"}})), case("a", "b"))
    with pytest.raises(ConfigurationError, match="not one of OpenAI's API"):
        await judged(FakeAPI(lambda _: httpx.Response(200, json={"hello": 1})), case("a", "b"))


async def test_answers_that_are_too_long_for_the_judge_have_no_value() -> None:
    error = {"error": {"message": "too long", "code": "context_length_exceeded"}}
    opinion = await judged(FakeAPI(lambda _: httpx.Response(400, json=error)), case("one", "other"))
    assert opinion == Opinion(None, "it does not fit the judge's context")


async def test_the_request_is_one_that_any_api_takes() -> None:
    api = FakeAPI(lambda _: "[[C]]")
    await judged(api, case("one", "other"))
    assert set(api.asked[0]) == {"model", "messages", "max_tokens", "temperature", "seed"}
    api.asked.clear()
    await judged(
        api,
        case("one", "other"),
        LLMJudgeConfig(base_url="http://judge/v1", model="j", max_tokens=None, temperature=None),
    )
    assert set(api.asked[0]) == {"model", "messages", "seed"}


async def test_an_answer_that_looks_like_a_placeholder_stays_text() -> None:
    template = "{prompt}|{answer_a}|{answer_b}"
    api = FakeAPI(lambda _: "[[C]]")
    config = LLMJudgeConfig(base_url="http://judge/v1", model="j", prompt=template)
    await judged(api, case("{answer_b}", "{prompt}"), config)
    assert api.asked[0]["messages"][0]["content"] == "Why?|{answer_b}|{prompt}"


async def test_the_judge_of_two_turns_sees_both_conversations_whole() -> None:
    prompt = EvalPrompt("mt", ("First?", "Second?"))
    which = Case(prompt, record("mt", "ours", "a1", "a2"), "Be kind.", record("mt", "base", "b1", "b2"))
    api = FakeAPI(lambda _: "[[C]]")
    await judged(
        api, which, LLMJudgeConfig(base_url="http://judge/v1", model="j", prompt="{prompt}|{answer_a}|{answer_b}")
    )
    question = api.asked[0]["messages"][0]["content"]
    assert question.split("|") == [
        "### System\nBe kind.\n\n### User\nFirst?",
        "a1\n\n### User\nSecond?\n\n### Assistant\na2",
        "b1\n\n### User\nSecond?\n\n### Assistant\nb2",
    ]


async def test_a_text_that_was_continued_is_judged_with_its_beginning() -> None:
    prompt = EvalPrompt("t", ("A review: The plot",), chat=False, answer_prefix="The plot")
    api = FakeAPI(lambda _: "[[C]]")
    await judged(api, case(" thickens", " thins", prompt))
    assert shown(api.asked[0]["messages"][0]["content"]) == ("The plot thickens", "The plot thins")


def test_mistakes_name_their_key() -> None:
    config = LLMJudgeConfig(base_url="judge/v1", model="j", prompt="{prompt} {answer_a}")
    assert list(config.problems()) == [
        "base_url: must begin with http:// or https:// and name a host",
        "prompt: must have {answer_b}",
    ]
