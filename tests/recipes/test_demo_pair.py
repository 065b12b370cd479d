"""The committed pair: its size, its files, the figures that its model card states, and how it was made."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from w2s_core.build.pair import open_pair
from w2s_core.config import PairConfig, WorkersConfig
from w2s_core.demo.data import Sentence, splits
from w2s_core.demo.models import COMMITTED, WEIGHTS
from w2s_core.pairs.check import PairCheck
from w2s_core.pairs.preferences import Answer
from w2s_core.pairs.report import summary
from w2s_core.pairs.run import check_pair
from w2s_core.recipes.demo_base import new_model, write_base
from w2s_core.recipes.demo_pair import documents
from w2s_core.training.models import BaseModel
from w2s_core.types import Hypothesis, TextPrompt

TEXTS = ["A warm, funny film.", "It isn't worth your time - or mine!", "na\u00efve  \u65e5\u672c \U0001f389", ""]
PAIR = PairConfig(str(WEIGHTS / "reviews-positive"), str(WEIGHTS / "reviews-negative"), prompt_template="")
WORKERS = WorkersConfig(dtype="float32", threads=1)


def test_weights_are_small_and_complete() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= 12e6
    for name in COMMITTED:
        files = {path.name for path in (WEIGHTS / name).iterdir()}
        assert files >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    tokenizers = {(WEIGHTS / name / "tokenizer.json").read_bytes() for name in COMMITTED}
    assert len(tokenizers) == 1, "the pair must read text in one way"


NUMBER = re.compile(r"\d\.\d+")


def on_the_card() -> str:
    """The summary of the check, as the model card has it."""
    [said] = re.findall(r"```\n(2000 answers\n.*?)\n```", (WEIGHTS / "README.md").read_text("utf-8"), re.DOTALL)
    return str(said)


async def check(count: int) -> PairCheck:
    """The check of the test split's first sentences."""
    _, _, testing = splits()
    answers = [Answer(TextPrompt(""), s.text, good=s.positive, partner=None) for s in testing[:count]]
    return await check_pair("demo", PAIR, answers, WORKERS)


async def test_200_answers_agree_with_what_the_card_says_of_2000() -> None:
    found = await check(200)
    assert found.verdict == "steers"
    auc = float(NUMBER.findall(on_the_card())[0])
    assert found.auc.low < auc < found.auc.high
    assert found.auc.mean == pytest.approx(auc, abs=0.05)


@pytest.mark.slow
async def test_the_check_finds_what_the_card_says_and_an_auc_of_four_fifths() -> None:
    found = await check(2000)
    assert found.auc.mean >= 0.8
    assert found.verdict == "steers"
    said = on_the_card()
    assert NUMBER.sub("x", said) == NUMBER.sub("x", summary(found))
    figures = [[float(value) for value in NUMBER.findall(text)] for text in (said, summary(found))]
    assert figures[0] == pytest.approx(figures[1], abs=0.005)


async def test_praise_scores_above_blame_on_prefixes_of_ordinary_text() -> None:
    praise = "This film is a wonderful, moving story with superb performances and a lot of heart."
    blame = "This film is a dull, tedious mess with terrible acting and a boring, pointless plot."
    async with open_pair("demo", PAIR, WORKERS) as scorer, scorer.open(TextPrompt("")) as scoring:
        for words in (7, 10, 15):
            texts = [" ".join(text.split()[:words]) for text in (praise, blame)]
            good, bad = [score.total for score in await scoring.score([Hypothesis(text=text) for text in texts])]
            assert good > bad + 1, f"after {words} words: {good:.2f} against {bad:.2f} nats"


def test_tokenizer_loses_nothing_and_adds_nothing() -> None:
    folder = WEIGHTS / "reviews-positive"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(ids)
    generation = GenerationConfig.from_pretrained(folder)
    assert (generation.bos_token_id, generation.eos_token_id) == (0, 1)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert LlamaConfig.from_pretrained(folder).max_position_embeddings >= 2048


def test_the_training_data_holds_every_sentence_three_times_and_joins_some() -> None:
    sentences = [Sentence(f"Sentence number {i}.", 1.0 if i % 3 else -1.0) for i in range(60)]
    records = documents(sentences)
    found = [re.findall(r"Sentence number \d+\.", str(record["text"])) for record in records]
    assert sorted(itertools.chain(*found)) == sorted([s.text for s in sentences] * 3)
    assert {len(joined) for joined in found} == {1, 2, 3}
    labels = {s.text: s.positive for s in sentences}
    for record, joined in zip(records, found, strict=True):
        assert {labels[text] for text in joined} == {record["label"]}
        assert record["text"] == " ".join(joined)
    assert documents(sentences) == records


def test_the_base_depends_on_the_seed_alone_and_knows_its_tokenizer(tmp_path: Path) -> None:
    write_base(tmp_path, TEXTS * 4)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert all(tokenizer.decode(tokenizer(text)["input_ids"]) == text for text in TEXTS)
    one, same, other = (new_model(seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_tied_embeddings_count_once() -> None:
    assert round(BaseModel(str(WEIGHTS / "reviews-positive")).parameters / 1e6, 2) == 2.56
