"""Branch attention finds the columns of rows that grow side by side, and computes what the tree mask does."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import FAMILIES, tiny_model
from w2s_core.worker import batch, branch_attention
from w2s_core.worker.batch import Batch
from w2s_core.worker.branch_attention import Branches, find_branches
from w2s_core.worker.loading import make_runner
from w2s_core.worker.model_runner import ModelRunner
from w2s_core.worker.token_tree import Node, TokenTree

PROMPT = 7
ROWS = 6


@pytest.fixture(autouse=True)
def _however_few_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branch_attention, "_OVERHEAD", 0)


def found(*columns: list[int], keys: int = 1000) -> tuple[int, bool, list[tuple[int, int, int, list[int]]]] | None:
    """What `find_branches` finds for rows with these slots, column by column."""
    branches = find_branches(PROMPT, list(np.array(columns, np.int64).T), keys)
    if branches is None:
        return None
    return branches.shared, branches.masked, [(r.start, r.lanes, r.tokens, list(r.lane_of)) for r in branches.runs]


def test_rows_that_differ_from_the_first_token_on() -> None:
    assert found([7, 8, 9, 10], [11, 12, 13, 14]) == (7, False, [(7, 4, 2, [0, 1, 2, 3])])


def test_tokens_that_rows_share_are_under_the_mask() -> None:
    assert found([7, 7, 8, 8], [9, 10, 11, 12], [13, 14, 15, 16]) == (9, True, [(9, 4, 2, [0, 1, 2, 3])])


def test_a_row_that_ended_leaves_its_lane_unread_by_others() -> None:
    columns = [7, 8, 10, 11], [12, 13, 15, 16], [17, 18, 19, 20], [21, 22, 23, 24]
    assert found(*columns) == (7, False, [(7, 5, 2, [0, 1, 3, 4]), (17, 4, 2, [0, 1, 2, 3])])


def test_slots_that_are_used_again_end_the_runs() -> None:
    reused = [20, 21, 22, 23], [7, 8, 9, 10], [24, 25, 26, 27], [28, 29, 30, 31]
    assert found(*reused) == (24, True, [(24, 4, 2, [0, 1, 2, 3])])


@pytest.mark.parametrize(
    "columns",
    [
        ([7, 8, 9], [10, 11, 12]),
        ([7, 8, 9, 9],),
        ([20, 21, 22, 23], [7, 8, 9, 10]),
        ([40, 41, 42, 43], [24, 25, 26, 27], [28, 29, 30, 31]),
        ([], [], [], []),
    ],
    ids=["few rows", "one token for two", "used again", "used again above", "no tokens"],
)
def test_no_branches(columns: tuple[list[int], ...]) -> None:
    assert found(*columns) is None


def test_rows_of_different_lengths_have_none() -> None:
    paths = [np.arange(7, 9), np.arange(9, 12), np.arange(12, 14), np.arange(14, 16)]
    assert find_branches(PROMPT, paths, 1000) is None


def test_a_run_that_would_reach_past_the_slots_in_use_is_left_to_the_mask() -> None:
    columns = [7, 8, 10, 11], [12, 13, 15, 16]
    assert found(*columns, keys=17) is not None
    assert found(*columns, keys=16) is None


def test_few_keys_stay_under_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branch_attention, "_OVERHEAD", 2048)

    def side_by_side(tokens: int) -> Branches | None:
        return find_branches(20, [20 + row + 16 * np.arange(tokens) for row in range(16)], 20 + 16 * tokens)

    assert side_by_side(4) is None
    assert side_by_side(64) is not None


@cache
def runner_of(family: str) -> ModelRunner:
    runner, _ = make_runner(tiny_model(family), torch.device("cpu"), 1 << 22)
    return runner


def logits_by_step(runner: ModelRunner, seed: int, shared: int, ends: dict[int, int]) -> list[torch.Tensor]:
    """Logits after every row's last token, in steps in which ROWS rows of one prompt grow by a token each.

    The rows share their first `shared` tokens. `ends`: by step, the row that ends after it.
    """
    chance = random.Random(seed)
    tree = TokenTree(runner.cache, tuple(chance.randrange(250) for _ in range(PROMPT)))
    start: Node = tree.root
    for token in range(shared):
        start = start.child(token)
    leaves = [start.child(row) for row in range(ROWS)]
    steps: list[torch.Tensor] = []
    for step in range(12):
        forward = Batch(1000)
        for leaf in leaves:
            forward.request_logits(tree, leaf)
        logits = runner.forward(forward)
        steps.append(torch.stack([logits[forward.logits_rows[leaf]] for leaf in leaves]))
        if step in ends:
            leaves.pop(ends[step] % len(leaves))
        leaves = [leaf.child(chance.randrange(250)) for leaf in leaves]
    tree.close()
    return steps


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=8)
@given(
    seed=st.integers(0, 2**32),
    shared=st.integers(0, 3),
    ends=st.dictionaries(st.integers(0, 10), st.integers(0, ROWS - 1), max_size=3),
)
def test_it_is_what_the_mask_gives(family: str, seed: int, shared: int, ends: dict[int, int]) -> None:
    runner, taken = runner_of(family), 0

    def counted(*args: object) -> Branches | None:
        nonlocal taken
        branches = find_branches(*args)  # type: ignore[arg-type]
        taken += branches is not None
        return branches

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "find_branches", counted)
        by_branches = logits_by_step(runner, seed, shared, ends)
        assert taken
        patch.setattr(batch, "find_branches", lambda *_: None)
        by_mask = logits_by_step(runner, seed, shared, ends)
    for one, other in zip(by_branches, by_mask, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
