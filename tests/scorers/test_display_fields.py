"""`include_stop_str_in_output` and `skip_special_tokens` say what is shown, and never change a score."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.remote.test_pairs import pair_of, scorer_on
from tests.tiny import TEMPLATE, byte_tokenizer
from w2s_core.interfaces import Scorer
from w2s_core.large.successors import SuccessorBuilder
from w2s_core.pool.messages import ScoreResult
from w2s_core.scorers.combined import CombinedScorer
from w2s_core.scorers.likelihood import LikelihoodScorer
from w2s_core.scorers.local import LocalScorer
from w2s_core.scorers.pair_model import PairModel
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Hypothesis, SamplingParams, TextPrompt, Tokens

SCORERS = ("other vocabulary", "same vocabulary", "remote", "remote text", "likelihood")


class Drawn(NamedTuple):
    """What a large model draws, as texts of each chunk, and the token that ends it. `<bos>` is a special token."""

    chunks: Sequence[Sequence[str]]
    ending: str | None = None
    stop: tuple[str, ...] = ()


DRAWN = {
    "grows": Drawn([["Say ab", "<bos>"], ["cd"]]),
    "ended by EOS": Drawn([["ab", "<bos>"], ["d"]], "<eos>"),
    "ended at once": Drawn([[]], "<eos>"),
    "ended by a stop token": Drawn([["ab"], ["cd"]], "c"),
    "ended by a special stop token": Drawn([["ab"], ["cd"]], "<bos>"),
    "stop string": Drawn([["ab"], [" urt", "<bos>"]], None, ("ur",)),
    "stop string across chunks": Drawn([["ab u"], ["rt"]], None, ("ur",)),
    "stop string within a token": Drawn([["S"], ["ab"]], None, ("b",)),
    "stop string behind a special token": Drawn([["ab", "<bos>", "cd"]], None, ("c",)),
    "stop string within a token behind a special token": Drawn([["ab", "<bos>", "cd"]], None, ("d",)),
    "stop string, then EOS": Drawn([["ab"], [" cd"]], "<eos>", (" ",)),
}


class FakePool:
    """A worker pool whose models score any sequence of tokens with a hash of it and of their names."""

    def info(self, model: str) -> Any:
        return SimpleNamespace(max_length=500)

    @asynccontextmanager
    async def session(self, rows: int, models: set[str]) -> AsyncIterator[FakePool]:
        yield self

    async def score(self, model: str, prompt: Tokens, answers: Sequence[Tokens]) -> ScoreResult:
        return ScoreResult(0, tuple(float(zlib.crc32(repr((model, answer)).encode())) for answer in answers), 0)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[HFTokenizer, HFTokenizer]:
    """The large model's, some letters of which merge, and another one of single bytes."""
    folders: list[Path] = [tmp_path_factory.mktemp("merging"), tmp_path_factory.mktemp("bytes")]
    byte_tokenizer(pairs=True).save_pretrained(folders[0])
    byte_tokenizer(TEMPLATE).save_pretrained(folders[1])
    return HFTokenizer(str(folders[0])), HFTokenizer(str(folders[1]))


async def scorer_named(name: str, large: HFTokenizer, other: HFTokenizer) -> Scorer:
    if name == "likelihood":
        return LikelihoodScorer()
    if name.startswith("remote"):
        models = pair_of(other, "echo")
        return CombinedScorer({"pair": await scorer_on(models, with_tokenizer=name == "remote")}, {"pair": 1.0})
    shares = name == "same vocabulary"
    tuned, untuned = (PairModel(model, large if shares else other, shares) for model in ("tuned", "untuned"))
    pool: Any = FakePool()
    return CombinedScorer({"pair": LocalScorer(pool, tuned, untuned, "{prompt}")}, {"pair": 1.0})


def built(large: HFTokenizer, drawn: Drawn, sampling: SamplingParams) -> list[Hypothesis]:
    """The hypothesis after each chunk."""
    successors, y, grown = SuccessorBuilder(large, (), sampling), Hypothesis(), []
    for number, chunk in enumerate(drawn.chunks, start=1):
        tokens = tuple(token for text in chunk for token in large.encode(text, special_tokens=False))
        ending = None
        if drawn.ending is not None and number == len(drawn.chunks):
            [ending] = large.encode(drawn.ending, special_tokens=False)
        logprobs = tuple(-0.1 * token for token in (*tokens, *([] if ending is None else [ending])))
        y = successors.build(y, 0, tokens, logprobs, ended=ending is not None, ending=ending)
        grown.append(y)
    return grown


@pytest.mark.parametrize("kind", SCORERS)
@pytest.mark.parametrize("drawn", DRAWN)
async def test_what_is_shown_is_not_what_is_scored(
    tokenizers: tuple[HFTokenizer, HFTokenizer], kind: str, drawn: str
) -> None:
    scores, texts = [], []
    for include in (False, True):
        for skip in (True, False):
            sampling = SamplingParams(
                stop=DRAWN[drawn].stop, include_stop_str_in_output=include, skip_special_tokens=skip
            )
            grown = built(tokenizers[0], DRAWN[drawn], sampling)
            async with (await scorer_named(kind, *tokenizers)).open(TextPrompt("Say")) as scoring:
                found = [await scoring.score([y]) for y in grown]
            scores.append([score.total for [score] in found])
            texts.append(grown[-1].text)
    assert scores == [scores[0]] * 4, texts
    assert len(set(texts)) > 1


PIECES = ("a", "b", "ab", "bc", "c", "d", " ", "é", "<bos>")


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=12),
    cuts=st.lists(st.integers(0, 20), max_size=4),
    ending=st.sampled_from([None, "<eos>", "<bos>", "a"]),
    stops=st.lists(st.sampled_from([" ", "a", "c", "d", "é"]), max_size=2),  # not in the special tokens' names
    min_tokens=st.sampled_from([0, 3]),
    include=st.booleans(),
    skip=st.booleans(),
)
def test_scorers_see_the_answer_as_if_nothing_more_were_shown(
    tokenizers: tuple[HFTokenizer, HFTokenizer],
    pieces: list[str],
    cuts: list[int],
    ending: str | None,
    stops: list[str],
    min_tokens: int,
    include: bool,
    skip: bool,
) -> None:
    large = tokenizers[0]
    whole = tuple(token for piece in pieces for token in large.encode(piece, special_tokens=False))
    borders = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    shown = SamplingParams(
        stop=tuple(stops), min_tokens=min_tokens, include_stop_str_in_output=include, skip_special_tokens=skip
    )
    hidden = replace(shown, include_stop_str_in_output=False, skip_special_tokens=True)
    builders = [SuccessorBuilder(large, (), sampling) for sampling in (hidden, shown)]
    answers = [Hypothesis(), Hypothesis()]
    for begin, end in pairwise(borders) if len(borders) > 1 else [(0, 0)]:
        ended = ending is not None and end == len(whole)
        id_of_ending = large.vocabulary[ending] if ending is not None and ended else None
        logprobs = tuple(-1.0 * token for token in whole[begin:end]) + (-0.5,) * ended
        answers = [
            builder.build(y, 0, whole[begin:end], logprobs, ended=ended, ending=id_of_ending)
            for builder, y in zip(builders, answers, strict=True)
        ]
        expected, found = answers[0], answers[1].as_scored
        assert answers[0].scored_as is None
        assert found == expected
        assert found.parent == expected.parent
        assert found.parent is None or found.parent.parent is found.parent.scored_as is None
        if expected.finished:
            break
