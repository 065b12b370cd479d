"""Remote reward models: rewards are those of transformers, in few calls, whatever the endpoint and the input."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.remote.fake_classifier import MODEL, FakeClassifier
from tests.tiny import save_tiny_classifier
from w2s_core.build.remote import RemoteModels
from w2s_core.config import RemoteRewardModelConfig
from w2s_core.errors import (
    ConfigurationError,
    PairContextLengthError,
    RequestError,
    UnavailableError,
    UpstreamContextLengthError,
    UpstreamError,
    UpstreamRefusedError,
)
from w2s_core.scorers.remote_reward_model import RemoteRewardModel
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import ChatPrompt, Hypothesis, Prompt, TextPrompt

LABELS = ("bad", "fair", "good")
PROMPT = TextPrompt("Say ")
CHAT = ChatPrompt(({"role": "user", "content": "Hi"},))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_classifier(tmp_path_factory.mktemp("classifier"), labels=LABELS)


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_classifier(tmp_path_factory.mktemp("single"), family="gpt2", seed=1)


@asynccontextmanager
async def scorer_on(provider: FakeClassifier, **keys: Any) -> AsyncIterator[RemoteRewardModel]:
    """A scorer whose provider has been probed, with its calls cleared."""
    async with provider.served() as url:
        parts = RemoteModels(HFTokenizer)
        config = RemoteRewardModelConfig(**({"base_url": f"{url}/v1", "model": MODEL} | keys))
        scorer = parts.reward_model("far", config, lambda tokenizer: False)
        [probe] = parts.probes
        await probe.start()
        provider.calls.clear()
        try:
            yield scorer
        finally:
            await probe.stop()


def answers(*texts: str) -> list[Hypothesis]:
    """Half an answer, and the same one ended, of each text."""
    return [
        Hypothesis(text=text, ended=ended, finish_reason="stop" if ended else None)
        for text in texts
        for ended in (False, True)
    ]


def expected(provider: FakeClassifier, seen: str, y: Hypothesis, label: int = 0, *, eos: bool = True) -> float:
    tokenizer = provider.tokenizer
    assert tokenizer.eos is not None
    prompt = tokenizer.encode(seen, special_tokens=True) or (tokenizer.empty_prompt if eos else ())
    tokens = tokenizer.encode(y.text, special_tokens=False) + ((tokenizer.eos,) if y.ended and eos else ())
    outputs = provider.outputs(prompt + tokens)[-1].tolist()
    others = [value for i, value in enumerate(outputs) if i != label]
    return float(outputs[label]) - (math.log(sum(map(math.exp, others))) if others else 0.0)


async def rewards(scorer: RemoteRewardModel, prompt: Prompt, candidates: list[Hypothesis]) -> list[float]:
    async with scorer.open(prompt) as scoring:
        return [score.total for score in await scoring.score(candidates)]


@pytest.mark.parametrize("endpoint", ["auto", "classify", "pooling"])
@pytest.mark.parametrize(
    ("prompt", "template", "seen"),
    [
        (PROMPT, None, "Say "),
        (PROMPT, "Q: {prompt}", "Q: Say "),
        (CHAT, None, "<user>Hi\n<assistant>"),
        (CHAT, "Q: {prompt}", "Q: Hi"),
        (PROMPT, "", ""),
    ],
)
async def test_a_reward_is_that_of_prompt_and_answer(
    folder: Path, endpoint: str, prompt: Prompt, template: str | None, seen: str
) -> None:
    provider = FakeClassifier(folder)
    keys = {"endpoint": endpoint, "label": 2, "tokenizer": str(folder), "prompt_template": template}
    async with scorer_on(provider, **keys) as scorer:
        candidates = answers("", "a", "ab ☃", "bééd a")
        found = await rewards(scorer, prompt, candidates)
    assert found == pytest.approx([expected(provider, seen, y, 2) for y in candidates], abs=1e-4)
    assert len({round(reward, 4) for reward in found}) == 8
    [(called, body)] = provider.calls
    assert called == ("pooling" if endpoint == "pooling" else "classify")
    assert body["use_activation"] is False
    assert all(isinstance(each, list) for each in body["input"]), "token ids are sent"


@pytest.mark.parametrize(
    ("prompt", "template", "seen"),
    [(PROMPT, None, "Say "), (CHAT, "Q: {prompt}", "Q: Hi"), (PROMPT, "{prompt}!", "Say !")],
)
async def test_without_a_tokenizer_text_is_sent(single: Path, prompt: Prompt, template: str | None, seen: str) -> None:
    provider = FakeClassifier(single)
    async with scorer_on(provider, prompt_template=template) as scorer:
        candidates = answers("a", "ab ☃")
        found = await rewards(scorer, prompt, candidates)
        assert scorer.check(prompt, 7) == 7
    assert found == pytest.approx([expected(provider, seen, y, eos=False) for y in candidates], abs=1e-4)
    assert provider.calls[0][1]["input"] == [f"{seen}a", f"{seen}ab ☃"], "each text once, and no EOS"


async def test_where_classify_is_missing_pooling_is_used(folder: Path) -> None:
    provider = FakeClassifier(folder)
    provider.missing, provider.per_token = {"classify"}, True
    async with scorer_on(provider, label=1, tokenizer=str(folder)) as scorer:
        candidates = answers("ab")
        found = await rewards(scorer, PROMPT, candidates)
    assert found == pytest.approx([expected(provider, "Say ", y, 1) for y in candidates], abs=1e-4)
    assert [endpoint for endpoint, _ in provider.calls] == ["pooling"]


async def test_outputs_in_another_order_are_put_into_order(folder: Path) -> None:
    provider = FakeClassifier(folder)
    provider.spoil = lambda answer: answer["data"].reverse()
    async with scorer_on(provider, label="1", tokenizer=str(folder)) as scorer:
        candidates = answers("a", "b")
        found = await rewards(scorer, PROMPT, candidates)
    assert found == pytest.approx([expected(provider, "Say ", y, 1) for y in candidates], abs=1e-4)


@pytest.mark.parametrize(
    ("keys", "change", "message"),
    [
        ({}, None, r"^reward_models\.far\.label: the model has several outputs; choose one, 0 to 2"),
        ({"label": 3}, None, r"^reward_models\.far\.label: the model has no output 3"),
        ({"label": 1}, {"activates": True}, r"^reward_models\.far: .*probabilities"),
        ({"label": 1}, {"missing": {"classify", "pooling"}}, r"^reward_models\.far: .*/classify and /pooling.*404"),
        ({"label": 1, "endpoint": "pooling"}, {"missing": {"pooling"}}, r"^reward_models\.far: .* at /pooling\."),
        ({"label": "good"}, None, "label: must be the output's number"),
        ({"label": 1, "prompt_template": ""}, None, r"^reward_models\.far: an empty prompt_template needs a tokenizer"),
        ({"label": 1, "api_key_env": "NO_SUCH_KEY"}, None, r"^reward_models\.far\.api_key_env: .*NO_SUCH_KEY"),
    ],
)
async def test_what_does_not_fit_stops_the_start(
    folder: Path, keys: dict[str, Any], change: dict[str, Any] | None, message: str
) -> None:
    provider = FakeClassifier(folder)
    for name, value in (change or {}).items():
        setattr(provider, name, value)
    with pytest.raises(ConfigurationError, match=message):
        async with scorer_on(provider, **keys):
            pass


async def test_a_provider_that_fails_at_the_start_is_unavailable_until_it_works(folder: Path) -> None:
    provider = FakeClassifier(folder)
    provider.failures.extend([500, 500])
    async with scorer_on(provider, label=1, max_retries=0, tokenizer=str(folder)) as scorer:
        with pytest.raises(UnavailableError, match="`far` has not been reached yet"):
            scorer.check(PROMPT, 5)
        retrying = scorer._probe._retrying
        assert retrying is not None
        async with asyncio.timeout(60):
            await retrying
        assert scorer.check(PROMPT, 5) == 5


def leave_out(answer: dict[str, Any]) -> None:
    answer["data"].pop()


def put(field: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda answer: answer["data"][0].update({field: value})


@pytest.mark.parametrize(
    "spoil",
    [
        leave_out,
        put("index", 5),
        put("probs", None),
        put("probs", []),
        put("probs", [1.0, "2"]),
        put("probs", [1.0, None, 2.0]),
        put("probs", [1.0]),
        lambda answer: answer.pop("data"),
    ],
)
async def test_an_answer_that_cannot_be_used_fails_the_request(folder: Path, spoil: Any) -> None:
    provider = FakeClassifier(folder)
    async with scorer_on(provider, label=1, tokenizer=str(folder)) as scorer:
        provider.spoil = spoil
        with pytest.raises(UpstreamError, match="The provider of `far`"):
            await rewards(scorer, PROMPT, answers("a", "b"))


@pytest.mark.parametrize(("status", "error"), [(500, UpstreamError), (400, UpstreamRefusedError)])
async def test_a_failed_call_fails_the_request_and_may_be_made_again(
    folder: Path, status: int, error: type[Exception]
) -> None:
    provider = FakeClassifier(folder)
    async with (
        scorer_on(provider, label=1, max_retries=0, tokenizer=str(folder)) as scorer,
        scorer.open(PROMPT) as scoring,
    ):
        provider.failures.append(status)
        with pytest.raises(error, match="It failed"):
            await scoring.score(answers("a"))
        assert len(await scoring.score(answers("a"))) == 2


async def test_an_answer_too_long_for_the_model_is_told_as_for_pairs(folder: Path) -> None:
    provider = FakeClassifier(folder, context_length=30)
    long = answers("a" * 40)
    async with scorer_on(provider, label=1, tokenizer=str(folder)) as scorer:
        with pytest.raises(PairContextLengthError, match="outgrown the reward model: 4 \\+ 41 tokens exceed the 30"):
            await rewards(scorer, PROMPT, long)
        assert provider.calls == []
        with pytest.raises(RequestError, match="maximum context length is 30"):
            scorer.check(TextPrompt("a" * 30), 5)
    async with scorer_on(provider, label=1) as scorer:
        with pytest.raises(UpstreamContextLengthError) as caught:
            await rewards(scorer, PROMPT, long)
        assert caught.value.param == "max_tokens"


async def test_what_only_a_tokenizer_could_encode_is_refused(folder: Path) -> None:
    async with scorer_on(FakeClassifier(folder), label=1) as scorer:
        for prompt, field in ((CHAT, "messages"), (TextPrompt(""), "prompt")):
            with pytest.raises(RequestError, match="reward model `far`") as caught:
                scorer.check(prompt, 5)
            assert caught.value.param == field


async def test_a_context_that_is_not_listed_has_no_limit(folder: Path) -> None:
    provider = FakeClassifier(folder)
    provider.lists_context = False
    async with scorer_on(provider, label=1, tokenizer=str(folder)) as scorer:
        assert scorer.check(PROMPT, 10**6) == 10**6
        assert len(await rewards(scorer, PROMPT, answers("a" * 150))) == 2


def test_several_urls_lose_their_v1() -> None:
    config = RemoteRewardModelConfig(base_url=("http://a/v1", "http://b/v1/", "http://c"), model="m")
    scorer = RemoteModels(HFTokenizer).reward_model("far", config, lambda _: False)
    assert scorer._provider.config == replace(config, base_url=("http://a", "http://b", "http://c"))
