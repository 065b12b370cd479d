"""Grammar masks on a real (tiny) model, in process: what is drawn, reported and resumed, and what fails."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.tiny import EOS, VOCABULARY, byte_tokenizer, tiny_model
from tests.worker.test_scheduler import drain, drawn, sample_job
from w2s_core.pool.messages import JobFailed, JobOutcome, Row, SampleJob, SampleUpdate, Sampling
from w2s_core.structured.grammar_compiling import compile_grammar, new_tokenizer
from w2s_core.types import Grammar, GrammarKind, Tokens
from w2s_core.worker import grammar_masks
from w2s_core.worker.grammar_masks import GrammarEngine
from w2s_core.worker.grammar_states import EndTokens
from w2s_core.worker.loading import make_runner
from w2s_core.worker.models import WorkerModels
from w2s_core.worker.token_tree import Node

CPU = torch.device("cpu")
BYTE_TOKENIZER = byte_tokenizer()
TEXT = BYTE_TOKENIZER.backend_tokenizer.to_str()
PROMPT = (1, 2, 3)


def worker_models() -> WorkerModels:
    grammars = GrammarEngine(lambda: new_tokenizer(TEXT, [EOS], VOCABULARY))
    return WorkerModels({"m": make_runner(tiny_model(), CPU, 1 << 22)}, {"m": grammars})


def compiled_grammar(kind: GrammarKind, source: str) -> Grammar:
    return Grammar("compiled", compile_grammar(kind, source), "guided_" + kind)


def job(number: int, rows: Sequence[Row], grammar: Grammar | None, **sampling: Any) -> SampleJob:
    return sample_job(number, rows, PROMPT, sampling=Sampling(grammar=grammar, **sampling))


def run(subject: WorkerModels, *jobs: SampleJob) -> list[JobOutcome]:
    for one in jobs:
        subject.handle(one)
    return drain(subject)


def texts(answers: Sequence[Tokens]) -> list[str]:
    return [BYTE_TOKENIZER.decode([token for token in answer if token != EOS]) for answer in answers]


def ask(grammar: Grammar, rows: int = 6, length: int = 40, **sampling: Any) -> list[Tokens]:
    asked = job(1, [Row((), key, length) for key in range(rows)], grammar, **sampling)
    return drawn(run(worker_models(), asked), 1, rows)


def test_answers_match_their_grammar() -> None:
    answers = ask(compiled_grammar("regex", "(ab|c){2,5}x?"))
    assert all(answer[-1] == EOS for answer in answers)
    assert all(re.fullmatch("(ab|c){2,5}x?", text) for text in texts(answers))
    assert len(set(answers)) > 3


def test_chunks_on_other_workers_draw_what_one_job_draws() -> None:
    grammar = compiled_grammar("json", '{"type": "object", "properties": {"a": {"type": "string", "maxLength": 20}}}')
    whole = ask(grammar, rows=4, length=30)
    for answer, key in zip(whole, range(4), strict=True):
        tokens: Tokens = ()
        subject = worker_models()
        while len(tokens) < len(answer) and EOS not in tokens:
            if len(tokens) % 3 == 2:
                subject = worker_models()  # the worker has died
            tokens += drawn(run(subject, job(1, [Row(tokens, key, 4)], grammar)), 1, 1)[0]
        assert tokens[: len(answer)] == answer


def test_resuming_consumes_only_new_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    consumed: list[int] = []

    class Counting:
        """A matcher that counts."""

        def __init__(self, matcher: Any) -> None:
            self._matcher = matcher

        def __getattr__(self, name: str) -> Any:
            return getattr(self._matcher, name)

        def deep_copy(self) -> Any:
            return Counting(self._matcher.deep_copy())

        def consume_tokens(self, tokens: list[int]) -> bool:
            consumed.append(len(tokens))
            return bool(self._matcher.consume_tokens(tokens))

    root = Node(3, None, 2)
    leaf = root
    for letter in b"aaaa":
        leaf = leaf.child(letter)
    start = GrammarEngine(lambda: new_tokenizer(TEXT, [EOS], VOCABULARY)).initial_matcher(
        compile_grammar("regex", "a*")
    )
    matcher: Any = Counting(start.result(timeout=60))
    ends = EndTokens([EOS])
    [first] = grammar_masks.resume_states([leaf], "a*", matcher, ends)
    assert consumed == [4]
    leaf.grammar_state = first
    far = leaf.child(97).child(97)
    rows = grammar_masks.resume_states([far, far, leaf], "a*", matcher, ends)
    assert consumed == [4, 2, 2, 0]
    assert leaf.grammar_state is None, "its continuations have taken over"
    assert len({id(row.matcher) for row in rows}) == 3
    grammar_masks.resume_states([far], "another", matcher, ends)
    assert consumed[-1] == 6


def test_a_row_is_the_same_alone_and_in_a_batch() -> None:
    grammar, other = compiled_grammar("regex", "[a-f]{3,9}"), compiled_grammar("choice", '["yes", "no"]')
    alone = ask(grammar)
    rows = [Row((), key, 40) for key in range(6)]
    crowd = run(
        worker_models(), job(7, rows, other), job(1, rows, grammar), job(8, rows, None), job(9, rows, None, top_k=3)
    )
    assert drawn(crowd, 1, 6) == alone
    assert set(texts(drawn(crowd, 7, 6))) <= {"yes", "no"}
    free = drawn(run(worker_models(), job(8, rows, None)), 8, 6)
    assert drawn(crowd, 8, 6) == free


def test_reported_logprobs_are_the_models_own() -> None:
    outcomes = run(worker_models(), job(1, [Row((), 5, 9)], compiled_grammar("choice", '["abc"]')))
    [row] = [row for outcome in outcomes if isinstance(outcome, SampleUpdate) for row in outcome.rows]
    assert texts([row.tokens]) == ["abc"]
    assert row.ending == EOS
    model = tiny_model()
    sequence = torch.tensor([PROMPT + row.tokens + (EOS,)])
    with torch.inference_mode():
        raw = model(input_ids=sequence).logits[0].log_softmax(-1)
    expected = [raw[len(PROMPT) - 1 + i, token].item() for i, token in enumerate((*row.tokens, EOS))]
    assert row.logprobs == pytest.approx(expected, abs=1e-4)


def test_stop_tokens_end_a_complete_answer_and_stop_at_their_own_text() -> None:
    z, b = (int(BYTE_TOKENIZER.convert_tokens_to_ids(letter)) for letter in "zb")
    never_eos = ((EOS, -1000.0),)
    answers = ask(compiled_grammar("regex", "(abc){2}"), stop_token_ids=(z,), logit_bias=never_eos)
    assert {BYTE_TOKENIZER.decode(answer) for answer in answers} == {"abcabc<eos>"}  # as `drawn` writes any ending
    cut_short = ask(compiled_grammar("regex", "(abc){2}"), stop_token_ids=(b,))
    assert {BYTE_TOKENIZER.decode(answer) for answer in cut_short} == {"a<eos>"}


def test_other_masks_that_leave_no_token_are_lifted() -> None:
    b = int(BYTE_TOKENIZER.convert_tokens_to_ids("b"))
    c = int(BYTE_TOKENIZER.convert_tokens_to_ids("c"))
    grammar = compiled_grammar("regex", "a(b|c)")
    assert set(texts(ask(grammar, rows=12, temperature=9.0))) == {"ab", "ac"}
    assert set(texts(ask(grammar, rows=12, bad_words=((b,),)))) == {"ac"}
    assert set(texts(ask(grammar, rows=12, temperature=9.0, bad_words=((b,), (c,))))) == {"ab", "ac"}
    assert set(texts(ask(grammar, rows=12, allowed_token_ids=(b,)))) == {"ab"}
    longer = ask(compiled_grammar("regex", "a{2,5}"), min_tokens=4)
    assert {len(answer) for answer in longer} <= {5, 6}  # with EOS
    assert texts(ask(grammar, rows=1, min_tokens=30)) in (["ab"], ["ac"])


def test_a_grammar_that_becomes_too_complex_fails_its_job_alone() -> None:
    # Its first letter is easy; the rest is too complex for llguidance.
    bomb = compiled_grammar("grammar", 'start: "a" X\nX: /((b{1000}){1000}){1000}/')
    rows = [Row((), key, 20) for key in range(2)]
    outcomes = run(worker_models(), job(1, rows, bomb), job(2, rows, compiled_grammar("choice", '["fine"]')))
    [failure] = [o for o in outcomes if isinstance(o, JobFailed)]
    assert (failure.id, failure.field) == (1, "guided_grammar")
    assert texts(drawn(outcomes, 2, 2)) == ["fine", "fine"]


def test_a_tokenizer_that_cannot_be_loaded_fails_the_job_alone() -> None:
    def no_tokenizer() -> Any:
        raise ValueError("no such tokenizer")

    subject = WorkerModels({"m": make_runner(tiny_model(), CPU, 1 << 22)}, {"m": GrammarEngine(no_tokenizer)})
    rows = [Row((), 1, 3)]
    outcomes = run(subject, job(1, rows, compiled_grammar("choice", '["x"]')), job(2, rows, None))
    [failure] = [o for o in outcomes if isinstance(o, JobFailed)]
    assert (failure.id, failure.field, failure.message) == (1, None, "ValueError"), "the log has the rest"
    assert drawn(outcomes, 2, 1)[0]
