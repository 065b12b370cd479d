"""The tokens of training examples are those in which a served pair reads the same answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import save_tiny
from tests.training.conftest import Write, comparisons
from w2s_core.data_sets import DataError
from w2s_core.pairs.preferences import Answer
from w2s_core.scorers.local import LocalScorer
from w2s_core.scorers.pair_model import PairModel
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.training.data import read_data, split
from w2s_core.training.examples import Example, encode_examples, template_for
from w2s_core.training.phases import Phase, _in_order
from w2s_core.training.settings import TrainingSettings
from w2s_core.types import ChatPrompt, Hypothesis, Prompt, TextPrompt

ASK = ChatPrompt(({"role": "user", "content": "Hi <eos>?"},))


class Recorder:
    """Stands for the worker pool and its session: keeps the tokens that are to be scored."""

    def __init__(self) -> None:
        self.scored: list[tuple[Any, Any]] = []

    def info(self, _: str) -> Any:
        return type("Info", (), {"max_length": 10_000})

    def session(self, *_: Any) -> Recorder:
        return self

    async def __aenter__(self) -> Recorder:
        return self

    async def __aexit__(self, *_: Any) -> None:
        pass

    async def score(self, _: str, prompt: Any, answers: Any) -> Any:
        self.scored.append((prompt, answers[0]))
        return type("Result", (), {"tokens_run": 0, "logprobs": [0.0]})


@pytest.fixture(scope="module", params=[None, "llama"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HFTokenizer:
    folder = save_tiny(tmp_path_factory.mktemp("model"), sentencepiece=request.param, pairs=request.param is None)
    return HFTokenizer(str(folder))


@pytest.mark.parametrize(
    ("prompt", "template"),
    [(TextPrompt("Say"), "{prompt}"), (TextPrompt(""), ""), (ASK, None), (ASK, "Q: {prompt} A:")],
)
@pytest.mark.parametrize("text", ["", " the cat abcd", "ab\ncd <eos>"])
async def test_training_and_serving_read_the_same_tokens(
    tokenizer: HFTokenizer, prompt: Prompt, template: str | None, text: str
) -> None:
    [example] = encode_examples([Answer(prompt, text, good=True, partner=None)], tokenizer, template, 1000)
    recorder = Recorder()
    model = PairModel("p.tuned", tokenizer, shares_tokens=False)
    async with LocalScorer(recorder, model, None, template).open(prompt) as scoring:  # type: ignore[arg-type]
        await scoring.score([Hypothesis(text=text, ended=True)])
    assert recorder.scored == [(example.prompt_ids, example.answer_ids)]
    assert example.answer_ids[-1] == tokenizer.eos


def test_the_template_that_fits_the_data(tokenizer: HFTokenizer) -> None:
    def answers(*prompts: Prompt) -> list[Answer]:
        return [Answer(prompt, "a", good=True, partner=None) for prompt in prompts]

    assert template_for(answers(TextPrompt(""), TextPrompt("")), tokenizer) == ""
    assert template_for(answers(TextPrompt(""), TextPrompt("a")), tokenizer) == "{prompt}"
    assert template_for(answers(ASK), tokenizer) is None


@given(prompts=st.lists(st.integers(0, 60), min_size=1, max_size=80), share=st.floats(0, 0.9), seed=st.integers(0, 3))
def test_no_prompt_and_no_comparison_is_on_both_sides(prompts: list[int], share: float, seed: int) -> None:
    answers = [
        Answer(TextPrompt(str(prompt)), f"{i} {good}", good=good, partner=i)
        for i, prompt in enumerate(prompts)
        for good in (True, False)
    ]
    training, held_out = split(answers, share, seed)
    assert sorted(map(repr, [*training, *held_out])) == sorted(map(repr, answers))
    assert not {a.partner for a in training} & {a.partner for a in held_out}
    if len(set(prompts)) >= 20:
        assert not {a.prompt for a in training} & {a.prompt for a in held_out}  # type: ignore[type-var]
        assert len({repr(a.prompt) for a in held_out}) == round(share * len(set(prompts)))
    assert split(answers, share, seed) == (training, held_out)


@given(
    count=st.integers(1, 70), batch=st.integers(1, 9), steps=st.integers(1, 30), method=st.sampled_from(["sft", "dpo"])
)
def test_every_step_has_a_full_batch_and_every_example_its_turn(
    count: int, batch: int, steps: int, method: Any
) -> None:
    answer = Answer(TextPrompt(""), "", good=True, partner=None)
    width = 2 if method == "dpo" else 1
    examples = [Example(answer, (), (i,) * (1 + i * 7 % 11)) for i in range(count * width)]
    phase = Phase("tuned", method, examples, steps, 1.0)
    rows = _in_order(phase, batch, 3)
    assert len(rows) == steps * batch
    every = [tuple(examples[i : i + width]) for i in range(0, len(examples), width)]
    times = Counter(rows)
    assert set(times) <= set(every)
    assert max(times.values()) - min(times[row] for row in every) <= 2
    assert _in_order(phase, batch, 3) == rows


def test_empty_answers_are_left_out_and_counted(
    settings: Callable[..., TrainingSettings], write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    several = [{"prompt": "x", "chosen": "a", "rejected": " \n"}, {"prompt": "x", "chosen": "", "rejected": ""}]
    data = write(*comparisons(4), *several)
    found = read_data(settings(data=data, held_out=0.0))
    assert [answer.text for answer in found.training if not answer.text.strip()] == []
    assert len(found.training) == 8
    assert (
        capsys.readouterr().err
        == f"[w2s] left out: comparisons with an empty answer, 2 of them; the first is {data}, line 5\n"
    )
    data = write({"text": ""}, {"text": "a"})
    assert [answer.text for answer in read_data(settings(data=data)).training] == ["a"]
    assert capsys.readouterr().err == f"[w2s] left out: empty answers, 1 of them; the first is {data}, line 1\n"
    for records in ([{"text": " "}], [{"text": "a", "label": True}, {"text": "", "label": False}]):
        with pytest.raises(DataError, match=r"without the 1 empty answers too few are left to train on\.$"):
            read_data(settings(data=write(*records)))
