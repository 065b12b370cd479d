"""Mutation testing: `python -m tests.mutations` breaks one line of the product at a time and runs tests that cover it.

It works on a copy of this checkout. A mutation is caught if one of its tests fails. The command exits with 1 if any
mutation survives. Each mutation is a fault that a user could notice, so a survivor means that a test is missing.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click

ROOT = Path(__file__).parent.parent
PYTEST = (sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly")
PASSED, FAILED, INTERRUPTED = 0, 1, 2  # exit codes of pytest; it is interrupted if a test file cannot be imported
CAUGHT, TIMED_OUT, SURVIVED = "caught", "caught (time-out)", "SURVIVED"


class Mutation(NamedTuple):
    """Replaces `old`, which occurs once in the file at `path`, by `new`. `tests` are files, separated by spaces."""

    path: str
    tests: str
    old: str
    new: str

    def __str__(self) -> str:
        old, new = (" ".join(text.split()) or "(nothing)" for text in (self.old, self.new))
        return f"{self.path}: {old} → {new}"


class Outcome(NamedTuple):
    """`test` is the first one that failed."""

    verdict: str
    seconds: float
    test: str = ""


# Two lines each: where and by which tests, then what is replaced by what.
# fmt: off
MUTATIONS = (
    Mutation("w2s_core/search.py", "tests/test_search.py",
             "(y.tokens, y.ended, y.finish_reason, y.text)", "(y.tokens, y.ended, y.finish_reason)"),
    Mutation("w2s_core/noise.py", "tests/remote/test_large.py",
             "_mix(key, _CALL, position, attempt) >> 1", "_mix(key, _CALL, position) >> 1"),
    Mutation("w2s_core/successors.py", "tests/test_text.py",
             'text[:stop], False, "stop"', 'text[:stop], ended, "stop"'),
    Mutation("w2s_core/trace.py", "tests/test_engine.py",
             "for number, y in enumerate(chunk.candidates)}", "for number, y in enumerate(chunk.beam)}"),
    Mutation("w2s_core/eager.py", "tests/test_eager.py",
             "for index in range(len(beam)) for y in arrived[index]", "for family in arrived.values() for y in family"),
    Mutation("w2s_core/writing.py", "tests/test_placing.py",
             "start=min(place.start, len(y.text))", "start=place.start"),
    Mutation("w2s_core/placing.py", "tests/test_placing.py",
             "if half or not data else", "if half else"),
    Mutation("w2s_core/pieces.py", "tests/test_placing.py",
             'None if added[token]["special"] else content.encode()', "None"),
    Mutation("w2s_core/growing_text.py", "tests/test_growing_text.py",
             "if settled is not None and y.text.startswith(before[: settled.characters + 2]):",
             "if settled is not None:"),
    Mutation("w2s_core/plain_text.py", "tests/test_plain_text.py",
             "yield from _texts_in(key)", "pass"),
    Mutation("w2s_core/text.py", "tests/test_growing_text.py",
             'part.get("use_regex") and not part.get("add_prefix_space")', 'part.get("use_regex")'),
    Mutation("w2s_core/text.py", "tests/test_plain_text.py",
             "if bos and adds_bos else text", "if bos else text"),
    Mutation("w2s_core/planning.py", "tests/test_engine.py",
             "large.context_length - (request.sampling.max_tokens or 1)",
             "large.context_length - (request.sampling.max_tokens or 0)"),
    Mutation("w2s_core/planning.py", "tests/test_engine.py",
             "if room < (1 if", "if room <= (1 if"),
    Mutation("w2s_core/admission.py", "tests/test_admission.py",
             "fits_now = not self._queue and self", "fits_now = self"),
    Mutation("w2s_core/prompt_run.py", "tests/test_engine.py",
             "[beam[-1]] * (n", "[beam[0]] * (n"),
    Mutation("w2s_core/prompt_run.py", "tests/test_engine.py",
             "[min(y.length for y in beam)]", "[max(y.length for y in beam)]"),
    Mutation("w2s_core/engine.py", "tests/test_engine.py",
             "stack.callback(ticket.cancel)", "pass"),
    Mutation("w2s_core/metrics.py", "tests/test_metrics.py",
             "inc(len(chunk.candidates) - kept)", "inc(drawn - kept)"),
    Mutation("w2s_core/observation.py", "tests/test_metrics.py",
             "self._tally.cut |= event", "self._tally.cut = event"),
    Mutation("w2s_core/observation.py", "tests/test_metrics.py",
             "                beam = chunk.beam\n", ""),
    Mutation("w2s_core/tracing.py", "tests/test_tracing.py",
             '_GOOD = ("stop", "length", "cancelled")', '_GOOD = ("stop", "length")'),
    Mutation("w2s_core/device/model_queue.py", "tests/device/test_scheduler.py",
             "self.trees[session].evict()", "pass"),
    Mutation("w2s_core/device/model_queue.py", "tests/device/test_scheduler.py",
             "stuck[:1],", "stuck,"),
    Mutation("w2s_core/device/tasks.py", "tests/device/test_scheduler.py",
             "len(r.logprobs) >= self", "len(r.logprobs) > self"),
    Mutation("w2s_core/device/batch.py", "tests/device/test_scheduler.py",
             "share.unplaced += unplaced", "share.unplaced = unplaced"),
    Mutation("w2s_core/device/token_tree.py", "tests/device/test_token_tree.py",
             "self._depths[: len(known)] = known", "pass"),
    Mutation("w2s_core/device/kv_cache.py", "tests/device/test_scheduler.py",
             "region.size = min(region.size, size)", "region.size = max(region.size, size)"),
    Mutation("w2s_core/device/prefix_cache.py", "tests/device/test_scheduler.py",
             "self._prompts[tokens] = self._prompts.pop(tokens)", "pass"),
    Mutation("w2s_core/device/sampling.py", "tests/device/test_sampling.py",
             "torch.where(top_k == vocabulary, whole, _logsumexp(kept))", "_logsumexp(kept)"),
    Mutation("w2s_core/device/penalties.py", "tests/device/test_penalties.py",
             "sampling.temperature * math.log(sampling.min_p)", "math.log(sampling.min_p)"),
    Mutation("w2s_core/device/grammar.py", "tests/device/test_grammar.py",
             "matcher = known.deep_copy()", "matcher = known"),
    Mutation("w2s_core/device/following.py", "tests/device/test_grammar.py",
             "JobFailed(task.job.id, message, field=grammar.field)", "JobFailed(task.job.id, message)"),
    Mutation("w2s_core/device/likeliest.py", "tests/device/test_logprobs.py",
             "(logits > chosen)", "(logits >= chosen)"),
    Mutation("w2s_core/device/attention.py", "tests/device/test_token_tree.py",
             "self.depths < window", "self.depths <= window"),
    Mutation("w2s_core/device/session.py", "tests/device/test_engine_on_workers.py",
             "self._worker.rows -= self._rows", "pass"),
    Mutation("w2s_core/device/pool.py", "tests/device/test_restarts.py",
             "return min(known, key=lambda info: info.kv_slots)", "return max(known, key=lambda info: info.kv_slots)"),
    Mutation("w2s_core/device/process.py", "tests/device/test_restarts.py",
             "WORKER_ENVIRONMENT | os.environ", "os.environ | WORKER_ENVIRONMENT"),
    Mutation("w2s_core/device/backoff.py", "tests/device/test_restarts.py",
             "        self._since = None\n", ""),
    Mutation("w2s_core/device/stderr.py", "tests/device/test_stderr.py",
             "part[: _LONGEST - len(self._bytes)]", "part[:_LONGEST]"),
    Mutation("w2s_core/grammar/checker.py", "tests/test_grammar_checker.py",
             'self._end()\n            raise RequestError("Too', 'raise RequestError("Too'),
    Mutation("w2s_core/grammar/compiling.py", "tests/test_grammar_checker.py",
             "high - low >= 1", "high - low > 1"),
    Mutation("w2s_core/tools/parsing.py", "tests/test_tool_parsing.py",
             "self._left -= len(admitted)", "pass"),
    Mutation("w2s_core/tools/formats.py", "tests/test_tool_parsing.py",
             "if entries and all(calls) else", "if entries and any(calls) else"),
    Mutation("w2s_core/tools/grammar.py", "tests/test_tool_grammar.py",
             ' | {"type": "object"}', ""),
    Mutation("w2s_core/large/local.py", "tests/device/test_engine_on_workers.py",
             "len(news.tokens) + news.ended", "len(news.tokens)"),
    Mutation("w2s_core/large/remote.py", "tests/remote/test_large.py",
             "sorted(completion.choices, key=lambda choice: choice.index)", "list(completion.choices)"),
    Mutation("w2s_core/large/wires.py", "tests/remote/test_large.py",
             "logprobs[: kept + ended], ended", "logprobs[:kept], ended"),
    Mutation("w2s_core/large/wires.py", "tests/remote/test_large.py",
             "tokens[:length], False, None", "tokens[:length], ended, ending"),
    Mutation("w2s_core/large/token_table.py", "tests/remote/test_large.py",
             "if piece and not decoder", "if not decoder"),
    Mutation("w2s_core/large/parameters.py", "tests/remote/test_large.py",
             "min(missing, length)", "missing"),
    Mutation("w2s_core/remote/breaker.py", "tests/remote/test_breaker.py",
             "self._failures += counts", "self._failures += 1"),
    Mutation("w2s_core/remote/faults.py", "tests/remote/test_faults.py",
             "tzinfo=date.tzinfo or UTC", "tzinfo=UTC"),
    Mutation("w2s_core/remote/provider.py", "tests/remote/test_failover.py",
             "if not fault.unhealthy:\n            endpoint.breaker.succeeded()",
             "if not fault.unhealthy:\n            endpoint.breaker.abandoned(probe=probe)"),
    Mutation("w2s_core/remote/provider.py", "tests/remote/test_failover.py",
             "self._clock() + min(fault.retry_after_s, MAX_RETRY_AFTER_S)", "self._clock() + fault.retry_after_s"),
    Mutation("w2s_core/remote/endpoints.py", "tests/remote/test_endpoints.py",
             "endpoint.calls if affinity is None else 0", "endpoint.calls"),
    Mutation("w2s_core/remote/exchange.py", "tests/remote/test_provider.py",
             'if answer.get("error"):', 'if "error" in answer:'),
    Mutation("w2s_core/scorers/remote.py", "tests/remote/test_pairs.py",
             "await reading.aclose()", "pass"),
    Mutation("w2s_core/scorers/pair_model.py", "tests/remote/test_pairs.py",
             "and (y.ended or not y.finished) else", "else"),
    Mutation("w2s_core/scorers/likelihood.py", "tests/test_engine.py",
             "max(1, y.length)", "max(1, len(y.tokens))"),
    Mutation("w2s_core/scorers/local.py", "tests/device/test_scoring_fixed_texts.py",
             "tuned.tokens_run + untuned.tokens_run", "tuned.tokens_run"),
    Mutation("server/sse.py", "tests/server/test_disconnect.py",
             "self._request_id) + DONE, more", "self._request_id), more"),
    Mutation("server/answers.py", "tests/server/test_answers.py",
             "Usage.of(event.prompt_tokens, self._usage.completion_tokens)",
             "Usage.of(event.prompt_tokens, event.completion_tokens)"),
    Mutation("server/errors.py", "tests/server/test_requests.py",
             "missing and position == len(loc) - 1", "missing"),
    Mutation("server/middleware.py", "tests/server/test_errors.py",
             "if received > most:", "if received >= most:"),
    Mutation("server/protocol.py", "tests/server/test_slow_clients.py",
             "            self._reading = None\n", ""),
    Mutation("server/keys.py", "tests/server/test_keys.py",
             "stat.S_IROTH", "stat.S_IRGRP"),
    Mutation("server/key_limits.py", "tests/server/test_keys.py",
             "math.floor(wait_s) + 1", "math.ceil(wait_s)"),
    Mutation("server/config.py", "tests/server/test_config.py",
             '!= "none" and rows > self', '!= "none" and rows >= self'),
    Mutation("server/draining.py", "tests/server/test_draining.py",
             "return leave or not left or not", "return leave or not"),
    Mutation("server/disconnect.py", "tests/server/test_disconnect.py",
             "        await asyncio.wait({working, leaving})\n", ""),
    Mutation("server/tool_calls.py", "tests/server/test_tools.py",
             "choice.tokens = []", "pass"),
    Mutation("server/schemas/fields.py", "tests/server/test_requests.py",
             "depth > DEEPEST", "depth >= DEEPEST"),
)
# fmt: on


@contextmanager
def copy_of_checkout() -> Iterator[Path]:
    """A temporary folder with every file that git tracks, as it is in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        for name in filter(None, listed.split("\0")):
            target = Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
        yield Path(folder)


