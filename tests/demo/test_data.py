"""The split is the same on every machine, and the pair is not trained on what judges or tests it."""

from __future__ import annotations

import hashlib
import itertools

import pytest

from w2s_core.demo.data import SPLIT_SIZES, Split, clean, parse

# Of the texts in order; whoever changes cleaning, seed or order must train and measure everything anew.
FINGERPRINTS = ("ea6caa66eec15577", "473c8d011e204083", "0beb92709afcbd0a")


def fingerprint(split: Split) -> str:
    return hashlib.sha256("\n".join(sentence.text for sentence in split).encode()).hexdigest()[:16]


def test_splits_have_the_stated_sizes_and_share_no_text(three_splits: tuple[Split, Split, Split]) -> None:
    assert tuple(len(split) for split in three_splits) == SPLIT_SIZES
    for one, other in itertools.combinations(three_splits, 2):
        assert not {sentence.text for sentence in one} & {sentence.text for sentence in other}


def test_splits_are_fixed(three_splits: tuple[Split, Split, Split]) -> None:
    assert tuple(fingerprint(split) for split in three_splits) == FINGERPRINTS


def test_splits_are_balanced(three_splits: tuple[Split, Split, Split]) -> None:
    for split in three_splits:
        share = sum(sentence.positive for sentence in split) / len(split)
        # 49 % overall; five standard deviations of a random 2,000 are 5.6 points.
        assert share == pytest.approx(0.49, abs=0.056)


@pytest.mark.parametrize(
    ("raw", "natural"),
    [
        ("Lovely &amp; Amazing", "Lovely & Amazing"),
        ("a new ''Conan'' and", 'a new "Conan" and'),
        ("the game    even now", "the game - even now"),
        ("a film \u2013 or not", "a film - or not"),
        ("`em", "'em"),
        ("It isn't.  ", "It isn't."),
    ],
)
def test_cleaning_gives_ordinary_writing(raw: str, natural: str) -> None:
    assert clean(raw) == natural


def test_lines_become_sentences_and_tabs_in_the_text_do_not_matter() -> None:
    first, second = parse("1\t-1.5\tDull.\r\n2\t0.25\tA\tB.\r\n")
    assert (first.text, first.rating, first.positive) == ("Dull.", -1.5, False)
    assert (second.text, second.positive) == ("A B.", True)
