"""A remote reward model's calls: one for a round, made early and once, retried, and ended with the session."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.remote.fake_classifier import FakeClassifier
from tests.remote.test_reward_models import PROMPT, answers, expected, rewards, scorer_on
from tests.remote.test_reward_models import folder as folder  # noqa: PLC0414  (a fixture)


async def test_a_round_is_one_call_and_a_known_answer_is_not_sent_again(folder: Path) -> None:
    provider = FakeClassifier(folder)
    async with scorer_on(provider, label=0, tokenizer=str(folder)) as scorer, scorer.open(PROMPT) as scoring:
        first, more = answers("a", "b", "c"), answers("ab")
        await scoring.score([*first, first[0]])
        await scoring.score([*first[:2], *more])
        await scoring.score([*first[:2], *more])
        await scoring.score(first[4:])  # not named above, so forgotten
        assert [len(body["input"]) for _, body in provider.calls] == [6, 2, 2]
        sent = [tokens for _, body in provider.calls for tokens in body["input"]]
        assert scoring.provider_usage.calls == 3
        assert scoring.scored_tokens == scoring.provider_usage.prompt_tokens == sum(map(len, sent))


async def test_what_is_expected_is_asked_for_meanwhile_and_once(folder: Path) -> None:
    provider, go = FakeClassifier(folder), asyncio.Event()
    async with (
        scorer_on(provider, label=0, tokenizer=str(folder)) as scorer,
        asyncio.timeout(60),
        scorer.open(PROMPT) as scoring,
    ):
        provider.gate = go.wait
        first, more = answers("a"), answers("b")
        await scoring.prefetch(first)  # returns although nothing is answered
        asking = asyncio.create_task(scoring.score([*first, *more]))
        while provider.open_calls < 2:
            await asyncio.sleep(0)
        go.set()
        found = [score.total for score in await asking]
        assert found == pytest.approx([expected(provider, "Say ", y) for y in [*first, *more]], abs=1e-4)
        assert [len(body["input"]) for _, body in provider.calls] == [2, 2]


async def test_a_session_that_ends_ends_its_calls(folder: Path) -> None:
    provider = FakeClassifier(folder)
    async with scorer_on(provider, label=0, tokenizer=str(folder)) as scorer, asyncio.timeout(60):
        provider.gate = asyncio.Event().wait
        async with scorer.open(PROMPT) as scoring:
            await scoring.prefetch(answers("a"))
            [call] = set(scoring._tasks.values())
            while not provider.open_calls:
                await asyncio.sleep(0)
        assert call.cancelled()
        while provider.open_calls:
            await asyncio.sleep(0)


async def test_a_call_whose_answers_are_not_named_any_more_is_ended(folder: Path) -> None:
    provider = FakeClassifier(folder)
    async with (
        scorer_on(provider, label=0, tokenizer=str(folder)) as scorer,
        asyncio.timeout(60),
        scorer.open(PROMPT) as scoring,
    ):
        provider.gate = asyncio.Event().wait
        await scoring.prefetch(answers("a"))
        [call] = set(scoring._tasks.values())
        while not provider.open_calls:
            await asyncio.sleep(0)
        provider.gate = None
        assert len(await scoring.score(answers("b"))) == 2
        assert call.cancelled()


async def test_a_call_is_retried_and_carries_the_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_KEY", "sk-very-secret-0123456789")
    provider = FakeClassifier(folder)
    async with scorer_on(provider, label=1, api_key_env="REWARD_KEY", tokenizer=str(folder)) as scorer:
        provider.failures.append(503)
        assert len(await rewards(scorer, PROMPT, answers("a"))) == 2
    assert len(provider.calls) == 2
    assert provider.headers["authorization"] == "Bearer sk-very-secret-0123456789"