def run_tests(tree: Path, tests: str, limit_s: float) -> Outcome:
    """Runs pytest in `tree` until the first failure, for at most `limit_s` seconds."""
    # No .pyc files: Python would not notice a second change of a file within a second.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    began, pipe = time.monotonic(), subprocess.PIPE
    with subprocess.Popen(
        [*PYTEST, *tests.split()],
        cwd=tree,
        env=environment,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return Outcome(TIMED_OUT, time.monotonic() - began)
    if process.returncode not in (PASSED, FAILED, INTERRUPTED):
        raise click.ClickException(f"pytest {tests} exited with {process.returncode}:\n{output}{errors}")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    verdict = SURVIVED if process.returncode == PASSED else CAUGHT
    return Outcome(verdict, time.monotonic() - began, failed[1] if failed else "")


def try_mutation(tree: Path, mutation: Mutation, tests: str, limit_s: float) -> Outcome:
    """Applies the mutation in `tree`, runs the tests and restores the file."""
    file = tree / mutation.path
    original = file.read_text()
    file.write_text(original.replace(mutation.old, mutation.new))
    try:
        return run_tests(tree, tests, limit_s)
    finally:
        file.write_text(original)


def check(mutations: Sequence[Mutation]) -> None:
    """Raises ClickException unless every `old` occurs exactly once and every test file exists."""
    for path, tests, old, new in mutations:
        if (ROOT / path).read_text().count(old) != 1 or old == new:
            raise click.ClickException(f"{path}: does not contain exactly once: {old!r}")
        if missing := [test for test in tests.split() if not (ROOT / test).exists()]:
            raise click.ClickException(f"{path}: no such test file: {', '.join(missing)}")


@click.command()
@click.option("--only", default="", metavar="PATTERN", help="Only mutations whose path or text this regex matches.")
@click.option("--list", "listing", is_flag=True, help="Print the mutations and exit.")
@click.option("--whole", is_flag=True, help="Run the whole suite for those that survive their own tests.")
@click.option(
    "--limit", default=300.0, show_default=True, help="Seconds per mutation; ten times as many for the suite."
)
def main(only: str, listing: bool, whole: bool, limit: float) -> None:
    """Try every mutation and print which ones the tests catch."""
    mutations = [mutation for mutation in MUTATIONS if re.search(only, str(mutation))]
    check(mutations)
    if listing:
        click.echo("\n".join(f"{mutation}\n    {mutation.tests}" for mutation in mutations))
        return
    began, verdicts = time.monotonic(), Counter[str]()
    with copy_of_checkout() as tree:
        files = " ".join(dict.fromkeys(" ".join(mutation.tests for mutation in mutations).split()))
        unchanged = run_tests(tree, files, 10 * limit)
        if unchanged.verdict != SURVIVED:
            raise click.ClickException(f"The tests fail without any mutation: {unchanged.test or 'time-out'}")
        for mutation in mutations:
            outcome = try_mutation(tree, mutation, mutation.tests, limit)
            if whole and outcome.verdict == SURVIVED:
                outcome = try_mutation(tree, mutation, "tests", 10 * limit)
            verdicts[outcome.verdict] += 1
            click.echo(f"{outcome.verdict:<17} {outcome.seconds:4.0f} s  {mutation}  {outcome.test}".rstrip())
    counts = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in (CAUGHT, TIMED_OUT, SURVIVED))
    click.echo(f"{len(mutations)} mutations in {time.monotonic() - began:.0f} s: {counts}")
    sys.exit(verdicts[SURVIVED] > 0)


if __name__ == "__main__":
    main()
