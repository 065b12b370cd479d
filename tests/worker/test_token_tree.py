"""Token tree: logits equal uncached transformers' for every model family, and slots are never lost or shared."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import FAMILIES, tiny_model
from w2s_core.worker.batch import Batch
from w2s_core.worker.kv_cache import CacheFullError, KVCache
from w2s_core.worker.loading import make_runner
from w2s_core.worker.model_runner import ModelRunner
from w2s_core.worker.token_tree import Node, TokenTree

CPU = torch.device("cpu")


def logits_of(runner: ModelRunner, nodes: list[tuple[TokenTree, Node]], budget: int) -> dict[Node, torch.Tensor]:
    """Logits after these nodes, in as many forwards of at most `budget` tokens as needed."""
    found: dict[Node, torch.Tensor] = {}
    while any(node not in found for _, node in nodes):
        batch = Batch(budget)
        for tree, node in nodes:
            if node not in found:
                batch.request_logits(tree, node)
        logits = runner.forward(batch)
        found.update({node: logits[row] for node, row in batch.logits_rows.items()})
    return found


def uncached(model: torch.nn.Module, tokens: tuple[int, ...]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([tokens])).logits[0, -1]
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_equals_uncached_through_a_search(family: str) -> None:
    """Two sessions in the same batches, branches, pruning, reused slots, prompts cut into slices."""
    reference = tiny_model(family)
    runner, _ = make_runner(tiny_model(family), CPU, 1 << 20)
    chance = random.Random(family)
    prompts = [tuple(chance.randrange(256) for _ in range(size)) for size in (21, 3)]
    trees = [TokenTree(runner.cache, prompt) for prompt in prompts]
    beams: list[list[tuple[int, ...]]] = [[()], [()]]
    for _ in range(5):
        answers = [
            [(*y, *(chance.randrange(3) for _ in range(chance.randrange(1, 6)))) for y in beam for _ in range(4)]
            for beam in beams
        ]
        leaves = [[tree.insert(y) for y in ys] for tree, ys in zip(trees, answers, strict=True)]
        for tree, nodes in zip(trees, leaves, strict=True):
            tree.prune_to(nodes)
        found = logits_of(runner, [(t, n) for t, ns in zip(trees, leaves, strict=True) for n in ns], budget=13)
        for prompt, ys, nodes in zip(prompts, answers, leaves, strict=True):
            for y, node in zip(ys, nodes, strict=True):
                torch.testing.assert_close(found[node], uncached(reference, prompt + y), atol=1e-4, rtol=1e-4)
        for tree in trees:
            tree.check_integrity()
        runner.cache.check_integrity()
        beams = [chance.sample(ys, 3) for ys in answers]


def test_a_computed_node_gives_the_same_logits_again() -> None:
    runner, _ = make_runner(tiny_model(), CPU, 1 << 20)
    tree = TokenTree(runner.cache, (1, 2, 3))
    node = tree.insert((4, 5))
    first, again = (logits_of(runner, [(tree, node)], 100)[node] for _ in range(2))
    torch.testing.assert_close(first, again)
    tree.check_integrity()


def test_regions_move_with_their_content() -> None:
    """A small pool: growing regions must move, and compaction must lose nothing."""
    reference = tiny_model()
    runner, info = make_runner(tiny_model(), CPU, 256 * 400)
    assert info.kv_slots == 400
    trees = {i: TokenTree(runner.cache, (i, i + 1)) for i in range(5)}
    for length in range(1, 60, 7):
        for i, tree in trees.items():
            answer = tuple((j * i) % 7 for j in range(length))
            node = tree.insert(answer)
            tree.prune_to([node])
            got = logits_of(runner, [(tree, node)], 100)[node]
            torch.testing.assert_close(got, uncached(reference, (i, i + 1, *answer)), atol=1e-4, rtol=1e-4)
        runner.cache.check_integrity()
        if length == 22:
            trees.pop(1).close()  # leaves a hole
    assert runner.cache.slots_used <= 400


def test_a_full_cache_raises() -> None:
    cache = KVCache(100)
    first = cache.allocate(60)
    with pytest.raises(CacheFullError, match="60 of 100"):
        cache.allocate(41)
    second = cache.allocate(40)
    with pytest.raises(CacheFullError):
        cache.grow(second, 41)
    cache.free(first)
    cache.grow(second, 90)
    cache.check_integrity()
    assert second.size >= 90


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_slots_are_never_lost_nor_shared(data: st.DataObject) -> None:
    """Random growing and pruning without a model: reachable slots and free ones are together those assigned."""
    cache = KVCache(5000)
    tree = TokenTree(cache, (1, 2, 3))
    leaves = [tree.root]
    for _ in range(data.draw(st.integers(1, 8))):
        grown = []
        for leaf in leaves:
            for _ in range(data.draw(st.integers(1, 3))):
                node = leaf
                for token in data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=4)):
                    node = node.child(token)
                path = tree.uncomputed_path(node)[: None if data.draw(st.booleans()) else -1]
                tree.reserve(len(path))
                for step in path:
                    tree.assign_slot(step)
                    assert step.slot == tree.path_slots(step)[-1] if step.parent else True
                grown.append(node)
        leaves = data.draw(st.lists(st.sampled_from(grown), min_size=1, max_size=4))
        tree.prune_to(leaves)
        tree.check_integrity()
        if data.draw(st.integers(0, 5)) == 0:
            tree.evict()
            assert cache.slots_used == 0
            tree.check_integrity()
        for leaf in leaves:
            walked, node = [], leaf
            while node.parent is not None:
                walked.append(node.slot)
                node = node.parent
            if leaf.computed:
                assert tree.path_slots(leaf).tolist() == walked[::-1]
    tree.close()
    assert cache.slots_used == 0


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_tree_holds_the_retained_answers_and_nothing_else(data: st.DataObject) -> None:
    """Answers that grow, branch off at any of their prefixes, or are inserted and not retained."""
    tree = TokenTree(KVCache(5000), (1, 2, 3))
    kept: list[tuple[tuple[int, ...], Node]] = [((), tree.root)]
    tails = st.lists(st.integers(0, 1), max_size=5)
    for _ in range(data.draw(st.integers(1, 8))):
        answers, leaves = [], []
        for _ in range(data.draw(st.integers(1, 5))):
            (parent, node), tail = data.draw(st.sampled_from(kept)), data.draw(tails)
            if data.draw(st.booleans()):  # as a row grows
                for token in tail:
                    node = node.child(token)
                answers.append((*parent, *tail))
            else:  # as a job names an answer
                answers.append((*parent[: data.draw(st.integers(0, len(parent)))], *tail))
                node = tree.insert(answers[-1])
            leaves.append(node)
        kept = list(zip(answers, leaves, strict=True))[: data.draw(st.integers(1, len(answers)))]
        for leaf in leaves:
            missing = tree.uncomputed_path(leaf)
            tree.reserve(len(missing))
            for node in missing:
                tree.assign_slot(node)
        tree.prune_to([leaf for _, leaf in kept])
        tree.check_integrity()
        beginnings = {answer[:size] for answer, _ in kept for size in range(len(answer) + 1)}
        assert set(answers_in(tree)) == beginnings
        assert tree.slot_end == len(tree.prompt) + len(beginnings) - 1 + len(tree._free_slots)


def test_a_row_may_branch_off_inside_a_longer_answer() -> None:
    tree = TokenTree(KVCache(100), (1, 2))
    shorter, longer = tree.insert((5,)), tree.insert((5, 6))
    tree.prune_to([shorter, longer])
    shorter.child(7)
    tree.prune_to([longer])
    assert set(answers_in(tree)) == {(), (5,), (5, 6)}


def answers_in(tree: TokenTree) -> list[tuple[int, ...]]:
    """The answer that each node of the tree ends."""
    found: list[tuple[int, ...]] = []
    stack: list[tuple[tuple[int, ...], Node]] = [((), tree.root)]
    while stack:
        answer, node = stack.pop()
        found.append(answer)
        stack += [((*answer, token), child) for token, child in node.children.items()]
    return found
