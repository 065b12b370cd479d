"""Ids for tokens that come as text: they hold for ever and nothing is kept for them."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import answer
from tests.remote.fake_provider import FakeProvider
from tests.remote.test_large import ASK, serving
from w2s_core.large.text_tokens import TextTokenDecoder, token_bytes, token_id
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import SamplingParams


@given(st.lists(st.binary(max_size=6), max_size=8))
def test_an_id_is_the_token_itself(tokens: list[bytes]) -> None:
    """So equal tokens have equal ids in every process, and others never do."""
    ids = [token_id(token) for token in tokens]
    assert [token_bytes(number) for number in ids] == tokens
    assert len(set(ids)) == len(set(tokens))
    decoder = TextTokenDecoder()
    assert decoder.decode(ids) == b"".join(tokens).decode("utf-8", "replace")
    assert [decoder.token_text(number).bytes for number in ids] == tokens


@pytest.mark.parametrize("model", ["plain", "guided"])
async def test_serving_leaves_nothing_in_the_model(tokenizer: HFTokenizer, model: str) -> None:
    """However many distinct tokens a provider has sent, it is served as on the first day."""
    provider = FakeProvider(tokenizer, flavor="openai")
    async with serving(provider) as engine:
        [large] = engine._planner.large_models.values()
        before = pickle.dumps(large.decoder)
        for seed in range(3):
            await answer(engine, replace(ASK, model=model, sampling=SamplingParams(max_tokens=12, seed=seed)))
        assert pickle.dumps(large.decoder) == before
