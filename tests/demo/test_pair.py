"""The committed pair: its size, its files, and the AUC that its model card states."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from w2s_core.demo.data import Split
from w2s_core.demo.models import COMMITTED, WEIGHTS
from w2s_core.demo.pair_card import PairFigures, write_card
from w2s_core.demo.pair_scoring import auc, encode, log_ratios, padded, prefix_log_ratios, token_log_probs
from w2s_core.demo.pair_training import Documents, Phase, average, batches, fit, new_model, train_tokenizer
from w2s_core.demo.train_pair import Pair, load, measure

TEXTS = ["A warm, funny film.", "It isn't worth your time - or mine!", "na\u00efve  \u65e5\u672c \U0001f389", ""]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine two threads of such small models mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def committed() -> tuple[PreTrainedTokenizerFast, Pair]:
    return load(WEIGHTS)


def test_weights_are_small_and_complete() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= 12e6
    for name in COMMITTED:
        files = {path.name for path in (WEIGHTS / name).iterdir()}
        assert files >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    tokenizers = {(WEIGHTS / name / "tokenizer.json").read_bytes() for name in COMMITTED}
    assert len(tokenizers) == 1, "the pair must read text in one way"


def test_auc_is_what_the_card_says_and_at_least_three_quarters(
    committed: tuple[PreTrainedTokenizerFast, Pair], three_splits: tuple[Split, Split, Split]
) -> None:
    figures = measure(*committed, three_splits[2])
    assert figures["whole"] >= 0.75
    card = (WEIGHTS / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:first )?(whole|\d+) .*\| (\d\.\d+) \|$", card, re.MULTILINE)
    assert {name: float(value) for name, value in rows} == pytest.approx(figures, abs=0.005)


def test_praise_scores_above_blame_on_prefixes_of_ordinary_text(
    committed: tuple[PreTrainedTokenizerFast, Pair],
) -> None:
    tokenizer, pair = committed
    praise = "This film is a wonderful, moving story with superb performances and a lot of heart."
    blame = "This film is a dull, tedious mess with terrible acting and a boring, pointless plot."
    for words in (7, 10, 15):
        texts = [" ".join(text.split()[:words]) for text in (praise, blame)]
        good, bad = log_ratios(*pair, encode(tokenizer, texts, end=False))
        assert good > bad + 1, f"after {words} words: {good:.2f} against {bad:.2f} nats"


def test_tokenizer_loses_nothing_and_adds_nothing(committed: tuple[PreTrainedTokenizerFast, Pair]) -> None:
    tokenizer, (tuned, _) = committed
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(ids)
    assert (tuned.generation_config.bos_token_id, tuned.generation_config.eos_token_id) == (0, 1)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert tuned.config.max_position_embeddings >= 2048


def test_batched_log_ratios_equal_those_of_one_row_alone(committed: tuple[PreTrainedTokenizerFast, Pair]) -> None:
    tokenizer, pair = committed
    rows = encode(tokenizer, TEXTS)
    alone = [log_ratios(*pair, [row])[0] for row in rows]
    assert log_ratios(*pair, rows, batch=3) == pytest.approx(alone, abs=1e-4)


def test_prefix_log_ratios_equal_those_of_the_prefix_alone(committed: tuple[PreTrainedTokenizerFast, Pair]) -> None:
    tokenizer, pair = committed
    rows = encode(tokenizer, [TEXTS[1], TEXTS[0] + TEXTS[1]])
    expected = [log_ratios(*pair, [row[: length + 1] for row in rows]) for length in (2, 7)]
    found = list(zip(*prefix_log_ratios(*pair, rows, (2, 7)), strict=True))
    assert [list(column) for column in found[:2]] == [pytest.approx(column, abs=1e-4) for column in expected]
    assert list(found[2]) == pytest.approx(log_ratios(*pair, rows), abs=1e-4)


def test_log_probabilities_are_those_of_softmax(committed: tuple[PreTrainedTokenizerFast, Pair]) -> None:
    tokenizer, (tuned, _) = committed
    row = encode(tokenizer, TEXTS[:1])[0]
    with torch.inference_mode():
        logits = tuned(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
        expected = [float(logits[place, token]) for place, token in enumerate(row[1:])]
        found = token_log_probs(tuned, padded([row, [0] * (len(row) + 3)]))[0]
    assert found[: len(expected)].tolist() == pytest.approx(expected, abs=1e-4)
    assert found[len(expected) :].tolist() == [0.0, 0.0, 0.0]


def test_auc_by_hand() -> None:
    assert auc([3.0, 1.0, 2.0, 1.0], [True, True, False, False]) == pytest.approx((1 + 1 + 0 + 0.5) / 4)


def test_documents_hold_every_text_once_and_join_some() -> None:

    texts = [f"Sentence number {number}." for number in range(60)]
    tokenizer = train_tokenizer(texts)
    documents = Documents(tokenizer, texts)
    rows = documents.rows(random.Random(0))
    assert all((row[0], row[-1]) == (0, 1) and not {0, 1} & set(row[1:-1]) for row in rows)
    decoded = [re.findall(r"Sentence number \d+\.", tokenizer.decode(row[1:-1])) for row in rows]
    assert sorted(itertools.chain(*decoded)) == sorted(texts)
    # 60 texts, two fifths of the draws joined: no join at all has probability 0.6^60 < 1e-13.
    assert {len(sentences) for sentences in decoded} == {1, 2, 3}
    assert sorted(row for batch in batches(rows, 7, random.Random(1)) for row in batch) == sorted(rows)


def test_training_twice_gives_the_same_weights_and_leaves_its_start_alone() -> None:
    texts = ["A warm, funny film.", "It isn't worth your time.", "Dull.", "A moving story, well told."] * 4
    documents = Documents(train_tokenizer(texts), texts)
    start, untouched = new_model(3), new_model(3)
    phase = Phase("test", epochs=1, learning_rate=1e-3, batch=4, seed=5, embedding_dropout=0.1)
    one, other = (fit(start, documents.rows, phase).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(weight, untouched.state_dict()[name]) for name, weight in start.state_dict().items())
    assert not torch.equal(one["model.norm.weight"], start.state_dict()["model.norm.weight"])


def test_average_of_weights() -> None:
    one, other = new_model(1), new_model(2)
    before = one.model.norm.weight.detach().clone()
    with torch.no_grad():
        other.model.norm.weight.fill_(3.0)
    assert torch.equal(average([one, other]).model.norm.weight, (before + 3.0) / 2)
    assert torch.equal(one.model.norm.weight, before), "the members stay as they are"


def test_the_card_prints_its_figures(tmp_path: Path) -> None:

    write_card(tmp_path, PairFigures(5105, 2000, 6, 2_560_000, {"whole": 0.77123, "5": 0.66}))
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| whole sentence | 0.7712 |" in card
    assert "| first 5 tokens | 0.6600 |" in card
    assert "5,105 sentences" in card
    assert "apache-2.0" in card
