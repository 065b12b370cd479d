"""Clients of the scheduler's fuzz: searches, plain streams, scorers and prompts, each a script of its own seed.

What a client asks for depends on its seed and on the answers that it got, so that it asks the same in any company.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

from tests.tiny import EOS
from tests.worker.test_grammar_masks import compiled_grammar
from w2s_core.pool.messages import (
    CancelJob,
    CloseSession,
    JobFailed,
    JobOutcome,
    PromptJob,
    PromptResult,
    Row,
    SampleJob,
    SampleUpdate,
    Sampling,
    ScoreJob,
    ScoreResult,
    StopRows,
    WorkerCommand,
)
from w2s_core.types import Tokens

STOP_EVERY = 6  # a client stops a row that draws a multiple of it
BROKEN = 13  # behind this token the model's logits are no numbers: see `test_scheduler_pressure.BrokenRows`
PREFIXES = [tuple(range(first, first + 30)) for first in range(20, 180, 20)]  # system prompts, shared by many clients
GRAMMARS = [
    compiled_grammar("json", '{"type": "object", "properties": {"a": {"type": "string", "maxLength": 30}}}'),
    compiled_grammar("choice", '["abc", "abd", "x"]'),
    compiled_grammar("regex", "(ab|c){2,9}x?"),
]
Job = SampleJob | ScoreJob | PromptJob
#: One for each job of a step: the rows' tokens, with EOS where one ended; nats of a scored answer or a prompt.
Results = list[list[Tokens] | list[float]]
Script = Generator[list["Ask"], Results, None]


@dataclass(frozen=True, slots=True)
class Ask:
    """A job that a script asks for; the client gives it its numbers."""

    prompt: Tokens
    rows: tuple[Row, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    report_every: int = 1
    answers: tuple[Tokens, ...] = ()

    def job(self, number: int, session: int, model: str) -> Job:
        if self.rows:
            return SampleJob(number, session, model, self.prompt, self.rows, self.sampling, self.report_every)
        if self.answers:
            return ScoreJob(number, session, model, self.prompt, self.answers)
        return PromptJob(number, session, model, self.prompt, 2)


def some_sampling(chance: random.Random) -> Sampling:
    """Every sampler and every logits processor, alone and together."""
    plain = Sampling(
        temperature=chance.choice([0.0, 0.7, 1.0, 1.5]),
        top_p=chance.choice([1.0, 1.0, 0.8]),
        top_k=chance.choice([0, 0, 20]),
        ignore_eos=chance.random() < 0.5,
        alternatives=chance.choice([0, 0, 3]),
        stop_token_ids=chance.choice([(), (41, 42)]),
    )
    if chance.random() < 0.6:
        return plain
    return Sampling(
        plain.temperature,
        plain.top_p,
        plain.top_k,
        min_p=chance.choice([0.0, 0.05]),
        presence_penalty=chance.choice([0.0, 0.5]),
        frequency_penalty=chance.choice([0.0, -0.5]),
        repetition_penalty=chance.choice([1.0, 1.3]),
        logit_bias=chance.choice([(), ((50, 3.0), (51, -100.0))]),
        min_tokens=chance.choice([0, 5]),
        bad_words=chance.choice([(), ((60,), (61, 62))]),
        alternatives=plain.alternatives,
        grammar=chance.choice([None, *GRAMMARS]),
    )


def some_prompt(chance: random.Random) -> Tokens:
    tail = tuple(chance.randrange(256) for _ in range(chance.randrange(1, 15)))
    return chance.choice([(), *PREFIXES]) + tail


def search(chance: random.Random) -> Script:
    """Chunk-level beam search: K successors of each of W answers, then a choice of W, until all have ended."""
    prompt, sampling, budget = some_prompt(chance), some_sampling(chance), chance.randrange(5, 20)
    width, k, length = chance.randrange(1, 4), chance.randrange(1, 4), chance.randrange(1, 8)
    beam: list[tuple[Tokens, int]] = [((), chance.getrandbits(32)) for _ in range(width)]
    while beam and budget > 0:
        keys = [(y, key if i == 0 else chance.getrandbits(32)) for y, key in beam for i in range(k)]
        rows = tuple(Row(y, key, min(length, budget)) for y, key in keys)
        [drawn] = yield [Ask(prompt, rows, sampling, report_every=chance.choice([1, 4, length]))]
        grown = [(y + tokens, key) for (y, key), tokens in zip(keys, drawn, strict=True)]  # type: ignore[operator]
        budget -= length
        ends = {EOS, *sampling.stop_token_ids}
        live = [(y, key) for y, key in grown if y[-1] not in ends and y[-1] % STOP_EVERY]
        beam = chance.sample(live, min(width, len(live)))


def choices(chance: random.Random) -> Script:
    """n choices of one prompt at once, each a stream of its own, in one session."""
    prompt = some_prompt(chance)
    sampling = some_sampling(chance)
    rows = [(Row((), chance.getrandbits(32), chance.randrange(1, 30)),) for _ in range(chance.randrange(1, 4))]
    yield [Ask(prompt, row, sampling) for row in rows]


def scorer(chance: random.Random) -> Script:
    """Answers that grow and whose ends turn into other tokens, as retokenization does; some are scored again."""
    prompt, beam = some_prompt(chance), [()]  # type: tuple[Tokens, list[Tokens]]
    for _ in range(chance.randrange(1, 5)):
        answers: list[Tokens] = []
        for y in beam:
            for _ in range(chance.randrange(1, 4)):
                kept = max(0, len(y) - chance.choice([0, 0, 1, 3]))
                answers.append((*y[:kept], *(chance.randrange(50) for _ in range(chance.randrange(6)))))
        answers = [y for y in answers if y] or [(1,)]
        yield [Ask(prompt, answers=tuple(answers))]
        beam = chance.sample(answers, min(3, len(answers)))


def prompt_reader(chance: random.Random) -> Script:
    yield [Ask((*some_prompt(chance), 1, 2))]


SCRIPTS = (search, search, search, choices, scorer, scorer, prompt_reader)


class Client:
    """Runs one script in one session, on one of the models. `log` is what it was answered, up to its end or its
    failure."""

    def __init__(self, seed: int, numbers: Iterator[int], models: Sequence[str] = ("m",)) -> None:
        chance = random.Random(seed)
        self._model = models[seed % len(models)]
        self.session = next(numbers)
        self.log: list[Results | str] = []
        self.done = False
        self.jobs = 0
        self._numbers = numbers
        self._script = chance.choice(SCRIPTS)(chance)
        self._running: dict[int, Ask] = {}
        self._rows: dict[int, list[Tokens]] = {}  # what each row of a job has drawn
        self._stopped: set[tuple[int, int]] = set()  # rows, by job and index
        self._results: dict[int, list[Tokens] | list[float]] = {}

    def start(self) -> list[WorkerCommand]:
        return self._ask(next(self._script))

    def leave(self) -> list[WorkerCommand]:
        self.done = True
        return [*(CancelJob(job) for job in self._running), CloseSession(self.session)]

    def owns(self, outcome: JobOutcome) -> bool:
        return outcome.id in self._running

    def react(self, outcome: JobOutcome) -> list[WorkerCommand]:
        """Takes an outcome of one of its jobs. Returns what it sends to the worker in answer."""
        if self.done:  # a failure fails the session's other jobs too
            return []
        match outcome:
            case JobFailed():
                self.log.append(outcome.message)
                return self.leave()
            case SampleUpdate():
                stops = self._take(outcome)
                return [*stops, *(self._finish(outcome.id, self._rows[outcome.id]) if outcome.finished else [])]
            case ScoreResult():
                return self._finish(outcome.id, list(outcome.logprobs))
            case PromptResult():
                return self._finish(outcome.id, list(outcome.logprobs.logprobs))
        raise AssertionError(outcome)

    def _take(self, update: SampleUpdate) -> list[WorkerCommand]:
        stops: list[WorkerCommand] = []
        for row in update.rows:
            key = (update.id, row.row)
            if key in self._stopped:
                continue
            assert BROKEN not in (*self._rows[update.id][row.row], *row.tokens)[:-1], "drawn from logits that are NaN"
            tokens = row.tokens if row.ending is None else (*row.tokens, row.ending)
            cut = next((i + 1 for i, token in enumerate(tokens) if token % STOP_EVERY == 0), None)
            self._rows[update.id][row.row] += tokens[:cut]
            if cut is not None:
                self._stopped.add(key)
                stops.append(StopRows(update.id, (row.row,)))
        return stops

    def _ask(self, asks: Sequence[Ask]) -> list[WorkerCommand]:
        self._running = {next(self._numbers): ask for ask in asks}
        self._rows = {number: [()] * len(ask.rows) for number, ask in self._running.items()}
        self._results = {}
        self.jobs += len(asks)
        return [ask.job(number, self.session, self._model) for number, ask in self._running.items()]

    def _finish(self, number: int, result: list[Tokens] | list[float]) -> list[WorkerCommand]:
        """The job's result is whole. The script goes on when all jobs that it asked for have one."""
        self._results[number] = result
        if len(self._results) < len(self._running):
            return []
        results = [self._results[job] for job in self._running]
        self.log.append(results)
        try:
            return self._ask(self._script.send(results))
        except StopIteration:
            return self.leave()


def numbers() -> Iterator[int]:
    return itertools.count(1)
