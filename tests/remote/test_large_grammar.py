"""Grammars with a remote large model: sent in one call under vLLM's names, or refused by the field's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.fakes import answer
from tests.remote.fake_provider import FakeProvider, words
from tests.remote.test_large import ASK, CBS, serving
from w2s_core.errors import RequestError, UpstreamRefusedError
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import GenerationRequest, Grammar, Guidance

BEST = Guidance("best_of_n", {"likes-a": 1.0}, successors=3)
FIELD = "response_format.json_schema.schema"
SCHEMA = Grammar("json", '{"type": "object"}', FIELD)


def asking(grammar: Grammar, **changes: Any) -> GenerationRequest:
    return replace(ASK, sampling=replace(ASK.sampling, max_tokens=60, grammar=grammar), **changes)


@pytest.mark.parametrize(
    ("grammar", "sent"),
    [
        (SCHEMA, {"json": {"type": "object"}}),
        (Grammar("json_object", "", "f"), {"json_object": True}),
        (Grammar("regex", "a+", "f"), {"regex": "a+"}),
        (Grammar("choice", '["a", "é"]', "f"), {"choice": ["a", "é"]}),
        (Grammar("grammar", 'root ::= "a"', "f"), {"grammar": 'root ::= "a"'}),
    ],
)
async def test_it_is_passed_on_in_one_call(tokenizer: HFTokenizer, grammar: Grammar, sent: dict[str, Any]) -> None:
    provider = FakeProvider(tokenizer, words(tokenizer, eos=0.02))
    async with serving(provider) as engine:
        for request in (asking(grammar, model="plain"), asking(grammar, guidance=BEST)):
            provider.calls.clear()
            await answer(engine, request)
            [call] = provider.calls
            assert call["structured_outputs"] == sent
            assert call["max_tokens"] == 60


async def test_no_chunk_of_a_search_begins_inside_it(tokenizer: HFTokenizer) -> None:
    provider = FakeProvider(tokenizer)
    async with serving(provider) as engine:
        for guidance in (None, CBS):
            with pytest.raises(RequestError, match="best_of_n") as refused:
                await answer(engine, asking(SCHEMA, guidance=guidance))
            assert refused.value.param == FIELD
        assert not provider.calls


async def test_a_provider_without_token_ids_is_asked_for_none(tokenizer: HFTokenizer) -> None:
    provider = FakeProvider(tokenizer, flavor="openai")
    async with serving(provider, flavor="openai") as engine:
        with pytest.raises(RequestError) as refused:
            await answer(engine, asking(SCHEMA, model="plain"))
        assert refused.value.param == FIELD


@pytest.mark.parametrize("source", ["{", "[]", "[" * 100_000])
async def test_a_schema_that_is_none_is_refused_here(tokenizer: HFTokenizer, source: str) -> None:
    provider = FakeProvider(tokenizer)
    async with serving(provider) as engine:
        with pytest.raises(RequestError) as refused:
            await answer(engine, asking(Grammar("json", source, "guided_json"), model="plain"))
        assert refused.value.param == "guided_json"
        assert not provider.calls


class Strict(FakeProvider):
    """Refuses every grammar."""

    async def post(self, path: str, body: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        if "structured_outputs" in body:
            raise UpstreamRefusedError("The provider of `far` rejected the call (400): no such type.")
        return await super().post(path, body, **options)


async def test_what_the_provider_refuses_is_the_callers_mistake(tokenizer: HFTokenizer) -> None:
    async with serving(Strict(tokenizer)) as engine:
        with pytest.raises(RequestError, match="no such type") as refused:
            await answer(engine, asking(SCHEMA, model="plain"))
        assert refused.value.param == FIELD
